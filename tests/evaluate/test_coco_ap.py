"""COCO AP is pycocotools' on the same detections, and a replicate is the AP of the test set it drew."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluate.ap import average_precision, mean_over_classes
from evaluate.coco_ap import Detections, Kind, area, outcomes
from zoo.coco import CocoImage, CocoObject
from zoo.errors import DataError, NonFiniteError

CATEGORY_IDS = (1, 2, 4, 90, 13)  # with gaps; sorted, they are the labels 0 … 4
WIDTH, HEIGHT = 40, 30
KINDS: tuple[Kind, ...] = ("bbox", "segm")

# pycocotools' compiled decoder meets a numpy newer than itself.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def packed(box: np.ndarray) -> Any:
    """An ellipse in x0, y0, x1, y1 as run lengths."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    middle, radius = (box[:2] + box[2:]) / 2, np.maximum((box[2:] - box[:2]) / 2, 0.5)
    inside = ((x - middle[0]) / radius[0]) ** 2 + ((y - middle[1]) / radius[1]) ** 2 <= 1
    return mask.encode(np.asfortranarray(inside.astype(np.uint8)))


def scene(seed: int, *, images: int = 24, most: int = 6, ties: bool = True) -> tuple[list[CocoImage], Detections]:
    """Objects and detections near them: empty images, crowds, a class without objects, another without detections."""
    draw = np.random.default_rng(seed)
    truth: list[CocoImage] = []
    rows: list[tuple[int, int, float, np.ndarray]] = []
    for index in range(images):
        objects: list[CocoObject] = []
        for _ in range(0 if index % 5 == 4 else int(draw.integers(1, most))):
            corner, size = draw.integers(0, 20, 2), draw.integers(4, 10, 2)
            box = np.concatenate([corner, corner + size]).astype(float)
            label, crowd = int(draw.integers(0, 4)), bool(draw.random() < 0.2)
            outline: Any = packed(box)
            x, y, width, height = map(float, (*corner, *size))
            area = float(mask.area(outline))
            objects.append(CocoObject(label, (x, y, width, height), area, crowd, outline))
            for _ in range(int(draw.integers(0, 4)) if label != 3 else 0):
                moved = box + draw.normal(0, draw.choice([0.3, 1.0, 3.0]), 4)
                moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                score = draw.integers(1, 9) / 10 if ties else draw.random()
                rows.append((index, int(draw.choice([label, label, label, 4])), float(score), moved))
        truth.append(CocoImage(WIDTH, HEIGHT, tuple(objects)))
    return truth, found(rows)


def found(rows: list[tuple[int, int, float, np.ndarray]]) -> Detections:
    counts = [packed(box)["counts"] for *_, box in rows]
    return Detections(
        image=np.array([image for image, *_ in rows], dtype=np.int64),
        label=np.array([label for _, label, *_ in rows], dtype=np.int64),
        score=np.array([score for *_, score, _ in rows], dtype=np.float32),
        box=np.array([box for *_, box in rows], dtype=np.float32).reshape(-1, 4),
        mask_counts=np.frombuffer(b"".join(counts), np.uint8),
        mask_offsets=np.cumsum([0, *map(len, counts)], dtype=np.int64),
    )


