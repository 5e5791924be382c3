"""Which values of a table deserve a second look? Three rules; they add notes and never change a value.

1. The canary: a row that is not above the 95 % interval of an untrained network of its architecture. Weights that were
   never loaded look like this.
2. Low-shot SVM falling with more images a class.
3. Longer pre-training giving less than shorter in one family, where more is known to help: the last two maps and
   average pooling of linear probes, detection, segmentation. The first maps do fall (protocols §2.2), so they are not
   looked at. A drop must exceed what is known of noise; of published values nothing is known, so any drop counts.
"""

import itertools
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from report.layout import Layout
from report.published import PublishedRow, Source
from report.reproduction import KNOWN, half_width
from report.statistics import Column, Stored, difference
from report.values import fixed
from zoo.record import ResultRecord

LOW_SHOT: Final = ("voc07_svm", "voc07_svm_clean")  # tables whose columns k=… are low-shot; in others k is neighbours
GROWS: Final = {  # table → the columns that longer pre-training improves; None: all of them
    "imagenet_linear": ("Feature4", "Feature5", "AvgPool"),
    "imagenet_linear_reference": None,
    "places205_linear": ("Feature4", "Feature5", "AvgPool"),
    "voc0712_detection": None,
    "coco2017": None,
    "voc12aug_segmentation": None,
    "cityscapes_segmentation": None,
}
_LOW_SHOT_COLUMN = re.compile(r"k=(\d+)")
_UNTRAINED = re.compile(r"resnet\d+, random weights")  # the families of python -m pretrain untrained
_EPOCHS = re.compile(r"(?<![0-9a-zA-Z])(\d+)e(?:p|pochs)?(?![0-9a-zA-Z])")


@dataclass(frozen=True, kw_only=True)
class _Point:
    """One value of a series over pre-training length."""

    epochs: int
    value: float
    label: str
    row: str | None  # Row.key; none for a published row


def worth_a_look(
    layout: Layout,
    columns: Sequence[Column],
    labels: Mapping[str, str],
    published: Sequence[tuple[Source, PublishedRow]],
    stored: Stored,
) -> tuple[str, ...]:
    """What the rules find in one table, as plain text, in the order of the rules. labels: Row.key → label."""
    return (
        *_untrained(layout, columns, labels),
        *_low_shot(layout, columns, labels, published),
        *_longer_is_worse(layout, columns, labels, published, stored),
    )


def is_untrained(record: ResultRecord) -> bool:
    """Whether the weights are an untrained network's, or there are none."""
    return record.checkpoint.arch == "raw_pixels" or _UNTRAINED.match(record.checkpoint.family) is not None


def _untrained(layout: Layout, columns: Sequence[Column], labels: Mapping[str, str]) -> Iterator[str]:
    found: dict[tuple[str, str], list[str]] = {}
    for column in columns:
        canaries = {
            key: max_of
            for key, runs in column.rows.items()
            if _UNTRAINED.match(runs[0].checkpoint.family) and (max_of := _upper(runs, column.metric)) is not None
        }
        for key, runs in column.rows.items() if canaries else ():
            if is_untrained(runs[0]):
                continue
            value = statistics.fmean(record.metrics[column.metric] for record in runs)
            for canary, upper in canaries.items():
                same = column.rows[canary][0].checkpoint.arch == runs[0].checkpoint.arch
                if same and value <= upper:
                    found.setdefault((key, canary), []).append(f"{column.name} {fixed(value, layout.decimals)}")
                    break
    for (key, canary), values in found.items():
        yield f"{labels[key]} is not above the 95 % interval of {labels[canary]} in {', '.join(values)}"


def _upper(runs: Sequence[ResultRecord], metric: str) -> float | None:
    """Value plus half the width of the interval, as the page shows it: of AP the interval itself lies too high."""
    half = half_width(runs, metric)
    return None if half is None else statistics.fmean(record.metrics[metric] for record in runs) + half


