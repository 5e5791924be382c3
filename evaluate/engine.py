"""A benchmark that an engine measures: from the job to the child process and back (engines.launch).

The cell's own folder holds what the child reads and writes: the job, the converted weights, one checkpoint to go on
from, log.jsonl and TensorBoard's events. Once the record is written only the job and the logs stay.

Two settings are the same for every engine's benchmark, and are here: a global batch other than the protocol's
(evaluate.scaling), and a learning rate chosen on held-out training images (evaluate.lr_sweep).
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from engines import launch
from engines.launch import Name
from evaluate import lr_sweep, scaling
from evaluate.job import Job, Positive
from evaluate.lr_sweep import HeldOut, LrSweep
from zoo.config import Strict
from zoo.datasets import Manifest
from zoo.errors import CheckpointError, ConfigError, DataError, ZooError, several
from zoo.files import ensure_writable, write_atomic

_KEPT = ("job.json", "log.jsonl", "events.", lr_sweep.POINT)
TRAINED_BY = "trained_by.json"
HISTORY = 200  # points of the loss curve that a record keeps


class Sized(Protocol):
    """An image's annotation, whatever else is in it."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...


class EngineSettings(Strict):
    """What the settings of every benchmark that an engine measures begin with."""

    train_split: str
    test_split: str
    engine_config: dict[str, Any]  # a file of configs/engines/, resolved
    global_batch: Positive | None = None  # images a step, where not the protocol's: a variant of it (evaluate.scaling)
    lr_sweep: LrSweep | None = None  # null: the protocol's own rate