def reference(truth: list[CocoImage], detections: Detections, kind: Kind) -> np.ndarray:
    """AP, AP50 and AP75 in percent that pycocotools summarises from a file of annotations and a list of results."""
    ids = sorted(CATEGORY_IDS)
    numbers = [100 + 7 * index for index in range(len(truth))]
    objects = [(numbers[index], each) for index, image in enumerate(truth) for each in image.objects]
    with contextlib.redirect_stdout(io.StringIO()):
        annotations: Any = COCO()
        annotations.dataset = {
            "info": {},
            "images": [{"id": number, "width": WIDTH, "height": HEIGHT} for number in numbers],
            "categories": [{"id": number, "name": str(number)} for number in CATEGORY_IDS],
            "annotations": [
                {
                    "id": number,
                    "image_id": image,
                    "category_id": ids[each.label],
                    "bbox": list(each.box),
                    "area": each.area,
                    "iscrowd": int(each.crowd),
                    "segmentation": each.segmentation,
                }
                for number, (image, each) in enumerate(objects, start=50)
            ],
        }
        annotations.createIndex()
        results: list[dict[str, Any]] = []
        for row in range(len(detections.score)):
            x0, y0, x1, y1 = detections.box[row]
            result: dict[str, Any] = {
                "image_id": numbers[detections.image[row]],
                "category_id": ids[detections.label[row]],
                "score": float(detections.score[row]),
            }
            if kind == "bbox":
                result["bbox"] = [float(value) for value in (x0, y0, x1 - x0, y1 - y0)]
            else:
                result["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": detections.mask(row)}
            results.append(result)
        evaluation: Any = COCOeval(annotations, annotations.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * np.asarray(evaluation.stats[:3])


def summary(ap: np.ndarray) -> np.ndarray:
    """(…, T, C) → (…, 3): AP, AP50 and AP75."""
    mean = mean_over_classes(ap)
    return np.stack([mean.mean(-1), mean[..., 0], mean[..., 5]], axis=-1)


def measured(
    truth: list[CocoImage], detections: Detections, kind: Kind, counts: np.ndarray | None = None
) -> np.ndarray:
    by_class = outcomes(detections, truth, num_classes=len(CATEGORY_IDS), kind=kind)
    return summary(average_precision(by_class, area, counts))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_the_value_is_pycocotools_own(kind: Kind, seed: int) -> None:
    truth, detections = scene(seed, ties=seed % 2 == 0)
    expected = reference(truth, detections, kind)
    assert expected[0] > 5
    assert measured(truth, detections, kind) == pytest.approx(expected, abs=1e-12)


def test_a_hundred_detections_of_a_class_in_an_image_count() -> None:
    """The 101st would be right."""
    box = np.array([3.0, 3, 15, 15])
    outline: Any = packed(box)
    truth = [CocoImage(WIDTH, HEIGHT, (CocoObject(0, (3.0, 3.0, 12.0, 12.0), 113.0, False, outline),))]
    far = np.array([25.0, 20, 30, 28])
    for wrong, right in ((99, True), (100, False)):
        detections = found([(0, 0, 0.9, far)] * wrong + [(0, 0, 0.5, box)])
        value = measured(truth, detections, "bbox")
        assert value == pytest.approx(reference(truth, detections, "bbox"), abs=1e-12)
        assert (value[0] > 0) == right


@pytest.mark.parametrize("kind", KINDS)
def test_perfect_detections_score_100_and_none_0(kind: Kind) -> None:
    truth, _ = scene(0)
    perfect = found(
        [
            (index, each.label, 0.9, np.array([*each.box[:2], each.box[0] + each.box[2], each.box[1] + each.box[3]]))
            for index, image in enumerate(truth)
            for each in image.objects
            if not each.crowd
        ]
    )
    assert measured(truth, perfect, kind) == pytest.approx([100.0] * 3)
    assert (measured(truth, found([]), kind) == 0).all()
    crowds = [CocoImage(WIDTH, HEIGHT, tuple(each for each in image.objects if each.crowd)) for image in truth]
    assert np.isnan(average_precision(outcomes(perfect, crowds, num_classes=5, kind=kind), area)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_replicate_is_the_ap_of_the_images_drawn(kind: Kind) -> None:
    truth, detections = scene(1, ties=False)
    draw = np.random.default_rng(3).integers(0, len(truth), (3, len(truth)))
    counts = np.stack([np.bincount(row, minlength=len(truth)) for row in draw]).astype(np.uint16)
    replicates = measured(truth, detections, kind, counts)
    for row, value in zip(draw, replicates, strict=True):
        rows = [(place, at) for place, image in enumerate(row) for at in np.flatnonzero(detections.image == image)]
        masks = [detections.mask(int(at)) for _, at in rows]
        again = Detections(
            image=np.array([place for place, _ in rows]),
            label=detections.label[[at for _, at in rows]],
            score=detections.score[[at for _, at in rows]],
            box=detections.box[[at for _, at in rows]],
            mask_counts=np.frombuffer(b"".join(masks), np.uint8),
            mask_offsets=np.cumsum([0, *map(len, masks)]),
        )
        assert value == pytest.approx(reference([truth[image] for image in row], again, kind), abs=1e-10)
    assert (measured(truth, detections, kind, np.ones_like(counts)) == measured(truth, detections, kind)).all()


def test_what_is_no_detection_of_the_dataset_is_refused() -> None:
    truth, detections = scene(0)
    for name, what, end in (("label", "labels", 4), ("image", "images", 23)):
        wrong = getattr(detections, name).copy()
        wrong[2] = end + 1
        changed = Detections(**vars(detections) | {name: wrong})
        with pytest.raises(DataError, match=f"expected {what} in 0…{end}, found {end + 1} "):
            outcomes(changed, truth, num_classes=5, kind="bbox")
    scores = detections.score.copy()
    scores[1] = np.nan
    with pytest.raises(NonFiniteError, match="detection 1 .* has a score or box that is NaN or infinite"):
        outcomes(Detections(**vars(detections) | {"score": scores}), truth, num_classes=5, kind="segm")
