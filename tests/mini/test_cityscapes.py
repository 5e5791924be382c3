"""The small world's Cityscapes is what its readers expect, and its labels are what its pictures show."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torchvision.datasets import Cityscapes

from mini.cityscapes import CITIES, DIGITS, ROAD, SKY, UNLABELED, Street, compose, ground_truth, plan
from mini.material import Material, load_material
from mini.outline import outlines
from mini.scene import Scene
from mini.world import FULL_COUNTS, build

COUNTS = {"train": 11, "val": 10, "test": 2}
LABELS = {label.name: label for label in (UNLABELED, ROAD, SKY, *DIGITS)}


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cityscapes/ of a small world, for reading only."""
    root = tmp_path_factory.mktemp("world") / "mini"
    build(root, counts={"cityscapes": COUNTS})
    return root / "cityscapes"


@pytest.fixture(scope="module")
def material() -> Material:
    return load_material()


def pixels(path: Path) -> NDArray[Any]:
    with Image.open(path) as image:
        return np.asarray(image)


def labels_of(path: Path, kind: str) -> Path:
    """The ground truth beside an image."""
    split, city = path.parts[-3:-1]
    name = path.name.replace("_leftImg8bit.png", f"_gtFine_{kind}")
    return path.parents[3] / "gtFine" / split / city / name


def test_every_file_has_its_place_and_name(cityscapes: Path) -> None:
    for split, count in COUNTS.items():
        images = sorted((cityscapes / "leftImg8bit" / split).rglob("*.*"))
        assert len(images) == count
        assert {path.parent.name for path in images} == set(CITIES[split])
        assert [path.name for path in images if path.parent.name == CITIES[split][0]][0] == (
            f"{CITIES[split][0]}_000000_000001_leftImg8bit.png"
        )
        kinds = ("labelIds.png", "labelTrainIds.png", "instanceIds.png", "color.png", "polygons.json")
        expected = {labels_of(path, kind) for path in images for kind in kinds}
        assert {path for path in (cityscapes / "gtFine" / split).rglob("*.*")} == expected


