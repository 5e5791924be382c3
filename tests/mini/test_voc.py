"""The small world's Pascal VOC is what VOC's readers expect, and its labels are what its pictures show."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import VOCDetection, VOCSegmentation

from mini.material import CLASS_NAMES, Material, load_material
from mini.scene import Scene, SceneObject, bounds
from mini.voc import IGNORE, SPLITS, Entry, class_mask, colour_map, compose, plan
from mini.world import FULL_COUNTS, build
from zoo.datasets import dataset_config
from zoo.layouts import read

COUNTS = {split: 12 for split in SPLITS}
LISTS = {"2007": ("train", "val", "trainval", "test"), "2012": ("train", "val", "trainval")}


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VOCdevkit of a small world, for reading only."""
    root = tmp_path_factory.mktemp("world") / "mini"
    build(root, counts={"VOCdevkit": COUNTS})
    return root / "VOCdevkit"


@pytest.fixture(scope="module")
def material() -> Material:
    return load_material()


def entries(material: Material, *, full: bool = False, year: str = "") -> list[Entry]:
    counts = FULL_COUNTS["VOCdevkit"] if full else COUNTS
    return [
        entry
        for split, count in counts.items()
        if year in SPLITS[split].year
        for entry in plan(material, seed=0, split=split, count=count)
    ]


def pixels(path: Path) -> NDArray[Any]:
    with Image.open(path) as image:
        return np.asarray(image)


def ids(voc: Path, year: str, name: str) -> list[str]:
    return (voc / f"VOC{year}" / "ImageSets" / f"{name}.txt").read_text().splitlines()


def described(voc: Path, year: str, name: str) -> Iterator[tuple[str, tuple[int, ...], bool, bool]]:
    """(class, box, truncated, difficult) of every object of an annotation."""
    for element in ElementTree.parse(voc / f"VOC{year}" / "Annotations" / f"{name}.xml").iterfind("object"):
        box = tuple(int(element.findtext(f"bndbox/{corner}", "")) for corner in ("xmin", "ymin", "xmax", "ymax"))
        yield (
            element.findtext("name", ""),
            box,
            element.findtext("truncated") == "1",
            element.findtext("difficult") == "1",
        )


def test_the_boxes_are_the_bounds_of_what_is_drawn(voc: Path, material: Material) -> None:
    for entry in entries(material):
        year = SPLITS[entry.split].year
        scene, difficult = compose(material, entry, seed=0)
        expected = []
        for thing, hard in zip(scene.objects, difficult, strict=True):
            x0, y0, x1, y1 = bounds(thing.mask)
            expected.append((CLASS_NAMES[thing.label], (x0 + 1, y0 + 1, x1, y1), thing.covered > 0, hard))
        assert list(described(voc, year, entry.name)) == expected
        stored = pixels(voc / f"VOC{year}" / "JPEGImages" / f"{entry.name}.jpg").astype(float)
        assert np.abs(stored - scene.image).mean() < 4


def test_an_annotation_has_vocs_structure(voc: Path) -> None:
    root = ElementTree.parse(voc / "VOC2012" / "Annotations" / "2012_000001.xml").getroot()
    assert [child.tag for child in root][:5] == ["folder", "filename", "source", "size", "segmented"]
    assert (root.tag, root.findtext("folder"), root.findtext("filename")) == (
        "annotation",
        "VOC2012",
        "2012_000001.jpg",
    )
    size = tuple(int(root.findtext(f"size/{name}", "")) for name in ("height", "width", "depth"))
    assert size == pixels(voc / "VOC2012" / "JPEGImages" / "2012_000001.jpg").shape
    assert root.findtext("segmented") == "1"
    thing = root.find("object")
    assert thing is not None
    assert [child.tag for child in thing] == ["name", "pose", "truncated", "difficult", "bndbox"]
    assert [child.tag for child in thing[-1]] == ["xmin", "ymin", "xmax", "ymax"]


@pytest.mark.parametrize(("year", "name"), [(year, name) for year, names in LISTS.items() for name in names])
def test_torchvision_reads_the_boxes(voc: Path, year: str, name: str) -> None:
    dataset = VOCDetection(str(voc.parent), year=year, image_set=name)
    assert len(dataset) == (24 if name == "trainval" else 12)
    for image, target in (dataset[index] for index in range(len(dataset))):
        annotation = target["annotation"]
        assert f"{image.width}x{image.height}" in ("128x96", "96x128")
        assert annotation["size"] == {"width": str(image.width), "height": str(image.height), "depth": "3"}
        for thing in annotation["object"]:
            assert thing["name"] in CLASS_NAMES
            assert 1 <= int(thing["bndbox"]["xmin"]) <= int(thing["bndbox"]["xmax"]) <= image.width
            assert 1 <= int(thing["bndbox"]["ymin"]) <= int(thing["bndbox"]["ymax"]) <= image.height


