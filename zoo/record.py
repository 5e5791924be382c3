"""One result, kept for good: what was measured, on what, how, and with which software.

A record is `<cell id>.json`; what is stored per sample (predictions, bootstrap replicates) is `<cell id>.npz` beside
it, and a trained head `<cell id>.heads.safetensors`; they are written first and named by hash in the JSON, so a record
that exists is complete. `docs/record.schema.json` is the
contract for other programs; `python -m zoo.record` prints it, and a test compares it with these models.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, field_validator

from zoo.config import Strict
from zoo.errors import RecordError, several
from zoo.files import sha256_file, write_atomic

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a benchmark returns. It only measures; `evaluate/__main__.py` adds provenance and writes.

    metrics: name → value, percentages 0–100. num_scored: how many test samples stand behind them.
    selection: which model or setting the number is of ("last epoch", "none: no training", …).
    per_sample: name → (num_scored, …) array, in manifest order (detections: one row each, with its image's index;
    map_<sample>: a label map to be looked at). replicates: metric name → (1000,) bootstrap values.
    details: anything else worth keeping (losses per epoch, convergence), JSON values only. details["trials"]: metric
    name → `Trials` as a dict, for each metric that is a mean over repeated draws within this one measurement;
    details["notes"]: sentences that a table with these values must have below it.
    labels: name → a word that was found ({"best_layer": "feature5"}); no name is a metric's too.
    files: name → content of what was made and is worth keeping, kept beside the record (trained heads).
    """

    metrics: Mapping[str, float]
    num_scored: int
    selection: str
    per_sample: Mapping[str, np.ndarray]
    replicates: Mapping[str, np.ndarray]
    details: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


class Trials(Strict):
    """How a metric spread over the draws that it is the mean of; in the metric's unit."""

    n: Annotated[int, Field(ge=2)]
    std: Annotated[float, Field(ge=0)]  # of the sample, n - 1
    min: float
    max: float


_TRIALS = TypeAdapter(dict[str, Trials])


class DatasetRecord(Strict):
    """Which images: `zoo.datasets.Identity`."""

    dataset: str
    split: str
    sha256: str
    num_images: int
    num_classes: int


class CheckpointRecord(Strict):
    """Which weights: the part of the card that identifies them."""

    name: str
    family: str
    arch: str
    tensors_sha256: str
    pretrain_seed: int | None
    epochs: int | None
    preprocessing: dict[str, Any]


