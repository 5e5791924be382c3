"""How well does a segmentor trained from the weights label every pixel? VOC12aug, Cityscapes; FCN-D8 (protocols §2.10).

mmsegmentation trains an FCN on a plain ResNet whose last two stages are dilated, as the native configuration says
(`engine_config`). The child counts pixels per image and class with mmsegmentation's own metric; mIoU and its bootstrap
replicates are sums of those counts. Before it starts, the headers of all label maps are compared with their images',
and a labelled pixel is looked for in each split (`check_masks`); the child reads every pixel anyway, and stops at the
first that is no class.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from evaluate.bootstrap import resample_counts
from evaluate.engine import EngineSettings, class_names, labels, measure
from evaluate.job import FeatureSpec, Job
from evaluate.lr_sweep import HeldOut, selection
from zoo.cityscapes import kind_of
from zoo.config import Strict
from zoo.datasets import Manifest, dataset_config
from zoo.errors import DataError
from zoo.layouts import refuse
from zoo.masks import IGNORED, header_problem, read_mask
from zoo.record import Measurement
from zoo.verify import sample

ENGINE = "mmseg"
READ = 200  # label maps of a split whose pixels are read before training
COUNTS = ("intersect", "union", "predicted", "labelled")  # pixels, (N, C) each


class Settings(EngineSettings):
    pass


class Execution(Strict):
    pass


def roles(settings: Settings) -> dict[str, str]:
    return {"train": settings.train_split, "test": settings.test_split}


def features(settings: Settings) -> dict[str, FeatureSpec]:
    return {}


def deterministic(settings: Settings) -> bool:
    return False


def run(job: Job) -> Measurement:
    """mIoU and pixel accuracy in percent, of the last iteration; 255 is ignored.

    Raises as `check_masks`, evaluate.engine.measure and `totals` do.
    """
    from converters.to_mmseg import prepared

    settings: Settings = job.settings
    train, test = job.manifests["train"], job.manifests["test"]
    classes = class_names(test.dataset, dataset_config(test.dataset).classes)
    check_masks(job.manifests, len(classes))
    details, found = measure(
        "mmseg",
        job,
        prepare=prepared,
        classes=classes,
        train=images(train),
        test=images(test),
        held_out=partial(held_out, train, len(classes)),
    )
    pixels = {name: found[name].astype(np.int64) for name in COUNTS}
    whole = totals(pixels, test)
    drawn = resample_counts(len(test), manifest_sha256=test.sha256).astype(np.int64)  # (R, N)
    resampled = {name: drawn @ values for name, values in pixels.items()}  # (R, C)
    by_class = class_iou(whole["intersect"], whole["union"])
    details |= {
        "iou_by_class": {n: None if np.isnan(v) else float(v) for n, v in zip(classes, by_class, strict=True)},
        "absent_classes": [n for n, count in zip(classes, whole["labelled"], strict=True) if count == 0],
    }
    if kind_of(test.annotations[0]) is not None:
        details["label_maps"] = {role: kind_of(each.annotations[0]) for role, each in job.manifests.items()}
    return Measurement(
        metrics={"miou": float(mean_iou(by_class)), "accuracy": float(accuracy(whole))},
        num_scored=len(test),
        selection=selection(settings.lr_sweep, "mIoU", scaled=settings.global_batch is not None),
        per_sample=pixels | {name: values for name, values in found.items() if name.startswith("map_")},
        replicates={
            "miou": mean_iou(class_iou(resampled["intersect"], resampled["union"])),
            "accuracy": accuracy(resampled),
        },
        details=details,
        labels=labels(details),
    )


def held_out(train: Manifest, num_classes: int, rows: np.ndarray) -> HeldOut:
    """The training images without those at `rows`, and these as a test set scored by mIoU.

    Raises DataError when nothing is labelled in either.
    """
    fit = np.setdiff1d(np.arange(len(train)), rows)
    for part, name, change in ((rows, "held-out", "raise"), (fit, "remaining", "lower")):
        if not has_labels(train, num_classes, part):
            raise DataError(
                f"{train.dataset} {train.split}: expected labelled pixels in the label maps of the {len(part):,} "
                f"{name} images, found none; {change} settings.lr_sweep.held_out."
            )

    def score(found: dict[str, np.ndarray]) -> float:
        intersect, union = (found[name].astype(np.int64).sum(0) for name in ("intersect", "union"))
        return float(mean_iou(class_iou(intersect, union)))

    listed = images(train)
    return HeldOut(
        fit=[listed[row] for row in fit],
        test=[listed[row] for row in rows],
        score=score,
        metric="mIoU",
    )


def check_masks(manifests: Mapping[str, Manifest], num_classes: int) -> None:
    """Raises one DataError for all pictures and label maps that are cut off, and all maps that are not their images'.

    The first 20 are named. Sizes and pixel formats are read from all headers, pixels from the same 200 files a split
    each time. Raises another where no map of a split has a labelled pixel: the maps of a test set may be dummies.
    """
    problems: list[str] = []
    count = 0
    for split in manifests.values():
        read = set(sample(split, READ))
        count += len(split)
        for index in range(len(split)):
            problem = header_problem(split.annotation(index), split.path(index))
            if problem is None and index in read:
                try:
                    read_mask(split.annotation(index), num_classes)
                except DataError as error:
                    problem = str(error)
            problems += [problem] if problem else []
    refuse(f"{len(problems):,} of {count:,} label maps cannot be used:", problems)
    unlabelled = [
        f"{split.dataset} {split.split}: expected labelled pixels in its {len(split):,} label maps, found nothing but "
        f"ignored ones ({IGNORED}); restore the maps, or name a labelled split in {role}_split."
        for role, split in manifests.items()
        if not has_labels(split, num_classes, range(len(split)))
    ]
    if unlabelled:
        raise DataError("\n".join(unlabelled))


def has_labels(split: Manifest, num_classes: int, indices: Iterable[int]) -> bool:
    """Is any pixel of these maps labelled? Reads them up to the first that has one. Raises as `read_mask` does."""
    return any((read_mask(split.annotation(index), num_classes) != IGNORED).any() for index in indices)


def totals(pixels: Mapping[str, np.ndarray], test: Manifest) -> dict[str, np.ndarray]:
    """(N, C) pixels of the test images → (C,) of all of them. Raises DataError where none was labelled when tested."""
    whole = {name: values.sum(0) for name, values in pixels.items()}
    if not whole["labelled"].any():
        raise DataError(
            f"{test.dataset} {test.split}: expected labelled pixels to score, found none in the {len(test):,} label "
            "maps when they were tested; restore the maps."
        )
    return whole


def images(manifest: Manifest) -> list[dict[str, Any]]:
    """mmseg's data list, in manifest order."""
    return [
        {"img_path": str(manifest.path(index)), "seg_map_path": str(manifest.annotation(index))}
        for index in range(len(manifest))
    ]


def class_iou(intersect: np.ndarray, union: np.ndarray) -> np.ndarray:
    """(…, C) pixels → (…, C) percent; NaN for a class that is neither labelled nor predicted anywhere."""
    with np.errstate(invalid="ignore"):
        return np.where(union > 0, 100.0 * intersect / np.maximum(union, 1), np.nan)


def mean_iou(by_class: np.ndarray) -> np.ndarray:
    """(…, C) → (…): the mean over the classes labelled or predicted anywhere, as mmsegmentation has it; 0 if none."""
    occurring = ~np.isnan(by_class)
    return np.where(occurring, by_class, 0.0).sum(-1) / np.maximum(occurring.sum(-1), 1)


def accuracy(pixels: dict[str, np.ndarray]) -> np.ndarray:
    """Percent of the labelled pixels whose class is right; 0 when nothing is labelled."""
    return 100.0 * pixels["intersect"].sum(-1) / np.maximum(pixels["labelled"].sum(-1), 1)
