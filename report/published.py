"""Which numbers did others publish, and in which tables? configs/published/: tables.yaml, and one file a source.

(simsiam_ablations.yaml has a form of its own, and is read by report/ablations.py.)

Facts only; a value must be printed in the source it names, so nothing recalled from memory is here. Values keep the
source's decimals through their table's `decimals`; a value that would be rounded is an error.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from zoo.config import Strict, load
from zoo.errors import ConfigError
from zoo.files import CONFIGS

FOLDER = CONFIGS / "published"
TABLES_NAME = "tables.yaml"
ABLATIONS_NAME = "simsiam_ablations.yaml"


class PublishedTable(Strict):
    """One table as its source lays it out."""

    id: str
    section: str  # the heading it stands under on the full page
    title: str
    label_column: str
    dataset: str  # the rows hold for this dataset only, never for a substitute
    metric: str
    decimals: Annotated[int, Field(ge=0, le=4)]
    columns: tuple[str, ...]
    standalone: bool  # false: shown only beside rows measured here
    notes: tuple[str, ...]


class PublishedTables(Strict):
    """tables.yaml; the order is the page's."""

    tables: tuple[PublishedTable, ...]


class PublishedRow(Strict):
    """One row label and its results: table id → column → a number, or text as it is shown (Markdown)."""

    label: str
    link: str | None
    weights: str | None = None  # the family of configs/checkpoints/ whose file these are the results of
    recipe: str | None = None  # the family of configs/pretrain/ that trains such weights anew
    results: dict[str, dict[str, float | str]]


class Source(Strict):
    """One publication."""

    name: str
    url: str
    licence: str
    rows: tuple[PublishedRow, ...]


@dataclass(frozen=True, kw_only=True)
class Published:
    """All of configs/published/, checked against itself."""

    tables: dict[str, PublishedTable]  # by id, in page order
    sources: tuple[Source, ...]  # in the order of their file names

    def rows(self, table: str) -> Iterator[tuple[Source, PublishedRow]]:
        """The rows of one table, with where each comes from."""
        for source in self.sources:
            for row in source.rows:
                if table in row.results:
                    yield source, row


def load_published(folder: Path = FOLDER) -> Published:
    """Everything in `folder`. Raises ConfigError listing unknown tables and columns, and values too long to show."""
    listed = load(folder / TABLES_NAME, PublishedTables).tables
    tables = {table.id: table for table in listed}
    problems: list[str] = []
    if len(tables) != len(listed):
        problems.append(f"{folder / TABLES_NAME}: expected one entry an id, found {[table.id for table in listed]}")
    sources: list[Source] = []
    for path in sorted(folder.glob("*.yaml")):
        if path.name not in (TABLES_NAME, ABLATIONS_NAME):
            source = load(path, Source)
            problems += [f"{path}: {problem}" for row in source.rows for problem in _problems(row, tables)]
            sources.append(source)
    if problems:
        raise ConfigError("\n".join(problems))
    return Published(tables=tables, sources=tuple(sources))


def _problems(row: PublishedRow, tables: dict[str, PublishedTable]) -> Iterator[str]:
    for name, values in row.results.items():
        table = tables.get(name)
        if table is None:
            yield f"'{row.label}': expected a table of {TABLES_NAME} ({', '.join(tables)}), found '{name}'"
            continue
        for column, value in values.items():
            if column not in table.columns:
                yield f"'{row.label}', {name}: expected a column of {', '.join(table.columns)}; found '{column}'"
            elif isinstance(value, float) and float(f"{value:.{table.decimals}f}") != value:
                yield f"'{row.label}', {name}, {column}: expected at most {table.decimals} decimals, found {value}"
