"""What a suite consists of: its schema, its checkpoints, its cells, and how far each of them is. Needs no torch.

A checkpoint source is a folder with a card, or a command that will make one. A source not yet made is keyed by its
recipe; its cells get their ids once it exists (DESIGN §1). Nothing is stored about progress that the files themselves
do not say: a card, a record, a cache folder, or the note of a failure.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from converters import references
from engines.launch import interpreter
from evaluate.benchmarks import BENCHMARKS, load_benchmark
from evaluate.cells import Cell, benchmark_datasets, cell_id, write_cell
from evaluate.job import feature_keys
from zoo.benchmark import BenchmarkConfig
from zoo.checkpoint import CARD_NAME, CheckpointCard, read_card
from zoo.config import Strict, load
from zoo.datasets import Identity, identity
from zoo.errors import CheckpointError, ConfigError, NoDataError, ZooError, several
from zoo.files import ROOT, cache_dir, digest, remembered_sha256, runs_dir
from zoo.page import Page, PageCell, PageRow
from zoo.recipe import PretrainConfig, row_label, run_key
from zoo.transforms import Pixels

Positive = Annotated[int, Field(gt=0)]
_KINDS = ("pretrain", "supervised", "random", "raw_pixels", "card", "file")


class Reestimate(Strict):
    """Which images an untrained network's batch-norm statistics are estimated on."""

    dataset: str
    split: str
    images: Positive
    resize: Positive
    crop: Positive


class CheckpointEntry(Strict):
    """One line of a suite's `checkpoints`: exactly one kind, and what goes with it."""

    pretrain: str | None = None  # a configs/pretrain file: trained here
    supervised: str | None = None  # the same, method supervised
    random: Literal["resnet18", "resnet34", "resnet50", "resnet101"] | None = None  # untrained weights
    reestimate: Reestimate | None = None  # random only
    raw_pixels: Literal[True] | None = None  # no network
    card: str | None = None  # a card.yaml, or its folder
    file: str | None = None  # a checkpoint file of any known layout, an address of one, or a published one's name
    name: str | None = None  # file only: the row label
    take: str | None = None  # file only: "WHERE:PREFIX" of the backbone where no layout describes the file
    pixels: Pixels | None = None  # file only: how the checkpoint wants its input, where that is not ImageNet's way
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] | None = None  # pretrain, supervised, random
    expect: Literal["collapse"] | None = None  # pretrain only: being stopped as collapsed is the right outcome
    benchmarks: tuple[str, ...] | None = None  # only these of the suite's

    @model_validator(mode="after")
    def _one_kind(self) -> "CheckpointEntry":
        kinds = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"expected exactly one of {', '.join(_KINDS)}, found {', '.join(kinds) or 'none'}")
        allowed: dict[str, tuple[str, ...]] = {"reestimate": ("random",), "expect": ("pretrain",)}
        allowed |= {"name": ("file",), "take": ("file",), "pixels": ("file",)}
        allowed["seeds"] = ("pretrain", "supervised", "random")
        wrong = [key for key, owners in allowed.items() if getattr(self, key) is not None and kinds[0] not in owners]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: not for {kinds[0]}")
        return self


class SuiteConfig(Strict):
    """configs/suites/NAME.yaml."""

    name: str
    checkpoints: tuple[CheckpointEntry, ...]  # none: all come from --checkpoint
    benchmarks: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]  # of training on top of a checkpoint


