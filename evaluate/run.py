"""Run one cell: check everything, obtain features, measure, add provenance, write the record."""

import datetime
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluate.benchmarks import BENCHMARKS
from evaluate.bootstrap import interval
from evaluate.cells import Cell
from evaluate.engine import tidy
from evaluate.features import ensure, obtain
from evaluate.job import Features, FeatureSpec, Job
from zoo import device as devices
from zoo.checkpoint import verify_weights
from zoo.datasets import Manifest, manifest
from zoo.distributed import World
from zoo.errors import DataError
from zoo.files import ROOT
from zoo.record import SCHEMA_VERSION, CheckpointRecord, DatasetRecord, Measurement, ResultRecord, write_record

log = logging.getLogger(__name__)
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "faiss-cpu", "faiss-gpu", "scikit-learn", "scipy")
PACKAGES += ("pb1-detectron2", "detectron2", "onedl-mmsegmentation", "mmsegmentation", "onedl-mmengine", "onedl-mmcv")


def run_cell(cell: Cell, records: Path, *, num_workers: int, me: World, procs: int = 1) -> Path:
    """Measure `cell` and write its record into `records`; the record's path. Every process of `me` calls this.

    procs: how many processes an engine is to start; its cells are run by one process here.
    """
    started = datetime.datetime.now(datetime.UTC)
    clock = time.monotonic()
    benchmark = BENCHMARKS[cell.config.benchmark]
    weights = verify_weights(cell.card_path, cell.card)
    manifests = {role: _verified(cell, role) for role in cell.datasets}
    _announce(cell, manifests)
    features = obtain_features(cell, num_workers=num_workers, me=me)
    measurement = benchmark.run(
        Job(
            settings=cell.config.settings,
            execution=cell.config.execution,
            seed=cell.seed,
            card=cell.card,
            weights=weights,
            manifests=manifests,
            features=features,
            num_workers=num_workers,
            me=me,
            work=records.parent / "work" / cell.id,
            procs=procs,
        )
    )
    _check(measurement, manifests["test"])
    path = records / f"{cell.id}.json"
    if me.is_main:
        processes = me.size if benchmark.ENGINE is None else procs
        record = _record(cell, measurement, started=started, seconds=time.monotonic() - clock, world_size=processes)
        path = write_record(records, record, _arrays(measurement), measurement.files)
        tidy(records.parent / "work" / cell.id)
        headline = ", ".join(f"{name} {value:.2f}" for name, value in record.metrics.items())
        log.info("%s on %s: %s -> %s", cell.name, cell.card.name, headline, path)
    return path


def obtain_features(cell: Cell, *, num_workers: int, me: World) -> Features:
    """Role → layer → (N, D) features of all that the cell's benchmark asks for, from the cache or extracted now."""
    weights = verify_weights(cell.card_path, cell.card)
    specs = BENCHMARKS[cell.config.benchmark].features(cell.config.settings)
    return {
        role: obtain(cell.card, weights, _verified(cell, role), spec, num_workers=num_workers, me=me)
        for role, spec in specs.items()
    }


def extract_features(cells: Sequence[Cell], *, num_workers: int, me: World) -> None:
    """Extract what is missing of all that the cells ask for; cells of one checkpoint share a pass over the images."""
    wanted: dict[tuple[str, str], tuple[Cell, Manifest, list[FeatureSpec]]] = {}
    for cell in cells:
        for role, spec in BENCHMARKS[cell.config.benchmark].features(cell.config.settings).items():
            listed = _verified(cell, role)
            key = (str(cell.card_path), listed.sha256)
            wanted.setdefault(key, (cell, listed, []))[2].append(spec)
    for cell, listed, specs in wanted.values():
        weights = verify_weights(cell.card_path, cell.card)
        ensure(cell.card, weights, listed, specs, num_workers=num_workers, me=me)


