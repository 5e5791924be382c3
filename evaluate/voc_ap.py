"""Pascal VOC average precision, from the detections an engine wrote and the ground truth (protocols §2.8).

Boxes on both sides are xmin, ymin, xmax, ymax in VOC's own coordinates, 1-based and inclusive, so a side is
max - min + 1 pixels; whoever reads an engine's 0-based boxes shifts them before they arrive here.

Two rules of matching are in use (D21), both with the +1 of inclusive corners. The devkit's, which detectron2 follows,
passes an IoU > threshold and prefers the first of equally overlapped boxes; mmdet's passes an IoU >= threshold and
prefers boxes that are not difficult, which it puts in front. (mmdet computes IoU in fp32; detectron2 writes scores with
three decimals and corners with one before it matches. Neither is repeated here.)

Within a class, detections are taken by falling score; equal scores by image, then in the order given, so a result does
not depend on a sort's whim. Which detection is right does not depend on the other images, so the matching is done once
and a bootstrap replicate only weighs it: image by image, by how often it was drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from evaluate.ap import Area, ClassOutcome, check
from zoo.errors import DataError

Rule = Literal["above", "at_least"]  # the devkit's (detectron2's) and mmdet's matching
Points = Literal["eleven", "every"]  # 11-point interpolated (VOC 2007), area under every point (VOC 2010 and later)

THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))  # of AP; the first is AP50's, the sixth AP75's
RECALLS = np.arange(0.0, 1.1, 0.1)  # the eleven points, to the last bit as detectron2 and mmdet have them


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Everything an engine found, in any order."""

    image: np.ndarray  # (D,) int64, index into the manifest
    label: np.ndarray  # (D,) int64
    score: np.ndarray  # (D,) float32
    box: np.ndarray  # (D, 4) float32, VOC coordinates


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """Every annotated object, difficult ones too."""

    image: np.ndarray  # (G,) int64, index into the manifest
    label: np.ndarray  # (G,) int64
    box: np.ndarray  # (G, 4), VOC coordinates
    difficult: np.ndarray  # (G,) bool


def matches(
    detections: Detections,
    truth: GroundTruth,
    *,
    num_images: int,
    num_classes: int,
    thresholds: Sequence[float],
    rule: Rule,
) -> list[ClassOutcome]:
    """Right, wrong or ignored, class by class, for every detection and IoU threshold, by the devkit's or mmdet's rule.

    By falling score, a detection aims at the box of its image and class that it overlaps most (difficult ones included;
    of equals the first, by mmdet's rule the first that is not difficult). If that IoU passes: ignored where the box is
    difficult, wrong where a higher score has taken the box, else right. Thresholds do not influence each other. IoU is
    computed in fp64.
    Raises DataError for a label or image that there is not, NonFiniteError for a score or box that is not finite.
    """
    check(detections, num_images=num_images, num_classes=num_classes)
    foreign = (truth.label < 0) | (truth.label >= num_classes)
    if foreign.any():
        raise DataError(
            f"ground truth: expected labels in 0…{num_classes - 1}, found {truth.label[foreign][0]} "
            f"({foreign.sum():,} of {len(foreign):,}); detector and dataset must have the same classes."
        )
    order = np.lexsort((detections.image, -detections.score, detections.label))
    overlap, target = _aims(detections, order, truth, num_classes, rule)
    outcome = np.zeros((len(thresholds), len(order)), dtype=np.int8)
    for row, threshold in zip(outcome, thresholds, strict=True):
        passing = np.flatnonzero(overlap > threshold if rule == "above" else overlap >= threshold)
        _, first = np.unique(target[passing], return_index=True)  # ranked, so the first has the highest score
        row[passing[first]] = 1
        row[passing[truth.difficult[target[passing]]]] = -1
    bounds = np.searchsorted(detections.label[order], np.arange(num_classes + 1))
    return [
        ClassOutcome(
            image=detections.image[order[start:stop]],
            outcome=outcome[:, start:stop],
            num_objects=np.bincount(truth.image[(truth.label == label) & ~truth.difficult], minlength=num_images),
        )
        for label, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True))
    ]


def area(points: Points) -> Area:
    """How VOC makes one number of precision over recall."""
    return partial(_area, points)


def _aims(
    detections: Detections, order: np.ndarray, truth: GroundTruth, num_classes: int, rule: Rule
) -> tuple[np.ndarray, np.ndarray]:
    """The highest IoU of each ranked detection, (D,) float64, and with which box, (D,) int64; -inf where is none."""
    cell_of = truth.image * num_classes + truth.label
    by_cell = np.lexsort((truth.difficult & (rule == "at_least"), cell_of))  # stable
    cells = cell_of[by_cell]
    wanted = (detections.image * num_classes + detections.label)[order]
    first, stop = np.searchsorted(cells, wanted, "left"), np.searchsorted(cells, wanted, "right")
    overlap, target = np.full(len(order), -np.inf), np.zeros(len(order), dtype=np.int64)
    some = np.flatnonzero(stop > first)
    if len(some):  # every (detection, box) pair in one row, a detection's pairs side by side
        sizes = (stop - first)[some]
        starts = np.cumsum(sizes) - sizes
        boxes = by_cell[np.arange(sizes.sum()) - np.repeat(starts - first[some], sizes)]
        pairs = _iou(np.repeat(detections.box[order[some]], sizes, axis=0), truth.box[boxes])
        overlap[some] = np.maximum.reduceat(pairs, starts)
        best = np.flatnonzero(pairs == np.repeat(overlap[some], sizes))
        _, first_best = np.unique(np.repeat(some, sizes)[best], return_index=True)
        target[some] = boxes[best[first_best]]
    return overlap, target


def _iou(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(P, 4) and (P, 4) boxes → (P,) intersection over union, float64."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    low, high = np.maximum(left[:, :2], right[:, :2]), np.minimum(left[:, 2:], right[:, 2:])
    common = np.maximum(high - low + 1.0, 0.0).prod(1)
    areas = [(box[:, 2:] - box[:, :2] + 1.0).prod(1) for box in (left, right)]
    return common / np.maximum(areas[0] + areas[1] - common, 1.0)  # below 1 only with an inside-out box: IoU 0


def _area(points: Points, num_right: np.ndarray, num_scored: np.ndarray, recall: np.ndarray) -> np.ndarray:
    precision = num_right / np.maximum(num_scored, 1)  # 0 / 1 where nothing has been drawn yet
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # at this recall or more
    if points == "every":
        steps = np.diff(recall, axis=1, prepend=0.0) * highest
        return np.ascontiguousarray(steps).sum(1)  # one order of addition, however many replicates there are
    highest = np.pad(highest, ((0, 0), (0, 1)))  # a recall that is never reached has precision 0
    reached = np.stack([(recall < least).sum(1) for least in RECALLS], axis=1)  # (r, 11) the first that has it
    return np.take_along_axis(highest, reached, axis=1).mean(1)
