"""python -m zoo doctor | datasets list | find ROOT | verify [NAME…] | prepare NAME

doctor [--dataset NAME]… [--checksum] [--json]   is this machine ready? (zoo/doctor.py)
datasets find ROOT [--dry-run]                   look for the datasets and write their places to data.yaml (zoo/find.py)
datasets verify [NAME…] [--checksum]             list every split in full; read all bytes again (zoo/verify.py)
datasets prepare NAME [--root DIR] [--force]     make the lists that archives lack (zoo/prepare.py)
"""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from zoo.command import guarded
from zoo.datasets import (
    DatasetConfig,
    class_names,
    data_file,
    dataset_config,
    dataset_names,
    dataset_place,
    dataset_root,
    manifest,
)
from zoo.doctor import checksum_check, examine, shown
from zoo.doctor import summary as verdict
from zoo.errors import ConfigError, DataError, several
from zoo.find import DEPTH, SECONDS, Search, Update, search, update
from zoo.prepare import incomplete, indented, prepare_lists, summary
from zoo.verify import described

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
datasets = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(datasets, name="datasets", help="Where the images are, and whether they are all there.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="a name in configs/datasets/")]
Workers = Annotated[int, typer.Option("--workers", min=0, help="loader processes to reckon with, and to time")]
Checksum = Annotated[bool, typer.Option("--checksum", help="read all bytes; compare them with those of the first time")]
DEFAULT_WORKERS = min(8, os.cpu_count() or 1)  # that of the commands that compute


@app.callback()
def _main() -> None:
    """Look after what the benchmarks need."""


@app.command()
def doctor(
    names: Annotated[
        list[str] | None, typer.Option("--dataset", metavar="NAME", help="only this dataset; may be repeated")
    ] = None,
    workers: Workers = DEFAULT_WORKERS,
    checksum: Checksum = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the checks as JSON")] = False,
) -> None:
    """Is this machine ready? Exit code 2 when there is a problem."""
    names = _known(names or [])
    checks = []
    for check in examine(names, workers=workers, checksum=checksum):
        checks.append(check)
        if not as_json:
            typer.echo(shown(check))
    typer.echo(json.dumps([check.as_dict() for check in checks], indent=1) if as_json else verdict(checks))
    if any(check.state == "problem" for check in checks):
        raise typer.Exit(DataError.exit_code)


@datasets.command("list")
def list_() -> None:
    """Every described dataset, and what of it is where."""
    names = dataset_names()
    width = max(map(len, names), default=0)
    for name in names:
        typer.echo(f"{name:<{width}}  {_found(dataset_config(name))}")


@datasets.command()
def find(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="a folder that holds datasets, at some depth")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what data.yaml would become; write nothing")] = False,
    depth: Annotated[int, typer.Option(min=0, help="folders below ROOT to look into")] = DEPTH,
    seconds: Annotated[float, typer.Option(min=0, help="stop looking after this time")] = SECONDS,
) -> None:
    """Look for the described datasets below ROOT and write where they are to data.yaml; its own lines stay."""
    configs = [config for name in dataset_names() if (config := dataset_config(name)).root is None]
    found = search(root, configs, depth=depth, seconds=seconds)
    change = update(data_file(), found)
    for line in _sighted(found, change):
        typer.echo(line)
    if change.diff:
        typer.echo(change.diff, nl=False)
        if dry_run:
            typer.echo("nothing was written (--dry-run)")
        else:
            change.write()
    if change.ambiguous:
        places = [f"{name}: {' or '.join(map(str, roots))}" for name, roots in change.ambiguous.items()]
        raise DataError(several(f"in more than one place; write the line 'dataset: /path' into {change.path}:", places))
    if not found.places:
        raise DataError(
            f"{root}: no whole dataset in the {found.num_folders:,} folders looked into, down to {depth} below it; "
            "name a nearer folder, or one that holds VOCdevkit, ImageNet's train and val, …"
        )