def measure(
    name: Name,
    job: Job,
    *,
    prepare: Callable[..., Any],
    classes: Sequence[str],
    train: list[dict[str, Any]],
    test: list[dict[str, Any]],
    held_out: Callable[[np.ndarray], HeldOut] | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Hand the cell to engine `name` and return (details for the record, the arrays it wrote).

    job.settings are an EngineSettings. prepare(folder, state, arch, pixels) → engines.contract.Weights. train, test:
    the images in the engine's own terms, test in manifest order. held_out(rows) divides the training images: those at
    the manifest's `rows` are held out; None where the benchmark has no rate chosen. Raises what engines.launch.measure
    does; CheckpointError for a checkpoint without a network, ConfigError for a batch or a sweep that cannot be.
    """
    from engines.contract import Weights
    from zoo.backbone import read_weights

    if job.card.arch == "raw_pixels":
        raise CheckpointError(f"{job.card.name}: {name} needs a ResNet's weights; pixels alone cannot be fine-tuned.")
    settings: EngineSettings = job.settings
    config: dict[str, Any] = settings.engine_config
    details: dict[str, Any] = {}
    notes: list[str] = []
    if settings.global_batch is not None:
        config, details["scaled"] = scaling.scaled(name, config, settings.global_batch)
        notes.append(scaling.remark(settings.engine_config, details["scaled"], swept=settings.lr_sweep is not None))
    refuse_uneven(name, config, job.procs)
    parts = None
    if settings.lr_sweep is not None:
        parts = _divided(name, settings.lr_sweep, job.manifests["train"], held_out)
    folder = ensure_writable(job.work.resolve())
    weights: Weights = prepare(folder, read_weights(job.weights), job.card.arch, job.card.pixels)

    def train_point(home: Path, mine: dict[str, Any], parts: HeldOut) -> dict[str, np.ndarray]:
        return _run(name, job, home, weights, mine, classes, parts.fit, parts.test)[1]

    if parts is not None and settings.lr_sweep is not None:
        config, details["lr_sweep"] = lr_sweep.choose(name, config, settings.lr_sweep, parts, folder, train_point)
        notes += filter(None, [lr_sweep.remark(details["lr_sweep"])])
    measurement, arrays = _run(name, job, folder, weights, config, classes, train, test)
    notes += filter(None, [mixture(folder)])
    details |= {
        "engine": measurement["engine"],
        "proofs": measurement["proofs"],
        "overlay": weights.overlay,
        "steps": measurement["steps"],
        "global_batch": measurement["batch"],  # these two as the engine had built them
        "lr": measurement["lr"],
        "resumed_at": measurement["resumed_at"],  # 0: trained in one go; else the iteration it went on with
        "history": history(folder / "log.jsonl"),
    }
    if notes:
        details["notes"] = notes
    return details, arrays


def refuse_uneven(name: Name, config: dict[str, Any], procs: int) -> None:
    """Raises ConfigError for a global batch that --procs processes cannot share equally."""
    batch = scaling.value_at(config, scaling.BATCH[name])
    if batch is None:
        raise ConfigError(
            f"settings.engine_config: expected {scaling.BATCH[name]}, the global batch, found none; state it."
        )
    if batch % procs:
        fitting = ", ".join(str(number) for number in range(1, batch + 1) if batch % number == 0)
        raise ConfigError(
            f"--procs {procs}: expected a divisor of the global batch, {batch} images a step ({scaling.BATCH[name]}); "
            f"choose among {fitting}."
        )


def _divided(name: Name, sweep: LrSweep, train: Manifest, held_out: Callable[[np.ndarray], HeldOut] | None) -> HeldOut:
    """The training images in two parts. Raises ConfigError where the benchmark has no sweep, DataError for no fit."""
    if held_out is None:
        raise ConfigError(f"settings.lr_sweep: {name} has no learning rate chosen in this benchmark; expected null.")
    parts = held_out(lr_sweep.held_out_rows(len(train), sweep.held_out, manifest_sha256=train.sha256))
    if not parts.fit:
        raise DataError(f"{train.dataset} {train.split}: without the held-out part no image is left to train on.")
    return parts


def _run(
    name: Name,
    job: Job,
    folder: Path,
    weights: Any,
    config: dict[str, Any],
    classes: Sequence[str],
    train: list[dict[str, Any]],
    test: list[dict[str, Any]],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """One training and its test, in a folder of its own; goes on from what a killed one left there."""
    from engines.contract import Job as Handed
    from engines.contract import write_job

    folder.mkdir(exist_ok=True)
    sign(folder, name, job)
    for role, images in (("train", train), ("test", test)):
        write_atomic(folder / f"{role}.json", json.dumps(images))
    write_job(
        folder,
        Handed(
            **vars(weights),
            task="measure",
            config=config,
            device=job.me.device.type,
            seed=job.seed,
            workers=job.num_workers,
            classes=list(classes),
            train=str(folder / "train.json"),
            test=str(folder / "test.json"),
        ),
    )
    measurement, arrays = launch.measure(name, folder, procs=job.procs)
    if measurement["num_scored"] != len(test):
        raise ZooError(
            f"{name} scored {measurement['num_scored']} images, expected {len(test)}; this is a bug of ours."
        )
    return measurement, arrays


def sign(folder: Path, name: Name, job: Job) -> None:
    """Note in `folder` who trains there from now on; whoever left no checkpoint is forgotten."""
    path = folder / TRAINED_BY
    earlier = json.loads(path.read_text()) if path.exists() and (folder / "last_checkpoint").exists() else []
    here = {"processes": job.procs, "device": job.me.device.type, "interpreter": launch.interpreter(name)}
    if not earlier or earlier[-1] != here:
        write_atomic(path, json.dumps([*earlier, here]))


def mixture(folder: Path) -> str | None:
    """What stands below a table where a cell's trainings went on, or were compared, under other conditions."""
    found = [each for path in folder.rglob(TRAINED_BY) for each in json.loads(path.read_text())]
    kinds = sorted({f"{each['processes']} on {each['device']}" for each in found})
    if len(kinds) > 1:
        return (
            f"trained in parts by different numbers of processes or on different devices ({', '.join(kinds)}): other "
            "draws and other rounding than any of them alone."
        )
    if len({each["interpreter"] for each in found}) > 1:
        return "trained in parts by different installations of the engine."
    return None


def labels(details: dict[str, Any]) -> dict[str, str]:
    """A record's labels: the learning rate that was chosen, where one was."""
    return {"learning_rate": f"{details['lr_sweep']['lr']:g}"} if "lr_sweep" in details else {}


def history(path: Path) -> list[dict[str, float]]:
    """iteration, loss and lr of a log.jsonl, thinned evenly to at most HISTORY points and the last."""
    points = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        loss = row.get("loss", row.get("total_loss"))  # mmseg's name, detectron2's name
        if loss is not None:
            points.append({"iteration": row["iteration"], "loss": loss, "lr": row["lr"]})
    step = -(-len(points) // HISTORY) or 1
    return points[::step] + (points[-1:] if (len(points) - 1) % step else [])


def tidy(folder: Path) -> None:
    """Remove all of a measured cell's folder but its job and logs: checkpoints are ten times the weights' size."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith(lr_sweep.POINT_FOLDER):
            tidy(path)
        elif not path.name.startswith(_KEPT):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()  # where nothing is worth keeping


def class_names(dataset: str, classes: Sequence[str] | None) -> tuple[str, ...]:
    """The dataset's class names. Raises DataError when its configuration has none."""
    if classes is None:
        raise DataError(f"configs/datasets/{dataset}.yaml: expected `classes`, the names in label order, found none.")
    return tuple(classes)


def pictures(manifest: Manifest, read: Sequence[Sized]) -> list[dict[str, Any]]:
    """detectron2's dicts without objects; image_id is the manifest's index."""
    return [
        {
            "file_name": str(manifest.path(index)),
            "image_id": index,
            "height": annotation.height,
            "width": annotation.width,
            "annotations": [],
        }
        for index, annotation in enumerate(read)
    ]


def all_read(read: Callable[[int], Any], count: int, what: str) -> list[Any]:
    """read(0) … read(count - 1). Raises one DataError with the first 20 problems."""
    found: list[Any] = []
    problems: list[str] = []
    for index in range(count):
        try:
            found.append(read(index))
        except DataError as error:
            problems.append(str(error))
    if problems:
        more = [f"… and {len(problems) - 20:,} more"] if len(problems) > 20 else []
        raise DataError(several(f"{len(problems):,} of {count:,} {what} cannot be used:", [*problems[:20], *more]))
    return found
