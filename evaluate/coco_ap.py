"""COCO average precision of boxes and of masks, from the detections an engine wrote and COCO's ground truth.

Which detection is right is pycocotools' own decision, image by image (COCOeval.evaluate: IoU from .50 to .95, all
areas, at most 100 detections of a class in an image, crowds as it has them). Only its accumulation over the images is
done again, because a bootstrap replicate must weigh images, and 1,000 accumulations with its loops would take hours.
The point value is pycocotools' summary: mean precision at 101 recalls, over the IoU thresholds and the classes present
(protocols §2.9, reported values).

Within a class, detections are taken by falling score; equal scores by image, then in the order given.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from zoo.coco import CocoImage
from zoo.errors import DataError, NonFiniteError

Kind = Literal["bbox", "segm"]
MOST = 100  # detections of a class in an image that count, those with the highest scores
BLOCK_CELLS = 2**22  # (replicate, detection) pairs weighed together: some 50 MB


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Everything an engine found. Masks: image i's are `image size` run lengths, compressed as COCO does."""

    image: np.ndarray  # (D,) int64, index into the manifest
    label: np.ndarray  # (D,) int64
    score: np.ndarray  # (D,) float32
    box: np.ndarray  # (D, 4) float32: x0, y0, x1, y1 in pixels from the image's upper left corner
    mask_counts: np.ndarray  # (B,) uint8: the characters of all run lengths, one after the other
    mask_offsets: np.ndarray  # (D + 1,) int64: where each detection's begin, and the end of the last

    def mask(self, row: int) -> bytes:
        return self.mask_counts[self.mask_offsets[row] : self.mask_offsets[row + 1]].tobytes()


@dataclass(frozen=True, kw_only=True)
class ClassOutcome:
    """One class: what became of its detections, ranked by falling score, and how many objects there were to find."""

    image: np.ndarray  # (d,) int64, index into the manifest
    outcome: np.ndarray  # (T, d) int8: 1 right, 0 wrong, -1 ignored (it found a crowd)
    num_objects: np.ndarray  # (N,) int64: objects of each image that are no crowd


def thresholds() -> np.ndarray:
    """(10,) the IoU thresholds, to the last bit as pycocotools has them: the first is AP50's, the sixth AP75's."""
    from pycocotools.cocoeval import Params

    return np.asarray(Params("bbox").iouThrs)


def outcomes(detections: Detections, truth: Sequence[CocoImage], *, num_classes: int, kind: Kind) -> list[ClassOutcome]:
    """pycocotools' matching, class by class. truth: the test images in manifest order.

    Ids are given anew: pycocotools takes an object of id 0 for none, and would call its detection wrong.
    Raises DataError for a label or an image that there is not, NonFiniteError for a score or box that is not finite.
    """
    from pycocotools.cocoeval import COCOeval

    _check(detections, len(truth), num_classes)
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress
        objects = _coco(_objects(truth), truth, num_classes)
        evaluation: Any = COCOeval(objects, _coco(_found(detections, truth, kind), truth, num_classes), kind)
        evaluation.params.maxDets = [MOST]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.evaluate()
    images = len(truth)
    per_image = [evaluation.evalImgs[label * images : (label + 1) * images] for label in range(num_classes)]
    return [_outcome(found, images, len(evaluation.params.iouThrs)) for found in per_image]


