"""How well does a detector trained from the weights find objects? Pascal VOC 07+12 (protocols §2.8).

detectron2 trains a Faster R-CNN C4, with res5 and one more batch norm in its heads, as the native configuration says
(`engine_config`). What detectron2 and mmdet do differently with VOC's annotations is a setting of its own here, so that
both published protocols exist under their names: `_zoo` with mmdet's values, `_moco` with detectron2's.
"""

from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from evaluate.ap import average_precision, mean_over_classes
from evaluate.bootstrap import resample_counts
from evaluate.engine import EngineSettings, all_read, class_names, labels, measure, pictures
from evaluate.job import FeatureSpec, Job
from evaluate.lr_sweep import HeldOut, selection
from evaluate.voc_ap import THRESHOLDS, Detections, GroundTruth, Points, Rule, area, matches
from zoo.config import Strict
from zoo.datasets import Manifest, dataset_config
from zoo.errors import DataError
from zoo.record import Measurement
from zoo.voc import VocAnnotation, check_picture, read_annotation

ENGINE = "detectron2"
Origin = Literal["xmin_ymin", "all_four"]


class Settings(EngineSettings):
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
    """AP (IoU .50:.05:.95), AP50 and AP75 in percent, of the last iteration; AP50 by both rules of matching too.

    Raises as evaluate.engine.measure.
    """
    from converters.to_detectron2 import prepared

    settings: Settings = job.settings
    train, test = job.manifests["train"], job.manifests["test"]
    classes = class_names(test.dataset, dataset_config(test.dataset).classes)
    train_annotations, test_annotations = checked(train, test, classes, settings)
    details, found = measure(
        "detectron2",
        job,
        prepare=partial(prepared, layout="c4"),
        classes=classes,
        train=training_images(train, train_annotations, settings),
        test=pictures(test, test_annotations),
        held_out=partial(held_out, train, train_annotations, len(classes), settings),
    )
    detections = as_detections(found, settings)
    metrics, replicates, by_class = scored(detections, ground_truth(test_annotations), test, len(classes), settings)
    details |= {
        "ap50_by_class": {name: _or_none(value) for name, value in zip(classes, by_class, strict=True)},
        "absent_classes": [name for name, value in zip(classes, by_class, strict=True) if np.isnan(value)],
        "detections": len(detections.score),
    }
    return Measurement(
        metrics=metrics,
        num_scored=len(test),
        selection=selection(settings.lr_sweep, "AP50", scaled=settings.global_batch is not None),
        per_sample={f"detection_{name}": values for name, values in vars(detections).items()},
        replicates=replicates,
        details=details,
        labels=labels(details),
    )


def as_detections(found: dict[str, np.ndarray], settings: Settings) -> Detections:
    """The engine's arrays, in VOC's coordinates."""
    return Detections(
        image=found["image"],
        label=found["label"],
        score=found["score"],
        box=found["box"] + _shift(settings.lowered_by_one),
    )


def held_out(
    train: Manifest, read: list[VocAnnotation], num_classes: int, settings: Settings, rows: np.ndarray
) -> HeldOut:
    """The training images without those at `rows`, and these as a test set scored by the protocol's own AP50.

    Raises DataError when these show no object that is not difficult.
    """
    held = [read[row] for row in rows]
    truth = ground_truth(held)
    if truth.difficult.all():
        raise DataError(
            f"{train.dataset} {train.split}: expected an object that is not difficult among the {len(rows)} held-out "
            "images, found none; raise settings.lr_sweep.held_out."
        )

    def score(found: dict[str, np.ndarray]) -> float:
        detections = as_detections(found, settings)
        matched = matches(
            detections, truth, num_images=len(rows), num_classes=num_classes, thresholds=(0.5,), rule=settings.matching
        )
        return float(mean_over_classes(average_precision(matched, area(settings.points)))[0])

    out, tests = set(rows.tolist()), pictures(train, read)
    return HeldOut(
        fit=[image for image in training_images(train, read, settings) if image["image_id"] not in out],
        test=[tests[row] | {"image_id": number} for number, row in enumerate(rows.tolist())],
        score=score,
        metric="AP50",
    )


