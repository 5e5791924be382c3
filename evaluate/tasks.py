"""What is there to do for a suite? Each task is one line `python -m …`, whoever runs it: this machine's queue or Slurm.

A checkpoint's cells get their ids once it exists, so the list is asked for again after every checkpoint that was made.
Nothing here is stored: what is done is on the disk already (evaluate/suite.py). Needs no torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evaluate.benchmarks import BENCHMARKS
from evaluate.suite import Plan, PlannedCell, Selection, Source
from evaluate.suite_file import Kind, SlurmResources
from zoo.errors import CollapseError


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one task takes; None where nobody has said."""

    procs: int  # processes on each node, one a GPU
    workers: int  # loader processes beside each
    nodes: int = 1
    hours: float | None
    memory_gb: float | None  # on each node
    gpus: int  # on each node; 0: as many as there are processes, where there are GPUs at all


@dataclass(frozen=True, kw_only=True)
class Task:
    """One process to run to its end. Its log is logs/<key>.log, the note of its failure failed/<key>.json."""

    key: str
    title: str
    arguments: tuple[str, ...]  # `python -m <arguments>`
    needs: tuple[str, ...]  # keys of the tasks that must succeed first
    accepted: tuple[int, ...] = (0,)  # exit codes that are the right outcome
    kind: Kind
    resources: Resources


def tasks(
    plan: Plan,
    *,
    num_workers: int,
    num_processes: int,
    selection: Selection | None = None,
    slurm: SlurmResources | None = None,
) -> list[Task]:
    """All that is missing and can be named by now: checkpoints first, then features and cells in the page's order.

    Writes the cell files that the lines name. slurm: what its jobs take where the suite says nothing of their kind.
    """
    selection = selection or Selection()
    sizes = _Sizes(plan, num_workers, num_processes, slurm)
    wanted = [source for source in plan.sources if selection.wants(source)]
    found = [_make(source, sizes) for source in wanted if _is_to_be_made(source)]
    todo = [planned for planned in plan.cells() if _is_to_be_measured(plan, planned, selection)]
    extracted: dict[str, Task] = {}
    for planned in todo:
        key = _group(planned)
        if key not in extracted:
            group = [other for other in todo if _group(other) == key and plan.missing_features(_cell(other))]
            if len(group) > 1:  # a cell alone extracts what it needs by itself: a process less
                extracted[key] = _extract(plan, key, group, sizes)
                found.append(extracted[key])
        found.append(_measure(plan, planned, sizes, needs=(key,) if key in extracted else (), force=selection.force))
    return found


def _is_to_be_made(source: Source) -> bool:
    return source.card is None and source.make is not None and not source.collapsed()


def _is_to_be_measured(plan: Plan, planned: PlannedCell, selection: Selection) -> bool:
    if planned.cell is None or (plan.is_done(planned.cell) and not selection.force):
        return False
    if selection.failed is not None and _group(planned) in selection.failed:  # it waits for a failed extraction
        selection = replace(selection, failed=None)
    return selection.wants(planned)


def _group(planned: PlannedCell) -> str:
    """Cells of one checkpoint and one dataset read the same images."""
    return f"features-{planned.source.key}-{_cell(planned).config.dataset}"


def _cell(planned: PlannedCell) -> Any:
    assert planned.cell is not None
    return planned.cell


def _make(source: Source, sizes: "_Sizes") -> Task:
    """Train or convert one checkpoint."""
    assert source.make is not None
    training = source.make[0] == "pretrain"
    resources = sizes.of("make", spread=training)
    return Task(
        key=source.key,
        title=source.label,
        arguments=(*source.make, *(_options(resources) if training else ())),
        needs=(),
        accepted=(CollapseError.exit_code,) if source.expect_collapse else (0,),
        kind="make",
        resources=resources,
    )


def _extract(plan: Plan, key: str, group: Sequence[PlannedCell], sizes: "_Sizes") -> Task:
    """The features that several cells of one checkpoint and one dataset are waiting for."""
    cell = _cell(group[0])
    resources = sizes.of("extract")
    files = [argument for other in group for argument in ("--cell", str(plan.cell_file(_cell(other))))]
    return Task(
        key=key,
        title=f"features of {cell.card.name} on {cell.config.dataset}",
        arguments=("evaluate", "extract", *files, *_options(resources)),
        needs=(),
        kind="extract",
        resources=resources,
    )


def _measure(plan: Plan, planned: PlannedCell, sizes: "_Sizes", *, needs: tuple[str, ...], force: bool) -> Task:
    cell = _cell(planned)
    kind = cell.config.benchmark
    # an engine starts its own processes, on one machine
    resources = sizes.of("cell", kind, several_nodes=BENCHMARKS[kind].ENGINE is None)
    arguments = ["evaluate", "run", "--cell", str(plan.cell_file(cell)), *_options(resources)]
    return Task(
        key=cell.id,
        title=f"{cell.name} on {cell.card.name}" + (f", seed {cell.seed}" if cell.seed else ""),
        arguments=(*arguments, *(("--force",) if force and plan.is_done(cell) else ())),
        needs=needs,
        kind="cell",
        resources=resources,
    )


def _options(resources: Resources) -> Iterator[str]:
    yield from ("--workers", str(resources.workers), "--procs", str(resources.procs))


@dataclass(frozen=True)
class _Sizes:
    """What tasks take: the suite's `resources`, then the command's options."""

    plan: Plan
    workers: int
    procs: int
    slurm: SlurmResources | None

    def of(
        self, kind: Kind, benchmark: str | None = None, *, spread: bool = True, several_nodes: bool = True
    ) -> Resources:
        """spread: whether the task can use more than one process at all."""
        said = self.plan.suite.resources.of(kind, benchmark)
        general = self.slurm or SlurmResources()
        gpus = said.gpus if said.gpus is not None else general.gpus_per_node or 0
        procs = said.procs or gpus or self.procs
        return Resources(
            procs=procs if spread else 1,
            workers=said.workers if said.workers is not None else self.workers,
            nodes=(said.nodes or general.nodes or 1) if spread and several_nodes else 1,
            hours=said.hours or general.time_hours,
            memory_gb=said.memory_gb or general.mem_gb,
            gpus=gpus if spread else min(gpus, 1),
        )