def average_precision(by_class: Sequence[ClassOutcome], counts: np.ndarray | None = None) -> np.ndarray:
    """AP in percent of every threshold and class; NaN for a class without an object that is no crowd.

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
                np.take(part, mine.image, axis=1), mine.outcome, part @ mine.num_objects
            )
    return ap if counts is not None else ap[0]


def _check(detections: Detections, num_images: int, num_classes: int) -> None:
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


def _coco(annotations: list[dict[str, Any]], truth: Sequence[CocoImage], num_classes: int) -> Any:
    from pycocotools.coco import COCO

    made: Any = COCO()
    made.dataset = {
        "images": [{"id": index, "width": image.width, "height": image.height} for index, image in enumerate(truth)],
        "annotations": [annotation | {"id": number} for number, annotation in enumerate(annotations, start=1)],
        "categories": [{"id": label} for label in range(num_classes)],
    }
    made.createIndex()
    return made


def _objects(truth: Sequence[CocoImage]) -> list[dict[str, Any]]:
    return [
        {
            "image_id": index,
            "category_id": each.label,
            "bbox": list(each.box),
            "area": each.area,
            "iscrowd": int(each.crowd),
            "segmentation": each.segmentation,
        }
        for index, image in enumerate(truth)
        for each in image.objects
    ]


def _found(detections: Detections, truth: Sequence[CocoImage], kind: Kind) -> list[dict[str, Any]]:
    """COCO's results: boxes as x, y, width, height; their areas only tell which size a detection has."""
    corners, sides = detections.box[:, :2], detections.box[:, 2:] - detections.box[:, :2]  # fp32, as detectron2 has it
    boxes = np.concatenate([corners, sides], axis=1).astype(np.float64)
    rows = zip(
        detections.image.tolist(), detections.label.tolist(), detections.score.tolist(), boxes.tolist(), strict=True
    )
    found = [
        {"image_id": image, "category_id": label, "score": score, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for image, label, score, box in rows
    ]
    if kind == "segm":
        for row, each in enumerate(found):
            size = truth[each["image_id"]]
            each["segmentation"] = {"size": [size.height, size.width], "counts": detections.mask(row)}
    return found


def _outcome(per_image: Sequence[Mapping[str, Any] | None], num_images: int, num_thresholds: int) -> ClassOutcome:
    """One class, from COCOeval's results for its images, None where there is neither object nor detection."""
    present = [(index, found) for index, found in enumerate(per_image) if found is not None]
    num_objects = np.zeros(num_images, dtype=np.int64)
    for index, found in present:
        num_objects[index] = np.count_nonzero(found["gtIgnore"] == 0)
    image = np.repeat([index for index, _ in present], [len(found["dtScores"]) for _, found in present]).astype(
        np.int64
    )
    score = np.concatenate([np.empty(0), *(found["dtScores"] for _, found in present)])
    outcome = np.concatenate(
        [
            np.empty((num_thresholds, 0), dtype=np.int8),
            *(
                np.where(found["dtIgnore"].astype(bool), -1, found["dtMatches"] > 0).astype(np.int8)
                for _, found in present
            ),
        ],
        axis=1,
    )
    order = np.argsort(-score, kind="stable")
    return ClassOutcome(image=image[order], outcome=outcome[:, order], num_objects=num_objects)


def _class_ap(drawn: np.ndarray, outcome: np.ndarray, num_objects: np.ndarray) -> np.ndarray:
    """One class. drawn: (r, d) how often each ranked detection's image was drawn. num_objects: (r,). (r, T) percent.

    Precision is looked at only behind right detections: elsewhere recall stands still and precision falls, which
    changes no maximum.
    """
    from pycocotools.cocoeval import Params

    recalls = np.asarray(Params("bbox").recThrs)  # the 101 points, to the last bit
    ap = np.empty((len(drawn), len(outcome)))
    taken = np.cumsum(drawn, axis=1, dtype=np.int32)
    for column, row in enumerate(outcome):
        right, ignored = np.flatnonzero(row == 1), np.flatnonzero(row == -1)
        num_right = np.cumsum(np.take(drawn, right, axis=1), axis=1, dtype=np.int32)
        num_ignored = np.cumsum(np.take(drawn, ignored, axis=1), axis=1, dtype=np.int32)
        num_ignored = np.pad(num_ignored, ((0, 0), (1, 0)))  # none before the first
        num_scored = np.take(taken, right, axis=1) - np.take(num_ignored, np.searchsorted(ignored, right), axis=1)
        precision = num_right / (num_scored + np.spacing(1))
        recall = num_right / np.maximum(num_objects, 1)[:, None]
        highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # at this recall or more
        reached = np.searchsorted(recalls, recall, side="right")  # how many of the points this recall has passed
        steps = np.diff(reached, axis=1, prepend=0) * highest
        ap[:, column] = np.ascontiguousarray(steps).sum(1) / len(recalls)
    ap[num_objects == 0] = np.nan
    return 100.0 * ap
