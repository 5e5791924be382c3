"""Places205, iNaturalist and VOC classification are read as they are laid out; what contradicts itself is named."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.dataset_files import Describe, fill, write_lines
from zoo.config import validate
from zoo.datasets import DatasetConfig, dataset_config, identity, manifest
from zoo.errors import ConfigError, DataError

CSV = {"image_list": "lists/train.csv", "images": "data/images256"}
JSON = {"inaturalist_json": "train2018.json", "images": "."}
META = {"image_list": "meta/train.txt", "images": "."}
CLASS_LISTS = {"class_lists": "Main/{}_trainval.txt", "images": "JPEG/{}.jpg"}
CLASSES = ["cat", "dog", "emu"]
ROWS = {"000007": "1 -1 0", "000012": "-1 1 1", "000005": "1 1 -1"}  # as VOC says it
PICTURES = {12: "train_val2018/Aves/2/aa.jpg", 5: "train_val2018/Aves/0/bb.jpg", 30: "train_val2018/Mammalia/1/cc.jpg"}
CATEGORIES = {12: 2, 5: 0, 30: 1}


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    return str(caught.value)


def listing(root: Path) -> list[str]:
    """The problems of pets' train, without the title."""
    assert root.is_dir()
    manifest.cache_clear()
    return refused(lambda: manifest("pets", "train")).replace("  - ", "").splitlines()[1:]


def as_inaturalist(root: Path, **changes: Any) -> None:
    for number, path in enumerate(PICTURES.values()):
        fill(root / path, 10 + number)
    content: dict[str, Any] = {
        "info": {"year": 2018},
        "images": [{"id": key, "file_name": path, "width": 8} for key, path in PICTURES.items()],
        "annotations": [{"id": 900 + key, "image_id": key, "category_id": CATEGORIES[key]} for key in (5, 30, 12)],
    }
    (root / "train2018.json").write_text(json.dumps(content | changes))


def as_class_lists(root: Path, rows: dict[str, str] | None = None) -> None:
    rows = ROWS if rows is None else rows
    for name in rows:
        fill(root / "JPEG" / f"{name}.jpg", 10 + int(name))
    for column, class_name in enumerate(CLASSES):
        lines = [f"{name} {row.split()[column]:>2}" for name, row in rows.items()]
        write_lines(root / "Main" / f"{class_name}_trainval.txt", *lines)


def test_places205_is_a_list_whose_labels_follow_the_last_blank(describe: Describe) -> None:
    root = describe(CSV)
    write_lines(root / "lists" / "train.csv", "a/abbey/gsun 1.jpg 2", "b/bar/gsun_2.jpg 0")
    for name in ("a/abbey/gsun 1.jpg", "b/bar/gsun_2.jpg"):
        fill(root / "data" / "images256" / name)
    found = manifest("pets", "train")
    assert found.paths == ("data/images256/a/abbey/gsun 1.jpg", "data/images256/b/bar/gsun_2.jpg")
    assert found.labels.tolist() == [2, 0]
    assert found.folders == ("data/images256/a/abbey", "data/images256/b/bar", "lists/train.csv")


def test_a_path_of_places365_starts_with_a_slash_and_stays_below_its_folder(describe: Describe) -> None:
    root = describe(CSV)
    write_lines(root / "lists" / "train.csv", "/a/airfield/00000001.jpg 0")
    assert listing_of_missing(root) == ["line 1: no file data/images256/a/airfield/00000001.jpg"]
    fill(root / "data" / "images256" / "a" / "airfield" / "00000001.jpg")
    manifest.cache_clear()
    assert manifest("pets", "train").path(0) == root / "data/images256/a/airfield/00000001.jpg"


def listing_of_missing(root: Path) -> list[str]:
    (root / "data" / "images256").mkdir(parents=True)
    return listing(root)


def test_a_list_without_its_folder_of_images_is_another_layout(describe: Describe) -> None:
    """Places365 unpacks to data_256; torchvision renames it."""
    root = describe({**CSV, "images": "data_256"}, {**CSV, "images": "data_256_standard"})
    write_lines(root / "lists" / "train.csv", "/a/1.jpg 0")
    assert listing(root) == [
        "list lists/train.csv of images in data_256/",
        "list lists/train.csv of images in data_256_standard/",
    ]
    fill(root / "data_256_standard" / "a" / "1.jpg")
    manifest.cache_clear()
    assert manifest("pets", "train").paths == ("data_256_standard/a/1.jpg",)


def test_a_name_with_a_nul_is_no_file(describe: Describe) -> None:
    root = describe(CSV)
    write_lines(root / "lists" / "train.csv", "a\0b.jpg 0")
    assert listing_of_missing(root) == ["line 1: no file data/images256/a\0b.jpg"]


@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_name_on_disk_that_is_not_utf8_is_refused(describe: Describe, place: str) -> None:
    root = describe({"class_folders": "train"})
    for number, class_name in enumerate(CLASSES):
        fill(root / "train" / class_name / f"{number}.png")
    old = root / "train" / ("cat/0.png" if place == "file" else "cat")
    os.rename(os.fsencode(old), os.fsencode(old.parent) + b"/caf\xe9.png")
    where = "train/cat" if place == "file" else "train"
    assert listing(root) == [rf"{where}: b'caf\xe9.png': the name is not UTF-8; rename it"]


