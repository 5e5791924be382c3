"""python -m perf.calibration: do the intervals and p-values hold what they promise? Simulated test sets, known truths.

Every simulated set is resampled with the draws that benchmarks use (several test-set hashes), and compared as the page
compares. Printed: how often the 95 % interval holds the truth, and how often equal rows are called different.
docs/statistics.md keeps a run.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from scipy.stats import norm

from evaluate.bootstrap import resample_counts
from evaluate.ranking import average_precision_every_point, bootstrap_average_precision
from evaluate.segmentation import class_iou, mean_iou
from perf.measure import print_table, write_json
from report.statistics import _central, _counted  # pyright: ignore[reportPrivateUsage]
from zoo.files import digest

NUM_HASHES = 20
Pair = tuple[np.ndarray, np.ndarray]  # (1000,) replicates of two rows
Drawn = tuple[float, float, Pair]  # both rows' values, their replicates


def main(
    sets: Annotated[int, typer.Option(help="simulated test sets of each line, a multiple of 20")] = 2000,
    only: Annotated[str, typer.Option(help="lines whose name holds this")] = "",
    out: Annotated[Path | None, typer.Option(help="also as JSON")] = None,
) -> None:
    """Print how often the intervals hold the truth, and error rates of the paired test, in percent."""
    kinds: dict[str, tuple[Callable[..., Drawn], int, int]] = {
        "top-1, 100 images": (top1, 100, sets),
        "top-1, 500 images": (top1, 500, sets),
        "top-1, 2,000 images": (top1, 2000, sets),
        "mAP of 10 classes, 80 images": (ranking, 80, sets // 2),
        "mAP of 10 classes, 500 images": (ranking, 500, sets // 2),
        "mAP of 10 classes, 5,000 images": (ranking, 5000, sets // 10),
        "mIoU of 10 classes, 50 images": (segmentation, 50, sets),
        "mIoU of 10 classes, 500 images": (segmentation, 500, sets),
        "mIoU of 10 classes, 1,449 images": (segmentation, 1449, sets),
    }
    rows: list[dict[str, Any]] = []
    for name, (draw, images, count) in kinds.items():
        if only in name:
            rows.append({"test set": name} | calibrated(draw, images, count))
            print_table(name, list(rows[-1]), [list(rows[-1].values())])
    if out is not None:
        write_json(out, rows)


def calibrated(draw: Callable[..., Drawn], images: int, count: int) -> dict[str, Any]:
    """Percentages over `count` sets. Standard error of a 95 %: 0.5 of 2,000 sets, 0.7 of 1,000, 1.5 of 200."""
    truth = population(draw)
    held = {"record's interval": 0.0, "value ± half": 0.0, "interval of a difference": 0.0}
    shown: list[tuple[float, float]] = []  # value and half the width of its interval
    below = {0.05: 0, 0.01: 0, 0.001: 0}
    for number in range(NUM_HASHES):
        counts = resample_counts(images, manifest_sha256=digest(number))
        for index in range(count // NUM_HASHES):
            rng = np.random.default_rng([number, index, images])
            a, b, (first, second) = draw(rng, images, counts)
            held["record's interval"] += _holds(first, truth)
            low, high = _central(first[None])[0]
            shown.append((a, (high - low) / 2))
            held["value ± half"] += _inside(a - shown[-1][1], a + shown[-1][1], truth)
            held["interval of a difference"] += _holds(second - first, 0.0)
            difference = (second - first)[None]
            p = _counted(difference, np.array([b - a]), difference.std(axis=1, ddof=1))[0]
            for level in below:
                below[level] += int(p <= level)
    total = count // NUM_HASHES * NUM_HASHES
    usual = float(np.mean([value for value, _ in shown]))  # AP of few images is higher than of many
    held["value ± half: usual value"] = sum(_inside(value - half, value + half, usual) for value, half in shown)
    rates = {f"equal rows: p ≤ {level}": 100 * hits / total for level, hits in below.items()}
    return {"sets": total} | {name: 100 * value / total for name, value in held.items()} | rates


def _holds(replicates: np.ndarray, truth: float) -> float:
    low, high = _central(replicates[None])[0]
    return _inside(low, high, truth)


def _inside(low: float, high: float, truth: float) -> float:
    """1 inside, 0 outside; ½ where one of the ends is the truth, as happens with counts."""
    return (float(low - 1e-9 <= truth <= high + 1e-9) + float(low + 1e-9 < truth < high - 1e-9)) / 2


def population(draw: Callable[..., Drawn]) -> float:
    """The value on a very large test set."""
    no_replicates = {top1: 4_000_000, ranking: 400_000, segmentation: 400_000}
    return draw(np.random.default_rng(12345), no_replicates[draw], None)[0]


def top1(rng: np.random.Generator, images: int, counts: np.ndarray | None) -> Drawn:
    """Two rows right on 60 % of the images, correlated through each image's difficulty."""
    difficulty = rng.standard_normal(images)
    level = norm.ppf(0.6) * np.sqrt(2)
    right = [(difficulty + rng.standard_normal(images) < level).astype(np.float32) for _ in range(2)]
    values = [100.0 * float(each.mean()) for each in right]
    if counts is None:
        return 60.0, 60.0, (np.empty(0), np.empty(0))
    weights = counts.astype(np.float32)
    return values[0], values[1], (100 * (weights @ right[0]) / images, 100 * (weights @ right[1]) / images)


def ranking(rng: np.random.Generator, images: int, counts: np.ndarray | None) -> Drawn:
    """mAP: 10 classes, 4 to 20 % positives, scores of two rows equally good and half shared."""
    share = np.linspace(0.04, 0.2, 10)
    positive = rng.random((images, 10)) < share
    positive[0] = True  # a class without a positive has no AP
    common = rng.standard_normal((images, 10))
    scores = [1.5 * positive + (common + rng.standard_normal((images, 10))) / np.sqrt(2) for _ in range(2)]
    values = [100 * float(average_precision_every_point(each, positive).mean()) for each in scores]
    if counts is None:
        return values[0], values[1], (np.empty(0), np.empty(0))
    drawn = [100 * np.nanmean(bootstrap_average_precision(each, positive, counts=counts), axis=1) for each in scores]
    return values[0], values[1], (drawn[0], drawn[1])


def segmentation(rng: np.random.Generator, images: int, counts: np.ndarray | None) -> Drawn:
    """mIoU: 10 classes, each in a quarter of the images with an area of its own; both rows find a part of it."""
    area = (rng.random((images, 10)) < 0.25) * rng.lognormal(7.0, 1.0, (images, 10))
    easy = rng.normal(0.8, 1.0, (images, 10))
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(2):
        hit = area / (1 + np.exp(-(easy + 0.5 * rng.standard_normal((images, 10)))))
        wrong = (rng.random((images, 10)) < 0.1) * rng.lognormal(6.0, 1.0, (images, 10))
        found.append((hit, area + wrong))
    values = [float(mean_iou(class_iou(hit.sum(0), union.sum(0)))) for hit, union in found]
    if counts is None:
        return values[0], values[1], (np.empty(0), np.empty(0))
    weights = counts.astype(np.float64)
    drawn = [mean_iou(class_iou(weights @ hit, weights @ union)) for hit, union in found]
    return values[0], values[1], (drawn[0], drawn[1])


if __name__ == "__main__":
    typer.run(main)
