"""The committed page: RESULTS.md, from results/ and configs/published/; and whether it is up to date.

No times, host names or paths, so the same records give the same bytes on any machine (DESIGN §1).
"""

import difflib
from collections.abc import Mapping
from pathlib import Path

from report import markers
from report.markdown import Table, counted, render
from report.published import Published
from report.sheet import Cell, Row, Sheet, described, told_apart
from report.table import tables
from report.values import exclusion
from zoo.benchmark import AnyBenchmark, benchmark_layout
from zoo.errors import ConfigError, RecordError, ZooError, several
from zoo.files import CONFIGS, digest, write_atomic
from zoo.record import ResultRecord, read_all

RESULTS_NAME = "RESULTS.md"
README_NAME = "README.md"


def committed_blocks(root: Path, published: Published) -> dict[str, str]:
    """Block name → text: the whole page as '', and each of its tables by name.

    Raises RecordError when a record in results/ is unreadable, modified or stale: it has no place there.
    """
    folder = root / "results"
    benchmarks = {path.stem: benchmark_layout(path.stem) for path in sorted((CONFIGS / "benchmarks").glob("*.yaml"))}
    records = read_all(folder)
    _refuse_unfit(records, benchmarks, folder)
    keys = {record.cell_id: _checkpoint_key(record) for record in records}
    names: dict[str, str] = {}
    for record in records:  # the same weights may have been measured under two names: one row, the first name
        key = keys[record.cell_id]
        names[key] = min(record.checkpoint.name, names.get(key, record.checkpoint.name))
    named = sorted((name, key) for key, name in names.items())
    cells = [
        Cell(row=keys[r.cell_id], benchmark=r.benchmark_config, seed=r.seed, state="done", record=r) for r in records
    ]
    sheet = Sheet(
        rows=told_apart([Row(key=key, label=label, note=None, blank=False) for label, key in named]),
        cells=tuple(cells),
        benchmarks=benchmarks,
        datasets=described(benchmarks, records),
        published=published,
        is_suite=False,
        arrays=folder,
    )
    made = tables(sheet)
    return {"": _committed_page(made, sheet)} | {table.name: render(table) for table in made}


def _checkpoint_key(record: ResultRecord) -> str:
    """Who a row is: the weights and how their input is prepared, whatever the file was called."""
    return digest({"tensors": record.checkpoint.tensors_sha256, "preprocessing": record.checkpoint.preprocessing})


def _refuse_unfit(records: list[ResultRecord], benchmarks: Mapping[str, AnyBenchmark], folder: Path) -> None:
    problems: list[str] = []
    for record in records:
        path = folder / f"{record.cell_id}.json"
        config = benchmarks.get(record.benchmark_config)
        if config is None:
            problems.append(f"{path}: expected a benchmark of configs/benchmarks, found '{record.benchmark_config}'")
            continue
        reason = exclusion(record, config)
        if reason is not None:
            problems.append(f"{path}: {reason.kind} ({reason.why})")
    if problems:
        title = "results/ holds records that are not results of the benchmarks as configured; remove or measure again:"
        raise RecordError(several(title, problems))


def _committed_page(made: tuple[Table, ...], sheet: Sheet) -> str:
    parts = [_committed_summary(made, sheet)]
    section = ""
    for table in made:
        if table.section != section:
            section = table.section
            parts.append(f"## {section}")
        parts += [f"### {table.heading}", render(table)]
    return "\n\n".join(parts)


def _committed_summary(made: tuple[Table, ...], sheet: Sheet) -> str:
    published = sheet.published.tables
    shown = [table.name for table in made if table.name in published]
    configs = [sheet.benchmarks[cell.benchmark] for cell in sheet.cells]
    filled = {t.id for config in configs for t in config.tables if sheet.published_table(t.id, config.dataset)}
    here = "Nothing measured here is recorded in results/ yet."
    if sheet.cells:
        results, rows = counted(len(sheet.cells), "result"), counted(len(sheet.rows), "checkpoint")
        here = f"Measured here, with intervals: {results} of {rows} (records in results/)."
    return (
        f"{counted(len(shown), 'published table')} from {counted(len(sheet.published.sources), 'source')}, laid out as "
        f"there. {here} {len(set(shown) - filled)} of the {len(shown)} hold published rows only."
    )


def build_committed(root: Path, published: Published) -> list[Path]:
    """Bring RESULTS.md, and README.md if it has markers, up to date; the files that changed."""
    changed: list[Path] = []
    for path, old, new in _files(root, published):
        if old != new:
            write_atomic(path, new)
            changed.append(path)
    return changed


def drift(root: Path, published: Published) -> str:
    """The unified diff between the committed files and what they should be; empty when they agree."""
    parts: list[str] = []
    for path, old, new in _files(root, published):
        name = path.name
        lines = difflib.unified_diff(
            old.splitlines(keepends=True), new.splitlines(keepends=True), f"{name} (committed)", f"{name} (regenerated)"
        )
        parts.extend(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
    return "".join(parts)


def _files(root: Path, published: Published) -> list[tuple[Path, str, str]]:
    """(path, text as it is, text as it should be) of every file with generated text."""
    blocks = committed_blocks(root, published)
    path = root / RESULTS_NAME
    page = _read(path)
    if page is None or "" not in markers.names(page):
        found = "no such file" if page is None else "no such lines"
        raise ConfigError(
            f"{path}: expected the lines {markers.begin('')} and {markers.end('')}, between which the page is "
            f"written; found {found}. Put them in, then run python -m report build."
        )
    files = [(path, page)]
    readme = _read(root / README_NAME)
    if readme is not None and markers.names(readme):
        files.append((root / README_NAME, readme))
    return [(path, text, markers.fill(text, blocks, where=str(path))) for path, text in files]


def _read(path: Path) -> str | None:
    """A text file as it is, line breaks included; None when there is none."""
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ZooError(f"{path}: expected UTF-8 text ({error}); save the file as UTF-8.") from error
