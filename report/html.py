"""The page to look at: index.html, one file that needs nothing else, no network and no server.

The tables are RESULTS.md's, text for text; each measured number opens its record. Around them what a table cannot
show: intervals and curves as pictures, pre-training and probes over time, what detectors saw. Unlike RESULTS.md it
tells when and on what each number was measured, as the records do; it holds no absolute path and no host name.
"""

import base64
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from report import charts, inline
from report.charts import Chart, Point, Series
from report.curves import HEALTHY, knn, read_log
from report.export import CSV_NAME, JSON_NAME, Results, ResultsCell, ResultsRow, ResultsTable
from report.facts import SHORT, facts
from report.markdown import Table, counted
from report.pictures import sample
from report.sheet import Cell, Sheet
from zoo.errors import ConfigError, DataError
from zoo.page import Page, PageRow
from zoo.record import ResultRecord

HTML_NAME: Final = "index.html"
PICTURED: Final = 2  # records of a benchmark whose predictions are shown
PICTURES: Final = 4  # such records on the whole page
POINTS: Final = 240  # of a curve: more cannot be seen
_SEEN: Final = ("detection", "instance_segmentation", "segmentation")  # benchmarks with predictions to look at
_TEMPLATES: Final = Path(__file__).parent / "templates"
_NEIGHBOURS = re.compile(r"k=(\d+)")


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One line of a table, written."""

    label: Markup
    cells: Markup  # <td>s; data-v is what a column is sorted by, "" for no value
    footnote: int | None
    is_published: bool


@dataclass(frozen=True, kw_only=True)
class _Table:
    """One table, its notes and its pictures."""

    anchor: str
    heading: Markup
    columns: tuple[Markup, ...]
    rows: tuple[_Row, ...]
    notes: tuple[Markup, ...]
    footnotes: tuple[Markup, ...]
    charts: tuple[Chart, ...]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Pictures that belong to no table."""

    anchor: str
    heading: str
    text: str
    charts: tuple[Chart, ...] = ()
    images: tuple[tuple[str, str], ...] = ()  # (caption, data URI)
    notes: tuple[str, ...] = ()


def page_html(page: Page, summary: str, sheet: Sheet, made: Sequence[Table], found: Results, folder: Path) -> str:
    """The page of the suite in `folder` as HTML. Raises RecordError for a log or a record that cannot be read.

    summary: Markdown. found: `report.export.results` of the same tables.
    """
    records = {cell.record.cell_id: cell.record for cell in sheet.cells if cell.record is not None}
    numbers = {row.key: number for number, row in enumerate(sheet.rows)}
    tables = [_table(*pair, records, numbers) for pair in zip(made, found.tables, strict=True)]
    shown = dict.fromkeys(name for table in found.tables for row in table.rows for c in row.cells for name in c.records)
    parts = [_pretraining(page.rows, numbers, folder), *_training(sheet, numbers), _pictures(sheet, folder)]
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(
        suite=page.suite,
        summary=inline.html(summary),
        tables=tables,
        parts=[part for part in parts if part is not None],
        facts=facts(records[name] for name in shown),
        style=Markup((_TEMPLATES / "page.css").read_text()),
        script=Markup((_TEMPLATES / "page.js").read_text()),
        csv_name=CSV_NAME,
        json_name=JSON_NAME,
    )


def _table(table: Table, data: ResultsTable, records: Mapping[str, ResultRecord], numbers: Mapping[str, int]) -> _Table:
    footnotes = list(dict.fromkeys(line.footnote for line in table.lines if line.footnote))
    rows = [
        _Row(
            label=inline.html(line.label),
            cells=Markup("").join(map(_cell, row.cells)),
            footnote=footnotes.index(line.footnote) + 1 if line.footnote else None,
            is_published=row.published,
        )
        for line, row in zip(table.lines, data.rows, strict=True)
    ]
    return _Table(
        anchor="table-" + re.sub(r"[^A-Za-z0-9_]+", "-", table.name),
        heading=inline.html(table.heading),
        columns=tuple(map(inline.html, table.columns)),
        rows=tuple(rows),
        notes=tuple(map(inline.html, table.notes)),
        footnotes=tuple(map(inline.html, footnotes)),
        charts=tuple(_table_charts(data, records, numbers)),
    )


