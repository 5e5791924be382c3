"""The small world's Places205 is what Places205's readers expect."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mini.material import CLASS_NAMES, Material, load_material
from mini.places205 import IMAGES, LISTS, plan
from mini.world import FULL_COUNTS, build
from zoo.class_names import read_class_names
from zoo.datasets import dataset_config
from zoo.layouts import read

COUNTS = {"train": 20, "val": 10}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """places205 of a small world, for reading only."""
    root = tmp_path_factory.mktemp("world") / "mini"
    build(root, counts={"places205": COUNTS})
    return root / "places205"


@pytest.fixture(scope="module")
def material() -> Material:
    return load_material()


def rows(path: Path) -> list[tuple[str, int]]:
    """As other readers of these files: comma-separated values, but with blanks."""
    with path.open(newline="") as stream:
        return [(name, int(label)) for name, label in csv.reader(stream, delimiter=" ")]


def test_the_lists_name_every_picture_once_and_both_splits_share_the_folders(places: Path) -> None:
    train, val = (rows(places / LISTS / f"{split}_places205.csv") for split in ("train", "val"))
    assert (len(train), len(val)) == (20, 10)
    pictures = {path.relative_to(places / IMAGES).as_posix() for path in (places / IMAGES).rglob("*.jpg")}
    assert sorted(pictures) == sorted(name for name, _ in [*train, *val])
    assert {Path(name).parent for name, _ in val} == {Path(name).parent for name, _ in train}
    for name in pictures:
        with Image.open(places / IMAGES / name) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (48, 48))


def test_labels_number_the_classes_in_alphabetical_order(places: Path) -> None:
    index = rows(places / LISTS / "categoryIndex_places205.csv")
    assert [name for name, _ in index] == sorted(f"/{name[0]}/{name}" for name in CLASS_NAMES)
    assert [label for _, label in index] == list(range(10))
    for name, label in rows(places / LISTS / "train_places205.csv"):
        assert f"/{Path(name).parent}" == index[label][0]


def test_an_image_is_in_the_folder_of_its_scans_digit(material: Material) -> None:
    for entry in plan(material, seed=0, split="val", count=50):
        assert entry.path.split("/")[1] == CLASS_NAMES[entry.label] == CLASS_NAMES[material.labels[entry.scan]]


def test_the_full_splits_are_balanced_and_share_no_scan_and_no_name(material: Material) -> None:
    train, val = (
        plan(material, seed=0, split=split, count=FULL_COUNTS["places205"][split]) for split in ("train", "val")
    )
    assert set(Counter(entry.label for entry in train).values()) == {40}
    assert set(Counter(entry.label for entry in val).values()) == {10}
    assert not {entry.scan for entry in train} & {entry.scan for entry in val}
    assert len({Path(entry.path).name for entry in [*train, *val]}) == 500


def test_its_description_reads_it(places: Path) -> None:
    config = dataset_config("mini_places205")
    assert {split: one.num_images for split, one in config.splits.items()} == FULL_COUNTS["places205"]
    for split, one in config.splits.items():
        entries, _ = read(places, one.layouts[0], num_classes=10, classes=())
        found = {Path(entry.path).relative_to(IMAGES).as_posix(): entry.label for entry in entries}
        assert found == dict(rows(places / LISTS / f"{split}_places205.csv"))
    assert config.class_names_from is not None
    assert read_class_names(places, config.class_names_from, 10) == tuple(sorted(CLASS_NAMES))


def test_it_is_colourful(places: Path) -> None:
    with Image.open(next((places / IMAGES).rglob("*.jpg"))) as image:
        assert np.ptp(np.asarray(image, dtype=np.int64), axis=2).mean() > 5
