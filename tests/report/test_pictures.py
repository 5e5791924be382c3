"""Truth left, prediction right: boxes and labels where the record has them, and a message where there are none."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask

from report.pictures import WIDTH, colour, draw, sample
from tests.report.drawn import record
from zoo import datasets
from zoo.datasets import identity, manifest
from zoo.errors import DataError, RecordError
from zoo.record import DatasetRecord, write_record

XML = (
    "<annotation><size><width>60</width><height>30</height></size><object><name>cat</name><difficult>0</difficult>"
    "<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>31</xmax><ymax>26</ymax></bndbox></object></annotation>"
)


@pytest.fixture
def voc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three grey 60x30 pictures with a cat each, as boxes and as masks."""
    labels = np.zeros((30, 60), np.uint8)
    labels[5:26, 10:31], labels[:, -4:] = 1, 255
    for index in range(3):
        Image.new("RGB", (60, 30), (90, 90, 90)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.xml").write_text(XML)
        Image.fromarray(labels).save(tmp_path / f"{index}_mask.png")
    (tmp_path / "test.txt").write_text("0\n1\n2\n")
    (tmp_path / "configs" / "datasets").mkdir(parents=True)
    for name, suffix, classes in (("boxes", ".xml", ["cat", "dog"]), ("masks", "_mask.png", ["background", "cat"])):
        names = {"names": "test.txt", "images": "{}.png", "annotations": "{}" + suffix}
        layouts = {"test": {"num_images": None, "layouts": [{"image_sets": [names]}]}}
        content = {"name": name, "title": name, "root": None, "num_classes": 2, "classes": classes}
        text = yaml.safe_dump(content | {"substitute_for": None, "splits": layouts})
        (tmp_path / "configs" / "datasets" / f"{name}.yaml").write_text(text)
    (tmp_path / "data.yaml").write_text(f"boxes: {tmp_path}\nmasks: {tmp_path}\n")
    monkeypatch.setattr(datasets, "CONFIGS", tmp_path / "configs")
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data.yaml"))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    manifest.cache_clear()
    return tmp_path


def written(voc: Path, name: str, arrays: dict[str, np.ndarray]) -> Path:
    who = identity(name, "test")
    result = record(row="a", config="mini_knn", metrics={"top1_k10": 1.0}).model_copy(
        update={"datasets": {"test": DatasetRecord(**who.as_dict())}}
    )
    return write_record(voc / "records", result, {f"sample/{key}": values for key, values in arrays.items()})


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def near(picture: np.ndarray, line: tuple[int, int, int], *, left: int, right: int) -> bool:
    return bool((np.abs(picture[:, left:right] - line).max(-1) < 60).any())


def test_boxes_are_drawn_in_their_class_colours(voc: Path) -> None:
    found = {
        "detection_image": np.array([0, 2]),
        "detection_label": np.array([1, 1]),
        "detection_score": np.array([0.9, 0.8], np.float32),
        "detection_box": np.array([[11, 6, 31, 26], [1, 1, 60, 30]], np.float32),
    }
    draw(written(voc, "boxes", found), voc / "out.png")
    picture = pixels(voc / "out.png")[:110]  # the first two images
    truth, prediction = {"left": 0, "right": WIDTH}, {"left": WIDTH + 2, "right": 2 * WIDTH}
    assert near(picture, colour(0), **truth) and not near(picture, colour(1), **truth)
    assert near(picture, colour(1), **prediction) and not near(picture, colour(0), **prediction)
    second = {"left": 3 * WIDTH + 20, "right": picture.shape[1]}
    assert not near(picture, colour(1), **second)  # nothing was found there


def test_masks_are_filled_in_their_class_colours(voc: Path) -> None:
    """A cat in polygons and a crowd of them in run lengths; the detection is a dog on the right half."""
    cat = {"category_id": 3, "bbox": [10, 5, 20, 20], "area": 400, "segmentation": [[10, 5, 30, 5, 30, 25, 10, 25]]}
    crowd = {"bbox": [0, 0, 2, 30], "iscrowd": 1, "segmentation": {"size": [30, 60], "counts": [0, 60, 1740]}}
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 60, "height": 30} for n in range(3)],
        "annotations": [cat | {"id": 1, "image_id": 0}, cat | crowd | {"id": 2, "image_id": 0}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
    }
    (voc / "instances.json").write_text(json.dumps(content))
    layouts = {"test": {"num_images": 3, "layouts": [{"coco_json": "instances.json", "images": "."}]}}
    config = {"name": "coco", "title": "coco", "root": None, "num_classes": 2, "classes": ["cat", "dog"]}
    text = yaml.safe_dump(config | {"substitute_for": None, "splits": layouts})
    (voc / "configs" / "datasets" / "coco.yaml").write_text(text)
    (voc / "data.yaml").write_text(f"coco: {voc}\n")
    half = np.zeros((30, 60), np.uint8, order="F")
    half[:, 30:] = 1
    packed: Any = mask.encode(half)
    counts: bytes = packed["counts"]
    found = {
        "detection_image": np.array([0]),
        "detection_label": np.array([1]),
        "detection_score": np.array([0.9], np.float32),
        "detection_box": np.array([[30, 0, 60, 30]], np.float32),
        "detection_mask_counts": np.frombuffer(counts, np.uint8),
        "detection_mask_offsets": np.array([0, len(counts)]),
    }
    draw(written(voc, "coco", found), voc / "out.png")
    picture = pixels(voc / "out.png")
    filled = [(90 + np.array(colour(label))) / 2 for label in range(2)]
    assert np.abs(picture[60, 80] - filled[0]).max() < 6  # inside the cat
    assert np.abs(picture[110, 4] - filled[0]).max() < 6  # inside the crowd
    assert np.abs(picture[60, WIDTH + 2 + 180] - filled[1]).max() < 6
    assert np.abs(picture[60, WIDTH + 2 + 80] - 90).max() < 6  # nothing found there


