"""From results and published numbers to tables: which value stands in which cell.

A pure function of its arguments: the same records in any order, the same tables. Only results of a benchmark as it is
configured now are shown; modified and stale ones are named below the table. What was not measured is "–", never zero.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from report import notes
from report.anomalies import worth_a_look
from report.layout import Filler, Layout, fillers, table_layouts
from report.markdown import Behind, Line, Table, escape
from report.published import PublishedRow, Source
from report.reproduction import Check, check_table, checks
from report.sheet import Cell, Group, Row, Sheet, groups, section_of
from report.statistics import Column, comparisons, stored_replicates
from report.values import ABSENT, Exclusion, exclusion, fixed, measured, plain, that_count
from zoo.record import ResultRecord

Runs = Mapping[tuple[str, str], Sequence[ResultRecord]]  # (Row.key, benchmark) → what the table shows of it


def tables(sheet: Sheet) -> tuple[Table, ...]:
    """Every table of the page, in order. Raises ConfigError or RecordError when descriptions or records do not fit."""
    layouts = table_layouts(sheet.benchmarks, sheet.published)
    found = groups(sheet, layouts)
    keys = [(group.table, group.dataset) for group, _ in found]
    planned = Counter((cell.row, cell.benchmark) for cell in sheet.cells)
    return tuple(
        _table(
            sheet, layouts[group.table], group, cells, planned, is_only=keys.count((group.table, group.dataset)) == 1
        )
        for group, cells in found
    )


def reproduction(sheet: Sheet) -> Table | None:
    """The check of measured rows against the published ones that they are linked with; None when there are none."""
    layouts = table_layouts(sheet.benchmarks, sheet.published)
    labels = {row.key: row.label for row in sheet.rows}
    found: list[tuple[str, str, Check]] = []
    for group, cells in groups(sheet, layouts):
        if sheet.published_table(group.table, group.dataset) is None or not _is_linked(sheet, group.table, cells):
            continue
        layout, fills = layouts[group.table], fillers(sheet.benchmarks, group.table, group.dataset)
        columns = list(_columns(sheet, layout, fills, _runs(_sorted_out(sheet, cells)[0])))
        theirs = list(sheet.published.rows(group.table))
        found += [
            (layout.title, labels[check.row], check) for check in checks(layout.id, layout.decimals, columns, theirs)
        ]
    return check_table(found) if found else None


def _is_linked(sheet: Sheet, table: str, cells: Sequence[Cell]) -> bool:
    families = {family for _, row in sheet.published.rows(table) for family in (row.weights, row.recipe)}
    return any(cell.record is not None and cell.record.checkpoint.family in families for cell in cells)


def _table(
    sheet: Sheet,
    layout: Layout,
    group: Group,
    cells: Sequence[Cell],
    planned: Mapping[tuple[str, str], int],
    *,
    is_only: bool,
) -> Table:
    fills = fillers(sheet.benchmarks, group.table, group.dataset)
    shown, excluded = _sorted_out(sheet, cells)
    runs = _runs(shown)
    columns = tuple(_columns(sheet, layout, fills, runs))
    stored = stored_replicates(columns, sheet.arrays) if sheet.arrays else {}
    found = comparisons(columns, stored) if sheet.arrays else None
    bold = found.bold if found else frozenset()
    published = sheet.published_table(group.table, group.dataset)
    rows = {row.key: row for row in sheet.rows}
    here = {cell.row for cell in cells}
    mine = [_line(layout, row, fills, runs, planned, bold) for row in sheet.rows if sheet.is_suite or row.key in here]
    theirs = list(sheet.published.rows(group.table)) if published else []
    lines = [_published_line(layout, *item, is_marked=bool(mine)) for item in theirs] + mine
    texts = [text for line in lines for text in line.cells]
    said = [
        notes.legend(layout, shown, texts),
        *(notes.compared(found, layout, columns, rows, has_published=bool(theirs)) if found else ()),
        notes.images(sheet, group) if cells or sheet.is_suite else None,
        *(notes.protocols(sheet, fills, shown) if cells or sheet.is_suite else ()),
        notes.unfilled(layout, fills),
        *(published.notes if published else ()),
        *(notes.stated(sheet, fills, group.table) if cells or sheet.is_suite else ()),
        *notes.remarks(rows, shown),
        *notes.worth_a_look(worth_a_look(layout, columns, {k: row.label for k, row in rows.items()}, theirs, stored)),
        *(() if mine else [*dict.fromkeys(_origin(source) for source, _ in theirs), _not_measured(fills)]),
        *notes.exclusions(rows, layout, fills, excluded),
        *notes.unmeasured(sheet, group),
    ]
    return Table(
        name=_name(sheet, group, is_only=is_only),
        id=group.table,
        dataset=group.dataset,
        metric=layout.metric,
        decimals=layout.decimals,
        section=section_of(sheet, layout, group),
        heading=_heading(sheet, layout, group, is_only=is_only),
        columns=(layout.label_column, *layout.columns),
        lines=tuple(lines),
        notes=tuple(note for note in said if note),
        comparisons=found,
    )


def _sorted_out(sheet: Sheet, cells: Sequence[Cell]) -> tuple[list[Cell], list[tuple[Cell, Exclusion]]]:
    """(what the table shows, what it must not show and why), in page order; blank rows are in neither."""
    blank = {row.key for row in sheet.rows if row.blank}
    position = {row.key: number for number, row in enumerate(sheet.rows)}
    settings = {name: plain(sheet.benchmarks[name].settings) for name in {cell.benchmark for cell in cells}}
    shown: list[Cell] = []
    excluded: list[tuple[Cell, Exclusion]] = []
    for cell in sorted(cells, key=lambda cell: (position[cell.row], cell.benchmark, cell.seed)):
        if cell.record is None or cell.row in blank:
            continue
        reason = exclusion(cell.record, sheet.benchmarks[cell.benchmark], settings[cell.benchmark])
        if reason is None:
            shown.append(cell)
        else:
            excluded.append((cell, reason))
    return shown, excluded


def _runs(shown: Sequence[Cell]) -> Runs:
    found: dict[tuple[str, str], list[ResultRecord]] = {}
    for cell in shown:
        if cell.record is not None:
            found.setdefault((cell.row, cell.benchmark), []).append(cell.record)
    return found


def _columns(sheet: Sheet, layout: Layout, fills: Mapping[str, Filler], runs: Runs) -> Iterator[Column]:
    """The columns of numbers, with the runs that count; labels, and metrics that a record lacks, are not in them."""
    for name in layout.columns:
        filler = fills.get(name)
        if filler is not None:
            found = {row.key: that_count(runs.get((row.key, filler.benchmark), ())) for row in sheet.rows}
            rows = {
                key: tuple(records)
                for key, records in found.items()
                if records and all(filler.name in record.metrics for record in records)
            }
            yield Column(name=name, metric=filler.name, rows=rows)


def _line(
    layout: Layout,
    row: Row,
    fills: Mapping[str, Filler],
    runs: Runs,
    planned: Mapping[tuple[str, str], int],
    bold: frozenset[tuple[str, str]],
) -> Line:
    texts: list[str] = []
    behind: list[Behind] = []
    for column in layout.columns:
        filler = fills.get(column)
        if filler is None:
            texts.append(ABSENT)
            behind.append(Behind())
            continue
        mine = (row.key, filler.benchmark)
        records = runs.get(mine, ())
        texts.append(
            measured(
                records,
                filler.name,
                decimals=layout.decimals,
                planned=planned.get(mine, 0),
                is_bold=(row.key, column) in bold,
            )
        )
        behind.append(Behind(name=filler.name, records=tuple(record.cell_id for record in that_count(records))))
    return Line(
        label=escape(row.label),
        footnote=escape(row.note) if row.note else None,
        cells=tuple(texts),
        row=row.key,
        behind=tuple(behind),
    )


def _published_line(layout: Layout, source: Source, row: PublishedRow, *, is_marked: bool) -> Line:
    values = [row.results[layout.id].get(column) for column in layout.columns]
    cells = [
        ABSENT if value is None else value if isinstance(value, str) else fixed(value, layout.decimals)
        for value in values
    ]
    label = escape(row.label)
    return Line(
        label=f"[{label}]({row.link})" if row.link else label,
        footnote=_origin(source) if is_marked else None,  # no need to tell it from rows of ours where there are none
        cells=tuple(cells),
        behind=tuple(Behind(value=value if isinstance(value, float) else None) for value in values),
    )


def _origin(source: Source) -> str:
    return f"Published: [{escape(source.name)}]({source.url}), {escape(source.licence)}."


def _not_measured(fills: Mapping[str, Filler]) -> str:
    names = sorted({filler.benchmark for filler in fills.values()})
    if not names:
        return "Published rows only: no benchmark here fills this table."
    return f"Published rows only: not measured here yet ({', '.join(f'`{name}`' for name in names)})."


def _title(sheet: Sheet, dataset: str) -> str:
    return sheet.datasets[dataset].title if dataset in sheet.datasets else dataset


def _short_hashes(group: Group) -> str:
    return "-".join(split.sha256[:8] for split in group.images)


def _heading(sheet: Sheet, layout: Layout, group: Group, *, is_only: bool) -> str:
    """The title, with the dataset's where it is not the published one, and the hashes where that is not enough."""
    heading = layout.title
    if sheet.published_table(group.table, group.dataset) is None:
        heading += f": {_title(sheet, group.dataset)}"
    return escape(heading if is_only else f"{heading} (images {_short_hashes(group)})")


def _name(sheet: Sheet, group: Group, *, is_only: bool) -> str:
    name = group.table
    if sheet.published_table(group.table, group.dataset) is None:
        name += f":{group.dataset}"
    return name if is_only else f"{name}:{_short_hashes(group)}"
