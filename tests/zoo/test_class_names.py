"""Every dataset can say what its classes are called, or what is wrong with the file that should."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.dataset_files import Describe, fill, write_lines
from zoo.config import validate
from zoo.datasets import DatasetConfig, class_names
from zoo.errors import ConfigError, DataError

WNIDS = {"id_name_list": "meta/classes.txt"}
INDEX = {"name_index_list": "index.csv"}
CATEGORIES = {"categories_json": ["categories.json", "val2018.json"]}
SHARED = "expected one name for each label in 0…2, found"


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    return str(caught.value)


def test_imagenets_names_are_torchvisions() -> None:
    names = class_names("imagenet")
    assert len(names) == 1000 and (names[0], names[999]) == ("tench", "toilet tissue")


def test_a_dataset_with_classes_names_them_itself() -> None:
    assert class_names("voc07")[14] == "person"


def test_class_folders_are_the_names_where_nothing_else_is_said(describe: Describe) -> None:
    root = describe()
    assert "expected class folders to take the classes' names from, found none" in refused(lambda: class_names("pets"))
    for name in ("dog", "cat", "emu"):
        fill(root / "train" / name / "1.png")
    assert class_names("pets") == ("cat", "dog", "emu")


def test_splits_with_other_class_folders_are_refused(describe: Describe) -> None:
    splits = {name: {"num_images": None, "layouts": [{"class_folders": name}]} for name in ("train", "val")}
    root = describe(splits=splits)
    for path in ("train/cat", "train/dog", "train/emu", "val/cat", "val/dog", "val/fox"):
        fill(root / path / "1.png")
    assert refused(lambda: class_names("pets")).splitlines() == [
        f"dataset 'pets' under {root}: expected 3 class folders, the same for all splits:",
        "  - class folders in train/: 3 names, the first cat, dog, emu",
        "  - class folders in val/: 3 names, the first cat, dog, fox",
    ]


def test_names_follow_the_id_in_label_order(describe: Describe) -> None:
    root = describe(class_names_from=WNIDS)
    write_lines(root / "meta" / "classes.txt", "n2 great white shark", "n1 cat", "", "n3 emu")
    assert class_names("pets") == ("great white shark", "cat", "emu")


def test_places_names_are_in_the_order_of_their_index(describe: Describe) -> None:
    root = describe(class_names_from=INDEX)
    write_lines(root / "index.csv", "/b/bar 1", "/a/apartment_building/outdoor 0", "/z/zoo 2")
    assert class_names("pets") == ("apartment_building/outdoor", "bar", "zoo")


@pytest.mark.parametrize("file", ["categories.json", "val2018.json"])
def test_inaturalists_names_are_its_categories(describe: Describe, file: str) -> None:
    root = describe(class_names_from=CATEGORIES)
    categories = [{"id": key, "name": name, "supercategory": "x"} for key, name in ((2, "emu"), (0, "cat"), (1, "dog"))]
    content: Any = categories if file == "categories.json" else {"categories": categories}
    (root / "val2018.json").write_text('{"categories": []}')
    (root / file).write_text(json.dumps(content))
    assert class_names("pets") == ("cat", "dog", "emu")


@pytest.mark.parametrize(
    ("source", "file", "text", "message"),
    [
        (
            WNIDS,
            "meta/classes.txt",
            "n1 cat\nn2\n",
            "classes.txt is not usable:\n  - line 2: expected 'id name', found",
        ),
        (WNIDS, "meta/classes.txt", "n1 cat\nn2 dog\n", f"{SHARED} 2 names; look at label 2."),
        (INDEX, "index.csv", "/c/cat 0\n/d/dog x\n", "- line 2: expected '/letter/name index', found '/d/dog x'"),
        (INDEX, "index.csv", "/c/cat 0\n/d/dog 0\n/e/emu 3\n", f"{SHARED} 3 names; look at label 0, 3, 1, 2."),
        (CATEGORIES, "val2018.json", "{}", "expected a list of categories, or one under 'categories', found none"),
        (CATEGORIES, "val2018.json", '[{"id": "0"}]', "- category 1 of the list: expected an integer id and a name"),
        (CATEGORIES, "val2018.json", "[", "val2018.json: expected JSON, found something else"),
        (CATEGORIES, "other.json", "[]", "the class names in categories.json or val2018.json, found no such file"),
    ],
)
def test_a_file_that_names_other_classes_is_refused(
    describe: Describe, source: dict[str, Any], file: str, text: str, message: str
) -> None:
    root = describe(class_names_from=source)
    (root / file).parent.mkdir(exist_ok=True)
    (root / file).write_text(text)
    assert message in refused(lambda: class_names("pets"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names_from": {}}, "class_names_from: expected exactly one of id_name_list, name_index_list,"),
        ({"class_names_from": {**WNIDS, **INDEX}}, "class_names_from: expected exactly one of id_name_list"),
        ({"class_names_from": WNIDS, "classes": ("a", "b")}, "expected classes or class_names_from, found both"),
        ({"class_names_from": {"torchvision": "V1"}}, "class_names_from.torchvision: "),
    ],
)
def test_names_have_one_source(changes: dict[str, Any], message: str) -> None:
    config = {"name": "a", "title": "a", "root": None, "num_classes": 2, "substitute_for": None}
    config |= {"splits": {"train": {"num_images": None, "layouts": ({"class_folders": "train"},)}}, **changes}
    with pytest.raises(ConfigError) as caught:
        validate(config, DatasetConfig, where="test")
    assert message in str(caught.value)


def test_names_of_a_dataset_that_is_not_there_say_what_to_write(describe: Describe, tmp_path: Path) -> None:
    describe(class_names_from=WNIDS)
    (tmp_path / "data.yaml").write_text("dogs: /data\n")
    assert "expected a line 'pets: /path/to/it'" in refused(lambda: class_names("pets"))