def test_a_name_that_would_break_a_list_is_refused(describe: Describe) -> None:
    root = describe({"class_folders": "train"})
    for class_name in CLASSES:
        fill(root / "train" / class_name / "a\nb.png")
    assert listing(root)[0] == r"train/cat: 'a\nb.png': the name holds a tab or a line's end; rename it"


def test_an_inaturalist_file_is_joined_by_id(describe: Describe) -> None:
    root = describe(JSON)
    as_inaturalist(root)
    found = manifest("pets", "train")
    assert [Path(path).name for path in found.paths] == ["aa.jpg", "bb.jpg", "cc.jpg"]
    assert found.labels.dtype == np.int64 and found.labels.tolist() == [2, 0, 1]
    assert found.folders == (
        "train2018.json",
        "train_val2018/Aves/0",
        "train_val2018/Aves/2",
        "train_val2018/Mammalia/1",
    )


def test_an_inaturalist_file_and_the_list_made_from_it_are_the_same_dataset(describe: Describe) -> None:
    as_inaturalist(describe(JSON, META, folder="one"))
    first = identity("pets", "train")
    root = describe(META, JSON, folder="two")
    as_inaturalist(root)
    write_lines(root / "meta" / "train.txt", *(f"{path} {CATEGORIES[key]}" for key, path in PICTURES.items()))
    assert identity("pets", "train") == first
    assert "meta/train.txt" in manifest("pets", "train").folders


def test_a_changed_inaturalist_file_is_noticed(describe: Describe) -> None:
    root = describe(JSON)
    as_inaturalist(root)
    first = identity("pets", "train")
    as_inaturalist(root, annotations=[{"id": 1, "image_id": key, "category_id": 0} for key in PICTURES])
    manifest.cache_clear()
    assert identity("pets", "train").sha256 != first.sha256


def test_every_unusable_image_and_annotation_is_named_by_id(describe: Describe) -> None:
    root = describe(JSON)
    images = [{"id": key, "file_name": path} for key, path in PICTURES.items()]
    images += [
        {"id": 5, "file_name": "x.jpg"},
        {"id": 6, "file_name": PICTURES[30]},
        {"id": "7", "file_name": "y.jpg"},
        {"id": 8},
        {"id": 9, "file_name": "gone.jpg"},
        {"id": 10, "file_name": "none.jpg"},
        {"id": 11, "file_name": "\udcff.jpg"},
    ]
    annotations: list[Any] = [
        {"image_id": 5, "category_id": 0},
        {"image_id": 5, "category_id": 1},
        {"image_id": 12, "category_id": 3},
        {"image_id": 30, "category_id": True},
        {"image_id": 9, "category_id": 1},
        {"image_id": 77, "category_id": 1},
        "odd",
    ]
    as_inaturalist(root, images=images, annotations=annotations)
    assert listing(root) == [
        "image id 5: train_val2018/Aves/0/bb.jpg and x.jpg both have it",
        "image id 6: train_val2018/Mammalia/1/cc.jpg is image id 30's file too",
        'image 6 of the list: expected an integer id and a file_name, found {"id": "7", "file_name": "y.jpg"}',
        'image 7 of the list: expected an integer id and a file_name, found {"id": 8}',
        r"image id 11: b'\xff.jpg': the name is not UTF-8; rename it",
        "image id 5 (train_val2018/Aves/0/bb.jpg): more than one annotation",
        "image id 12 (train_val2018/Aves/2/aa.jpg): expected a category_id in 0…2, found 3",
        "image id 30 (train_val2018/Mammalia/1/cc.jpg): expected a category_id in 0…2, found True",
        'annotation {"image_id": 77, "category_id": 1}: image_id 77 is no image\'s id',
        'annotation "odd": image_id None is no image\'s id',
        "image id 9: no file gone.jpg",
        "image id 10 (none.jpg): no annotation",
    ]


def test_many_unusable_ids_are_counted(describe: Describe) -> None:
    root = describe(JSON)
    as_inaturalist(root, annotations=[{"image_id": 100 + n, "category_id": 0} for n in range(50)])
    assert len(listing(root)) == 21 and listing(root)[-1] == "… and 33 more"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "train2018.json: expected JSON, found something else"),
        ("[]", "expected a JSON mapping with the lists 'images' and 'annotations', found a list"),
        ('{"images": []}', "the lists 'images' and 'annotations', found a mapping with 'images'; restore the file"),
        ('{"images": [], "annotations": []}', "the list 'images' is empty"),
    ],
)
def test_another_file_than_inaturalists_is_refused(describe: Describe, text: str, message: str) -> None:
    root = describe(JSON)
    (root / "train2018.json").write_text(text)
    assert message in refused(lambda: manifest("pets", "train"))


