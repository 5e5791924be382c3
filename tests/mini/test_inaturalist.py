"""The small world's iNaturalist 2018 is what its readers expect: folders by category id, labels joined by id."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torchvision.datasets import INaturalist

from mini.inaturalist import IMAGES, plan
from mini.material import CLASS_NAMES, Material, load_material
from mini.world import FULL_COUNTS, build
from zoo.class_names import read_class_names
from zoo.datasets import dataset_config
from zoo.layouts import read

COUNTS = {"train": 20, "val": 10}


@pytest.fixture(scope="module")
def inaturalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """inaturalist2018 of a small world, for reading only."""
    root = tmp_path_factory.mktemp("world") / "mini"
    build(root, counts={"inaturalist2018": COUNTS})
    return root / "inaturalist2018"


@pytest.fixture(scope="module")
def material() -> Material:
    return load_material()


def content(root: Path, split: str) -> dict[str, Any]:
    return json.loads((root / f"{split}2018.json").read_text())


def labels(root: Path, split: str) -> dict[str, int]:
    """File name → category, joined the slow way."""
    whole = content(root, split)
    return {
        image["file_name"]: annotation["category_id"]
        for image in whole["images"]
        for annotation in whole["annotations"]
        if annotation["image_id"] == image["id"]
    }


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_file_has_the_releases_structure(inaturalist: Path, split: str) -> None:
    whole = content(inaturalist, split)
    assert set(whole) == {"info", "images", "categories", "annotations", "licenses"}
    assert len(whole["images"]) == len(whole["annotations"]) == COUNTS[split]
    assert [category["id"] for category in whole["categories"]] == list(range(10))
    for image in whole["images"]:
        with Image.open(inaturalist / image["file_name"]) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (image["width"], image["height"]))
        assert image["license"] in [licence["id"] for licence in whole["licenses"]]


def test_only_ids_say_which_annotation_is_an_images(inaturalist: Path) -> None:
    train, val = (content(inaturalist, split) for split in ("train", "val"))
    assert [one["id"] for one in train["images"]] != [one["image_id"] for one in train["annotations"]]
    ids = [one["id"] for whole in (train, val) for one in whole["images"]]
    assert len(set(ids)) == 30 and max(ids) > 30


def test_torchvision_reads_the_same_labels_from_the_folders(inaturalist: Path, tmp_path: Path) -> None:
    (tmp_path / "2018").symlink_to(inaturalist / IMAGES)
    theirs = INaturalist(str(tmp_path), version="2018")
    found = {f"{IMAGES}/{theirs.all_categories[label]}/{name}": label for label, name in theirs.index}
    assert found == labels(inaturalist, "train") | labels(inaturalist, "val")


def test_its_description_reads_it(inaturalist: Path) -> None:
    config = dataset_config("mini_inaturalist2018")
    assert {split: one.num_images for split, one in config.splits.items()} == FULL_COUNTS["inaturalist2018"]
    for split, one in config.splits.items():
        entries, _ = read(inaturalist, one.layouts[0], num_classes=10, classes=())
        assert {entry.path: entry.label for entry in entries} == labels(inaturalist, split)
    assert config.class_names_from is not None
    assert read_class_names(inaturalist, config.class_names_from, 10) == CLASS_NAMES


def test_the_full_splits_are_balanced_and_share_no_scan_and_no_name(material: Material) -> None:
    train, val = (
        plan(material, seed=0, split=split, count=FULL_COUNTS["inaturalist2018"][split]) for split in ("train", "val")
    )
    assert set(Counter(entry.label for entry in train).values()) == {40}
    assert set(Counter(entry.label for entry in val).values()) == {10}
    assert all(entry.label == material.labels[entry.scan] for entry in [*train, *val])
    assert not {entry.scan for entry in train} & {entry.scan for entry in val}
    assert len({Path(entry.path).name for entry in [*train, *val]}) == 500
