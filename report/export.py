"""The page's tables for other programs: results.csv, one line a number, and results.json, the same with the records.

Both hold what RESULTS.md holds, to all digits, and no times, host names or paths: same records, same bytes.
docs/results.schema.json is the contract for results.json; `python -m report.export` prints it, and a test compares it
with these models.
"""

import csv
import io
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, TypeAdapter, with_config

from report.inline import plain
from report.markdown import Behind, Line, Table
from report.sheet import Sheet
from zoo.record import DatasetRecord, ResultRecord

CSV_NAME: Final = "results.csv"
JSON_NAME: Final = "results.json"
SCHEMA_VERSION: Final = 1
STRICT: Final = ConfigDict(extra="forbid", strict=True)
CSV_HEAD: Final = (
    *("table", "dataset", "heading", "metric", "checkpoint", "row", "published", "column", "name"),
    *("value", "half_width", "seed_std", "trials_std", "word", "text", "records"),
)


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True, slots=True)
class ResultsCell:
    """One cell. `text` is RESULTS.md's (Markdown); the numbers are its parts (report/values.py), null where absent."""

    column: str
    text: str
    name: str | None  # the metric or label shown; null where nothing measured it
    value: float | None  # the mean over seeds
    word: str | None  # a label's word, where the column shows no number
    half_width: float | None  # of the 95 % bootstrap interval over the test images; of several seeds, their mean
    seed_std: float | None  # sample standard deviation over the seeds
    trials_std: float | None  # over the draws within a run; of several seeds, their mean
    records: tuple[str, ...]  # cell ids, a seed each; () for a published number


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True, slots=True)
class ResultsRow:
    """One line of a table."""

    label: str  # plain text
    row: str | None  # the checkpoint's key; null for a published row, and in the reproduction check
    published: bool
    footnote: str | None  # Markdown: where a published row comes from, why a row is empty
    cells: tuple[ResultsCell, ...]


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True, slots=True)
class ResultsTable:
    """One table, as RESULTS.md shows it."""

    name: str
    id: str
    dataset: str
    heading: str  # plain text
    metric: str
    decimals: Annotated[int, Field(ge=0)]
    columns: tuple[str, ...]  # the label's first
    rows: tuple[ResultsRow, ...]
    notes: tuple[str, ...]  # Markdown


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True, slots=True)
class ResultsRecord:
    """The numbers and identities of one result; the record itself is records/<cell_id>.json."""

    cell_id: str
    row: str
    benchmark_config: str
    benchmark: str
    protocol: int
    modified: tuple[str, ...]
    seed: int
    deterministic: bool
    checkpoint: str
    family: str
    tensors_sha256: str
    datasets: dict[str, DatasetRecord]
    selection: str
    num_scored: int
    metrics: dict[str, float]
    confidence: dict[str, tuple[float, float]]
    labels: dict[str, str]


@with_config(STRICT)
@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """results.json."""

    schema_version: Literal[1]
    suite: str
    tables: tuple[ResultsTable, ...]
    records: tuple[ResultsRecord, ...]


def results(suite: str, sheet: Sheet, made: Sequence[Table]) -> Results:
    """The page as data."""
    records = {cell.record.cell_id: cell.record for cell in sheet.cells if cell.record is not None}
    rows = {cell.record.cell_id: cell.row for cell in sheet.cells if cell.record is not None}
    return Results(
        schema_version=SCHEMA_VERSION,
        suite=suite,
        tables=tuple(_table(table, records) for table in made),
        records=tuple(_record(record, rows[name]) for name, record in records.items()),
    )


def _table(table: Table, records: Mapping[str, ResultRecord]) -> ResultsTable:
    return ResultsTable(
        name=table.name,
        id=table.id,
        dataset=table.dataset,
        heading=plain(table.heading),
        metric=table.metric,
        decimals=table.decimals,
        columns=table.columns,
        rows=tuple(_row(line, table.columns[1:], records) for line in table.lines),
        notes=table.notes,
    )