def _verified(cell: Cell, role: str) -> Manifest:
    """The role's manifest, listed anew and compared with what was planned from the ledger."""
    who = cell.datasets[role]
    found = manifest(who.dataset, who.split)
    if found.sha256 != who.sha256:
        raise DataError(
            f"dataset '{who.dataset}', {who.split}: its files have changed since they were last listed (a file was "
            f"replaced under its own name). Remove the folder cache/ledger/dataset, then run again."
        )
    return found


def _announce(cell: Cell, manifests: dict[str, Manifest]) -> None:
    log.info("cell %s: %s on %s, seed %d", cell.id[:12], cell.name, cell.card.name, cell.seed)
    log.info("checkpoint: %s, tensors %s", cell.card.arch, cell.card.tensors_sha256[:16])
    for role, listed in manifests.items():
        log.info("%s: %s %s, %d images, %s", role, listed.dataset, listed.split, len(listed), listed.sha256[:16])
    # some take a page; the record has all of them whole
    named = cell.config.settings.model_dump(mode="json").items()
    settings = ", ".join(f"{name} {value if len(str(value)) < 60 else '…'}" for name, value in named)
    log.info("settings: %s", settings)


def _check(measurement: Measurement, test: Manifest) -> None:
    """The scored count must be the test set's size, and every metric must have replicates (DESIGN §5)."""
    assert measurement.num_scored == len(test), (measurement.num_scored, len(test))
    assert set(measurement.replicates) == set(measurement.metrics), sorted(measurement.metrics)
    assert not set(measurement.labels) & set(measurement.metrics), sorted(measurement.labels)
    assert all(np.isfinite(value) for value in measurement.metrics.values()), dict(measurement.metrics)


def _arrays(measurement: Measurement) -> dict[str, np.ndarray]:
    return {f"sample/{name}": values for name, values in measurement.per_sample.items()} | {
        f"replicates/{name}": values.astype(np.float32) for name, values in measurement.replicates.items()
    }


def _record(
    cell: Cell, measurement: Measurement, *, started: datetime.datetime, seconds: float, world_size: int
) -> ResultRecord:
    card = cell.card
    return ResultRecord(
        schema_version=SCHEMA_VERSION,
        cell_id=cell.id,
        benchmark_config=cell.name,
        benchmark=cell.config.benchmark,
        protocol=cell.config.protocol,
        modified=tuple(text for text in cell.overrides if not re.match(r"(execution|tables)[.=]", text)),
        seed=cell.seed,
        deterministic=BENCHMARKS[cell.config.benchmark].deterministic(cell.config.settings),
        checkpoint=CheckpointRecord(
            name=card.name,
            family=card.family,
            arch=card.arch,
            tensors_sha256=card.tensors_sha256,
            pretrain_seed=card.pretrain_seed,
            epochs=card.epochs,
            preprocessing=card.preprocessing(),
        ),
        datasets={role: DatasetRecord(**who.as_dict()) for role, who in cell.datasets.items()},
        settings=cell.config.settings.model_dump(mode="json"),
        selection=measurement.selection,
        num_scored=measurement.num_scored,
        metrics=dict(measurement.metrics),
        labels=dict(measurement.labels),
        confidence={name: interval(values) for name, values in measurement.replicates.items()},
        details=dict(measurement.details),
        arrays_sha256="",  # write_record fills it in
        command=rerun_command(cell),
        environment=_environment(world_size),
        started=started.isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
    )


def rerun_command(cell: Cell) -> str:
    """The line that measures this cell again."""
    parts = ["python", "-m", "evaluate", "run", "--checkpoint", str(cell.card_path), "--benchmark", cell.name]
    parts += ["--seed", str(cell.seed)]
    for override in cell.overrides:
        parts += ["--set", override]
    return shlex.join(parts)


def _environment(world_size: int) -> dict[str, Any]:
    installed = {name: _version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        "packages": {name: version for name, version in installed.items() if version},
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "processes": world_size,
        "commit": _commit(),
        "arguments": sys.argv[1:],
        **devices.describe(),
        "torch_threads": torch.get_num_threads(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The repository's commit, with "+" when files differ from it; None outside a git checkout."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
