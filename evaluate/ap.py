"""Average precision of detections of which it is known whether each is right, of a test set and of its resamples.

What VOC and COCO have in common; who is right, and how precision over recall becomes one number, is `evaluate.voc_ap`'s
and `evaluate.coco_ap`'s.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from zoo.errors import DataError, NonFiniteError

BLOCK_CELLS = 2**22  # (replicate, detection) pairs weighed together: some 50 MB

# (r, k) how many were right and how many were scored up to each right detection, and recall there → (r,) AP in 0…1
Area = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Found(Protocol):
    """Detections of any protocol."""

    @property
    def image(self) -> np.ndarray: ...  # (D,) int64
    @property
    def label(self) -> np.ndarray: ...  # (D,) int64
    @property
    def score(self) -> np.ndarray: ...  # (D,)
    @property
    def box(self) -> np.ndarray: ...  # (D, 4)


@dataclass(frozen=True, kw_only=True)
class ClassOutcome:
    """One class: what became of its detections, ranked by falling score, and how many objects there were to find."""

    image: np.ndarray  # (d,) int64, index into the manifest
    outcome: np.ndarray  # (T, d) int8: 1 right, 0 wrong, -1 ignored (it found a difficult object or a crowd)
    num_objects: np.ndarray  # (N,) int64: objects of each image that count


def check(detections: Found, *, num_images: int, num_classes: int) -> None:
    """Raises DataError for a label or an image that there is not, NonFiniteError for a score or box not finite."""
    for what, found, end in (("labels", detections.label, num_classes), ("images", detections.image, num_images)):
        foreign = (found < 0) | (found >= end)
        if foreign.any():
            raise DataError(
                f"detections: expected {what} in 0…{end - 1}, found {found[foreign][0]} ({foreign.sum():,} of "
                f"{len(found):,}); detector and dataset must have the same {what}."
            )
    finite = np.isfinite(detections.score) & np.isfinite(detections.box).all(1)
    if not finite.all():
        raise NonFiniteError(
            f"detection {np.argmin(finite)} (image {detections.image[np.argmin(finite)]}) has a score or box that is "
            f"NaN or infinite ({(~finite).sum():,} of {len(finite):,}); the training diverged."
        )


def average_precision(by_class: Sequence[ClassOutcome], area: Area, counts: np.ndarray | None = None) -> np.ndarray:
    """AP in percent of every threshold and class; NaN for a class without an object that counts.

    counts: None for the test set as it is, or (R, N) integers, how often each replicate draws each of N images. Images
    drawn twice count twice, detections and objects both; where no two scores are equal that is exactly the AP of a test
    set with the image in it twice. Returns (T, C) float64, or (R, T, C) with counts.
    """
    weights = np.ones((1, len(by_class[0].num_objects)), dtype=np.uint16) if counts is None else counts
    ap = np.full((len(weights), len(by_class[0].outcome), len(by_class)), np.nan)
    for label, mine in enumerate(by_class):
        if not mine.num_objects.any():
            continue
        block = max(1, BLOCK_CELLS // max(1, len(mine.image)))
        for start in range(0, len(weights), block):
            part = weights[start : start + block]
            ap[start : start + block, :, label] = _class_ap(
                np.take(part, mine.image, axis=1), mine.outcome, part @ mine.num_objects, area
            )
    return ap if counts is not None else ap[0]


def mean_over_classes(ap: np.ndarray) -> np.ndarray:
    """(…, C) AP → (…) its mean over the classes that are not NaN; 0.0 where all are."""
    present = ~np.isnan(ap)
    return np.where(present, ap, 0.0).sum(-1) / np.maximum(present.sum(-1), 1)


def _class_ap(drawn: np.ndarray, outcome: np.ndarray, num_objects: np.ndarray, area: Area) -> np.ndarray:
    """One class. drawn: (r, d) how often each ranked detection's image was drawn. outcome: (T, d). num_objects: (r,).

    Returns (r, T) percent. Precision is looked at only behind right detections: elsewhere recall stands still and
    precision falls, which changes no rule's maximum.
    """
    ap = np.empty((len(drawn), len(outcome)))
    taken = np.cumsum(drawn, axis=1, dtype=np.int32)
    for column, row in enumerate(outcome):
        right, ignored = np.flatnonzero(row == 1), np.flatnonzero(row == -1)
        num_right = np.cumsum(np.take(drawn, right, axis=1), axis=1, dtype=np.int32)
        num_ignored = np.cumsum(np.take(drawn, ignored, axis=1), axis=1, dtype=np.int32)
        num_ignored = np.pad(num_ignored, ((0, 0), (1, 0)))  # none before the first
        num_scored = np.take(taken, right, axis=1) - np.take(num_ignored, np.searchsorted(ignored, right), axis=1)
        ap[:, column] = area(num_right, num_scored, num_right / np.maximum(num_objects, 1)[:, None])
    ap[num_objects == 0] = np.nan
    return 100.0 * ap
