"""python -m evaluate plan|suite|status SUITE.yaml, python -m evaluate run --checkpoint CARD_OR_FILE --benchmark NAME

`run` measures one cell; a suite is many of the same line. From here to a number is two jumps: `run_cell` (evaluate/
run.py), then the benchmark's `run` (evaluate/<benchmark>.py).
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from converters import references
from engines.launch import interpreter
from evaluate.benchmarks import BENCHMARKS, load_benchmark
from evaluate.cells import Cell, read_cell, resolve
from evaluate.estimates import estimate
from evaluate.queue import run_suite
from evaluate.status import report, standing, watch
from evaluate.suite import Selection, make_plan, select
from zoo.checkpoint import CARD_NAME
from zoo.command import guarded
from zoo.errors import CheckpointError, ConfigError
from zoo.files import cache_dir, digest, ensure_writable, remembered_sha256, runs_dir
from zoo.record import read_record

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Workers = Annotated[int, typer.Option("--workers", min=0, help="loader processes; no result depends on it")]
Processes = Annotated[
    int, typer.Option("--procs", min=1, help="processes, one a GPU; no result but an engine's training depends on it")
]
SuitePath = Annotated[Path, typer.Argument(metavar="SUITE.yaml", help="a file of configs/suites/")]
Place = Literal["local", "slurm"]
Jobs = Annotated[
    int | None, typer.Option("--jobs", min=1, help="tasks at once on this machine; default: the suite's, or one a GPU")
]
Added = Annotated[
    list[str] | None,
    typer.Option("--checkpoint", help="one more row: a file of any known layout, an address, a card; may be repeated"),
]
DEFAULT_WORKERS = min(8, os.cpu_count() or 1)


@app.callback()
def _main() -> None:
    """Measure how well checkpoints transfer."""


@app.command()
def suite(
    path: SuitePath,
    checkpoint: Added = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="checkpoints or benchmarks that fit this pattern (*, ?); may be repeated"),
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="only what failed when it last ran")] = False,
    force: Annotated[bool, typer.Option("--force", help="measure again what is measured already")] = False,
    jobs: Jobs = None,
    on: Annotated[Place, typer.Option(help="where the tasks run")] = "local",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="slurm: stay until the jobs have ended")] = True,
    workers: Workers = DEFAULT_WORKERS,
    procs: Processes = 1,
) -> None:
    """Run what is missing or failed, then write the page."""
    added = checkpoint or ()
    selection = Selection(force=force)
    if only or failed:
        selection = select(make_plan(path, added), only=only or (), failed=failed, force=force)
    raise typer.Exit(
        run_suite(
            path,
            added=added,
            num_workers=workers,
            num_processes=procs,
            jobs=jobs,
            on=on,
            wait=wait,
            selection=selection,
        )
    )


@app.command()
def plan(path: SuitePath, checkpoint: Added = None, jobs: Jobs = None, procs: Processes = 1) -> None:
    """Print every task of a suite, its state, and what it would take: time, memory and disk."""
    planned = make_plan(path, checkpoint or ())
    lines = estimate(planned, jobs=jobs, procs=procs).lines()
    typer.echo("\n".join([f"suite {planned.suite.name}", *lines]))


@app.command()
def status(
    path: SuitePath,
    checkpoint: Added = None,
    follow: Annotated[bool, typer.Option("--watch", help="again every 2 s, until nobody runs the suite")] = False,
) -> None:
    """Count the cells by state; show what runs, and what failed with the last lines of its log."""
    if follow:
        watch(path, checkpoint or (), Console())
    else:
        typer.echo(report(standing(make_plan(path, checkpoint or ()))), nl=False)


@app.command()
def run(
    checkpoint: Annotated[
        str | None,
        typer.Option(help="a card.yaml, its folder, a checkpoint file, an address, or a published one's name"),
    ] = None,
    benchmark: Annotated[str | None, typer.Option(help="a name in configs/benchmarks/")] = None,
    cell: Annotated[Path | None, typer.Option(help="a cell file, instead of the two above")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of training on top of the checkpoint")] = 0,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key=value: marks the result modified")] = None,
    global_batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="images a step of all processes, for fewer devices: rate and schedule scale with it "
            "(--set settings.global_batch=N)",
        ),
    ] = None,
    records: Annotated[Path | None, typer.Option(help="where the record goes; default runs/single/records")] = None,
    force: Annotated[bool, typer.Option(help="measure again even if the record exists")] = False,
    workers: Workers = DEFAULT_WORKERS,
    procs: Processes = 1,
) -> None:
    """Measure one cell and write its record."""
    scaled = [] if global_batch is None else [f"settings.global_batch={global_batch}"]
    chosen, target = _chosen(checkpoint, benchmark, cell, seed, [*(overrides or []), *scaled])
    target = records or target
    path = target / f"{chosen.id}.json"
    if path.exists() and not force:
        typer.echo(f"{chosen.name} on {chosen.card.name}: measured already -> {path} (--force measures again)")
        return
    ensure_writable(target)
    engine = BENCHMARKS[chosen.config.benchmark].ENGINE
    if engine is None:
        _spread(procs)
    elif "WORLD_SIZE" in os.environ:
        raise ConfigError(f"{chosen.name}: {engine} starts its own processes; run without torchrun, with --procs N.")
    else:
        interpreter(engine)  # installed? asked before anything is loaded
    from evaluate.run import run_cell
    from zoo.distributed import world

    with world() as me:
        run_cell(chosen, target, num_workers=workers, me=me, procs=procs)


@app.command()
def extract(
    cells: Annotated[list[Path], typer.Option("--cell", help="a cell file; once for each cell")],
    workers: Workers = DEFAULT_WORKERS,
    procs: Processes = 1,
) -> None:
    """Extract the features that cells need into the cache, one pass a dataset split, and measure nothing."""
    chosen = [read_cell(path)[0] for path in cells]
    _spread(procs)
    from evaluate.run import extract_features
    from zoo.distributed import world

    with world() as me:
        extract_features(chosen, num_workers=workers, me=me)


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="pictures")],
    record: Annotated[
        Path | None, typer.Option(help="a linear benchmark's record; default: the newest there is")
    ] = None,
    head: Annotated[str | None, typer.Option(help="which of its heads; default: the best on the test images")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="the record's checkpoint, where its card has moved")] = None,
) -> None:
    """Show the five most likely classes of pictures, by a trained head."""
    from evaluate.predict import choose_head, newest_record
    from evaluate.predict import predict as ask

    path = record or newest_record(runs_dir())
    read = read_record(path)
    chosen = choose_head(read, head)
    top1 = read.metrics[f"top1_{chosen}"]
    typer.echo(f"{read.checkpoint.name}, head {chosen} of {read.benchmark_config} (test top-1 {top1:.2f} %), {path}")
    for found in ask(images, path, read, chosen, checkpoint):
        typer.echo(str(found.path))
        for label, name, probability in zip(found.classes, found.names, found.probabilities, strict=True):
            typer.echo(f"  {probability:6.1%}  {name} ({label})")


@app.command("low-shot-sets")
def low_shot_sets(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="where the files go")],
    benchmark: Annotated[str, typer.Option(help="a VOC SVM benchmark in configs/benchmarks/")] = "voc07_svm",
) -> None:
    """Write a benchmark's low-shot training sets as files in the published format, and print their hash."""
    from evaluate import voc_svm

    config = load_benchmark(benchmark)
    if BENCHMARKS[config.benchmark] is not voc_svm:
        raise ConfigError(f"--benchmark: expected one that trains low-shot SVMs, found '{benchmark}'.")
    ensure_writable(out)
    paths, found = voc_svm.write_low_shot_sets(config, out)
    typer.echo(f"{len(paths)} files in {out}; sha256 of the sets: {found}")