def _cell(cell: ResultsCell) -> Markup:
    value = f"{cell.value:.6g}" if cell.value is not None else escape(cell.word or "")
    text = inline.html(cell.text)
    if cell.records:
        text = f'<a href="#r={",".join(name[:SHORT] for name in cell.records)}">{text}</a>'
    return Markup(f'<td data-v="{value}">{text}</td>')  # all its parts are escaped, and format() is slow


def _table_charts(
    table: ResultsTable, records: Mapping[str, ResultRecord], numbers: Mapping[str, int]
) -> Iterator[Chart]:
    """Columns k=… as curves, all other columns of numbers as values side by side."""
    heading = table.heading
    names = table.columns[1:]
    curve = {place: int(match[1]) for place, name in enumerate(names) if (match := _NEIGHBOURS.fullmatch(name))}
    if len(curve) < 2:
        curve = {}
    filled = [place for place, _ in enumerate(names) if any(row.cells[place].value is not None for row in table.rows)]
    others = [place for place in filled if place not in curve]
    if others:
        position = {place: number for number, place in enumerate(others)}
        series, note = _series(table.rows, position, records, numbers)
        if series:
            columns = [names[place] for place in others]
            yield replace(charts.dots(heading, columns, series, y_label=table.metric), note=note)
    series, note = _series(table.rows, curve, records, numbers)
    if series:
        ticks = [float(curve[place]) for place in curve if place in filled]
        drawn = charts.lines(f"{heading}, by k", series, x_label="k", y_label=table.metric, ticks=ticks, is_log=True)
        yield replace(drawn, note=note)


def _series(
    rows: Sequence[ResultsRow],
    places: Mapping[int, int],
    records: Mapping[str, ResultRecord],
    numbers: Mapping[str, int],
) -> tuple[list[Series], str | None]:
    """One series a row: the cells at the keys of `places`, at the x that these map to.

    At most as many as fit into one picture; then also what must be said of the rest.
    """
    filled = [row for row in rows if any(_is_number(row.cells[place].value) for place in places)]
    published = [row for row in filled if row.published]
    found: list[Series] = []
    for row in filled[: charts.SERIES]:
        points = [
            _point(row.cells[place], x, records) for place, x in places.items() if _is_number(row.cells[place].value)
        ]
        found.append(
            Series(
                label=f"{row.label} (published)" if row.published else row.label,
                number=numbers[row.row] if row.row is not None else len(numbers) + published.index(row),
                points=tuple(points),
                is_published=row.published,
            )
        )
    return found, f"The first {len(found)} of {len(filled)} rows." if len(filled) > len(found) else None


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _point(cell: ResultsCell, x: float, records: Mapping[str, ResultRecord]) -> Point:
    assert cell.value is not None
    runs = [records[name] for name in cell.records]
    ends = [run.confidence[cell.name] for run in runs if cell.name in run.confidence]
    if not ends or len(ends) < len(runs):
        return Point(x=x, y=cell.value)
    low, high = (math.fsum(side) / len(ends) for side in zip(*ends, strict=True))
    return Point(x=x, y=cell.value, low=low, high=high)


def _thinned(points: Sequence[Point]) -> tuple[Point, ...]:
    """Every n-th point and the last, at most POINTS."""
    step = max(1, math.ceil(len(points) / (POINTS - 1)))
    kept = list(points[::step])
    return tuple(kept if not points or kept[-1] is points[-1] else [*kept, points[-1]])


