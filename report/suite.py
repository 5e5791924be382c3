"""The page of one suite: what its folder's page.json and records/ hold.

No times, host names or paths, so the same records give the same bytes on any machine (DESIGN §1).
"""

from pathlib import Path

from report.markdown import code, counted, render
from report.published import Published
from report.sheet import Cell, Row, Sheet, described, told_apart
from report.table import tables
from zoo.benchmark import benchmark_layout
from zoo.errors import RecordError, several
from zoo.files import write_atomic
from zoo.page import Page, PageRow, read_page
from zoo.record import ResultRecord, read_record

RESULTS_NAME = "RESULTS.md"


def build_suite(folder: Path, published: Published) -> Path:
    """Write a suite's RESULTS.md into its folder; its path."""
    path = folder / RESULTS_NAME
    write_atomic(path, suite_page(folder, published))
    return path


def suite_page(folder: Path, published: Published) -> str:
    """The page of the suite in `folder`. Raises RecordError naming every record of it that cannot be read."""
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
    )
    parts = [f"# Results of suite {code(page.suite)}", _suite_summary(page, cells)]
    for table in tables(sheet):
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
