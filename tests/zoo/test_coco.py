"""A COCO annotation file is read as written, and refused with everything that is wrong in it."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask

from tests.dataset_files import Describe, fill
from zoo.coco import CocoImage, CocoObject, image_at, read_instances
from zoo.datasets import dataset_config, manifest
from zoo.errors import DataError
from zoo.verify import broken

CLASSES = ("cat", "dog", "emu")
TRIANGLE = [1.0, 1.0, 9.5, 1.0, 9.5, 7.5]
CATEGORIES = [{"id": 90, "name": "emu"}, {"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}]  # gaps, and in no order
IMAGES = [
    {"id": 7, "file_name": "b.jpg", "width": 12, "height": 8},
    {"id": 5, "file_name": "a.jpg", "width": 4, "height": 6},
]


def thing(**changes: Any) -> dict[str, Any]:
    """A dog of image 7."""
    box = {"bbox": [1.0, 1.0, 8.5, 6.5], "area": 27.6, "iscrowd": 0, "segmentation": [TRIANGLE]}
    return {"id": 1, "image_id": 7, "category_id": 3} | box | changes


def lengths(*counts: int, size: tuple[int, int] = (8, 12)) -> dict[str, Any]:
    return {"size": list(size), "counts": list(counts)}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(*annotations: Any, **lists: Any) -> Path:
        path = tmp_path / "instances.json"
        content = {"images": IMAGES, "annotations": list(annotations), "categories": CATEGORIES} | lists
        path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
        return path

    return write


def problems(path: Path) -> list[str]:
    with pytest.raises(DataError) as error:
        read_instances(path, CLASSES)
    title, *lines = str(error.value).splitlines()
    assert str(path) in title
    return [line.removeprefix("  - ") for line in lines] or [title]


def test_objects_are_read_with_contiguous_labels(written: Callable[..., Path]) -> None:
    crowd = thing(id=2, category_id=90, iscrowd=1, segmentation=lengths(90, 6), area=6)
    found = read_instances(written(thing(), crowd), CLASSES)
    box = (1.0, 1.0, 8.5, 6.5)
    assert found == {
        "b.jpg": CocoImage(
            12, 8, (CocoObject(1, box, 27.6, False, [TRIANGLE]), CocoObject(2, box, 6.0, True, lengths(90, 6)))
        ),
        "a.jpg": CocoImage(4, 6, ()),
    }


def test_boxes_without_height_are_published_data_and_counted(
    written: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    flat = thing(id=918, bbox=[2.65, 3.33, 1.03, 0.0], area=0.0, segmentation=[[2.65, 3.33, 2.65, 3.33, 3.68, 3.33]])
    with caplog.at_level(logging.WARNING):
        image = read_instances(written(thing(), flat), CLASSES)["b.jpg"]
    assert [each.is_degenerate for each in image.objects] == [False, True]
    assert "1 boxes have no width or no height" in caplog.text


def test_run_lengths_may_be_compressed(written: Callable[..., Path]) -> None:
    draw = np.random.default_rng(0)
    for share in (0.0, 0.03, 0.5, 1.0):
        packed: Any = mask.encode(np.asfortranarray(draw.random((8, 12)) < share).astype(np.uint8, order="F"))
        outline = {"size": [8, 12], "counts": packed["counts"].decode()}
        assert read_instances(written(thing(segmentation=outline)), CLASSES)["b.jpg"].objects[0].segmentation == outline
        longer = packed["counts"].decode() + "1"
        said = problems(written(thing(segmentation=outline | {"counts": longer})))
        assert len(said) == 1 and "run lengths: expected" in said[0]


def test_all_problems_of_a_file_are_told_at_once(written: Callable[..., Path]) -> None:
    wrong: dict[str, dict[str, Any]] = {
        "annotation id 1: image_id 99 is not listed in 'images'": {"image_id": 99},
        "annotation id 2 (image id 7): category_id 2 is not listed in 'categories'": {"category_id": 2},
        "annotation id 3 (image id 7): iscrowd: expected 0 or 1, found 2": {"iscrowd": 2},
        "annotation id 4 (image id 7): area: expected a number of pixels, found None": {"area": None},
        "annotation id 5 (image id 7): bbox: expected four numbers, found [1, 2, 3]": {"bbox": [1, 2, 3]},
        "annotation id 6 (image id 7): bbox: expected a width of 0 or more, found -3": {"bbox": [5, 1, -3, 2]},
        "annotation id 7 (image id 7): bbox: expected x within the image's 0…12, found 4…14": {"bbox": [4, 1, 10, 2]},
        "annotation id 8 (image id 7): bbox: expected y within the image's 0…8, found -2…1": {"bbox": [4, -2, 1, 3]},
        "annotation id 9 (image id 7): polygon 2: expected an even count of at least 6 numbers, found 4 numbers": {
            "segmentation": [TRIANGLE, [1, 1, 2, 2]]
        },
        "annotation id 10 (image id 7): polygon 1: expected an even count of at least 6 numbers, found 7 numbers": {
            "segmentation": [[*TRIANGLE, 1]]
        },
        "annotation id 11 (image id 7): polygon 1: expected finite numbers only": {
            "segmentation": [[*TRIANGLE[:5], float("nan")]]
        },
        "annotation id 12 (image id 7): segmentation: expected polygons or run lengths, found an empty list": {
            "segmentation": []
        },
        "annotation id 13 (image id 7): run lengths: expected size [8, 12] as the image's, found [12, 8]": {
            "segmentation": lengths(96, size=(12, 8))
        },
        "annotation id 14 (image id 7): run lengths: expected 96 pixels as the image has, found 95": {
            "segmentation": lengths(90, 5)
        },
        "annotation id 15 (image id 7): run lengths: expected counts of 0 or more, found others": {
            "segmentation": lengths(97, -1)
        },
        "annotation id 16 (image id 7): segmentation: expected polygons or run lengths {size, counts}, found none": {
            "segmentation": None
        },
        "annotation id 17 (image id 7): ignore: expected 0 or none, as in COCO; no engine and no evaluation knows it": {
            "ignore": 1
        },
    }
    found = [thing(id=number) | changes for number, changes in enumerate(wrong.values(), start=1)]
    assert problems(written(*found, thing(id=17), [])) == [
        *wrong,
        "annotation id 17: more than one annotation has it",
        "annotation 19 of the list: expected a mapping with an integer id, found None",
    ]


def test_contradicting_images_and_categories_are_told(written: Callable[..., Path]) -> None:
    images = [*IMAGES, IMAGES[0] | {"file_name": "c.jpg"}, IMAGES[0] | {"id": 8}, {"id": 9, "file_name": "d"}, 3]
    categories = [*CATEGORIES[:2], {"id": 1, "name": "yak"}, {"id": "x", "name": "ox"}]
    assert problems(written(images=images, categories=categories)) == [
        "category id 1: cat and yak both have it",
        "category 4 of the list: expected an integer id and a name",
        "category id 90: expected 'dog' as label 1, found 'emu'",
        "'categories': expected the dataset's 3 classes, found 2",
        "image id 7: b.jpg and c.jpg both have it",
        "image id 8: b.jpg is listed twice",
        "image id 9: expected width and height in pixels, found None and None",
        "image 6 of the list: expected an integer id and a file_name",
    ]
    assert problems(written(images=[], categories=None)) == [
        "the list 'images' is empty",
        "'categories': expected a list, found none",
    ]


def test_what_is_no_json_is_refused(written: Callable[..., Path], tmp_path: Path) -> None:
    path = written(thing())
    path.write_text(path.read_text()[:-9])
    assert "expected JSON, found something else" in problems(path)[0]


LAYOUT = {"coco_json": "annotations/instances_train2017.json", "images": "train2017"}


@pytest.fixture
def pets(describe: Describe) -> Path:
    """Two pictures and their annotations as dataset `pets`."""
    root = describe(LAYOUT)
    for image in IMAGES:
        fill(root / "train2017" / image["file_name"])
    (root / "annotations").mkdir()
    content = {"images": IMAGES, "annotations": [thing()], "categories": CATEGORIES}
    (root / LAYOUT["coco_json"]).write_text(json.dumps(content))
    return root


def listing(root: Path) -> str:
    manifest.cache_clear()
    with pytest.raises(DataError) as error:
        manifest("pets", "train")
    return str(error.value)


def test_a_manifest_knows_the_annotation_file_by_its_hash(pets: Path) -> None:
    found = manifest("pets", "train")
    assert found.paths == ("train2017/a.jpg", "train2017/b.jpg") and len(found.labels) == 0
    assert found.annotation(1) == pets / LAYOUT["coco_json"]
    assert found.folders == (LAYOUT["coco_json"], "train2017")
    path = pets / LAYOUT["coco_json"]
    path.write_text(path.read_text().replace("27.6", "27.5"))
    manifest.cache_clear()
    assert manifest("pets", "train").sha256 != found.sha256


def test_an_incomplete_folder_is_refused(pets: Path) -> None:
    (pets / "train2017" / "b.jpg").unlink()
    assert listing(pets).endswith("is not usable:\n  - image id 7: no file train2017/b.jpg")
    path = pets / LAYOUT["coco_json"]
    path.write_text(json.dumps({"images": []}))
    assert listing(pets).endswith("the list 'images' is empty")
    path.write_text("[]")
    assert "expected a JSON mapping with the list 'images', found a list" in listing(pets)


def test_verifying_compares_pictures_with_what_the_file_says_of_them(pets: Path) -> None:
    from PIL import Image

    for name, size in (("a.jpg", (4, 6)), ("b.jpg", (8, 12))):
        Image.new("RGB", size).save(pets / "train2017" / name)
    manifest.cache_clear()
    found = manifest("pets", "train")
    config = dataset_config("pets").model_copy(update={"classes": CLASSES})
    (said,) = broken(found, config, range(2))
    assert "b.jpg: written for 12 x 8 pixels, but its picture has 8 x 12" in said
    path = pets / LAYOUT["coco_json"]
    path.write_text(path.read_text().replace('"image_id": 7', '"image_id": 8'))
    assert sum("image_id 8 is not listed" in one for one in broken(found, config, range(2))) == 1


def test_an_image_is_found_by_the_longest_end_of_its_path() -> None:
    by_name = {name: CocoImage(width, 1, ()) for width, name in enumerate(("a.png", "more/a.png"))}
    assert image_at(by_name, "val2017/a.png").width == 0 and image_at(by_name, "val2017/more/a.png").width == 1
    with pytest.raises(DataError, match="val2017/b.png: the annotation file lists no such image any more"):
        image_at(by_name, "val2017/b.png")