def _row(line: Line, columns: Sequence[str], records: Mapping[str, ResultRecord]) -> ResultsRow:
    behind = line.behind or (Behind(),) * len(line.cells)  # a check of numbers shows none of its own
    cells = zip(columns, line.cells, behind, strict=True)
    return ResultsRow(
        label=plain(line.label),
        row=line.row,
        published=line.row is None and bool(line.behind),
        footnote=line.footnote,
        cells=tuple(_cell(column, text, behind, records) for column, text, behind in cells),
    )


def _cell(column: str, text: str, behind: Behind, records: Mapping[str, ResultRecord]) -> ResultsCell:
    runs = [records[name] for name in behind.records]
    name = behind.name or ""
    values = [run.metrics[name] for run in runs if name in run.metrics]
    intervals = [run.confidence[name] for run in runs if name in run.confidence]
    trials = [run.trials for run in runs if "trials" in run.details]  # each access reads them anew
    is_word = behind.value is None and not values and (behind.name is None or bool(runs))
    return ResultsCell(
        column=column,
        text=text,
        name=behind.name,
        value=statistics.fmean(values) if values else behind.value,
        word=plain(text) if is_word and text != "–" else None,
        half_width=_mean([(high - low) / 2 for low, high in intervals], of=len(runs)),
        seed_std=_std(values) if len(values) > 1 else None,
        trials_std=_mean([each[name].std for each in trials if name in each], of=len(runs)),
        records=behind.records,
    )


def _mean(values: Sequence[float], *, of: int) -> float | None:
    """Their mean, where all of the `of` runs have one: as in the cell's text."""
    return statistics.fmean(values) if values and len(values) == of else None


def _std(values: Sequence[float]) -> float:
    """Of the sample; statistics.stdev's exact fractions take most of a large page's time."""
    mean = statistics.fmean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _record(record: ResultRecord, row: str) -> ResultsRecord:
    return ResultsRecord(
        cell_id=record.cell_id,
        row=row,
        benchmark_config=record.benchmark_config,
        benchmark=record.benchmark,
        protocol=record.protocol,
        modified=record.modified,
        seed=record.seed,
        deterministic=record.deterministic,
        checkpoint=record.checkpoint.name,
        family=record.checkpoint.family,
        tensors_sha256=record.checkpoint.tensors_sha256,
        datasets=record.datasets,
        selection=record.selection,
        num_scored=record.num_scored,
        metrics=record.metrics,
        confidence=record.confidence,
        labels=record.labels,
    )


_RESULTS = TypeAdapter(Results)


def as_json(found: Results) -> bytes:
    """What results.json holds."""
    return _RESULTS.dump_json(found, indent=1) + b"\n"


def read_results(content: bytes) -> Results:
    """What `as_json` wrote. Raises pydantic.ValidationError for anything else."""
    return _RESULTS.validate_json(content)


def as_csv(found: Results) -> bytes:
    """What results.csv holds: a head, then one line a cell, tables in page order. An absent value is an empty field."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    writer.writerows(line for table in found.tables for line in _lines(table))
    return stream.getvalue().encode()


def _lines(table: ResultsTable) -> Iterator[tuple[object, ...]]:
    for row in table.rows:
        for cell in row.cells:
            yield (
                *(table.name, table.dataset, table.heading, table.metric),
                *(row.label, row.row, "yes" if row.published else "no", cell.column, cell.name),
                *(cell.value, cell.half_width, cell.seed_std, cell.trials_std, cell.word),
                *(cell.text, " ".join(cell.records)),
            )


def schema_text() -> str:
    """What docs/results.schema.json holds."""
    return json.dumps(_RESULTS.json_schema(), indent=2) + "\n"


if __name__ == "__main__":  # python -m report.export > docs/results.schema.json
    print(schema_text(), end="")
