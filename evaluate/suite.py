"""What a suite consists of: its checkpoints, its cells, and how far each of them is. Needs no torch.

Nothing is stored about progress that the files themselves do not say: a card, a record, a cache folder, or the note of
a failure. Planning a thousand checkpoints is a matter of a second, so it is done anew whenever something has changed.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from engines.launch import ENGINES, Name, interpreter
from evaluate.benchmarks import BENCHMARKS, load_benchmark
from evaluate.cells import Cell, benchmark_datasets, identified, write_cell
from evaluate.job import feature_keys
from evaluate.sources import Source, entry_of, repeated, sources
from evaluate.suite_file import SuiteConfig
from zoo.benchmark import BenchmarkConfig
from zoo.config import load
from zoo.datasets import Identity
from zoo.errors import ConfigError, NoDataError, ZooError, several
from zoo.files import cache_dir, canonical_json, runs_dir
from zoo.page import Page, PageCell, PageRow

__all__ = ["Plan", "PlannedCell", "Selection", "Source", "SuiteConfig", "make_plan", "select"]


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """A cell of the suite; `cell` is None until its checkpoint exists, and where it cannot run here."""

    source: Source
    benchmark: str
    seed: int
    cell: Cell | None

    @property
    def features_key(self) -> str | None:
        """The task that extracts its features with those of the checkpoint's other cells on the same images."""
        return f"features-{self.source.key}-{self.cell.config.dataset}" if self.cell is not None else None


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of a suite's tasks a run is to do; by default all. Made by `select`.

    only: patterns (*, ?, [..]; case does not count) of which one must fit a checkpoint's label or key, or a benchmark.
    failed: keys of the tasks with a note of failure, where nothing else is to be tried. force: cells that are measured
    already are measured again; their records are kept until the new ones are written.
    """

    only: tuple[str, ...] = ()
    failed: frozenset[str] | None = None
    force: bool = False

    def wants(self, what: PlannedCell | Source) -> bool:
        """Whether a cell is to be run, or a checkpoint made."""
        source = what if isinstance(what, Source) else what.source
        benchmarks = source.benchmarks if isinstance(what, Source) else (what.benchmark,)
        if self.failed is not None:
            keys = {source.key}
            if isinstance(what, PlannedCell) and what.cell is not None:
                keys |= {what.cell.id, what.features_key or ""}
            if not keys & self.failed:
                return False
        return not self.only or any(
            fnmatchcase(name.lower(), pattern.lower())
            for pattern in self.only
            for name in (source.label, source.key, *benchmarks)
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a suite needs, resolved once."""

    suite: SuiteConfig
    folder: Path
    sources: tuple[Source, ...]
    configs: dict[str, BenchmarkConfig[Any, Any]]
    datasets: dict[str, dict[str, Identity]]
    skipped: dict[str, str]  # benchmark → why it cannot run here

    @property
    def records(self) -> Path:
        return self.folder / "records"

    def cells(self) -> Iterator[PlannedCell]:
        """Every cell, in page order. Deterministic benchmarks have one, whatever the suite's seeds."""
        yield from self._cells

    @cached_property
    def _cells(self) -> tuple[PlannedCell, ...]:
        return tuple(
            PlannedCell(source=source, benchmark=name, seed=seed, cell=self._cell(source, name, seed))
            for source in self.sources
            for name in source.benchmarks
            for seed in self._seeds[name]
        )

    @cached_property
    def _seeds(self) -> dict[str, tuple[int, ...]]:
        """Benchmark → the seeds it is run with."""
        return {
            name: self.suite.seeds[:1]
            if BENCHMARKS[config.benchmark].deterministic(config.settings)
            else self.suite.benchmark_seeds.get(name, self.suite.seeds)
            for name, config in self.configs.items()
        }

    @cached_property
    def _spelling(self) -> dict[str, tuple[str, str]]:
        """Benchmark → what stands before and after its checkpoint's parts in the text that a cell's id is hashed from.

        It is `cells.cell_id`'s canonical JSON, whose keys are in order; all but the checkpoint is spelt once.
        """
        spelling: dict[str, tuple[str, str]] = {}
        for name, datasets in self.datasets.items():
            config = self.configs[name]
            who = canonical_json({role: one.sha256 for role, one in datasets.items()})
            head = f'{{"benchmark":{canonical_json(config.benchmark)},"datasets":{who},"preprocessing":'
            settings = canonical_json(identified(config.settings))
            spelling[name] = (head, f',"settings":{settings},"tensors":')
        return spelling

    def _cell(self, source: Source, name: str, seed: int) -> Cell | None:
        if source.card is None or name not in self.datasets:
            return None
        config = self.configs[name]
        before, after = self._spelling[name]
        stated = "null" if BENCHMARKS[config.benchmark].deterministic(config.settings) else str(seed)
        text = f'{before}{source.preprocessing},"protocol":{config.protocol},"seed":{stated}{after}'
        text += f'"{source.card.tensors_sha256}"}}'
        cell = Cell(
            id=hashlib.sha256(text.encode()).hexdigest(),
            name=name,
            config=config,
            overrides=(),
            card=source.card,
            card_path=source.card_path,
            seed=seed,
            datasets=self.datasets[name],
        )
        # a missing engine hides nothing that was measured where there was one
        return None if name in self.skipped and not self.is_done(cell) else cell

    def is_done(self, cell: Cell) -> bool:
        return (self.records / f"{cell.id}.json").exists()

    def cell_file(self, cell: Cell) -> Path:
        return write_cell(self.folder / "cells", cell, self.records)

    def failure(self, task: str) -> str | None:
        """Why a task failed when it last ran; None when it has not."""
        try:
            return json.loads((self.folder / "failed" / f"{task}.json").read_text())["reason"]
        except FileNotFoundError:
            return None

    def done(self) -> frozenset[str]:
        """Ids of the cells that have a record, in one look at the folder."""
        return _names(self.records)

    def failures(self) -> frozenset[str]:
        """Keys of the tasks that left a note of failure."""
        return _names(self.folder / "failed")

    def page(self) -> Page:
        """What the report shows: rows and cells in order, each with its state."""
        done, failed = self.done(), self.failures()
        collapsed = {source.key: source.collapsed() for source in self.sources}
        return Page(
            suite=self.suite.name,
            rows=tuple(_row(source, collapsed[source.key], failed) for source in self.sources),
            benchmarks=self.suite.benchmarks,
            cells=tuple(
                PageCell(
                    row=planned.source.key,
                    benchmark=planned.benchmark,
                    seed=planned.seed,
                    cell_id=planned.cell.id if planned.cell else None,
                    state=self._state(planned, done, failed, collapsed[planned.source.key]),
                )
                for planned in self._cells
            ),
            skipped=self.skipped,
        )

    def _state(
        self, planned: PlannedCell, done: frozenset[str], failed: frozenset[str], collapsed: str | None
    ) -> Literal["done", "ready", "waiting", "skipped", "failed"]:
        if planned.cell is not None and planned.cell.id in done:
            return "done"
        if planned.benchmark in self.skipped or collapsed:
            return "skipped"
        if planned.cell is None:
            return "waiting"
        return "failed" if planned.cell.id in failed else "ready"

    def missing_features(self, cell: Cell) -> bool:
        """Whether a cell still waits for an extraction."""
        specs = BENCHMARKS[cell.config.benchmark].features(cell.config.settings)
        keys = [
            key
            for role, spec in specs.items()
            for key in feature_keys(cell.card, cell.datasets[role].sha256, spec).values()
        ]
        return any(not (cache_dir() / "features" / key / "features.npy").is_file() for key in keys)


