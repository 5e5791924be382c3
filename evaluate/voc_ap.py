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
from typing import Literal

import numpy as np

from zoo.errors import DataError, NonFiniteError

Rule = Literal["above", "at_least"]  # the devkit's (detectron2's) and mmdet's matching
Points = Literal["eleven", "every"]  # 11-point interpolated (VOC 2007), area under every point (VOC 2010 and later)

THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))  # of AP; the first is AP50's, the sixth AP75's
RECALLS = np.arange(0.0, 1.1, 0.1)  # the eleven points, to the last bit as detectron2 and mmdet have them
BLOCK_CELLS = 2**22  # (replicate, detection) pairs weighed together: some 50 MB


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


@dataclass(frozen=True, kw_only=True)
class Matched:
    """What became of each detection. Ranked: by label, then by falling score, image and the order given."""

    order: np.ndarray  # (D,) int64: where a ranked detection stands among those given
    image: np.ndarray  # (D,) int64, ranked
    label: np.ndarray  # (D,) int64, ranked
    outcome: np.ndarray  # (T, D) int8, ranked: 1 right, 0 wrong, -1 ignored
    num_classes: int


def matches(
    detections: Detections, truth: GroundTruth, *, num_classes: int, thresholds: Sequence[float], rule: Rule
) -> Matched:
    """Right, wrong or ignored, for every detection and IoU threshold, by the devkit's rule or by mmdet's.

    By falling score, a detection aims at the box of its image and class that it overlaps most (difficult ones included;
    of equals the first, by mmdet's rule the first that is not difficult). If that IoU passes: ignored where the box is
    difficult, wrong where a higher score has taken the box, else right. Thresholds do not influence each other. IoU is
    computed in fp64.
    Raises DataError for a label outside 0…num_classes - 1, NonFiniteError for a score or box that is not finite.
    """
    _check(detections, truth, num_classes)
    order = np.lexsort((detections.image, -detections.score, detections.label))
    overlap, target = _aims(detections, order, truth, num_classes, rule)
    outcome = np.zeros((len(thresholds), len(order)), dtype=np.int8)
    for row, threshold in zip(outcome, thresholds, strict=True):
        passing = np.flatnonzero(overlap > threshold if rule == "above" else overlap >= threshold)
        _, first = np.unique(target[passing], return_index=True)  # ranked, so the first has the highest score
        row[passing[first]] = 1
        row[passing[truth.difficult[target[passing]]]] = -1
    return Matched(
        order=order,
        image=detections.image[order],
        label=detections.label[order],
        outcome=outcome,
        num_classes=num_classes,
    )


def average_precision(
    matched: Matched, truth: GroundTruth, *, points: Points, counts: np.ndarray | None = None
) -> np.ndarray:
    """AP in percent of every threshold and class; NaN for a class that has no box that is not difficult.

    counts: None for the test set as it is, or (R, N) integers, how often each replicate draws each of N images. Images
    drawn twice count twice, detections and boxes both; where no two scores are equal that is exactly the AP of a test
    set with the image in it twice. Returns (T, C) float64, or (R, T, C) with counts.
    """
    weights = np.ones((1, _num_images(matched, truth)), dtype=np.uint16) if counts is None else counts
    ap = np.empty((len(weights), len(matched.outcome), matched.num_classes))
    for label in range(matched.num_classes):
        ranks = slice(*np.searchsorted(matched.label, [label, label + 1]))
        boxes = np.bincount(truth.image[(truth.label == label) & ~truth.difficult], minlength=weights.shape[1])
        block = max(1, BLOCK_CELLS // max(1, ranks.stop - ranks.start))
        for start in range(0, len(weights), block):
            part = weights[start : start + block]
            ap[start : start + block, :, label] = _class_ap(
                np.take(part, matched.image[ranks], axis=1), matched.outcome[:, ranks], part @ boxes, points
            )
    return ap if counts is not None else ap[0]


def mean_over_classes(ap: np.ndarray) -> np.ndarray:
    """(…, C) AP → (…) its mean over the classes that are not NaN; 0.0 where all are."""
    present = ~np.isnan(ap)
    return np.where(present, ap, 0.0).sum(-1) / np.maximum(present.sum(-1), 1)


def _check(detections: Detections, truth: GroundTruth, num_classes: int) -> None:
    for what, labels in (("detections", detections.label), ("ground truth", truth.label)):
        foreign = (labels < 0) | (labels >= num_classes)
        if foreign.any():
            raise DataError(
                f"{what}: expected labels in 0…{num_classes - 1}, found {labels[foreign][0]} ({foreign.sum():,} of "
                f"{len(labels):,}); detector and dataset must have the same classes."
            )
    finite = np.isfinite(detections.score) & np.isfinite(detections.box).all(1)
    if not finite.all():
        raise NonFiniteError(
            f"detection {np.argmin(finite)} (image {detections.image[np.argmin(finite)]}) has a score or box that is "
            f"NaN or infinite ({(~finite).sum():,} of {len(finite):,}); the training diverged."
        )


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


def _num_images(matched: Matched, truth: GroundTruth) -> int:
    return 1 + max(int(matched.image.max(initial=-1)), int(truth.image.max(initial=-1)))


def _class_ap(drawn: np.ndarray, outcome: np.ndarray, num_boxes: np.ndarray, points: Points) -> np.ndarray:
    """One class. drawn: (r, d) how often each ranked detection's image was drawn. outcome: (T, d). num_boxes: (r,).

    Returns (r, T) percent. Precision is looked at only behind right detections: elsewhere recall stands still and
    precision falls, which changes neither rule's maximum.
    """
    ap = np.empty((len(drawn), len(outcome)))
    taken = np.cumsum(drawn, axis=1, dtype=np.int64)
    for column, row in enumerate(outcome):
        right, ignored = np.flatnonzero(row == 1), np.flatnonzero(row == -1)
        num_right = np.cumsum(np.take(drawn, right, axis=1), axis=1, dtype=np.int64)
        num_ignored = np.cumsum(np.take(drawn, ignored, axis=1), axis=1, dtype=np.int64)
        num_ignored = np.pad(num_ignored, ((0, 0), (1, 0)))  # none before the first
        num_scored = np.take(taken, right, axis=1) - np.take(num_ignored, np.searchsorted(ignored, right), axis=1)
        precision = num_right / np.maximum(num_scored, 1)  # 0 / 1 where nothing has been drawn yet
        recall = num_right / np.maximum(num_boxes, 1)[:, None]
        ap[:, column] = _area(recall, precision, points)
    ap[num_boxes == 0] = np.nan
    return 100.0 * ap


def _area(recall: np.ndarray, precision: np.ndarray, points: Points) -> np.ndarray:
    """(r, k) recall, rising, and precision behind each right detection → (r,) average precision in 0…1."""
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # at this recall or more
    if points == "every":
        steps = np.diff(recall, axis=1, prepend=0.0) * highest
        return np.ascontiguousarray(steps).sum(1)  # one order of addition, however many replicates there are
    highest = np.pad(highest, ((0, 0), (0, 1)))  # a recall that is never reached has precision 0
    reached = np.stack([(recall < least).sum(1) for least in RECALLS], axis=1)  # (r, 11) the first that has it
    return np.take_along_axis(highest, reached, axis=1).mean(1)
