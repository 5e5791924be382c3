"""python -m zoo datasets list | verify NAME | prepare NAME [--root DIR] [--force]"""

from pathlib import Path
from typing import Annotated

import typer

from zoo.command import guarded
from zoo.datasets import (
    DatasetConfig,
    Manifest,
    class_names,
    data_file,
    dataset_config,
    dataset_names,
    dataset_place,
    dataset_root,
    manifest,
)
from zoo.errors import ConfigError, DataError, several
from zoo.prepare import incomplete, indented, prepare_lists, summary

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
datasets = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(datasets, name="datasets", help="Where the images are, and whether they are all there.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="a name in configs/datasets/")]


@app.callback()
def _main() -> None:
    """Look after what the benchmarks need."""


@datasets.command("list")
def list_() -> None:
    """Every described dataset, and what of it is where."""
    names = dataset_names()
    width = max(map(len, names), default=0)
    for name in names:
        typer.echo(f"{name:<{width}}  {_found(dataset_config(name))}")


@datasets.command()
def verify(name: Name) -> None:
    """List every split of a dataset in full; print counts, classes and identity, or all that is wrong."""
    config = _described(name)
    dataset_root(config)
    problems: list[str] = []
    for split in config.splits:
        try:
            typer.echo(f"{name} {split}: {_described_split(manifest(name, split), config)}")
        except DataError as error:
            problems.append(indented(f"{split}: {error}"))
    if config.classes is None:
        try:
            names = class_names(name)
            typer.echo(f"{name} classes: 0 is {names[0]}, …, {len(names) - 1} is {names[-1]}")
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


def _described(name: str) -> DatasetConfig:
    if name not in dataset_names():
        raise ConfigError(f"no dataset '{name}': expected one of {', '.join(dataset_names())}.")
    return dataset_config(name)


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


def _described_split(found: Manifest, config: DatasetConfig) -> str:
    if found.labels.ndim == 2:
        positive = (found.labels == 1).sum(axis=0)
        classes = f"{config.num_classes} classes, {positive.min():,} to {positive.max():,} images each"
    elif len(found.labels):
        classes = f"{len(set(found.labels.tolist())):,} of {config.num_classes:,} classes"
    else:
        classes = f"{config.num_classes} classes, an annotation an image"
    return f"{len(found):,} images, {classes}, sha256 {found.sha256}"


if __name__ == "__main__":
    guarded(app)
