"""What a table looks like: its title, columns and decimals, agreed on by all who fill it.

A table is described by an entry of `tables` in every benchmark that fills some of its columns and, where numbers were
published, by configs/published/tables.yaml. All descriptions of one id must be equal.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from report.published import Published, PublishedTable
from zoo.benchmark import AnyBenchmark
from zoo.errors import ConfigError

LABEL_COLUMN = "Self-Supervised Config"  # the source page's first column


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One table's frame."""

    id: str
    section: str | None  # the heading it stands under on the full page
    title: str
    label_column: str
    metric: str
    decimals: int
    columns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Filler:
    """Who fills a column: a benchmark configuration, and which of its metrics or labels."""

    benchmark: str
    name: str


def table_layouts(benchmarks: Mapping[str, AnyBenchmark], published: Published) -> dict[str, Layout]:
    """Every table's frame by id: the published ones in page order, then the others in the benchmarks' order.

    Raises ConfigError when two descriptions of one table differ.
    """
    layouts = {table.id: _published_layout(table) for table in published.tables.values()}
    first = dict.fromkeys(layouts, "configs/published/tables.yaml")
    problems: list[str] = []
    described = [(name, table) for name, config in benchmarks.items() for table in config.tables]
    for name, table in described:
        layout = Layout(
            id=table.id,
            section=table.section or (published.tables[table.id].section if table.id in published.tables else None),
            title=table.title,
            label_column=LABEL_COLUMN,
            metric=table.metric,
            decimals=table.decimals,
            columns=tuple(table.columns),
        )
        known = layouts.setdefault(table.id, layout)
        origin = first.setdefault(table.id, f"configs/benchmarks/{name}.yaml")
        for field in ("section", "title", "label_column", "metric", "decimals", "columns"):
            expected, found = getattr(known, field), getattr(layout, field)
            if expected != found:
                problems.append(
                    f"configs/benchmarks/{name}.yaml: table '{table.id}': expected {field} {_shown(expected)} as in "
                    f"{origin}, found {_shown(found)}"
                )
    if problems:
        raise ConfigError("\n".join(problems))
    return layouts


def _published_layout(table: PublishedTable) -> Layout:
    return Layout(
        id=table.id,
        section=table.section,
        title=table.title,
        label_column=table.label_column,
        metric=table.metric,
        decimals=table.decimals,
        columns=table.columns,
    )


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    return ", ".join(value) if isinstance(value, tuple) else f"'{value}'"


def fillers(benchmarks: Mapping[str, AnyBenchmark], table: str, dataset: str) -> dict[str, Filler]:
    """Column → who fills it, for one table on one dataset. Raises ConfigError when two benchmarks claim a column."""
    found: dict[str, Filler] = {}
    for name, config in benchmarks.items():
        mine = [one.columns for one in config.tables if (one.id, config.dataset) == (table, dataset)]
        for column, filled in (item for columns in mine for item in columns.items()):
            if filled is None:
                continue
            if column in found:
                raise ConfigError(
                    f"configs/benchmarks/{name}.yaml: table '{table}': {found[column].benchmark} fills column "
                    f"'{column}' on {dataset} already; give one of them another table id."
                )
            found[column] = Filler(benchmark=name, name=filled)
    return found
