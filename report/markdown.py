"""How a table is written: padded GitHub Markdown, then its notes as a list, footnotes last."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from report.statistics import Comparisons

_SPECIAL = re.compile(r"([\\`*\[\]<>|])")
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, kw_only=True)
class Behind:
    """What a cell shows: the metric or label `name` of these results; a published number's `value` has none."""

    name: str | None = None
    records: tuple[str, ...] = ()  # cell ids, by seed
    value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row: its label (Markdown), the text of its footnote, its cells."""

    label: str
    footnote: str | None
    cells: tuple[str, ...]
    row: str | None = None  # Row.key; none for a published row
    behind: tuple[Behind, ...] = ()  # one a cell


@dataclass(frozen=True, kw_only=True)
class Table:
    """One finished table."""

    name: str  # what a generated block of README.md calls it
    id: str = ""
    dataset: str = ""
    metric: str = ""
    decimals: int = 0
    section: str
    heading: str
    columns: tuple[str, ...]  # the label's first
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    comparisons: Comparisons | None = None  # of its measured rows; None where no replicates are at hand


def escape(text: str) -> str:
    """Plain text as Markdown shows it unchanged, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Text in a code span, whatever it holds."""
    text = " ".join(text.split())
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def counted(number: int, noun: str) -> str:
    """ "1 cell", "2 cells"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def render(table: Table) -> str:
    """The table and its notes, without a heading; ends without a line break."""
    footnotes = list(dict.fromkeys(line.footnote for line in table.lines if line.footnote))
    numbers = {text: str(number).translate(_SUPERSCRIPTS) for number, text in enumerate(footnotes, start=1)}
    rows = [table.columns]
    for line in table.lines:
        label = f"{line.label} {numbers[line.footnote]}" if line.footnote else line.label
        rows.append((label, *line.cells))
    notes = [*table.notes, *(f"{number} {text}" for text, number in numbers.items())]
    return "\n".join([*_grid(rows), "", *(f"- {note}" for note in notes)])


def _grid(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return [lines[0], "| " + " | ".join("-" * max(3, width) for width in widths) + " |", *lines[1:]]
