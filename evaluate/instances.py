"""How well does a detector trained from the weights find and outline objects? COCO 2017 (protocols §2.9).

detectron2 trains a Mask R-CNN as the native configuration says (`engine_config`): on a feature pyramid, or on conv4
with res5 and one more batch norm in its heads (`layout`). Both engines leave out images without an object that is no
crowd, and train on no crowd; which tiny objects they leave out differs (`trained_objects`). All test images are scored.
"""

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any, Literal

import numpy as np

from evaluate.ap import average_precision, mean_over_classes
from evaluate.bootstrap import resample_counts
from evaluate.coco_ap import Detections, Kind, area, outcomes, thresholds
from evaluate.engine import EngineSettings, all_read, class_names, labels, measure, pictures
from evaluate.job import FeatureSpec, Job
from evaluate.lr_sweep import HeldOut, selection
from evaluate.scaling import value_at
from zoo.coco import CocoImage, CocoObject, image_at, read_instances
from zoo.config import Strict
from zoo.datasets import Manifest, dataset_config
from zoo.errors import ConfigError, DataError, several
from zoo.record import Measurement
from zoo.voc import check_picture

ENGINE = "detectron2"
MASK_ON, MASK_FORMAT = "MODEL.MASK_ON", "INPUT.MASK_FORMAT"  # of its configuration
KINDS: tuple[tuple[str, Kind], ...] = (("", "bbox"), ("mask_", "segm"))  # what a metric's name begins with


class Settings(EngineSettings):
    layout: Literal["c4", "fpn"]  # where the engine's model has res5: in its heads, or under a pyramid
    # detectron2 drops boxes without width or height, mmdet objects below a pixel's width or height or of area 0
    trained_objects: Literal["not_empty", "at_least_a_pixel"]


class Execution(Strict):
    pass


def roles(settings: Settings) -> dict[str, str]:
    return {"train": settings.train_split, "test": settings.test_split}


def features(settings: Settings) -> dict[str, FeatureSpec]:
    return {}


def deterministic(settings: Settings) -> bool:
    return False


def run(job: Job) -> Measurement:
    """COCO's AP (IoU .50:.05:.95), AP50 and AP75 of boxes and of masks, in percent, of the last iteration.

    Raises DataError for annotations that cannot be used, ConfigError for an engine that would not outline, before any
    training; else as evaluate.engine.measure.
    """
    from converters.to_detectron2 import prepared

    settings: Settings = job.settings
    refuse_no_masks(settings.engine_config)
    train, test = job.manifests["train"], job.manifests["test"]
    classes = class_names(test.dataset, dataset_config(test.dataset).classes)
    trained, truth = annotations(train, classes), annotations(test, classes)
    _refuse_nothing_to_find(truth, f"dataset '{test.dataset}', {test.split}")
    details, found = measure(
        "detectron2",
        job,
        prepare=partial(prepared, layout=settings.layout),
        classes=classes,
        train=training_images(train, trained, settings),
        test=pictures(test, truth),
        held_out=partial(held_out, train, trained, len(classes), settings),
    )
    detections = detections_of(found)
    metrics, replicates, by_class = scored(detections, truth, test, len(classes))
    details |= {
        "ap_by_class": {name: _or_none(value) for name, value in zip(classes, by_class, strict=True)},
        "absent_classes": [name for name, value in zip(classes, by_class, strict=True) if np.isnan(value)],
        "detections": len(detections.score),
    }
    return Measurement(
        metrics=metrics,
        num_scored=len(test),
        selection=selection(settings.lr_sweep, "box AP", scaled=settings.global_batch is not None),
        per_sample={f"detection_{name}": values for name, values in vars(detections).items()},
        replicates=replicates,
        details=details,
        labels=labels(details),
    )


def held_out(train: Manifest, read: list[CocoImage], num_classes: int, settings: Settings, rows: np.ndarray) -> HeldOut:
    """The training images without those at `rows`, and these as a test set scored by box AP.

    Raises DataError when these show no object that is no crowd.
    """
    held = [read[row] for row in rows]
    _refuse_nothing_to_find(held, f"dataset '{train.dataset}', {train.split}, held-out part")

    def score(found: dict[str, np.ndarray]) -> float:
        by_class = outcomes(detections_of(found), held, num_classes=num_classes, kind="bbox")
        return float(mean_over_classes(average_precision(by_class, area)).mean())

    out, tests = set(rows.tolist()), pictures(train, read)
    return HeldOut(
        fit=[image for image in training_images(train, read, settings) if image["image_id"] not in out],
        test=[tests[row] | {"image_id": number} for number, row in enumerate(rows.tolist())],
        score=score,
        metric="box AP",
    )


def _refuse_nothing_to_find(read: list[CocoImage], where: str) -> None:
    if all(each.crowd for image in read for each in image.objects):
        raise DataError(
            f"{where}: expected objects to be found, found {len(read):,} images with none that is no crowd; AP needs "
            "some."
        )