def test_label_maps_are_laid_over_the_images(voc: Path) -> None:
    nothing = np.zeros((30, 60), np.uint8)
    draw(written(voc, "masks", {"map_1": nothing}), voc / "out.png")
    picture = pixels(voc / "out.png")
    centre = picture[60, 80]  # inside the cat
    assert np.abs(centre - (0.4 * 90 + 0.6 * np.array(colour(1)))).max() < 6
    assert np.abs(picture[60, WIDTH + 2 + 80] - 0.7 * 90).max() < 6  # predicted as background


def test_a_label_map_s_own_palette_and_cityscapes_are_used(voc: Path) -> None:
    """VOC's masks carry their colours; Cityscapes' are the table's, and its class 0 is no background."""
    labels = np.zeros((30, 60), np.uint8)
    labels[5:26, 10:31] = 1
    mask = Image.fromarray(labels)
    mask.putpalette([0, 0, 0, 128, 0, 0])
    for index in range(3):
        mask.save(voc / f"{index}_mask.png")
    manifest.cache_clear()
    draw(written(voc, "masks", {"map_1": labels}), voc / "out.png")
    centre = pixels(voc / "out.png")[60, [80, WIDTH + 2 + 80]]
    assert np.abs(centre - (0.4 * 90 + 0.6 * np.array([128, 0, 0]))).max() < 6

    mask = Image.fromarray(np.where(labels == 1, 8, 7).astype(np.uint8))  # sidewalk on road
    for index in range(3):
        mask.save(voc / f"{index}_gtFine_labelIds.png")
    described = voc / "configs" / "datasets" / "masks.yaml"
    content = yaml.safe_load(described.read_text()) | {"num_classes": 19, "classes": [f"c{n}" for n in range(19)]}
    described.write_text(yaml.safe_dump(content).replace("{}_mask.png", "{}_gtFine_labelIds.png"))
    manifest.cache_clear()
    draw(written(voc, "masks", {"map_1": labels}), voc / "out.png")
    for row, left, colours in ((60, 80, (244, 35, 232)), (20, 10, (128, 64, 128))):
        both = pixels(voc / "out.png")[row, [left, WIDTH + 2 + left]]
        assert np.abs(both - (0.4 * 90 + 0.6 * np.array(colours))).max() < 6


def test_a_sample_is_a_small_jpeg_of_some_images_one_below_the_other(voc: Path) -> None:
    maps = {f"map_{number}": np.zeros((30, 60), np.uint8) for number in range(3)}
    data = sample(written(voc, "masks", maps), count=2)
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (2 * WIDTH + 14, 2 * (WIDTH // 2 + 6)))
    assert len(data) < 20_000


def test_what_cannot_be_drawn_is_said(voc: Path) -> None:
    with pytest.raises(RecordError, match="has no boxes and no label maps to draw"):
        draw(written(voc, "masks", {"intersect": np.zeros((3, 2))}), voc / "out.png")
    path = written(voc, "masks", {"map_1": np.zeros((30, 60), np.uint8)})
    (voc / "test.txt").write_text("0\n1\n")
    manifest.cache_clear()
    with pytest.raises(DataError, match="dataset 'masks', test: expected .*, on which the record was measured, found"):
        draw(path, voc / "out.png")
    assert not (voc / "out.png").exists()