def _log_points(log: Iterable[Mapping[str, Any]], x: str, y: str) -> list[Point]:
    """The entries that have both, as numbers."""
    pairs = [(entry.get(x), entry.get(y)) for entry in log]
    return [
        Point(x=float(a), y=float(b))
        for a, b in pairs
        if isinstance(a, int | float) and isinstance(b, int | float) and math.isfinite(a) and math.isfinite(b)
    ]


def _pretraining(rows: Sequence[PageRow], numbers: Mapping[str, int], folder: Path) -> _Part | None:
    """Loss, spread, gradient and kNN of the checkpoints trained here, from their logs."""
    places = [(row, folder / "checkpoints" / row.key) for row in rows]
    logged = [(row, place) for row, place in places if (place / "log.jsonl").is_file()]
    if not logged:
        return None
    trained = [(row, place) for row, place in logged if row.state in ("ready", "collapsed")]
    notes = [f"{row.label}: not drawn, {row.state}." for row, _ in logged if row.state not in ("ready", "collapsed")]
    if len(trained) > charts.SERIES:
        notes.append(f"The first {charts.SERIES} of {len(trained)} runs.")
    losses: list[Series] = []
    supervised: list[Series] = []
    spreads: list[Series] = []
    ranks: list[Series] = []
    gradients: list[Series] = []
    neighbours: list[Series] = []
    for row, place in trained[: charts.SERIES]:
        log = read_log(place)
        spread = _log_points(log, "step", "std_sqrt_d")
        curves = (
            (losses if spread else supervised, _log_points(log, "step", "loss")),
            (spreads, spread),
            (ranks, _log_points(log, "step", "effective_rank")),
            (gradients, _log_points(log, "step", "gradient_norm")),
            (neighbours, _log_points(({**entry, "knn": knn(entry)} for entry in log), "step", "knn")),
        )
        for found, points in curves:
            if points:
                found.append(Series(label=row.label, number=numbers[row.key], points=_thinned(points)))
    drawn = [
        _over_steps("Loss of self-supervised pre-training", losses, "loss"),
        _over_steps("Spread of the outputs", spreads, "std(z/|z|)·√d (1: evenly spread)", level=HEALTHY),
        _over_steps("Directions of the outputs", ranks, "effective rank of z/|z|"),
        _over_steps("Gradient", gradients, "norm over all parameters"),
        _over_steps("kNN top-1 while training", neighbours, "top-1 in percent", has_marks=True),
        _over_steps("Loss of supervised training", supervised, "loss"),
    ]
    return _Part(
        anchor="pre-training",
        heading="Pre-training",
        text="From the logs of the checkpoints trained in this suite. A spread that falls towards 0 is a collapse; an "
        "effective rank that falls is one of some directions.",
        charts=tuple(chart for chart in drawn if chart is not None),
        notes=tuple(notes),
    )


def _over_steps(
    title: str, series: Sequence[Series], y_label: str, *, has_marks: bool = False, level: float | None = None
) -> Chart | None:
    if not series:
        return None
    return charts.lines(title, series, x_label="step", y_label=y_label, has_marks=has_marks, level=level)


