"""How well does a detector trained from the weights find objects? Pascal VOC 07+12 (protocols §2.8).

detectron2 trains a Faster R-CNN C4, with res5 and one more batch norm in its heads, as the native configuration says
(`engine_config`). What detectron2 and mmdet do differently with VOC's annotations is a setting of its own here, so that
both published protocols exist under their names: `_zoo` with mmdet's values, `_moco` with detectron2's.
"""

from functools import partial
from typing import Any, Literal

import numpy as np

from evaluate.bootstrap import resample_counts
from evaluate.engine import all_read, class_names, measure
from evaluate.job import FeatureSpec, Job
from evaluate.voc_ap import (
    THRESHOLDS,
    Detections,
    GroundTruth,
    Points,
    Rule,
    average_precision,
    matches,
    mean_over_classes,
)
from zoo.config import Strict
from zoo.datasets import Manifest, dataset_config
from zoo.record import Measurement
from zoo.voc import VocAnnotation, read_annotation

ENGINE = "detectron2"
Origin = Literal["xmin_ymin", "all_four"]


class Settings(Strict):
    train_split: str
    test_split: str
    engine_config: dict[str, Any]  # a file of configs/engines/detectron2, resolved
    lowered_by_one: Origin  # of VOC's 1-based corners: detectron2 lowers xmin and ymin, mmdet all four
    difficult_in_training: Literal["boxes", "background"]  # D20
    matching: Rule  # D21
    points: Points


class Execution(Strict):
    pass


def roles(settings: Settings) -> dict[str, str]:
    return {"train": settings.train_split, "test": settings.test_split}


def features(settings: Settings) -> dict[str, FeatureSpec]:
    return {}


def deterministic(settings: Settings) -> bool:
    return False


def run(job: Job) -> Measurement:
    """AP (IoU .50:.05:.95), AP50 and AP75 in percent, of the last iteration. Raises as evaluate.engine.measure."""
    from converters.to_detectron2 import prepared

    settings: Settings = job.settings
    test = job.manifests["test"]
    classes = class_names(test.dataset, dataset_config(test.dataset).classes)
    train_annotations = annotations(job.manifests["train"], classes)
    test_annotations = annotations(test, classes)
    details, found = measure(
        "detectron2",
        job,
        config=settings.engine_config,
        prepare=partial(prepared, layout="c4"),
        classes=classes,
        train=training_images(job.manifests["train"], train_annotations, settings),
        test=images(test, test_annotations),
    )
    detections = Detections(
        image=found["image"],
        label=found["label"],
        score=found["score"],
        box=found["box"] + _shift(settings.lowered_by_one),
    )
    truth = ground_truth(test_annotations)
    matched = matches(detections, truth, num_classes=len(classes), thresholds=THRESHOLDS, rule=settings.matching)
    by_class = average_precision(matched, truth, points=settings.points)  # (T, C)
    counts = resample_counts(len(test), manifest_sha256=test.sha256)
    resampled = mean_over_classes(average_precision(matched, truth, points=settings.points, counts=counts))  # (R, T)
    at = {"ap50": THRESHOLDS.index(0.5), "ap75": THRESHOLDS.index(0.75)}
    mean = mean_over_classes(by_class)
    details |= {
        "ap50_by_class": {name: _or_none(value) for name, value in zip(classes, by_class[at["ap50"]], strict=True)},
        "absent_classes": [name for name, value in zip(classes, by_class[0], strict=True) if np.isnan(value)],
        "detections": len(detections.score),
    }
    return Measurement(
        metrics={"ap": float(mean.mean()), **{name: float(mean[row]) for name, row in at.items()}},
        num_scored=len(test),
        selection="last iteration",
        per_sample={f"detection_{name}": values for name, values in vars(detections).items()},
        replicates={"ap": resampled.mean(1), **{name: resampled[:, row] for name, row in at.items()}},
        details=details,
    )


def annotations(manifest: Manifest, classes: tuple[str, ...]) -> list[VocAnnotation]:
    """Every image's annotation. Raises one DataError for all that cannot be read."""
    what = f"annotations of {manifest.dataset} {manifest.split}"
    return all_read(lambda index: read_annotation(manifest.annotation(index), classes), len(manifest), what)


def images(manifest: Manifest, read: list[VocAnnotation]) -> list[dict[str, Any]]:
    """detectron2's dicts without boxes; image_id is the manifest's index."""
    return [
        {
            "file_name": str(manifest.path(index)),
            "image_id": index,
            "height": annotation.height,
            "width": annotation.width,
            "annotations": [],
        }
        for index, annotation in enumerate(read)
    ]


def training_images(manifest: Manifest, read: list[VocAnnotation], settings: Settings) -> list[dict[str, Any]]:
    """detectron2's dicts with 0-based boxes; images without any object are left out, as both engines do.

    Difficult objects are boxes like others, or are left out and so trained as background (D20); an image all of whose
    objects are difficult then stays, without boxes.
    """
    shift = _shift(settings.lowered_by_one)
    listed = []
    for image, annotation in zip(images(manifest, read), read, strict=True):
        kept = [o for o in annotation.objects if settings.difficult_in_training == "boxes" or not o.difficult]
        boxes = [{"category_id": o.label, "bbox": [float(v) for v in np.array(o.box) - shift]} for o in kept]
        if annotation.objects:
            listed.append(image | {"annotations": boxes})
    return listed


def ground_truth(read: list[VocAnnotation]) -> GroundTruth:
    """All objects of the test images, in VOC's coordinates."""
    rows = [(index, each) for index, annotation in enumerate(read) for each in annotation.objects]
    return GroundTruth(
        image=np.array([index for index, _ in rows], dtype=np.int64),
        label=np.array([each.label for _, each in rows], dtype=np.int64),
        box=np.array([each.box for _, each in rows], dtype=np.float64).reshape(-1, 4),
        difficult=np.array([each.difficult for _, each in rows], dtype=bool),
    )


def _shift(origin: Origin) -> np.ndarray:
    """(4,) float32: what VOC's corners are above the engine's."""
    return np.array([1, 1, 0, 0] if origin == "xmin_ymin" else [1, 1, 1, 1], dtype=np.float32)


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
