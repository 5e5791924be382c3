"""The page of one suite: what its folder's page.json and records/ hold.

No times, host names or paths, so the same records give the same bytes on any machine (DESIGN §1).
"""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from report.export import CSV_NAME, JSON_NAME, as_csv, as_json, results
from report.html import HTML_NAME, page_html
from report.markdown import Table, code, counted, render
from report.published import Published
from report.sheet import Cell, Row, Sheet, described, told_apart
from report.table import reproduction, tables
from zoo.benchmark import benchmark_layout
from zoo.errors import RecordError, several
from zoo.files import write_atomic
from zoo.page import Page, PageRow, read_page
from zoo.record import ResultRecord, read_record

RESULTS_NAME = "RESULTS.md"


def build_suite(folder: Path, published: Published) -> Path:
    """Write a suite's RESULTS.md into its folder, and beside it results.csv, results.json and index.html; its path."""
    with _uncollected():
        page, sheet = suite_sheet(folder, published)
        made = suite_tables(sheet)
        found = results(page.suite, sheet, made)
        written = {  # all made before any is written
            RESULTS_NAME: _written(page, sheet, made).encode(),
            CSV_NAME: as_csv(found),
            JSON_NAME: as_json(found),
            HTML_NAME: page_html(page, _suite_summary(page, sheet.cells), sheet, made, found, folder).encode(),
        }
    for name, text in written.items():
        write_atomic(folder / name, text)
    return folder / RESULTS_NAME


@contextmanager
def _uncollected() -> Iterator[None]:
    """Nothing that a page is made from is garbage before it is done; looking for some takes a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def suite_page(folder: Path, published: Published) -> str:
    """The page of the suite in `folder`. Raises RecordError naming every record of it that cannot be read."""
    page, sheet = suite_sheet(folder, published)
    return _written(page, sheet, suite_tables(sheet))


def suite_sheet(folder: Path, published: Published) -> tuple[Page, Sheet]:
    """What the page of the suite in `folder` is made from. Raises RecordError as `suite_page`."""
    page = read_page(folder)
    records = _page_records(folder, page)
    cells = tuple(
        Cell(row=c.row, benchmark=c.benchmark, seed=c.seed, state=c.state, record=records.get(c.cell_id or ""))
        for c in page.cells
    )
    rows = [Row(key=r.key, label=r.label, note=_note(r), blank=r.state in ("collapsed", "failed")) for r in page.rows]
    benchmarks = {name: benchmark_layout(name) for name in page.benchmarks}
    sheet = Sheet(
        rows=told_apart(rows),
        cells=cells,
        benchmarks=benchmarks,
        datasets=described(benchmarks, records.values()),
        published=published,
        is_suite=True,
        skipped=page.skipped,
        arrays=folder / "records",
    )
    return page, sheet


def suite_tables(sheet: Sheet) -> tuple[Table, ...]:
    """Every table of a suite's page: those of its benchmarks, then the check against published rows if there is one."""
    checked = reproduction(sheet)
    return (*tables(sheet), *([checked] if checked else ()))


def _written(page: Page, sheet: Sheet, made: Sequence[Table]) -> str:
    parts = [f"# Results of suite {code(page.suite)}", _suite_summary(page, sheet.cells)]
    for table in made:
        parts += [f"## {table.heading}", render(table)]
    return "\n\n".join(parts) + "\n"


def _page_records(folder: Path, page: Page) -> dict[str, ResultRecord]:
    """Cell id → record, of the page's cells only; other files in records/ are another page's."""
    found: dict[str, ResultRecord] = {}
    problems: list[str] = []
    for cell in page.cells:
        if cell.cell_id is None or cell.cell_id in found:
            continue
        path = folder / "records" / f"{cell.cell_id}.json"
        if not path.exists():
            if cell.state == "done":
                problems.append(f"{path}: no such file, though page.json calls it done; run the suite again")
            continue
        try:
            found[cell.cell_id] = read_record(path)
        except RecordError as error:
            problems.append(str(error))
    if problems:
        raise RecordError(several(f"{len(problems)} of the suite's records cannot be used:", problems))
    return found


def _note(row: PageRow) -> str | None:
    if row.state == "ready":
        return row.note
    return row.note if row.note and row.state in row.note else ": ".join(filter(None, (row.state, row.note)))


def _suite_summary(page: Page, cells: tuple[Cell, ...]) -> str:
    """What the page is, and how far the suite is."""
    done = sum(cell.record is not None for cell in cells)
    missing = [cell.state for cell in cells if cell.record is None]
    states = ", ".join(f"{missing.count(state)} {state}" for state in sorted(set(missing)))
    rest = f"; not done: {states}" if missing else ""
    return (
        f"The transfer of {counted(len(page.rows), 'checkpoint')}, by {counted(len(page.benchmarks), 'benchmark')}. "
        f"{done} of {counted(len(cells), 'cell')} (checkpoint × benchmark × seed) done{rest}. Generated from page.json "
        "and records/ by `python -m report build` with this folder; do not edit."
    )