def _low_shot(
    layout: Layout,
    columns: Sequence[Column],
    labels: Mapping[str, str],
    published: Sequence[tuple[Source, PublishedRow]],
) -> Iterator[str]:
    if layout.id not in LOW_SHOT:
        return
    by_k = {int(match[1]): name for name in layout.columns if (match := _LOW_SHOT_COLUMN.fullmatch(name))}
    names = [name for _, name in sorted(by_k.items())]
    series: list[tuple[str, dict[str, tuple[float, float]]]] = []  # label, column → (value, variance of draws)
    for _, row in published:
        values = row.results[layout.id]
        series.append((row.label, {n: (v, 0.0) for n in names if isinstance(v := values.get(n), float)}))
    measured: dict[str, dict[str, tuple[float, float]]] = {}
    for column in columns:
        if column.name in names:
            for key, runs in column.rows.items():
                value = statistics.fmean(record.metrics[column.metric] for record in runs)
                measured.setdefault(key, {})[column.name] = value, _variance_of_draws(runs, column.metric)
    series += [(labels[key], values) for key, values in measured.items()]
    for label, values in series:
        present = [name for name in names if name in values]
        for fewer, more in itertools.pairwise(present):
            noise = 1.96 * math.sqrt(values[fewer][1] + values[more][1])
            if values[fewer][0] - values[more][0] > noise:
                before, after = (fixed(values[name][0], layout.decimals) for name in (fewer, more))
                yield f"{label}: low-shot falls from {before} ({fewer}) to {after} ({more})"


def _variance_of_draws(runs: Sequence[ResultRecord], metric: str) -> float:
    """Of the mean over the random draws of the training images, as far as the records say how these spread."""
    trials = [record.trials[metric] for record in runs if metric in record.trials]
    return statistics.fmean(each.std**2 / each.n for each in trials) if trials else 0.0


def _longer_is_worse(
    layout: Layout,
    columns: Sequence[Column],
    labels: Mapping[str, str],
    published: Sequence[tuple[Source, PublishedRow]],
    stored: Stored,
) -> Iterator[str]:
    if layout.id not in GROWS:
        return
    names = GROWS[layout.id] or layout.columns
    by_name = {column.name: column for column in columns}
    for name in (name for name in layout.columns if name in names):
        for points in (*_published_series(layout, name, published), *_measured_series(by_name.get(name), labels)):
            for shorter, longer in itertools.pairwise(sorted(points, key=lambda point: point.epochs)):
                if _is_drop(layout, by_name.get(name), shorter, longer, stored):
                    before, after = (fixed(point.value, layout.decimals) for point in (shorter, longer))
                    yield (
                        f"{name} falls from {before} to {after} with longer pre-training ({shorter.label}, "
                        f"{longer.label})"
                    )


def _published_series(
    layout: Layout, column: str, published: Sequence[tuple[Source, PublishedRow]]
) -> Iterator[list[_Point]]:
    """A source's rows whose labels differ in the number of epochs only."""
    series: dict[tuple[str, str], list[_Point]] = {}
    for source, row in published:
        value, epochs = row.results[layout.id].get(column), _EPOCHS.search(row.label)
        if isinstance(value, float) and epochs is not None:
            family = source.name, row.label[: epochs.start()] + row.label[epochs.end() :]
            point = _Point(epochs=int(epochs[1]), value=value, label=row.label, row=None)
            series.setdefault(family, []).append(point)
    yield from series.values()


def _measured_series(column: Column | None, labels: Mapping[str, str]) -> Iterator[list[_Point]]:
    """Checkpoints whose families differ in the number of epochs only; of one length, the first row stands for all."""
    series: dict[str, dict[int, _Point]] = {}
    for key, runs in (column.rows if column else {}).items():
        assert column is not None
        checkpoint = runs[0].checkpoint
        if checkpoint.epochs is not None and not is_untrained(runs[0]):
            value = statistics.fmean(record.metrics[column.metric] for record in runs)
            point = _Point(epochs=checkpoint.epochs, value=value, label=labels[key], row=key)
            series.setdefault(pretraining(checkpoint.family), {}).setdefault(checkpoint.epochs, point)
    yield from (list(points.values()) for points in series.values())


def pretraining(family: str) -> str:
    """A family's name without its number of epochs: simsiam_r50_100e_b256_fb and its 200e are one pre-training."""
    return re.sub(r"_\d+e(?=_|$)", "", family)


def _is_drop(layout: Layout, column: Column | None, shorter: _Point, longer: _Point, stored: Stored) -> bool:
    drop = shorter.value - longer.value
    if shorter.row is None or longer.row is None:
        return drop > 0
    assert column is not None
    known = KNOWN.get(layout.id)
    if drop <= (known.points if known and known.points else 0.0):
        return False
    pair = difference(column, shorter.row, longer.row, stored)
    if pair is not None:
        return pair.interval[0] > 0
    ends = [_upper(column.rows[row], column.metric) for row in (shorter.row, longer.row)]
    return any(end is None for end in ends) or drop > sum(
        end - point.value for end, point in zip(ends, (shorter, longer), strict=True) if end is not None
    )