def _chosen(
    checkpoint: str | None, benchmark: str | None, cell: Path | None, seed: int, overrides: list[str]
) -> tuple[Cell, Path]:
    """(the cell, the folder of its record) from either way of naming it. Raises ConfigError."""
    if cell is not None:
        if checkpoint or benchmark or overrides:
            raise ConfigError("--cell stands alone: it names checkpoint, benchmark, seed and overrides itself.")
        return read_cell(cell)
    if checkpoint is None or benchmark is None:
        raise ConfigError("expected --checkpoint and --benchmark, or --cell.")
    return resolve(benchmark, _card_path(checkpoint), seed, overrides), runs_dir() / "single" / "records"


def _card_path(reference: str) -> Path:
    """The card of a checkpoint given in any way; what is not a card is read into the cache first."""
    path = Path(reference)
    if path.is_dir() or path.suffix in (".yaml", ".yml"):
        path = path / CARD_NAME if path.is_dir() else path
        if not path.exists():
            raise CheckpointError(f"{path}: no such card; expected a card.yaml, its folder, or a checkpoint file.")
        return path
    parsed = references.parse(reference)
    if parsed.path is not None and not parsed.path.is_file():
        raise CheckpointError(
            f"{reference}: no such checkpoint; expected a card.yaml, its folder, or a checkpoint file."
        )
    key = remembered_sha256(parsed.path) if parsed.path else digest(parsed.text)
    folder = cache_dir() / "checkpoints" / key[:16]
    if not (folder / CARD_NAME).exists():
        from converters.__main__ import convert

        convert(reference, folder)
    return folder / CARD_NAME


def _spread(procs: int) -> None:
    """With --procs N, become torchrun's launcher: run this same command as N processes and leave with their code."""
    if procs * int(os.environ.get("ZOO_NODES", 1)) > 1 and "WORLD_SIZE" not in os.environ:
        from zoo.distributed import launch

        raise typer.Exit(launch(procs, ["evaluate", *sys.argv[1:]]))


if __name__ == "__main__":
    guarded(app)