class ResultRecord(Strict):
    """One cell's result. `settings` are resolved: every value that can move a number, none that cannot."""

    schema_version: Literal[1]
    cell_id: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    benchmark_config: str  # configs/benchmarks/<this>.yaml
    benchmark: str  # the module that measured
    protocol: int
    modified: tuple[str, ...]  # --set overrides; a modified record never enters a standard column
    seed: int
    deterministic: bool  # the seed changes nothing: one run is all runs
    checkpoint: CheckpointRecord
    datasets: dict[str, DatasetRecord]  # by role: train or bank, test
    settings: dict[str, Any]
    selection: str
    num_scored: int
    metrics: dict[str, float]
    labels: dict[str, str] = {}  # words that the measurement found, as its best layer
    confidence: dict[str, tuple[float, float]]  # 95 % bootstrap interval over test samples, by metric
    details: dict[str, Any]
    arrays_sha256: str  # of <cell id>.npz
    files_sha256: dict[str, str] = {}  # name → hash of <cell id>.<name>
    command: str
    environment: dict[str, Any]  # versions, hardware, precision switches, commit
    started: str  # UTC, ISO 8601
    seconds: float

    @field_validator("details")
    @classmethod
    def _trials_of_metrics(cls, details: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        try:
            trials = _TRIALS.validate_python(details.get("trials", {}))
        except ValidationError as error:
            raise ValueError(f"trials: {_first(error)}") from None
        unknown = sorted(trials.keys() - info.data.get("metrics", trials).keys())
        if unknown:
            raise ValueError(f"trials: expected names of metrics, found {', '.join(unknown)}")
        return details

    @property
    def trials(self) -> dict[str, Trials]:
        """Metric → the spread of its draws, for each metric that is a mean over some."""
        return _TRIALS.validate_python(self.details.get("trials", {}))


def write_record(
    folder: Path, record: ResultRecord, arrays: Mapping[str, np.ndarray], files: Mapping[str, bytes] | None = None
) -> Path:
    """Write arrays and files, then the record that names them by hash; those fields of it are filled in here.

    Raises OSError (a full disk, say) with nothing half-written left behind.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **dict(arrays))
    arrays_path = folder / f"{record.cell_id}.npz"
    write_atomic(arrays_path, buffer.getvalue())
    (folder / f"{record.cell_id}.json").unlink(missing_ok=True)  # measured again: the old one names other arrays
    hashes: dict[str, str] = {}
    for name, content in (files or {}).items():
        write_atomic(file_path(folder, record.cell_id, name), content)
        hashes[name] = sha256_file(file_path(folder, record.cell_id, name))
    record = record.model_copy(update={"arrays_sha256": sha256_file(arrays_path), "files_sha256": hashes})
    path = folder / f"{record.cell_id}.json"
    write_atomic(path, record.model_dump_json(indent=2) + "\n")
    return path


def file_path(folder: Path, cell_id: str, name: str) -> Path:
    """Where a record's file `name` lies."""
    return folder / f"{cell_id}.{name}"


def read_file(folder: Path, record: ResultRecord, name: str) -> bytes:
    """The content of a record's file, checked against its hash. Raises RecordError."""
    path = file_path(folder, record.cell_id, name)
    if name not in record.files_sha256:
        raise RecordError(f"record {record.cell_id[:12]}… ({record.benchmark_config}): has no file '{name}'.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: expected a file of record {record.cell_id[:12]}…, {error.strerror}.") from error
    found = hashlib.sha256(content).hexdigest()
    if found != record.files_sha256[name]:
        raise RecordError(
            f"{path}: expected sha256 {record.files_sha256[name][:12]}…, found {found[:12]}…; measure the cell again."
        )
    return content


def read_record(path: Path) -> ResultRecord:
    """One record. Raises RecordError when it is not one, whatever the reason."""
    try:
        record = ResultRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError, ValueError) as error:
        first = str(error).splitlines()[0] if not isinstance(error, ValidationError) else _first(error)
        raise RecordError(
            f"{path}: not a readable result record of schema {SCHEMA_VERSION} ({first}). It is never skipped silently: "
            "remove the file to measure the cell again."
        ) from error
    if record.cell_id != path.stem:
        raise RecordError(f"{path}: holds cell {record.cell_id[:12]}…, expected the one it is named after.")
    return record


def _first(error: ValidationError) -> str:
    item = error.errors()[0]
    return f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg'].removeprefix('Value error, ')}"


def read_all(folder: Path) -> list[ResultRecord]:
    """Every record in `folder`, ordered by cell id; [] without a folder. Raises one RecordError for all bad ones."""
    records: list[ResultRecord] = []
    problems: list[str] = []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(read_record(path))
        except RecordError as error:
            problems.append(str(error))
    if problems:
        raise RecordError(several(f"{len(problems)} of the records in {folder} cannot be read:", problems))
    return records


def read_arrays(folder: Path, record: ResultRecord) -> dict[str, np.ndarray]:
    """A record's per-sample arrays and replicates, checked against the hash in the record."""
    path = folder / f"{record.cell_id}.npz"
    try:
        found = sha256_file(path)
    except OSError as error:
        raise RecordError(f"{path}: expected the arrays of record {record.cell_id[:12]}…, {error.strerror}.") from error
    if found != record.arrays_sha256:
        raise RecordError(f"{path}: expected sha256 {record.arrays_sha256[:12]}…, found {found[:12]}….")
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def schema_text() -> str:
    """What docs/record.schema.json holds."""
    return json.dumps(ResultRecord.model_json_schema(), indent=2) + "\n"


if __name__ == "__main__":  # python -m zoo.record > docs/record.schema.json
    print(schema_text(), end="")