@pytest.mark.parametrize("year", ["2007", "2012"])
@pytest.mark.parametrize("name", ["train", "val", "trainval"])
def test_torchvision_reads_the_masks(voc: Path, year: str, name: str) -> None:
    dataset = VOCSegmentation(str(voc.parent), year=year, image_set=name)
    assert len(dataset) > 0
    for image, mask in (dataset[index] for index in range(len(dataset))):
        assert (mask.mode, mask.size) == ("P", image.size)
        assert set(np.unique(np.asarray(mask))) <= {*range(len(CLASS_NAMES) + 1), IGNORE}
        assert np.array_equal(np.reshape(mask.getpalette(), (-1, 3)), colour_map())


def test_masks_show_what_is_drawn(voc: Path, material: Material) -> None:
    for entry in entries(material, year="2012"):
        if entry.segmentation is None:
            continue
        scene, difficult = compose(material, entry, seed=0)
        stored = pixels(voc / "VOC2012" / "SegmentationClassAug" / f"{entry.name}.png")
        for thing, hard in zip(scene.objects, difficult, strict=True):
            others = {0, IGNORE} if hard else {0, IGNORE, thing.label + 1}
            # No pixel of an object has another's class, and one that is not difficult keeps some of its own.
            assert set(np.unique(stored[thing.mask])) <= others - {0}
            assert hard or thing.covered > 0 or thing.label + 1 in stored[thing.mask]
        drawn = np.any([thing.mask for thing in scene.objects], axis=0)
        assert set(np.unique(stored[~drawn])) == {0, IGNORE}


def test_a_border_is_ignored_on_both_sides() -> None:
    mask = np.zeros((12, 12), dtype=np.bool_)
    mask[3:9, 3:9] = True
    thing = SceneObject(label=4, scan=0, box=bounds(mask), mask=mask, covered=0)
    scene = Scene(image=np.zeros((12, 12, 3), dtype=np.uint8), objects=(thing,))
    labels = class_mask(scene, [False])
    expected = np.zeros((12, 12), dtype=np.uint8)
    expected[2:10, 2:10] = IGNORE
    expected[4:8, 4:8] = 5
    assert np.array_equal(labels, expected)
    expected[4:8, 4:8] = IGNORE
    assert np.array_equal(class_mask(scene, [True]), expected)


