"""python -m report build [RUNS/SUITE] | check | reproduction RUNS/SUITE
python -m report curves RUN_FOLDER… --out FILE.svg | ablations RUN_FOLDER… --out FOLDER
python -m report pictures RECORD.json --out FILE.png

`build` with a suite's folder writes its RESULTS.md, the same as index.html (with pictures, and every number's record)
and the numbers as results.csv and results.json (docs/results.schema.json); without one, the generated text of the
committed RESULTS.md (and of README.md, where it has markers). `check` fails when the committed text is not what would
be generated. `reproduction` compares measured rows with the published ones that they should give again.
"""

from pathlib import Path
from typing import Annotated

import typer

from report.committed import build_committed, drift
from report.markdown import render
from report.published import load_published
from report.suite import build_suite
from zoo.command import guarded
from zoo.errors import ZooError
from zoo.files import ROOT

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _main() -> None:
    """Write the result tables."""


@app.command()
def build(
    folder: Annotated[
        Path | None, typer.Argument(help="a suite's folder, as runs/mini; none: the committed page")
    ] = None,
) -> None:
    """Write RESULTS.md; of a suite also index.html, results.csv and results.json."""
    if folder is not None:
        typer.echo(f"wrote {build_suite(folder, load_published())}")
        return
    changed = build_committed(ROOT, load_published())
    typer.echo("\n".join(f"wrote {path}" for path in changed) or "up to date")


@app.command()
def check() -> None:
    """Fail, and show the difference, when the committed text is not what the records and published values give."""
    difference = drift(ROOT, load_published())
    if difference:
        typer.echo(difference, nl=False)
        raise ZooError("the committed text differs from what its sources give; run python -m report build, and commit.")
    typer.echo("up to date")


@app.command()
def reproduction(folder: Annotated[Path, typer.Argument(help="a suite's folder, as runs/mini")]) -> None:
    """Compare rows with the published ones that they should reproduce, value by value."""
    from report.suite import suite_sheet
    from report.table import reproduction

    checked = reproduction(suite_sheet(folder, load_published())[1])
    if checked is None:
        raise ZooError(
            f"{folder}: expected a row whose family is 'weights' or 'recipe' of a published row (configs/published/), "
            "measured on the published dataset; found none."
        )
    typer.echo(render(checked))


@app.command()
def curves(
    folders: Annotated[list[Path], typer.Argument(help="folders that python -m pretrain wrote")],
    out: Annotated[Path, typer.Option(help="the picture, an .svg file")],
    baseline: Annotated[list[str] | None, typer.Option(help="NAME=LEVEL: a level line for kNN")] = None,
) -> None:
    """Draw the runs' loss, deviation and kNN, and print kNN per epoch as a table."""
    from report.curves import draw, knn_table, read_log
    from zoo.checkpoint import CARD_NAME, read_card

    levels: list[tuple[str, float]] = []
    for text in baseline or []:
        name, _, level = text.rpartition("=")
        if not name or not level.replace(".", "", 1).isdecimal():
            raise ZooError(f"--baseline {text}: expected NAME=LEVEL, as random=33.9.")
        levels.append((name, float(level)))
    names = [read_card(folder).name if (folder / CARD_NAME).exists() else folder.name for folder in folders]
    runs = list(zip(names, map(read_log, folders), strict=True))
    draw(runs, out, baselines=levels)
    typer.echo(knn_table(runs), nl=False)


@app.command()
def ablations(
    folders: Annotated[list[Path], typer.Argument(help="folders that python -m pretrain wrote, of SimSiam runs")],
    out: Annotated[Path, typer.Option(help="the folder for ablations.md and figure2.svg")],
) -> None:
    """Put runs of the paper's experiments beside its numbers, and draw its figure 2 of them."""
    from report.ablations import FIGURE_NAME, write

    written = write(folders, out)
    typer.echo("\n".join(f"wrote {path}" for path in written))
    if written[-1].name != FIGURE_NAME:
        typer.echo("no figure 2: it takes a run with and one without stop-gradient, all else equal.")


@app.command()
def pictures(
    record: Annotated[Path, typer.Argument(help="a record of detection or segmentation")],
    out: Annotated[Path, typer.Option(help="the picture, a .png file")],
) -> None:
    """Draw what a detector or segmentor predicted beside the truth: truth left, prediction right."""
    from report.pictures import draw

    draw(record, out)
    typer.echo(f"wrote {out}")


if __name__ == "__main__":
    guarded(app)
