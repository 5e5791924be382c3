"""python -m mini [--root data/mini] [--force]: make the small world that the main job runs on without downloads."""

import logging
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mini.world import FULL_COUNTS, build, read_stamp
from zoo.errors import ZooError

DEFAULT_ROOT = Path("data/mini")
MOST_WORKERS = 8  # more would only wait for the disk


def main(
    root: Annotated[Path, typer.Option(help="Folder for the world; replaced as a whole.")] = DEFAULT_ROOT,
    force: Annotated[bool, typer.Option("--force", help="Build anew even if a whole world is there.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another world.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes to draw with; 0: one a core.")] = 0,
) -> None:
    """Draw the embedded small world: handwritten digits over photographs, in the layouts of the real datasets."""
    console = Console(stderr=True)
    logging.basicConfig(level="INFO", format="mini: %(message)s")
    start = time.monotonic()
    columns = TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("drawing", total=sum(sum(splits.values()) for splits in FULL_COUNTS.values()))
            built = build(
                root,
                seed=seed,
                workers=workers or min(MOST_WORKERS, len(os.sched_getaffinity(0))),
                force=force,
                advance=lambda images: progress.advance(task, images),
            )
    except ZooError as error:
        print(f"mini: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    print(_summary(root, built=built, seconds=time.monotonic() - start))


def _summary(root: Path, *, built: bool, seconds: float) -> str:
    stamp = read_stamp(root) or {}
    counts = "; ".join(
        f"{dataset} {', '.join(f'{count:,} {split}' for split, count in splits.items())}"
        for dataset, splits in stamp["counts"].items()
    )
    verb = f"built in {seconds:.1f} s" if built else "already there"
    size = f"{stamp['files']:,} files, {stamp['bytes'] / 1e6:.1f} MB, sha256 {stamp['sha256'][:16]}"
    return f"{root}: {verb}: {counts}; {size}"


if __name__ == "__main__":
    typer.run(main)
