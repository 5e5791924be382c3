"""What may stand in configs/suites/NAME.yaml? Needs no torch.

Nothing under `resources` can move a number, and none of it is part of a cell's id.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from evaluate.benchmarks import BENCHMARKS
from zoo.config import Strict
from zoo.transforms import Pixels

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Kind = Literal["make", "extract", "cell", "report"]  # what a task does: evaluate/tasks.py
KINDS: tuple[Kind, ...] = ("make", "extract", "cell", "report")
_SOURCES = ("pretrain", "supervised", "random", "raw_pixels", "card", "file", "series")


class Reestimate(Strict):
    """Which images an untrained network's batch-norm statistics are estimated on."""

    dataset: str
    split: str
    images: Positive
    resize: Positive
    crop: Positive


class Series(Strict):
    """The checkpoints that one training left on its way: rows of one family, in order of their epochs.

    A file's own word on its epoch goes first (some layouts count from 0 in the name), else the last part of its name
    that is one (epoch_100, ep100, 100e).
    """

    files: str  # a pattern of paths, from the repository root or absolute
    family: str
    name: str  # the row label, with {epoch}

    @model_validator(mode="after")
    def _says_the_epoch(self) -> "Series":
        if "{epoch}" not in self.name:
            raise ValueError(f"name: expected {{epoch}} in it, as in 'SimSiam, {{epoch}} epochs', found '{self.name}'")
        return self


class CheckpointEntry(Strict):
    """One line of a suite's `checkpoints`: exactly one kind, and what goes with it.

    `card` and `file` may be patterns (*, ?, [..], ** for any number of folders): every match is a row, in order of the
    paths; folders without a card are passed over, and weights that several cards name are one row.
    """

    pretrain: str | None = None  # a configs/pretrain file: trained here
    supervised: str | None = None  # the same, method supervised
    random: Literal["resnet18", "resnet34", "resnet50", "resnet101"] | None = None  # untrained weights
    reestimate: Reestimate | None = None  # random only
    raw_pixels: Literal[True] | None = None  # no network
    card: str | None = None  # a card.yaml, or its folder
    file: str | None = None  # a checkpoint file of any known layout, an address of one, or a published one's name
    series: Series | None = None  # files of one training at several epochs
    name: str | None = None  # file only: the row label
    take: str | None = None  # files only: "WHERE:PREFIX" of the backbone where no layout describes the file
    pixels: Pixels | None = None  # files only: how the checkpoint wants its input, where that is not ImageNet's way
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] | None = None  # pretrain, supervised, random
    expect: Literal["collapse"] | None = None  # pretrain only: being stopped as collapsed is the right outcome
    benchmarks: tuple[str, ...] | None = None  # only these of the suite's

    @model_validator(mode="after")
    def _one_kind(self) -> "CheckpointEntry":
        kinds = [kind for kind in _SOURCES if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"expected exactly one of {', '.join(_SOURCES)}, found {', '.join(kinds) or 'none'}")
        allowed: dict[str, tuple[str, ...]] = {"reestimate": ("random",), "expect": ("pretrain",), "name": ("file",)}
        allowed |= {"take": ("file", "series"), "pixels": ("file", "series")}
        allowed["seeds"] = ("pretrain", "supervised", "random")
        wrong = [key for key, owners in allowed.items() if getattr(self, key) is not None and kinds[0] not in owners]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: not for {kinds[0]}")
        return self


class KindResources(Strict):
    """What one task takes; null where nobody has said."""

    hours: PositiveFloat | None = None  # its time limit, and its estimate in `plan`
    memory_gb: PositiveFloat | None = None
    procs: Positive | None = None
    workers: Annotated[int, Field(ge=0)] | None = None
    nodes: Positive | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None


class SlurmResources(Strict):
    """What Slurm is asked for, for every job of the suite."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time_hours: PositiveFloat | None = None
    mem_gb: PositiveFloat | None = None
    cpus_per_gpu: Positive | None = None
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None
    nodes: Positive | None = None
    array_parallelism: Positive | None = None  # how many jobs of an array run at once
    setup: tuple[str, ...] = ()  # shell lines in front of the command ("module load …")


class SuiteResources(Strict):
    """`resources`: where and how wide a suite's tasks run.

    by_kind: make, extract, cell or report, or a benchmark's kind (knn, linear, voc_svm, detection, segmentation), which
    goes before `cell`.
    """

    jobs: Positive | None = None  # tasks at once on this machine
    by_kind: dict[str, KindResources] = {}
    slurm: SlurmResources | None = None

    @model_validator(mode="after")
    def _known_kinds(self) -> "SuiteResources":
        known = (*KINDS, *sorted(BENCHMARKS))
        unknown = sorted(set(self.by_kind) - set(known))
        if unknown:
            raise ValueError(f"by_kind: expected {', '.join(known)}, found {', '.join(unknown)}")
        return self

    def of(self, kind: Kind, benchmark: str | None = None) -> KindResources:
        """What a task of `kind` takes; for a cell, what is said of its benchmark's kind goes first."""
        general = self.by_kind.get(kind, KindResources())
        special = self.by_kind.get(benchmark or "", KindResources())
        return KindResources(**{**general.model_dump(exclude_none=True), **special.model_dump(exclude_none=True)})


class SuiteConfig(Strict):
    """configs/suites/NAME.yaml."""

    name: str
    checkpoints: tuple[CheckpointEntry, ...]  # none: all come from --checkpoint
    benchmarks: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]  # of training on top of a checkpoint
    benchmark_seeds: dict[str, Annotated[tuple[int, ...], Field(min_length=1)]] = {}  # benchmark → its own, instead
    resources: SuiteResources = SuiteResources()

    @model_validator(mode="after")
    def _seeds_of_its_benchmarks(self) -> "SuiteConfig":
        unknown = sorted(set(self.benchmark_seeds) - set(self.benchmarks))
        if unknown:
            raise ValueError(f"benchmark_seeds: {', '.join(unknown)} not among the suite's benchmarks")
        return self