@dataclass(frozen=True, kw_only=True)
class Source:
    """One checkpoint of a suite: where its card is or will be, and the command that makes it."""

    key: str
    label: str
    card_path: Path
    make: tuple[str, ...] | None  # `python -m …` arguments; None when nothing of ours can make it
    expect_collapse: bool
    benchmarks: tuple[str, ...]
    collapse_rule: dict[str, Any] | None

    @property
    def folder(self) -> Path:
        return self.card_path.parent

    @cached_property
    def card(self) -> CheckpointCard | None:
        """The card once it exists. Raises CheckpointError when its weights are not the ones it names."""
        return read_card(self.card_path) if self.card_path.exists() else None

    def collapsed(self) -> str | None:
        """A few words when the run was stopped as collapsed, by the rule that still stands."""
        path = self.folder / "collapsed.json"
        if self.card_path.exists() or not path.exists():
            return None
        try:
            found = json.loads(path.read_text())
            return f"collapsed, stopped at step {found['step']}" if found["rule"] == self.collapse_rule else None
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{path}: unreadable ({error}); remove it to train again.") from error


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """A cell of the suite; `cell` is None until its checkpoint exists."""

    source: Source
    benchmark: str
    seed: int
    cell: Cell | None


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
        for source in self.sources:
            for name in source.benchmarks:
                config = self.configs[name]
                one = BENCHMARKS[config.benchmark].deterministic(config.settings)
                for seed in self.suite.seeds[:1] if one else self.suite.seeds:
                    yield PlannedCell(source=source, benchmark=name, seed=seed, cell=self._cell(source, name, seed))

    def _cell(self, source: Source, name: str, seed: int) -> Cell | None:
        if source.card is None or name in self.skipped:
            return None
        return Cell(
            id=cell_id(self.configs[name], source.card, self.datasets[name], seed),
            name=name,
            config=self.configs[name],
            overrides=(),
            card=source.card,
            card_path=source.card_path,
            seed=seed,
            datasets=self.datasets[name],
        )

    def is_done(self, cell: Cell) -> bool:
        return (self.records / f"{cell.id}.json").exists()

    def cell_file(self, cell: Cell) -> Path:
        return write_cell(self.folder / "cells", cell, self.records)

    def failure(self, task: str) -> str | None:
        """Why a task failed when it last ran; None when it has not."""
        path = self.folder / "failed" / f"{task}.json"
        return json.loads(path.read_text())["reason"] if path.exists() else None

    def page(self) -> Page:
        """What the report shows: rows and cells in order, each with its state."""
        cells = tuple(self._page_cell(planned) for planned in self.cells())
        return Page(
            suite=self.suite.name,
            rows=tuple(self._row(source) for source in self.sources),
            benchmarks=self.suite.benchmarks,
            cells=cells,
            skipped=self.skipped,
        )

    def _row(self, source: Source) -> PageRow:
        if source.card is not None:
            return PageRow(key=source.key, label=source.card.name, state="ready", note=None)
        collapsed, failure = source.collapsed(), self.failure(source.key)
        if collapsed:
            return PageRow(key=source.key, label=source.label, state="collapsed", note=collapsed)
        if failure:
            return PageRow(key=source.key, label=source.label, state="failed", note="its training failed")
        return PageRow(key=source.key, label=source.label, state="waiting", note="not trained yet")

    def _page_cell(self, planned: PlannedCell) -> PageCell:
        state: Literal["done", "ready", "waiting", "skipped", "failed"]
        if planned.benchmark in self.skipped:
            state = "skipped"
        elif planned.cell is None:
            state = "skipped" if planned.source.collapsed() else "waiting"
        elif self.is_done(planned.cell):
            state = "done"
        else:
            state = "failed" if self.failure(planned.cell.id) else "ready"
        return PageCell(
            row=planned.source.key,
            benchmark=planned.benchmark,
            seed=planned.seed,
            cell_id=planned.cell.id if planned.cell else None,
            state=state,
        )

    def missing_features(self, cell: Cell) -> bool:
        """Whether a cell still waits for an extraction."""
        specs = BENCHMARKS[cell.config.benchmark].features(cell.config.settings)
        keys = [
            key
            for role, spec in specs.items()
            for key in feature_keys(cell.card, cell.datasets[role].sha256, spec).values()
        ]
        return any(not (cache_dir() / "features" / key / "features.npy").is_file() for key in keys)


def make_plan(path: Path, added: Sequence[str] = ()) -> Plan:
    """Read a suite and resolve all it names. Raises one ZooError with every problem found, before any work.

    added: references of checkpoints that join the suite's own, as --checkpoint gives them.
    """
    suite = load(path, SuiteConfig)
    suite = suite.model_copy(update={"checkpoints": suite.checkpoints + tuple(map(_added, added))})
    if not suite.checkpoints:
        raise ConfigError(
            f"{path}: names no checkpoints of its own: expected --checkpoint FILE_OR_ADDRESS, once or more."
        )
    folder = runs_dir() / suite.name
    problems: list[ZooError] = []
    absent: dict[str, NoDataError] = {}
    configs: dict[str, BenchmarkConfig[Any, Any]] = {}
    datasets: dict[str, dict[str, Identity]] = {}
    sources: list[Source] = []
    for name in suite.benchmarks:
        try:
            configs[name] = load_benchmark(name)
            try:
                datasets[name] = benchmark_datasets(configs[name])
            except NoDataError as error:
                absent[name] = error
                continue
            engine = BENCHMARKS[configs[name].benchmark].ENGINE
            if engine is not None:
                interpreter(engine)
        except ZooError as error:
            problems.append(error)
    for number, entry in enumerate(suite.checkpoints):
        try:
            wrong = sorted(set(entry.benchmarks or ()) - set(suite.benchmarks))
            if wrong:
                raise ConfigError(f"{path}: checkpoints.{number}: {', '.join(wrong)} not among the suite's benchmarks")
            sources += _sources(entry, suite, folder)
        except ZooError as error:
            problems.append(error)
    doubled = {source.key for source in sources if sum(other.key == source.key for other in sources) > 1}
    if doubled:
        problems.append(ConfigError(f"{path}: checkpoints: listed twice: {', '.join(sorted(doubled))}"))
    if len(absent) == len(suite.benchmarks):
        problems += absent.values()
    _raise_all(path, problems)
    return Plan(
        suite=suite,
        folder=folder,
        sources=tuple(sources),
        configs=configs,
        datasets=datasets,
        skipped={name: f"no line '{configs[name].dataset}: /path' in data.yaml" for name in absent},
    )


def _raise_all(path: Path, problems: list[ZooError]) -> None:
    texts = list(dict.fromkeys(str(problem) for problem in problems))
    if len(texts) == 1:
        raise problems[0]
    if texts:
        raise ZooError(several(f"{path}: {len(texts)} problems:", texts))