def test_the_colours_are_vocs() -> None:
    colours = colour_map()
    assert colours[[0, 1, 2, 3, 4, 8, 20, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [0, 0, 128],
        [64, 0, 0],
        [0, 64, 128],
        [224, 224, 192],
    ]


@pytest.mark.parametrize(("year", "name"), [(year, name) for year, names in LISTS.items() for name in names])
def test_class_lists_agree_with_the_annotations(voc: Path, year: str, name: str) -> None:
    for class_name in CLASS_NAMES:
        lines = (voc / f"VOC{year}" / "ImageSets" / "Main" / f"{class_name}_{name}.txt").read_text().splitlines()
        expected = []
        for one in ids(voc, year, f"Main/{name}"):
            flags = [hard for found, _, _, hard in described(voc, year, one) if found == class_name]
            expected.append(f"{one} {'-1' if not flags else ' 0' if all(flags) else ' 1'}")
        assert lines == expected
        if name == "trainval":
            assert {line[-2:] for line in lines} >= {" 1", "-1"}


def test_its_classification_is_read_as_the_annotations_say(voc: Path) -> None:
    config = dataset_config("mini_voc07")
    for split, expected in config.splits.items():
        found, _ = read(voc, expected.layouts[0], num_classes=10, classes=config.classes or ())
        assert [Path(entry.path).stem for entry in found] == ids(voc, "2007", f"Main/{split}")
        for entry in found:
            things = list(described(voc, "2007", Path(entry.path).stem))
            clear = {name for name, _, _, difficult in things if not difficult}
            hard = {name for name, _, _, difficult in things if difficult} - clear
            assert entry.row == tuple(int(name in clear) - (name in hard) for name in CLASS_NAMES)


@pytest.mark.parametrize("year", ["2007", "2012"])
def test_the_lists_fit_together(voc: Path, year: str) -> None:
    main = {name: ids(voc, year, f"Main/{name}") for name in LISTS[year]}
    assert all(names == sorted(set(names)) for names in main.values())
    assert main["trainval"] == sorted([*main["train"], *main["val"]])
    segmentation = {name: set(ids(voc, year, f"Segmentation/{name}")) for name in ("train", "val", "trainval")}
    assert segmentation["train"] | segmentation["val"] == segmentation["trainval"]
    assert not segmentation["train"] & segmentation["val"]
    assert segmentation["train"] <= set(main["trainval"])
    folder = voc / f"VOC{year}"
    assert {path.stem for path in (folder / "SegmentationClass").iterdir()} == segmentation["trainval"]
    pictures = {path.stem for path in (folder / "JPEGImages").iterdir()}
    assert pictures == {path.stem for path in (folder / "Annotations").iterdir()}
    assert pictures == {name for names in main.values() for name in names} | segmentation["val"]


def test_aug_is_apart_and_its_folder_has_all_masks(voc: Path) -> None:
    train, val, aug = (set(ids(voc, "2012", f"Segmentation/{name}")) for name in ("train", "val", "aug"))
    assert aug and not aug & (train | val)
    folder = voc / "VOC2012"
    assert {path.stem for path in (folder / "SegmentationClassAug").iterdir()} == train | val | aug
    for name in train | val:
        same = (folder / kind / f"{name}.png" for kind in ("SegmentationClass", "SegmentationClassAug"))
        assert len({path.read_bytes() for path in same}) == 1


def test_segmentation_val_of_2012_is_in_no_list_of_main(voc: Path) -> None:
    assert not set(ids(voc, "2012", "Segmentation/val")) & set(ids(voc, "2012", "Main/trainval"))


def test_the_full_lists_have_the_promised_lengths(material: Material) -> None:
    members: dict[tuple[str, str], int] = {}
    for entry in entries(material, full=True):
        year = SPLITS[entry.split].year
        for name in (SPLITS[entry.split].main, entry.segmentation and f"segmentation {entry.segmentation}"):
            members[year, str(name)] = members.get((year, str(name)), 0) + 1
    assert [members["2007", name] for name in ("train", "val", "test")] == [60, 60, 80]
    assert [members["2012", name] for name in ("train", "val")] == [60, 60]
    assert [members["2012", f"segmentation {name}"] for name in ("train", "val", "aug")] == [40, 50, 60]
    assert len({(SPLITS[entry.split].year, entry.name) for entry in entries(material, full=True)}) == 370


def test_the_full_splits_show_every_class_and_difficult_only_images(material: Material) -> None:
    clear: dict[str, set[int]] = {}
    difficult_only: dict[str, int] = {}
    for entry in entries(material, full=True):
        scene, difficult = compose(material, entry, seed=0)
        group = "test" if entry.split == "test2007" else "trainval" if "2007" in entry.split else entry.split
        clear.setdefault(group, set()).update(
            thing.label for thing, hard in zip(scene.objects, difficult, strict=True) if not hard
        )
        difficult_only[group] = difficult_only.get(group, 0) + all(difficult)
    assert all(labels == set(range(10)) for labels in clear.values())
    assert difficult_only["test"] >= 3
    assert difficult_only["trainval"] >= 3


def test_what_is_trained_on_and_what_is_tested_on_share_no_scan(material: Material) -> None:
    shown: dict[str, set[int]] = {split: set() for split in SPLITS}
    for entry in entries(material, full=True):
        shown[entry.split] |= set(entry.scans)
    for train in ("train2007", "val2007", "train2012", "val2012"):
        for test in ("test2007", "segmentation_val2012"):
            assert not shown[train] & shown[test]
    assert not (shown["train2007"] | shown["train2012"]) & (shown["val2007"] | shown["val2012"])


def test_an_image_does_not_depend_on_how_many_others_there_are(voc: Path, tmp_path: Path) -> None:
    build(tmp_path / "mini", counts={"VOCdevkit": {**COUNTS, "train2007": 20, "val2012": 10}})
    other = tmp_path / "mini" / "VOCdevkit"
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationClassAug"):
        for path in other.glob(f"*/{folder}/*"):
            same = voc / path.relative_to(other)
            assert not same.exists() or same.read_bytes() == path.read_bytes()
    pictures = {path.relative_to(voc) for path in voc.rglob("*.jpg")}
    others = {path.relative_to(other) for path in other.rglob("*.jpg")}
    assert (len(pictures - others), len(others - pictures)) == (2, 8)
