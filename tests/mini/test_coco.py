"""The small world's COCO is what COCO's readers expect, and its labels are what its pictures show."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as run_length_masks
from pycocotools.coco import COCO
from torchvision.datasets import CocoDetection

from mini.coco import CATEGORY_IDS, POOLS, compose, plan, polygons, run_lengths
from mini.material import CLASS_NAMES, Material, load_material
from mini.scene import bounds
from mini.world import FULL_COUNTS, build

# pycocotools' compiled decoder meets a numpy newer than itself.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

COUNTS = {"train2017": 12, "val2017": 10}


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """coco/ of a small world, for reading only."""
    root = tmp_path_factory.mktemp("world") / "mini"
    build(root, counts={"coco": COUNTS})
    return root / "coco"


@pytest.fixture(scope="module")
def material() -> Material:
    return load_material()


def annotation_file(coco: Path, split: str) -> Path:
    return coco / "annotations" / f"instances_{split}.json"


def overlap(first: NDArray[Any], second: NDArray[Any]) -> float:
    return float((first & second).sum() / (first | second).sum())


@pytest.mark.parametrize("split", COUNTS)
def test_pycocotools_reads_what_is_drawn(coco: Path, material: Material, split: str) -> None:
    api = COCO(str(annotation_file(coco, split)))
    crowds = 0
    for entry in plan(material, seed=0, split=split, count=COUNTS[split]):
        scene = compose(material, entry, seed=0)
        annotations = api.loadAnns(api.getAnnIds(imgIds=[entry.number]))
        alone = [thing for thing in scene.objects if thing.label != entry.crowd]
        together = [thing.mask for thing in scene.objects if thing.label == entry.crowd]
        expected = [(thing.label, thing.mask, 0) for thing in alone]
        if entry.crowd is not None and together:
            expected.append((entry.crowd, np.any(together, axis=0), 1))
        assert len(annotations) == len(expected)
        for annotation, (label, mask, crowd) in zip(annotations, expected, strict=True):
            x0, y0, x1, y1 = bounds(mask)
            assert annotation["category_id"] == CATEGORY_IDS[label]
            assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0]
            assert (annotation["area"], annotation["iscrowd"]) == (mask.sum(), crowd)
            decoded = api.annToMask(annotation).astype(np.bool_)
            assert np.array_equal(decoded, mask) if crowd else overlap(decoded, mask) > 0.8
        crowds += bool(together)
    assert crowds == 2


@pytest.mark.parametrize("split", COUNTS)
def test_torchvision_reads_images_and_annotations(coco: Path, material: Material, split: str) -> None:
    dataset = CocoDetection(str(coco / split), str(annotation_file(coco, split)))
    drawn = {entry.number: entry for entry in plan(material, seed=0, split=split, count=COUNTS[split])}
    assert dataset.ids == sorted(drawn)
    for index, number in enumerate(dataset.ids):
        image, annotations = dataset[index]
        scene = compose(material, drawn[number], seed=0)
        assert np.abs(np.asarray(image, dtype=float) - scene.image).mean() < 6
        assert annotations and {annotation["image_id"] for annotation in annotations} == {number}


def test_files_have_cocos_keys_names_and_gaps(coco: Path) -> None:
    seen: set[int] = set()
    for split in COUNTS:
        content = json.loads(annotation_file(coco, split).read_text())
        assert list(content) == ["info", "licenses", "images", "annotations", "categories"]
        assert [(one["id"], one["name"]) for one in content["categories"]] == list(
            zip(CATEGORY_IDS, CLASS_NAMES, strict=True)
        )
        numbers = [image["id"] for image in content["images"]]
        assert np.diff(sorted(numbers)).min() > 1
        assert not seen & set(numbers)
        seen |= set(numbers)
        assert {path.name for path in (coco / split).iterdir()} == {f"{number:012d}.jpg" for number in numbers}
        for image in content["images"]:
            with Image.open(coco / split / image["file_name"]) as picture:
                assert (picture.format, picture.size) == ("JPEG", (image["width"], image["height"]))
        assert len({one["id"] for one in content["annotations"]}) == len(content["annotations"])


def test_polygons_show_masks_with_holes_and_small_pieces() -> None:
    mask = np.zeros((20, 30), dtype=np.bool_)
    mask[2:18, 2:20] = True
    mask[5:9, 5:9] = mask[12, 10] = False  # two holes, one of a single pixel
    mask[5, 25] = mask[10, 24:28] = True  # a dot and a line
    height, width = mask.shape
    pieces: Any = polygons(mask)
    encoded: Any = run_length_masks.merge(run_length_masks.frPyObjects(pieces, height, width))
    assert overlap(run_length_masks.decode(encoded).astype(np.bool_), mask) > 0.9


@pytest.mark.parametrize("first", [False, True])
def test_run_lengths_start_with_zeros(first: bool) -> None:
    mask = np.zeros((3, 4), dtype=np.bool_)
    mask[0, 0], mask[1:, 2] = first, True
    lengths: Any = run_lengths(mask)
    assert lengths == {"counts": [0, 1, 6, 2, 3] if first else [7, 2, 3], "size": [3, 4]}
    assert np.array_equal(run_length_masks.decode(run_length_masks.frPyObjects(lengths, 3, 4)), mask)


def test_train_and_val_share_no_scan_and_both_show_every_class(material: Material) -> None:
    shown = {
        split: {scan for entry in plan(material, seed=0, split=split, count=count) for scan in entry.scans}
        for split, count in FULL_COUNTS["coco"].items()
    }
    assert list(shown) == list(POOLS)
    assert not shown["train2017"] & shown["val2017"]
    assert all({int(material.labels[scan]) for scan in scans} == set(range(10)) for scans in shown.values())


def test_an_image_does_not_depend_on_how_many_others_there_are(coco: Path, tmp_path: Path) -> None:
    build(tmp_path / "mini", counts={"coco": {"train2017": 14, "val2017": 10}})
    other = tmp_path / "mini" / "coco"
    for path in coco.rglob("*.jpg"):
        assert path.read_bytes() == (other / path.relative_to(coco)).read_bytes()
    assert annotation_file(coco, "val2017").read_bytes() == annotation_file(other, "val2017").read_bytes()
    fewer, more = (json.loads(annotation_file(root, "train2017").read_text()) for root in (coco, other))
    assert more["annotations"][: len(fewer["annotations"])] == fewer["annotations"]