@pytest.mark.parametrize("split", COUNTS)
def test_torchvision_reads_all_kinds_of_targets(cityscapes: Path, split: str) -> None:
    dataset = Cityscapes(
        str(cityscapes), split=split, mode="fine", target_type=["semantic", "instance", "color", "polygon"]
    )
    assert len(dataset) == COUNTS[split]
    for image, (semantic, instance, colour, polygons) in (dataset[index] for index in range(len(dataset))):
        assert image.size == semantic.size == instance.size == colour.size == (128, 64)
        assert (semantic.mode, instance.mode, colour.mode) == ("L", "I;16", "RGBA")
        assert (polygons["imgWidth"], polygons["imgHeight"]) == (128, 64)
        ids, instances, colours = (np.asarray(target) for target in (semantic, instance, colour))
        assert colours.shape == (64, 128, 4)
        assert np.array_equal(np.where(instances >= 1000, instances // 1000, instances), ids)


def test_torchvisions_table_has_these_rows() -> None:
    table = {row.name: row for row in Cityscapes.classes}
    for label in LABELS.values():
        row = table[label.name]
        assert (label.id, label.train_id, label.instances) == (row.id, row.train_id, row.has_instances)
        assert label.colour == row.color


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_are_what_is_drawn(cityscapes: Path, material: Material, split: str) -> None:
    for entry in plan(material, seed=0, split=split, count=COUNTS[split]):
        street = compose(material, entry, seed=0)
        path = cityscapes / "leftImg8bit" / f"{entry.stem}_leftImg8bit.png"
        assert np.array_equal(pixels(path), street.scene.image)
        ids, train_ids, instances, colours = (
            pixels(labels_of(path, f"{kind}.png")) for kind in ("labelIds", "labelTrainIds", "instanceIds", "color")
        )
        objects = np.zeros(ids.shape, dtype=np.bool_)
        for thing in street.scene.objects:
            label = DIGITS[thing.label]
            assert (ids[thing.mask] == label.id).all() and (train_ids[thing.mask] == label.train_id).all()
            assert (colours[thing.mask] == (*label.colour, 255)).all()
            if label.instances:
                (number,) = np.unique(instances[thing.mask])
                assert number // 1000 == label.id
                assert np.array_equal(instances == number, thing.mask)  # its own, nobody else's
            objects |= thing.mask
        assert set(np.unique(ids[~objects])) == {UNLABELED.id, ROAD.id, SKY.id}
        assert set(np.unique(train_ids[~objects])) == {UNLABELED.train_id, ROAD.train_id, SKY.train_id}


@pytest.mark.parametrize("split", COUNTS)
def test_painting_the_polygons_gives_the_labels(cityscapes: Path, split: str) -> None:
    for path in (cityscapes / "leftImg8bit" / split).rglob("*.png"):
        polygons = json.loads(labels_of(path, "polygons.json").read_text())
        canvas = Image.new("L", (polygons["imgWidth"], polygons["imgHeight"]), UNLABELED.id)
        for thing in polygons["objects"]:
            corners = [tuple(corner) for corner in thing["polygon"]]
            ImageDraw.Draw(canvas).polygon(corners, fill=LABELS[thing["label"]].id)
        assert np.array_equal(np.asarray(canvas), pixels(labels_of(path, "labelIds.png")))


def test_the_test_splits_ground_truth_is_empty(cityscapes: Path) -> None:
    for path in (cityscapes / "leftImg8bit" / "test").rglob("*.png"):
        assert pixels(path).std() > 0
        for kind, value in ("labelIds", 0), ("instanceIds", 0), ("labelTrainIds", 255):
            assert (pixels(labels_of(path, f"{kind}.png")) == value).all()
        assert json.loads(labels_of(path, "polygons.json").read_text())["objects"] == []


def test_two_digits_of_a_class_are_two_instances() -> None:
    first, second, sign = (np.zeros((64, 128), dtype=np.bool_) for _ in range(3))
    first[:4], second[4:8], sign[8:12] = True, True, True
    scene = Scene(image=np.zeros((64, 128, 3), dtype=np.uint8), objects=())
    regions = ((DIGITS[4], first), (DIGITS[4], second), (DIGITS[1], sign))
    instances = ground_truth(Street(scene=scene, regions=regions))["instanceIds"]
    assert instances.dtype == np.uint16
    assert [int(instances[row, 0]) for row in (0, 4, 8, 12)] == [26_000, 26_001, 20, 0]


def test_an_outline_has_no_hole() -> None:
    ring = np.ones((5, 5), dtype=np.bool_)
    ring[2, 2] = False
    canvas = Image.new("1", (5, 5))
    pieces = outlines(ring)
    assert len(pieces) == 2
    for piece in pieces:
        ImageDraw.Draw(canvas).polygon([(int(x), int(y)) for x, y in piece], fill=1)
    assert np.array_equal(np.asarray(canvas), ring)
    assert outlines(np.zeros((5, 5), dtype=np.bool_)) == []


def test_train_shares_no_scan_with_val_and_test_and_shows_every_class(material: Material) -> None:
    shown = {
        split: {scan for entry in plan(material, seed=0, split=split, count=count) for scan in entry.scans}
        for split, count in FULL_COUNTS["cityscapes"].items()
    }
    assert not shown["train"] & (shown["val"] | shown["test"])
    for split in ("train", "val"):
        assert {int(material.labels[scan]) for scan in shown[split]} == set(range(10))


def test_an_image_does_not_depend_on_how_many_others_there_are(cityscapes: Path, tmp_path: Path) -> None:
    build(tmp_path / "mini", counts={"cityscapes": {"train": 10, "val": 11, "test": 1}})
    other = tmp_path / "mini" / "cityscapes"
    shared = [path for path in other.rglob("*.*") if (cityscapes / path.relative_to(other)).exists()]
    assert len(shared) == 6 * (10 + 10 + 1)
    assert all(path.read_bytes() == (cityscapes / path.relative_to(other)).read_bytes() for path in shared)