def _sighted(found: Search, change: Update) -> list[str]:
    """What a search met and what becomes of it, for people."""
    lines = []
    for name, place in change.written.items():
        prepare = f"; its lists are still to be made: python -m zoo datasets prepare {name}" if place.prepare else ""
        lines.append(f"{name}: found {place.root}{prepare}")
    for name, place in change.kept.items():
        seen = ", ".join(str(one.root) for one in found.places[name])
        lines.append(f"{name}: {change.path} has it at {place}, kept" + (f"; seen: {seen}" if seen != place else ""))
    for name, folders in found.incomplete.items():
        if name not in found.places:
            lines += [f"{name}: only a part of it in {folder}: {missing}" for folder, missing in folders.items()]
    if found.unread:
        lines.append(f"{len(found.unread)} folders could not be read, the first {found.unread[0]}")
    if found.stopped_at is not None:
        lines.append(f"the time ran out at {found.stopped_at}: name a nearer folder, or give it more --seconds")
    return lines


@datasets.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="default: all that have a place")
    ] = None,
    checksum: Checksum = False,
    workers: Workers = DEFAULT_WORKERS,
) -> None:
    """List every split of a dataset in full; print counts, classes and identity, or all that is wrong."""
    chosen = _known(names or []) or [name for name in dataset_names() if dataset_place(dataset_config(name))]
    if not chosen:
        raise DataError(f"no dataset has a place: python -m zoo datasets find ROOT writes them to {data_file()}.")
    failures: list[str] = []
    for name in chosen:
        try:
            _verify(name, checksum=checksum, workers=workers)
        except DataError as error:
            failures.append(str(error))
    if failures:
        raise DataError("\n".join(failures))


def _verify(name: str, *, checksum: bool, workers: int) -> None:
    """One dataset: print what is right. Raises DataError with everything that is not."""
    config = dataset_config(name)
    dataset_root(config)
    problems: list[str] = []
    for split in config.splits:
        try:
            typer.echo(f"{name} {split}: {described(manifest(name, split), config)}")
        except DataError as error:
            problems.append(indented(f"{split}: {error}"))
            continue
        if checksum:
            check = checksum_check(name, split, workers=workers)
            if check.state == "problem":
                problems.append(indented(f"{split}: {check.found}\n{check.fix}"))
            else:
                typer.echo(f"{name} {split}: {check.found}")
    if config.classes is None:
        try:
            found = class_names(name)
            typer.echo(f"{name} classes: 0 is {found[0]}, …, {len(found) - 1} is {found[-1]}")
        except DataError as error:
            problems.append(indented(f"class names: {error}"))
    if problems:
        raise DataError(several(f"dataset '{name}' is not usable as it is:", problems))


@datasets.command()
def prepare(
    name: Name,
    root: Annotated[Path | None, typer.Option(help="its folder; by default what data.yaml says")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace lists that differ from what is found")] = False,
) -> None:
    """Make the list files that a dataset's archives lack. Downloads nothing."""
    config = _described(name)
    if root is not None and not root.is_dir():
        raise DataError(f"--root {root}: expected the dataset's folder, found none.")
    outcomes, problems = prepare_lists(config, root or dataset_root(config), force=force)
    for line in summary(outcomes):
        typer.echo(line)
    if problems:
        raise incomplete(name, problems)
    if not outcomes:
        typer.echo(f"{name}: its layouts need no list files")


def _known(names: list[str]) -> list[str]:
    """Each name once. Raises ConfigError for those that no dataset has."""
    unknown = [name for name in names if name not in dataset_names()]
    if unknown:
        raise ConfigError(f"no dataset '{', '.join(unknown)}': expected one of {', '.join(dataset_names())}.")
    return list(dict.fromkeys(names))


def _described(name: str) -> DatasetConfig:
    return dataset_config(*_known([name]))


def _found(config: DatasetConfig) -> str:
    place = dataset_place(config)
    if place is None:
        return f"no place: no line '{config.name}: /path/to/it' in {data_file()}"
    if not place.is_dir():
        return f"{place}: no such folder"
    there = {
        split: any(layout.is_present(place, config.classes or ()) for layout in expected.layouts)
        for split, expected in config.splits.items()
    }
    missing = ", ".join(split for split, yes in there.items() if not yes)
    return f"{place}: " + (f"no images or lists of {missing}" if missing else f"found {', '.join(there)}")


if __name__ == "__main__":
    guarded(app)
