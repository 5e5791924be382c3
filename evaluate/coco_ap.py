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

from evaluate.ap import ClassOutcome, check
from zoo.coco import CocoImage

Kind = Literal["bbox", "segm"]
MOST = 100  # detections of a class in an image that count, those with the highest scores


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

    check(detections, num_images=len(truth), num_classes=num_classes)
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress
        objects = _coco(_objects(truth), truth, num_classes)
        evaluation: Any = COCOeval(objects, _coco(_found(detections, truth, kind), truth, num_classes), kind)
        evaluation.params.maxDets = [MOST]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.evaluate()
    images = len(truth)
    per_image = [evaluation.evalImgs[label * images : (label + 1) * images] for label in range(num_classes)]
    return [_outcome(found, images, len(evaluation.params.iouThrs)) for found in per_image]


def area(num_right: np.ndarray, num_scored: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """How COCO makes one number of precision over recall: the mean of the highest at this recall or more, 101 times."""
    from pycocotools.cocoeval import Params

    recalls = np.asarray(Params("bbox").recThrs)  # the 101 points, to the last bit
    precision = num_right / (num_scored + np.spacing(1))
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(recalls, recall, side="right")  # how many of the points this recall has passed
    steps = np.diff(reached, axis=1, prepend=0) * highest
    return np.ascontiguousarray(steps).sum(1) / len(recalls)


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