def _sources(entry: CheckpointEntry, suite: SuiteConfig, folder: Path) -> list[Source]:
    benchmarks = entry.benchmarks or suite.benchmarks
    seeds = entry.seeds or (0,)
    checkpoints = folder / "checkpoints"
    training = entry.pretrain or entry.supervised
    if training is not None:
        return [_trained(entry, training, seed, checkpoints, benchmarks) for seed in seeds]
    if entry.random is not None or entry.raw_pixels:
        return [_untrained(entry, seed, checkpoints, benchmarks) for seed in seeds]
    if entry.card is not None:
        path = _from_root(entry.card)
        path = path / CARD_NAME if path.is_dir() else path
        card = read_card(path)
        return [_existing(card.tensors_sha256[:12], card.name, path, None, benchmarks)]
    assert entry.file is not None
    return [_foreign(entry, entry.file, benchmarks)]


def _added(reference: str) -> CheckpointEntry:
    """The entry of a --checkpoint: paths are the caller's, not the repository's."""
    path = Path(reference)
    if path.is_dir() or path.suffix in (".yaml", ".yml"):
        return CheckpointEntry(card=str(path.resolve()))
    return CheckpointEntry(file=str(path.resolve()) if path.is_file() else reference)


def _foreign(entry: CheckpointEntry, text: str, benchmarks: tuple[str, ...]) -> Source:
    """A checkpoint of somebody's: read into the cache by `converters convert`, which also fetches it."""
    reference = references.parse(text if "://" in text or not _from_root(text).is_file() else str(_from_root(text)))
    path = reference.path
    if path is not None and not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file; a suite's `file:` is a path from the repository root.")
    what = remembered_sha256(path) if path else reference.text
    label = entry.name or reference.label
    stated = {"take": entry.take, "pixels": entry.pixels.model_dump(mode="json") if entry.pixels else None}
    key = digest({"file": what, "name": label} | {name: value for name, value in stated.items() if value})
    target = cache_dir() / "checkpoints" / key[:16]
    make = ["converters", "convert", str(path or reference.text), str(target), "--name", label]
    make += ["--take", entry.take] if entry.take else []
    for option in ("mean", "std"):
        make += [f"--{option}", ",".join(map(str, stated["pixels"][option]))] if stated["pixels"] else []
    return _existing(key[:12], label, target / CARD_NAME, tuple(make), benchmarks)


def _existing(
    key: str, label: str, card_path: Path, make: tuple[str, ...] | None, benchmarks: tuple[str, ...]
) -> Source:
    return Source(
        key=key,
        label=label,
        card_path=card_path,
        make=make,
        expect_collapse=False,
        benchmarks=benchmarks,
        collapse_rule=None,
    )


def _trained(
    entry: CheckpointEntry, config_path: str, seed: int, checkpoints: Path, benchmarks: tuple[str, ...]
) -> Source:
    config = load(_from_root(config_path), PretrainConfig)
    if entry.supervised is not None and config.method.name != "supervised":
        raise ConfigError(f"{config_path}: method.name: expected supervised for a suite's `supervised:` line")
    key = run_key(config, identity(config.dataset, config.split).sha256, seed)
    folder = checkpoints / f"{config.name}-seed{seed}-{key[:8]}"
    return Source(
        key=folder.name,
        label=row_label(config, seed),
        card_path=folder / CARD_NAME,
        make=("pretrain", str(_from_root(config_path)), "--seed", str(seed), "--out", str(folder)),
        expect_collapse=entry.expect == "collapse",
        benchmarks=benchmarks,
        collapse_rule=config.collapse.model_dump(mode="json") if config.collapse else None,
    )


def _untrained(entry: CheckpointEntry, seed: int, checkpoints: Path, benchmarks: tuple[str, ...]) -> Source:
    arch = entry.random or "raw_pixels"
    arguments = ["pretrain.untrained", "--arch", arch, "--seed", str(seed)]
    identified: dict[str, Any] = {"untrained": arch, "seed": seed}
    slug, label = arch, f"{arch}, random weights" if entry.random else "raw pixels"
    if entry.reestimate is not None:
        chosen = entry.reestimate
        identified |= {"reestimate": chosen.model_dump(mode="json")}
        identified |= {"dataset": identity(chosen.dataset, chosen.split).sha256}
        arguments += ["--batch-norm", "reestimated", "--dataset", chosen.dataset, "--split", chosen.split]
        arguments += ["--images", str(chosen.images), "--resize", str(chosen.resize), "--crop", str(chosen.crop)]
        slug, label = f"{arch}-bn", f"{arch}, random weights, BN re-estimated"
    folder = checkpoints / f"{slug}-random-seed{seed}-{digest(identified)[:8]}"
    return Source(
        key=folder.name,
        label=label + (f", seed {seed}" if seed else ""),
        card_path=folder / CARD_NAME,
        make=(*arguments, "--out", str(folder)),
        expect_collapse=False,
        benchmarks=benchmarks,
        collapse_rule=None,
    )


def _from_root(text: str) -> Path:
    """A path in a suite file: from the repository root, or absolute."""
    return (ROOT / text).resolve()
