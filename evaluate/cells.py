"""One cell: one checkpoint × one benchmark × one seed = one process = one record (DESIGN §1).

A cell's id covers what can move its number and nothing else: the canonical tensors, the card's preprocessing, the
datasets' identities, the resolved settings, the benchmark and its protocol number, and the seed unless the benchmark is
deterministic. Comments, table layout, paths and worker counts are not in it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from evaluate.benchmarks import BENCHMARKS, load_benchmark
from zoo.benchmark import BenchmarkConfig
from zoo.checkpoint import CheckpointCard, read_card
from zoo.config import Strict, load
from zoo.datasets import Identity, identity
from zoo.errors import CheckpointError
from zoo.files import digest, write_atomic


class CellFile(Strict):
    """cells/<id>.json: all that `python -m evaluate run --cell` needs. The id is checked when the cell runs."""

    cell_id: str
    benchmark: str
    overrides: tuple[str, ...]
    card: str  # path of card.yaml
    seed: int
    records: str  # the folder the record goes to


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell whose checkpoint exists, resolved."""

    id: str
    name: str  # the benchmark configuration's name
    config: BenchmarkConfig[Any, Any]
    overrides: tuple[str, ...]
    card: CheckpointCard
    card_path: Path
    seed: int
    datasets: dict[str, Identity]  # by role


def resolve(name: str, card_path: Path, seed: int, overrides: Sequence[str] = ()) -> Cell:
    """The cell of benchmark `name` on the checkpoint at `card_path`.

    Raises ConfigError, DataError or CheckpointError; reads no pixels and no weights.
    """
    config = load_benchmark(name, overrides)
    card = read_card(card_path)
    datasets = benchmark_datasets(config)
    return Cell(
        id=cell_id(config, card, datasets, seed),
        name=name,
        config=config,
        overrides=tuple(overrides),
        card=card,
        card_path=card_path,
        seed=seed,
        datasets=datasets,
    )


def benchmark_datasets(config: BenchmarkConfig[Any, Any]) -> dict[str, Identity]:
    """Role → identity of the split a benchmark reads. Raises DataError when the data is not there."""
    roles = BENCHMARKS[config.benchmark].roles(config.settings)
    return {role: identity(config.dataset, split) for role, split in roles.items()}


def cell_id(config: BenchmarkConfig[Any, Any], card: CheckpointCard, datasets: dict[str, Identity], seed: int) -> str:
    deterministic = BENCHMARKS[config.benchmark].deterministic(config.settings)
    return digest(
        {
            "tensors": card.tensors_sha256,
            "preprocessing": card.preprocessing(),
            "datasets": {role: who.sha256 for role, who in datasets.items()},
            "benchmark": config.benchmark,
            "protocol": config.protocol,
            "settings": identified(config.settings),
            "seed": None if deterministic else seed,
        }
    )


def identified(settings: BaseModel) -> dict[str, Any]:
    """The settings' part of an id: all but those that stand at a default, so a new optional one changes no old id."""
    optional = type(settings).model_fields.items()
    return settings.model_dump(
        mode="json", exclude={n for n, f in optional if not f.is_required() and getattr(settings, n) == f.default}
    )


def write_cell(folder: Path, cell: Cell, records: Path) -> Path:
    """Write the cell's file; its path."""
    path = folder / f"{cell.id}.json"
    content = CellFile(
        cell_id=cell.id,
        benchmark=cell.name,
        overrides=cell.overrides,
        card=str(cell.card_path),
        seed=cell.seed,
        records=str(records),
    )
    write_atomic(path, json.dumps(content.model_dump(mode="json"), indent=1) + "\n")
    return path


def read_cell(path: Path) -> tuple[Cell, Path]:
    """(cell, records folder) of a cell file, resolved anew. Raises CheckpointError when it is no longer that cell."""
    content = load(path, CellFile)
    cell = resolve(content.benchmark, Path(content.card), content.seed, content.overrides)
    if cell.id != content.cell_id:
        raise CheckpointError(
            f"{path}: the checkpoint, dataset or benchmark has changed since this cell was planned (now "
            f"{cell.id[:12]}…); plan again: python -m evaluate suite."
        )
    return cell, Path(content.records)
