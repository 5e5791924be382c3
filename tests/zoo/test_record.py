"""Records are written whole, read back equal, and never skipped."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from zoo import record as records
from zoo.errors import RecordError
from zoo.files import ROOT
from zoo.record import ResultRecord, Trials, read_all, read_arrays, read_record, schema_text, write_record

ARRAYS = {"correct": np.array([True, False, True]), "replicates/top1": np.linspace(60, 70, 1000)}


def drawn(cell: str = "a", **changes: Any) -> ResultRecord:
    """A record of cell aaaa…, with no arrays yet."""
    values: dict[str, Any] = {
        "schema_version": 1,
        "cell_id": cell * 64,
        "benchmark_config": "imagenet_knn",
        "benchmark": "knn",
        "protocol": 1,
        "modified": ("settings.k=5",),
        "seed": 0,
        "deterministic": True,
        "checkpoint": {
            "name": "SimSiam “100 epochs”",
            "family": "simsiam",
            "arch": "resnet50",
            "tensors_sha256": "1" * 64,
            "pretrain_seed": None,
            "epochs": 100,
            "preprocessing": {"arch": "resnet50", "pixels": {"mean": [0.485, 0.456, 0.406]}},
        },
        "datasets": {
            role: {"dataset": "imagenet", "split": role, "sha256": "2" * 64, "num_images": 3, "num_classes": 2}
            for role in ("bank", "test")
        },
        "settings": {"k": [10, 20], "temperature": 0.07, "nested": {"a": None}},
        "selection": "none: no training",
        "num_scored": 3,
        "metrics": {"top1": 200 / 3},
        "labels": {"best_layer": "feature5"},
        "confidence": {"top1": (60.0, 70.1)},
        "details": {"losses": [1.5, 0.1 + 0.2]},
        "arrays_sha256": "",
        "command": "python -m evaluate run",
        "environment": {"torch": "2", "threads": 2},
        "started": "2025-01-01T00:00:00+00:00",
        "seconds": 1e-3,
    }
    return ResultRecord.model_validate({**values, **changes})


def test_a_written_record_and_its_arrays_are_read_back_equal(tmp_path: Path) -> None:
    path = write_record(tmp_path / "records", drawn(), ARRAYS)
    found = read_record(path)
    assert path.name == f"{'a' * 64}.json"
    assert found == drawn(arrays_sha256=found.arrays_sha256) and len(found.arrays_sha256) == 64
    arrays = read_arrays(path.parent, found)
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and np.array_equal(arrays[name], array)


def test_a_read_record_written_again_is_the_same_bytes(tmp_path: Path) -> None:
    path = write_record(tmp_path, drawn(), ARRAYS)
    first = path.read_bytes()
    write_record(tmp_path, read_record(path), ARRAYS)
    assert path.read_bytes() == first


def test_a_record_written_before_there_were_labels_has_none(tmp_path: Path) -> None:
    path = write_record(tmp_path, drawn(), ARRAYS)
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "labels"}))
    assert read_record(path).labels == {}


TRIALS = {"n": 5, "std": 0.5, "min": 66.0, "max": 67}


def test_the_spread_over_trials_is_read_back_typed(tmp_path: Path) -> None:
    path = write_record(tmp_path, drawn(details={"trials": {"top1": TRIALS}}), ARRAYS)
    assert read_record(path).trials == {"top1": Trials(n=5, std=0.5, min=66.0, max=67.0)}
    assert drawn().trials == {}


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        ({"top1": TRIALS | {"n": 1}}, "details: trials: top1.n: Input should be greater than or equal to 2"),
        ({"top1": {"n": 5}}, "details: trials: top1.std: Field required"),
        ({"top5": TRIALS}, "details: trials: expected names of metrics, found top5"),
    ],
)
def test_trials_that_cannot_be_shown_are_no_record(tmp_path: Path, trials: dict[str, Any], message: str) -> None:
    path = write_record(tmp_path, drawn(), ARRAYS)
    path.write_text(json.dumps({**json.loads(path.read_text()), "details": {"trials": trials}}))
    with pytest.raises(RecordError, match=rf"not a readable result record of schema 1 \({message}"):
        read_record(path)


def test_a_record_is_frozen_and_finite() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        drawn().seed = 1
    with pytest.raises(ValidationError, match="finite number"):
        drawn(metrics={"top1": float("nan")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version: Input should be 1"),
        ({"seed": "0"}, "seed: Input should be a valid integer"),
        ({"cell_id": "short"}, "cell_id: String should match pattern"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"metrics": {"top1": None}}, "metrics.top1: Input should be a valid number"),
    ],
)
def test_a_record_that_differs_from_the_schema_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_record(tmp_path, drawn(), ARRAYS)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RecordError, match=rf"{path.name}: not a readable result record of schema 1 \({message}"):
        read_record(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"<html>"])
def test_a_file_that_is_no_record_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / f"{'a' * 64}.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match="not a readable result record.*remove the file to measure the cell again"):
        read_record(path)


def test_a_missing_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="x.json: not a readable .*No such file"):
        read_record(tmp_path / "x.json")


def test_a_renamed_record_is_refused(tmp_path: Path) -> None:
    path = write_record(tmp_path, drawn(), ARRAYS)
    renamed = path.rename(path.with_stem("b" * 64))
    with pytest.raises(RecordError, match="holds cell aaaaaaaaaaaa…, expected the one it is named after"):
        read_record(renamed)


def test_all_records_come_in_the_order_of_their_cells(tmp_path: Path) -> None:
    for cell in "cab":
        write_record(tmp_path, drawn(cell), ARRAYS)
    assert [record.cell_id[0] for record in read_all(tmp_path)] == ["a", "b", "c"]
    assert read_all(tmp_path / "nowhere") == []


def test_all_bad_records_are_listed_at_once(tmp_path: Path) -> None:
    for cell in "abc":
        write_record(tmp_path, drawn(cell), ARRAYS)
    (tmp_path / f"{'a' * 64}.json").write_text("{")
    (tmp_path / f"{'c' * 64}.json").rename(tmp_path / f"{'d' * 64}.json")
    with pytest.raises(RecordError) as caught:
        read_all(tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"2 of the records in {tmp_path} cannot be read:"
    assert "aaaa.json: not a readable" in lines[1] and "dddd.json: holds cell cccc" in lines[2]


def test_arrays_of_another_hash_are_refused(tmp_path: Path) -> None:
    record = read_record(write_record(tmp_path, drawn(), ARRAYS))
    write_record(tmp_path, drawn(), {"correct": np.zeros(3)})
    with pytest.raises(RecordError, match="aaaa.npz: expected sha256 .*, found"):
        read_arrays(tmp_path, record)


def test_missing_arrays_are_named(tmp_path: Path) -> None:
    record = read_record(write_record(tmp_path, drawn(), ARRAYS))
    (tmp_path / f"{record.cell_id}.npz").unlink()
    with pytest.raises(RecordError, match="aaaa.npz: expected the arrays of record aaaaaaaaaaaa…, No such file"):
        read_arrays(tmp_path, record)


def test_an_end_between_the_arrays_and_the_record_leaves_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = records.write_atomic

    def killed(path: Path, data: bytes | str) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(records, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        write_record(tmp_path, drawn(), ARRAYS)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"] and read_all(tmp_path) == []


def test_objects_are_not_stored_as_arrays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle=False"):
        write_record(tmp_path, drawn(), {"names": np.array([{}], dtype=object)})
    assert list(tmp_path.iterdir()) == []


def test_the_documented_schema_is_the_models() -> None:
    path = ROOT / "docs" / "record.schema.json"
    assert path.read_text() == schema_text(), (
        "docs/record.schema.json is not what zoo/record.py says. If the change is meant: raise SCHEMA_VERSION when old "
        "records cannot be read any more, and run: python -m zoo.record > docs/record.schema.json"
    )