def scored(
    detections: Detections, truth: list[CocoImage], test: Manifest, num_classes: int
) -> tuple[dict[str, float], dict[str, np.ndarray], np.ndarray]:
    """(metric → percent, metric → (1000,) replicates, (C,) box AP of each class)."""
    counts = resample_counts(len(test), manifest_sha256=test.sha256)
    at = {"ap50": 0, "ap75": 5}
    assert np.allclose(thresholds()[list(at.values())], [0.5, 0.75])
    metrics: dict[str, float] = {}
    replicates: dict[str, np.ndarray] = {}
    by_class = np.empty(0)
    for prefix, kind in KINDS:
        found = outcomes(detections, truth, num_classes=num_classes, kind=kind)
        ap = average_precision(found, area)  # (T, C)
        mean, resampled = (
            mean_over_classes(ap),
            mean_over_classes(average_precision(found, area, counts)),
        )  # (T,), (R, T)
        metrics |= {f"{prefix}ap": float(mean.mean()), **{prefix + name: float(mean[row]) for name, row in at.items()}}
        replicates |= {
            f"{prefix}ap": resampled.mean(1),
            **{prefix + name: resampled[:, row] for name, row in at.items()},
        }
        if kind == "bbox":
            by_class = ap.mean(0)
    return metrics, replicates, by_class


def annotations(manifest: Manifest, classes: tuple[str, ...]) -> list[CocoImage]:
    """Every image's size and objects, in manifest order, written for pictures of these sizes.

    Raises one DataError for all that is wrong in the file, else for all pictures that are not as it says.
    """
    by_name = read_instances(manifest.annotation(0), classes)

    def read(index: int) -> CocoImage:
        image = image_at(by_name, manifest.paths[index])
        check_picture(manifest.path(index), width=image.width, height=image.height)
        return image

    return all_read(read, len(manifest), f"images of {manifest.dataset} {manifest.split}")


def training_images(manifest: Manifest, read: list[CocoImage], settings: Settings) -> list[dict[str, Any]]:
    """detectron2's dicts with boxes and outlines; images without any object that is no crowd are left out.

    Where the engine is told to read bitmaps, outlines are drawn as pixels of the image as it is stored, and resized as
    pixels, as mmdet does (protocols §2.9, masks): it would resize polygons as such.
    Raises DataError when no image is left, and when an outline is of another kind than the engine is told to read.
    """
    polygons_only = value_at(settings.engine_config, MASK_FORMAT) == "polygon"
    where = f"dataset '{manifest.dataset}', {manifest.split}"
    listed: list[dict[str, Any]] = []
    run_lengths = 0
    for image, annotation in zip(pictures(manifest, read), read, strict=True):
        single = [each for each in annotation.objects if not each.crowd]
        run_lengths += sum(isinstance(each.segmentation, dict) for each in single)
        if single:
            size = None if polygons_only else (annotation.height, annotation.width)
            kept = [_engine_object(each, size) for each in single if _is_trained(each, settings)]
            listed.append(image | {"annotations": kept})
    if polygons_only and run_lengths:
        raise DataError(
            f"{where}: expected polygons, as INPUT.MASK_FORMAT says, found run lengths at {run_lengths:,} objects that "
            "are no crowd; set INPUT.MASK_FORMAT: bitmask."
        )
    if not any(image["annotations"] for image in listed):
        raise DataError(f"{where}: expected images with objects to train on, found none among {len(read):,} images.")
    return listed


def _is_trained(each: CocoObject, settings: Settings) -> bool:
    if settings.trained_objects == "not_empty":
        return not each.is_degenerate
    return min(each.box[2:]) >= 1 and each.area > 0


def refuse_no_masks(engine_config: Mapping[str, Any]) -> None:
    problems = []
    if value_at(engine_config, MASK_ON) is not True:
        problems.append(f"{MASK_ON}: expected true, found {value_at(engine_config, MASK_ON)}")
    if value_at(engine_config, MASK_FORMAT) not in ("polygon", "bitmask"):
        problems.append(f"{MASK_FORMAT}: expected polygon or bitmask, found {value_at(engine_config, MASK_FORMAT)}")
    if problems:
        raise ConfigError(several("settings.engine_config: instance segmentation needs masks:", problems))


def detections_of(found: Mapping[str, np.ndarray]) -> Detections:
    """What the engine wrote, of which others may keep more."""
    return Detections(**{each.name: found[each.name] for each in fields(Detections)})


def _engine_object(each: CocoObject, size: tuple[int, int] | None) -> dict[str, Any]:
    """size: of the image, (height, width), where outlines are to arrive as pixels."""
    from pycocotools import mask

    compress: Any = mask.frPyObjects  # its types know one of the three things it takes
    x, y, width, height = each.box
    outline: Any = each.segmentation
    packed: Any = None
    if isinstance(outline, list) and size is not None:
        packed = mask.merge(compress(outline, *size))
    elif isinstance(outline, dict) and isinstance(outline["counts"], list):
        packed = compress(outline, *outline["size"])
    if packed is not None:
        outline = packed | {"counts": packed["counts"].decode()}
    return {"category_id": each.label, "bbox": [x, y, x + width, y + height], "segmentation": outline}


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