def test_an_inaturalist_file_that_is_not_utf8_is_refused(describe: Describe) -> None:
    (describe(JSON) / "train2018.json").write_bytes(b'{"a": "caf\xe9"}')
    assert "train2018.json: not UTF-8 text" in refused(lambda: manifest("pets", "train"))


def test_class_lists_are_a_row_of_labels_an_image_in_the_order_of_ids(describe: Describe) -> None:
    as_class_lists(describe(CLASS_LISTS, classes=CLASSES))
    found = manifest("pets", "train")
    assert found.paths == ("JPEG/000005.jpg", "JPEG/000007.jpg", "JPEG/000012.jpg")
    assert found.labels.dtype == np.int8
    assert found.labels.tolist() == [[1, 1, 0], [1, 0, -1], [0, 1, 1]]
    assert found.folders == ("JPEG", *(f"Main/{name}_trainval.txt" for name in CLASSES)) and found.annotations == ()
    assert identity("pets", "train").num_images == 3 and identity("pets", "train").num_classes == 3


def test_the_order_of_lines_does_not_matter_and_a_label_does(describe: Describe) -> None:
    root = describe(CLASS_LISTS, classes=CLASSES)
    as_class_lists(root)
    first = identity("pets", "train")
    as_class_lists(root, dict(reversed(ROWS.items())))
    manifest.cache_clear()
    assert identity("pets", "train") == first
    as_class_lists(root, ROWS | {"000012": "-1 1 0"} | {"000005": "1 1 1"})
    manifest.cache_clear()
    assert identity("pets", "train").sha256 != first.sha256


def test_class_lists_that_contradict_each_other_are_named_together(describe: Describe) -> None:
    root = describe(CLASS_LISTS, classes=CLASSES)
    as_class_lists(root)
    (root / "Main" / "emu_trainval.txt").unlink()
    lines = ["000007 1", "000007 1", "000012 2", "000013", "000099 -1", *(f"{n:06d} -1" for n in range(200, 207))]
    write_lines(root / "Main" / "dog_trainval.txt", *lines, "")
    assert listing(root)[:9] == [
        "Main/dog_trainval.txt, line 2: 000007 is listed twice",
        "Main/dog_trainval.txt, line 3: expected 'image 1' (there), 'image -1' (not there) or 'image 0' (difficult), "
        "found '000012 2'",
        "Main/dog_trainval.txt, line 4: expected 'image 1' (there), 'image -1' (not there) or 'image 0' (difficult), "
        "found '000013'",
        "no file Main/emu_trainval.txt: expected a list for each of the 3 classes",
        "Main/dog_trainval.txt: 000005, 000012 not listed, but in Main/cat_trainval.txt",
        "Main/cat_trainval.txt: 000099, 000200, 000201 and 5 more not listed, but in Main/dog_trainval.txt",
        "image 000099: no file JPEG/000099.jpg",
        "image 000200: no file JPEG/000200.jpg",
        "image 000201: no file JPEG/000201.jpg",
    ]


def test_a_class_that_no_image_shows_is_refused(describe: Describe) -> None:
    """Difficult ones are no examples: nothing could be trained or scored."""
    root = describe(CLASS_LISTS, classes=CLASSES)
    as_class_lists(root, {"000001": "1 1 0", "000002": "-1 1 -1"})
    expected = "Main/emu_trainval.txt: no image shows class 'emu': expected a line 'image 1', found none"
    assert listing(root) == [expected]
    assert "Main/<class>_trainval.txt are not usable" in refused(lambda: manifest("pets", "train"))


def test_without_any_class_list_the_command_that_makes_them_is_named(describe: Describe) -> None:
    made = {**CLASS_LISTS, "names": "Main/trainval.txt", "annotations": "XML/{}.xml"}
    root = describe(made, classes=CLASSES)
    assert listing(root) == [
        "class lists Main/<class>_trainval.txt",
        "if only the list files are missing, this makes them: python -m zoo datasets prepare pets",
    ]


def test_class_lists_need_classes() -> None:
    config = {"name": "a", "title": "a", "root": None, "num_classes": 2, "substitute_for": None}
    config |= {"splits": {"train": {"num_images": None, "layouts": (CLASS_LISTS,)}}}
    with pytest.raises(ConfigError, match="class_lists need classes"):
        validate(config, DatasetConfig, where="test")


def test_the_classification_datasets_are_as_published() -> None:
    """Protocols §2.3, §2.4, §2.6."""
    voc = dataset_config("voc07")
    assert {name: split.num_images for name, split in voc.splits.items()} == {"trainval": 5011, "test": 4952}
    assert voc.classes is not None and len(voc.classes) == 20 and list(voc.classes) == sorted(voc.classes)
    places = dataset_config("places205")
    assert (places.num_classes, places.splits["val"].num_images) == (205, 20500)
    assert dataset_config("inaturalist2018").num_classes == 8142
    assert dataset_config("places365").substitute_for == "places205"
    sample = dataset_config("voc07_sample")
    assert sample.substitute_for == "voc07" and set(sample.classes or ()) < set(voc.classes)
