"""Truth left, prediction right: boxes and labels where the record has them, and a message where there are none."""

import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

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


def test_label_maps_are_laid_over_the_images(voc: Path) -> None:
    nothing = np.zeros((30, 60), np.uint8)
    draw(written(voc, "masks", {"map_1": nothing}), voc / "out.png")
    picture = pixels(voc / "out.png")
    centre = picture[60, 80]  # inside the cat
    assert np.abs(centre - (0.4 * 90 + 0.6 * np.array(colour(1)))).max() < 6
    assert np.abs(picture[60, WIDTH + 2 + 80] - 0.7 * 90).max() < 6  # predicted as background


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
