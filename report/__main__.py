"""python -m report build [RUNS/SUITE] | check

`build` with a suite's folder writes its RESULTS.md; without one, the generated text of the committed RESULTS.md (and of
README.md, where it has markers). `check` fails when the committed text is not what would be generated.
"""

from pathlib import Path
from typing import Annotated

import typer

from report.committed import build_committed, drift
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
    """Write RESULTS.md."""
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


if __name__ == "__main__":
    guarded(app)
