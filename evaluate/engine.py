"""A benchmark that an engine measures: from the job to the child process and back (engines.launch).

The cell's own folder holds what the child reads and writes: the job, the converted weights, one checkpoint to go on
from, log.jsonl and TensorBoard's events. Once the record is written only the job and the logs stay.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engines.launch import Name
from evaluate.job import Job
from zoo.errors import CheckpointError, DataError, ZooError, several
from zoo.files import ensure_writable, write_atomic

_KEPT = ("job.json", "log.jsonl", "events.")
HISTORY = 200  # points of the loss curve that a record keeps


def measure(
    name: Name,
    job: Job,
    *,
    config: dict[str, Any],
    prepare: Callable[..., Any],
    classes: Sequence[str],
    train: list[dict[str, Any]],
    test: list[dict[str, Any]],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Hand the cell to engine `name` and return (details for the record, the arrays it wrote).

    prepare(folder, state, arch, pixels) → engines.contract.Weights. train, test: the images in the engine's own terms,
    test in manifest order. Raises what engines.launch.measure does; CheckpointError for a checkpoint without a network.
    """
    from engines import launch
    from engines.contract import Job as Handed
    from engines.contract import write_job
    from zoo.backbone import read_weights

    if job.card.arch == "raw_pixels":
        raise CheckpointError(f"{job.card.name}: {name} needs a ResNet's weights; pixels alone cannot be fine-tuned.")
    folder = ensure_writable(job.work.resolve())
    for role, images in (("train", train), ("test", test)):
        write_atomic(folder / f"{role}.json", json.dumps(images))
    weights = prepare(folder, read_weights(job.weights), job.card.arch, job.card.pixels)
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
    details = {
        "engine": measurement["engine"],
        "proofs": measurement["proofs"],
        "overlay": weights.overlay,
        "steps": measurement["steps"],
        "resumed_at": measurement["resumed_at"],  # 0: trained in one go; else other draws than in one go
        "history": history(folder / "log.jsonl"),
    }
    return details, arrays


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
        if not path.name.startswith(_KEPT):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()  # where nothing is worth keeping


def class_names(dataset: str, classes: Sequence[str] | None) -> tuple[str, ...]:
    """The dataset's class names. Raises DataError when its configuration has none."""
    if classes is None:
        raise DataError(f"configs/datasets/{dataset}.yaml: expected `classes`, the names in label order, found none.")
    return tuple(classes)


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