def _training(sheet: Sheet, numbers: Mapping[str, int]) -> Iterator[_Part]:
    """How the probes' accuracy and the engines' loss went, a picture a head or benchmark."""
    labels = {row.key: row.label for row in sheet.rows}
    histories: dict[str, dict[str, Any]] = {name: {} for name in sheet.benchmarks}
    for cell in sheet.cells:  # the first seed of each row
        history = cell.record.details.get("history") if cell.record else None
        if isinstance(history, list):
            histories[cell.benchmark].setdefault(cell.row, history)
    probes: list[Chart] = []
    engines: list[Chart] = []
    notes: list[str] = []
    for name, config in sheet.benchmarks.items():
        title = f"{_dataset_title(sheet, config.dataset)}, {name}"
        first = dict(list(histories[name].items())[: charts.SERIES])
        more = f"The first {len(first)} of {len(histories[name])} rows." if len(histories[name]) > len(first) else None
        columns = {metric: column for table in config.tables for column, metric in table.columns.items() if metric}
        before = len(probes)
        for metric, column in columns.items():
            head = metric.removeprefix("top1_")
            series = [_head(labels[row], numbers[row], history, head) for row, history in first.items()]
            kept = [each for each in series if len(each.points) > 1]
            if kept and metric != head:
                chart = charts.lines(f"{title}: {column}", kept, x_label="epoch", y_label="top-1 in percent")
                probes.append(replace(chart, note=more))
        losses = [
            Series(label=labels[row], number=numbers[row], points=_thinned(_log_points(history, "iteration", "loss")))
            for row, history in first.items()
        ]
        kept = [each for each in losses if len(each.points) > 1]
        if kept:
            chart = charts.lines(title, kept, x_label="iteration", y_label="loss", has_marks=False)
            engines.append(replace(chart, note=more))
        elif first and len(probes) == before:
            notes.append(f"{title}: no head with more than one epoch, so no curve.")
    if probes or notes:
        yield _Part(
            anchor="linear-probes",
            heading="Linear probes",
            text="Top-1 on the test images after each epoch, first seed. The tables report the epoch their notes name; "
            "of several learning rates, the curve is of the one that ends best.",
            charts=tuple(probes),
            notes=tuple(notes),
        )
    if engines:
        yield _Part(
            anchor="fine-tuning",
            heading="Fine-tuning for detection and segmentation",
            text="The engines' training loss, first seed.",
            charts=tuple(engines),
        )


def _dataset_title(sheet: Sheet, dataset: str) -> str:
    return sheet.datasets[dataset].title if dataset in sheet.datasets else dataset


def _head(label: str, number: int, history: Sequence[Mapping[str, Any]], head: str) -> Series:
    """The curve of head `head`, in the history "name" or "name/its settings"; of several the one that ends best."""
    names = {str(entry.get("head")) for entry in history if str(entry.get("head")).split("/")[0] == head}
    curves = [
        _log_points([entry for entry in history if entry.get("head") == name], "epoch", "top1")
        for name in sorted(names)
    ]
    best = max((curve for curve in curves if curve), key=lambda curve: curve[-1].y, default=[])
    points = [replace(point, x=point.x + 1) for point in best]
    return Series(label=label, number=number, points=_thinned(points))


def _pictures(sheet: Sheet, folder: Path) -> _Part | None:
    """Predictions of the first rows' detectors and segmentors, where the images are at hand."""
    labels = {row.key: row.label for row in sheet.rows}
    chosen: list[tuple[Cell, ResultRecord]] = []
    for name in sheet.benchmarks:
        mine: dict[str, tuple[Cell, ResultRecord]] = {}
        for cell in sheet.cells:
            if cell.benchmark == name and cell.record is not None and cell.record.benchmark in _SEEN:
                mine.setdefault(cell.row, (cell, cell.record))
        chosen += list(mine.values())[:PICTURED]
    images: list[tuple[str, str]] = []
    notes: list[str] = []
    for cell, record in chosen[:PICTURES]:
        what = f"{labels[cell.row]}, {record.benchmark_config}"
        path = folder / "records" / f"{record.cell_id}.json"
        if not path.with_suffix(".npz").exists():
            notes.append(f"{what}: not drawn, the record's arrays are not beside it.")
            continue
        try:
            data = sample(path)
        except (ConfigError, DataError):
            tested = record.datasets["test"].dataset
            notes.append(f"{what}: not drawn, the images of {tested} that the record names are not at hand here.")
            continue
        images.append((what, "data:image/jpeg;base64," + base64.b64encode(data).decode()))
    if not chosen:
        return None
    text = f"Truth left, prediction right, on images spread over the test set; {counted(len(images), 'record')}."
    return _Part(anchor="predictions", heading="What was seen", text=text, images=tuple(images), notes=tuple(notes))
