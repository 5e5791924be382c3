"""Does a row measured here give the published numbers again? *reproduced*, *differs*, or *not comparable* and why.

A published row names whose weights it measured (`weights`) and which recipe of ours trains such weights (`recipe`), by
the family on their cards (configs/published/). The tolerance is the sum of what is known of noise (`KNOWN`), half the
width of the measured value's 95 % interval, and half of the published value's last decimal. It allows for more than
chance alone would, so *reproduced* means "no sign of a difference", not "the same".
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from report.markdown import Line, Table, escape
from report.published import PublishedRow, Source
from report.statistics import Column
from report.values import fixed
from zoo.record import ResultRecord


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a table's noise between two runs of one protocol. Points of 100."""

    points: float | None  # None: its published values cannot be compared with
    why: str


_MOCO: Final = "MoCo's five repeats of pre-training and linear probe span .4 to .5"  # protocols §5
KNOWN: Final = {  # table → noise; sources as in docs/protocols.md §5 and §6
    "imagenet_linear": Known(points=0.5, why=_MOCO),
    "imagenet_linear_reference": Known(points=None, why="published: the best epoch on the validation images"),  # D5
    "places205_linear": Known(points=0.5, why=f"{_MOCO} on ImageNet; none known for Places205"),
    "imagenet_knn": Known(points=0.0, why="nothing is random"),
    "voc07_svm": Known(points=0.0, why="nothing is random"),  # its low-shot columns: `_noise`
    "voc0712_detection": Known(points=0.3, why="some 0.3 AP from run to run (moco#39)"),
    "coco2017": Known(points=0.3, why="some 0.3 AP from run to run (moco#39)"),
    "voc12aug_segmentation": Known(points=None, why="the published value is an outlier of unknown cause"),  # D24
}
Outcome = Literal["reproduced", "differs", "not comparable"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One published value and its counterpart here. Points of 100; `tolerance` is None where nothing is known."""

    table: str
    decimals: int
    column: str
    row: str  # Row.key
    published: str  # the published row's label
    is_retrained: bool  # the recipe was run here; else the published weights were measured
    expected: float
    found: float
    tolerance: float | None
    outcome: Outcome
    why: str


def checks(
    table: str,
    decimals: int,
    columns: Sequence[Column],
    published: Sequence[tuple[Source, PublishedRow]],
) -> Iterator[Check]:
    """Every published value of a table that a measured row is linked with. columns: the measured values."""
    for _, row in published:
        for column in columns:
            expected = row.results[table].get(column.name)
            for key, runs in column.rows.items():
                family = runs[0].checkpoint.family
                if isinstance(expected, float) and family in (row.weights, row.recipe):
                    yield _check(table, decimals, column, key, row, expected, is_retrained=family != row.weights)


def _check(
    table: str, decimals: int, column: Column, key: str, row: PublishedRow, expected: float, *, is_retrained: bool
) -> Check:
    runs = column.rows[key]
    found = statistics.fmean(record.metrics[column.metric] for record in runs)
    noise, why = _noise(table, runs, column.metric)
    half = half_width(runs, column.metric)
    tolerance = None
    outcome: Outcome = "not comparable"
    if noise is not None and half is None:
        why = "the record has no interval"
    elif noise is not None and half is not None:
        tolerance = noise + half + 0.5 * 10.0**-decimals
        outcome = "reproduced" if abs(found - expected) <= tolerance else "differs"
        why = f"noise {fixed(noise, decimals)} ({why}) + interval {fixed(half, decimals)} + rounding"
        if is_retrained and noise == 0:
            why += "; how repeats of the pre-training spread is not known and not included"
    return Check(
        table=table,
        decimals=decimals,
        column=column.name,
        row=key,
        published=row.label,
        is_retrained=is_retrained,
        expected=expected,
        found=found,
        tolerance=tolerance,
        outcome=outcome,
        why=why,
    )


def _noise(table: str, runs: Sequence[ResultRecord], metric: str) -> tuple[float | None, str]:
    """Points, and where they are from. A mean over random draws is compared with one over other, unknown draws."""
    if metric.startswith("low_shot"):
        trials = [record.trials[metric] for record in runs if metric in record.trials]
        if len(trials) < len(runs):
            return None, "the published draws are unknown, and the record does not say how draws spread"  # D17
        spread = statistics.fmean(each.std for each in trials)
        count = min(each.n for each in trials)
        return 1.96 * spread * math.sqrt(2 / count), f"the published {count} draws are unknown; ours: std {spread:.2f}"
    known = KNOWN.get(table)
    return (known.points, known.why) if known else (None, "no noise is known for this table")


def half_width(runs: Sequence[ResultRecord], metric: str) -> float | None:
    """Half the width of a row's 95 % interval, the mean over its seeds; None where a record has none."""
    widths = [record.confidence[metric] for record in runs if metric in record.confidence]
    return statistics.fmean((high - low) / 2 for low, high in widths) if len(widths) == len(runs) else None


def check_table(found: Sequence[tuple[str, str, Check]]) -> Table:
    """The checks as a table. found: (the table's title, the row's label, check), in page order."""
    lines = [
        Line(
            label=escape(label),
            footnote=None,
            cells=(
                escape(f"{title}, {check.column}"),
                escape(check.published) + (" (trained anew)" if check.is_retrained else ""),
                fixed(check.expected, check.decimals),
                fixed(check.found, check.decimals),
                f"{check.found - check.expected:+.{check.decimals}f}",
                f"*{check.outcome}* ({escape(check.why)})",
            ),
        )
        for title, label, check in found
    ]
    counts = {name: sum(check.outcome == name for _, _, check in found) for name in ("reproduced", "differs")}
    rest = len(found) - sum(counts.values())
    return Table(
        name="reproduction",
        section="Reproduction check",
        heading="Reproduction check",
        columns=("Measured here", "Value", "Published row", "Published", "Here", "Difference", "Outcome"),
        lines=tuple(lines),
        notes=(
            f"{counts['reproduced']} reproduced, {counts['differs']} differ, {rest} not comparable. Reproduced: within "
            "known noise, half the measured value's 95 % interval and rounding together; no sign of a difference, "
            "which is not a proof that there is none.",
        ),
    )