def scored(
    detections: Detections, truth: GroundTruth, test: Manifest, num_classes: int, settings: Settings
) -> tuple[dict[str, float], dict[str, np.ndarray], np.ndarray]:
    """(metric → percent, metric → (1000,) replicates, (C,) AP50 of each class by the protocol's own rule).

    ap, ap50 and ap75 are by the protocol's own matching; ap50_devkit and ap50_mmdet are AP50 by each of the two rules
    (D21), on the same detections.
    """
    counts = resample_counts(len(test), manifest_sha256=test.sha256)
    means: dict[Rule, np.ndarray] = {}  # (T,)
    resampled: dict[Rule, np.ndarray] = {}  # (R, T)
    ap50_by_class = np.empty(0)
    for rule in get_args(Rule):
        thresholds = THRESHOLDS if rule == settings.matching else THRESHOLDS[:1]
        matched = matches(
            detections, truth, num_images=len(test), num_classes=num_classes, thresholds=thresholds, rule=rule
        )
        by_class = average_precision(matched, area(settings.points))  # (T, C)
        means[rule] = mean_over_classes(by_class)
        resampled[rule] = mean_over_classes(average_precision(matched, area(settings.points), counts))
        if rule == settings.matching:
            ap50_by_class = by_class[0]
    own = settings.matching
    rows: dict[str, tuple[Rule, int]] = {
        "ap50": (own, THRESHOLDS.index(0.5)),
        "ap75": (own, THRESHOLDS.index(0.75)),
        "ap50_devkit": ("above", 0),
        "ap50_mmdet": ("at_least", 0),
    }
    metrics = {"ap": float(means[own].mean())} | {name: float(means[rule][row]) for name, (rule, row) in rows.items()}
    replicates = {"ap": resampled[own].mean(1)} | {n: resampled[rule][:, row] for n, (rule, row) in rows.items()}
    return metrics, replicates, ap50_by_class


def checked(
    train: Manifest, test: Manifest, classes: tuple[str, ...], settings: Settings
) -> tuple[list[VocAnnotation], list[VocAnnotation]]:
    """(train, test): every image's annotation, and objects to train on and to score. Raises one DataError for all."""
    read: list[list[VocAnnotation]] = []
    problems: list[str] = []
    for split, counts in ((train, settings.difficult_in_training == "boxes"), (test, False)):
        try:
            read.append(annotations(split, classes))
        except DataError as error:
            problems.append(str(error))
            continue
        if not any(counts or not each.difficult for annotation in read[-1] for each in annotation.objects):
            what = "object" if counts else "object that is not difficult"
            problems.append(
                f"{split.dataset} {split.split}: expected at least one {what} in its {len(split):,} images, found "
                "none; restore the annotations."
            )
    if problems:
        raise DataError("\n".join(problems))
    return read[0], read[1]


def annotations(manifest: Manifest, classes: tuple[str, ...]) -> list[VocAnnotation]:
    """Every image's annotation, written for an image of its size. Raises one DataError for all that cannot be used."""

    def read(index: int) -> VocAnnotation:
        annotation = read_annotation(manifest.annotation(index), classes)
        check_picture(manifest.path(index), width=annotation.width, height=annotation.height)
        return annotation

    return all_read(read, len(manifest), f"annotations of {manifest.dataset} {manifest.split}")


def training_images(manifest: Manifest, read: list[VocAnnotation], settings: Settings) -> list[dict[str, Any]]:
    """detectron2's dicts with 0-based boxes; images without any object are left out, as both engines do.

    Difficult objects are boxes like others, or are left out and so trained as background (D20); an image all of whose
    objects are difficult then stays, without boxes.
    """
    shift = _shift(settings.lowered_by_one)
    listed = []
    for image, annotation in zip(pictures(manifest, read), read, strict=True):
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
