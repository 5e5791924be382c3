"""What a page is made from, and which of it shares a table.

A table is keyed by (table id, dataset, the images' manifest hashes). Results on other images, a substitute's or those
of a data set that was made anew, never stand in one table (DESIGN §1).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from report.layout import Layout
from report.published import Published, PublishedTable
from zoo.benchmark import AnyBenchmark
from zoo.datasets import DatasetConfig, dataset_config
from zoo.files import CONFIGS
from zoo.record import ResultRecord

FURTHER: Final = "Further datasets"  # the section of a table that names none
SUBSTITUTES: Final = "Substitute datasets"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One checkpoint. `note` becomes its footnote; a blank row shows no result whatever was recorded."""

    key: str
    label: str
    note: str | None
    blank: bool


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One result, or the place of one."""

    row: str  # Row.key
    benchmark: str
    seed: int
    state: str  # PageCell.state
    record: ResultRecord | None


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Everything a page shows.

    A suite's page has every row in every table of its benchmarks, measured or not. The full page has all the published
    tables, and a row only where something was measured.
    """

    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]
    benchmarks: Mapping[str, AnyBenchmark]
    datasets: Mapping[str, DatasetConfig]  # all those of benchmarks and records, and what they substitute
    published: Published
    is_suite: bool
    skipped: Mapping[str, str] = field(default_factory=dict)  # benchmark → why none of its cells could run
    arrays: Path | None = None  # the folder of the records' .npz; without it rows are not compared

    def substitute_for(self, dataset: str) -> str | None:
        """The name of the dataset that `dataset` stands in for."""
        return self.datasets[dataset].substitute_for if dataset in self.datasets else None

    def published_table(self, table: str, dataset: str) -> PublishedTable | None:
        """The published table whose rows belong beside results on `dataset`: never a substitute's."""
        found = self.published.tables.get(table)
        return found if found and found.dataset == dataset and self.substitute_for(dataset) is None else None


@dataclass(frozen=True, order=True)
class Images:
    """The images of one split, as records name them."""

    split: str
    num_images: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Group:
    """The key of a table; `images` is empty while nothing was measured."""

    table: str
    dataset: str
    images: tuple[Images, ...]


def groups_of(cell: Cell, record: ResultRecord, benchmarks: Mapping[str, AnyBenchmark]) -> list[Group]:
    """The tables that a result belongs to, by the images it was measured on, whatever the role of each."""
    images = {Images(split=d.split, num_images=d.num_images, sha256=d.sha256) for d in record.datasets.values()}
    dataset = record.datasets["test"].dataset
    return [
        Group(table=table.id, dataset=dataset, images=tuple(sorted(images)))
        for table in benchmarks[cell.benchmark].tables
    ]


def section_of(sheet: Sheet, layout: Layout, group: Group) -> str:
    """The heading that a table stands under on the full page."""
    if sheet.substitute_for(group.dataset) is not None:
        return SUBSTITUTES
    return layout.section or FURTHER


def groups(sheet: Sheet, layouts: Mapping[str, Layout]) -> list[tuple[Group, list[Cell]]]:
    """Every table of the page with its results, in page order: a suite's in that of `layouts`, else by section too."""
    found: dict[Group, list[Cell]] = {}
    for cell in sheet.cells:
        if cell.record is not None:
            for group in groups_of(cell, cell.record, sheet.benchmarks):
                found.setdefault(group, []).append(cell)
    if sheet.is_suite:
        wanted = [(table.id, config.dataset) for config in sheet.benchmarks.values() for table in config.tables]
    else:
        wanted = [(table.id, table.dataset) for table in sheet.published.tables.values() if table.standalone]
    present = {(group.table, group.dataset) for group in found}
    for table, dataset in wanted:
        if (table, dataset) not in present:
            found.setdefault(Group(table=table, dataset=dataset, images=()), [])
    position = {table: number for number, table in enumerate(layouts)}
    named = dict.fromkeys(layout.section for layout in layouts.values() if layout.section is not None)
    section = {name: number for number, name in enumerate([*named, FURTHER, SUBSTITUTES])}

    def rank(group: Group) -> tuple[int, bool, int, str, tuple[Images, ...]]:
        place = position[group.table], group.dataset, group.images
        if sheet.is_suite:
            return 0, False, *place
        stands_apart = sheet.published_table(group.table, group.dataset) is None  # after all that has published rows
        return section[section_of(sheet, layouts[group.table], group)], stands_apart, *place

    return sorted(found.items(), key=lambda item: rank(item[0]))


def told_apart(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows, those of equal labels told apart by their keys."""
    labels = [row.label for row in rows]
    return tuple(
        Row(
            key=row.key,
            label=row.label if labels.count(row.label) == 1 else f"{row.label} ({row.key[:12]})",
            note=row.note,
            blank=row.blank,
        )
        for row in rows
    )


def described(benchmarks: Mapping[str, AnyBenchmark], records: Iterable[ResultRecord]) -> dict[str, DatasetConfig]:
    """The descriptions of all datasets the page names. A stale record's may be gone; its name is shown then."""
    names = {config.dataset for config in benchmarks.values()}
    recorded = {dataset.dataset for record in records for dataset in record.datasets.values()}
    names |= {name for name in recorded if (CONFIGS / "datasets" / f"{name}.yaml").is_file()}
    found = {name: dataset_config(name) for name in sorted(names)}
    originals = {config.substitute_for for config in found.values() if config.substitute_for is not None}
    return found | {name: dataset_config(name) for name in sorted(originals - found.keys())}
