"""What a suite tells the report: which rows and cells belong on its page, in which order.

Written by `evaluate suite` as runs/<suite>/page.json; the results themselves are read from the records.
"""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from zoo.config import Strict
from zoo.errors import RecordError
from zoo.files import write_atomic

PAGE_NAME = "page.json"


class PageRow(Strict):
    """One checkpoint. `note` says in a few words why results may be absent ("collapsed at step 120")."""

    key: str
    label: str
    state: Literal["ready", "waiting", "collapsed", "failed"]
    note: str | None


class PageCell(Strict):
    """One cell: its record is records/<cell_id>.json once measured. cell_id is null until it can be known."""

    row: str  # PageRow.key
    benchmark: str  # configs/benchmarks/<this>.yaml
    seed: int
    cell_id: str | None
    state: Literal["done", "ready", "waiting", "skipped", "failed"]


class Page(Strict):
    """runs/<suite>/page.json."""

    suite: str
    rows: tuple[PageRow, ...]
    benchmarks: tuple[str, ...]
    cells: tuple[PageCell, ...]
    skipped: dict[str, str] = {}  # benchmark → why none of its cells can run here


def write_page(folder: Path, page: Page) -> None:
    """Write page.json, atomically."""
    write_atomic(folder / PAGE_NAME, page.model_dump_json(indent=1) + "\n")


def read_page(folder: Path) -> Page:
    """The page of the suite run in `folder`. Raises RecordError when it is missing or malformed."""
    path = folder / PAGE_NAME
    try:
        return Page.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise RecordError(f"{path}: no such file; expected a folder that `python -m evaluate suite` wrote.") from None
    except ValidationError as error:
        raise RecordError(
            f"{path}: malformed ({error.errors()[0]['msg']}); run the suite again to rewrite it."
        ) from None