def _row(source: Source, collapsed: str | None, failed: frozenset[str]) -> PageRow:
    if source.card is not None:
        return PageRow(key=source.key, label=source.card.name, state="ready", note=None)
    if collapsed:
        return PageRow(key=source.key, label=source.label, state="collapsed", note=collapsed)
    trained = source.recipe is not None
    if source.key in failed:
        note = "its training failed" if trained else "it could not be made"
        return PageRow(key=source.key, label=source.label, state="failed", note=note)
    note = "not trained yet" if trained else "not here yet"
    return PageRow(key=source.key, label=source.label, state="waiting", note=note)


def _names(folder: Path) -> frozenset[str]:
    """Names of the JSON files of a folder, without their ending; none without a folder."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name[:-5] for entry in entries if entry.name.endswith(".json"))
    except FileNotFoundError:
        return frozenset()


def make_plan(path: Path, added: Sequence[str] = ()) -> Plan:
    """Read a suite and resolve all it names. Raises one ZooError with every problem found, before any work.

    added: references of checkpoints that join the suite's own, as --checkpoint gives them. A benchmark whose data set
    has no place, or whose engine is not installed, is skipped with its reason; all of them skipped is an error.
    """
    suite = load(path, SuiteConfig)
    suite = suite.model_copy(update={"checkpoints": suite.checkpoints + tuple(map(entry_of, added))})
    if not suite.checkpoints:
        raise ConfigError(
            f"{path}: names no checkpoints of its own: expected --checkpoint FILE_OR_ADDRESS, once or more."
        )
    folder = runs_dir() / suite.name
    problems: list[ZooError] = []
    absent: dict[str, tuple[ZooError, str]] = {}  # benchmark → what is missing, and the same in a few words
    configs: dict[str, BenchmarkConfig[Any, Any]] = {}
    datasets: dict[str, dict[str, Identity]] = {}
    found: list[Source] = []
    for name in suite.benchmarks:
        try:
            configs[name] = load_benchmark(name)
            try:
                datasets[name] = benchmark_datasets(configs[name])
            except NoDataError as error:
                absent[name] = error, f"no line '{configs[name].dataset}: /path' in data.yaml"
                continue
            engine = BENCHMARKS[configs[name].benchmark].ENGINE
            if engine is not None and (missing := _missing(engine)) is not None:
                absent[name] = missing, f"{engine} is not installed: {ENGINES[engine].hint}"
        except ZooError as error:
            problems.append(error)
    for number, entry in enumerate(suite.checkpoints):
        try:
            wrong = sorted(set(entry.benchmarks or ()) - set(suite.benchmarks))
            if wrong:
                raise ConfigError(f"{path}: checkpoints.{number}: {', '.join(wrong)} not among the suite's benchmarks")
            found += sources(entry, suite, folder)
        except ZooError as error:
            problems.append(error)
    doubled = list(repeated(found))
    if doubled:
        problems.append(ConfigError(f"{path}: checkpoints: listed twice: {', '.join(doubled)}"))
    if len(absent) == len(suite.benchmarks):
        problems += [error for error, _ in absent.values()]
    _raise_all(path, problems)
    return Plan(
        suite=suite,
        folder=folder,
        sources=tuple(found),
        configs=configs,
        datasets=datasets,
        skipped={name: reason for name, (_, reason) in absent.items()},
    )


def _missing(engine: Name) -> ZooError | None:
    """What is wrong where an engine is not installed. Raises ZooError when its variable names a wrong interpreter."""
    try:
        interpreter(engine)
    except ZooError as error:
        if os.environ.get(ENGINES[engine].variable) is not None:
            raise  # somebody has said where it is: a mistake, not a lack
        return error
    return None


def _raise_all(path: Path, problems: list[ZooError]) -> None:
    texts = list(dict.fromkeys(str(problem) for problem in problems))
    if len(texts) == 1:
        raise problems[0]
    if texts:
        raise ZooError(several(f"{path}: {len(texts)} problems:", texts))


def select(plan: Plan, *, only: Sequence[str] = (), failed: bool = False, force: bool = False) -> Selection:
    """What a run of `plan` is narrowed to. Raises ConfigError for a pattern that fits nothing, or nothing failed."""
    lonely = [pattern for pattern in only if not any(map(Selection(only=(pattern,)).wants, plan.cells()))]
    if lonely:
        labels = ", ".join(source.label for source in plan.sources[:8])
        raise ConfigError(
            f"--only {', '.join(lonely)}: fits no checkpoint and no benchmark of suite '{plan.suite.name}'; expected a "
            f"pattern for one of its benchmarks ({', '.join(plan.suite.benchmarks)}) or checkpoints ({labels}"
            f"{', …' if len(plan.sources) > 8 else ''})."
        )
    notes = plan.failures() if failed else None
    selection = Selection(only=tuple(only), failed=notes, force=force)
    if failed and not any(map(selection.wants, plan.cells())):
        raise ConfigError(
            f"--failed: nothing in suite '{plan.suite.name}' has a note of failure"
            f"{' that --only fits' if only else ''}; leave --failed out to run what is missing."
        )
    return selection
