"""From counted pixels to mIoU: as scikit-learn's confusion matrix has it, with nothing undefined."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score

from evaluate import segmentation
from evaluate.segmentation import accuracy, check_masks, class_iou, held_out, mean_iou
from zoo.datasets import Manifest
from zoo.errors import DataError
from zoo.masks import read_mask


def areas(labels: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    known = labels != 255
    matrix = confusion_matrix(labels[known], predicted[known], labels=range(classes))
    found = {"intersect": matrix.diagonal(), "predicted": matrix.sum(0), "labelled": matrix.sum(1)}
    return found | {"union": found["predicted"] + found["labelled"] - found["intersect"]}


@pytest.fixture
def maps() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    labels, predicted = draw.integers(0, 4, (6, 20, 30)), draw.integers(0, 4, (6, 20, 30))
    predicted[labels == 1] = 1
    labels[draw.random(labels.shape) < 0.1] = 255
    return labels, predicted


def test_iou_is_scikit_learns(maps: tuple[np.ndarray, np.ndarray]) -> None:
    labels, predicted = maps
    known = labels != 255
    counted = areas(labels, predicted, 4)
    ours = class_iou(counted["intersect"], counted["union"])
    expected = [100 * jaccard_score(labels[known] == c, predicted[known] == c) for c in range(4)]
    assert ours == pytest.approx(expected)
    assert float(mean_iou(ours)) == pytest.approx(float(ours.mean()))
    assert accuracy(counted) == pytest.approx(100 * (labels == predicted)[known].mean())


def test_per_image_counts_add_up(maps: tuple[np.ndarray, np.ndarray]) -> None:
    """The counts are additive, which is what lets a bootstrap replicate be a weighted sum of them."""
    labels, predicted = maps
    each = [areas(left, right, 4) for left, right in zip(labels, predicted, strict=True)]
    for name, whole in areas(labels, predicted, 4).items():
        assert (np.sum([one[name] for one in each], axis=0) == whole).all()


def test_right_wrong_and_absent() -> None:
    labels = np.array([[0, 0, 1, 1]])
    perfect = areas(labels, labels, 3)
    assert mean_iou(class_iou(perfect["intersect"], perfect["union"])) == 100.0  # class 2 occurs nowhere
    wrong = areas(labels, 1 - labels, 3)
    assert mean_iou(class_iou(wrong["intersect"], wrong["union"])) == 0.0 and accuracy(wrong) == 0.0
    invented = areas(
        labels, np.array([[0, 0, 1, 2]]), 3
    )  # predicted, though absent: counts as 0, as mmsegmentation has it
    assert class_iou(invented["intersect"], invented["union"]).tolist() == [100.0, 50.0, 0.0]


def test_nothing_labelled_is_0_and_not_nan() -> None:
    nothing = {name: np.zeros((2, 3), np.int64) for name in ("intersect", "union", "predicted", "labelled")}
    assert mean_iou(class_iou(nothing["intersect"], nothing["union"])).tolist() == [0.0, 0.0]
    assert accuracy(nothing).tolist() == [0.0, 0.0]


def split(root: Path, name: str, count: int) -> Manifest:
    """`count` images of 6 x 4 pixels with masks of classes 0 and 1."""
    for index in range(count):
        Image.new("RGB", (6, 4)).save(root / f"{name}{index}.jpg")
        Image.fromarray(np.eye(4, 6, dtype=np.uint8)).save(root / f"{name}{index}.png")
    return Manifest(
        dataset="pets",
        split=name,
        root=root,
        paths=tuple(f"{name}{index}.jpg" for index in range(count)),
        labels=np.zeros(0, np.int64),
        annotations=tuple(f"{name}{index}.png" for index in range(count)),
        sha256="",
        folders=(),
    )


def test_wrong_masks_of_both_splits_are_named_together(tmp_path: Path) -> None:
    splits = {"train": split(tmp_path, "train", 3), "test": split(tmp_path, "test", 2)}
    check_masks(splits, 2)
    Image.new("L", (6, 5)).save(tmp_path / "train0.png")
    Image.new("RGB", (6, 4)).save(tmp_path / "train2.png")
    Image.new("L", (6, 4), 9).save(tmp_path / "test0.png")
    (tmp_path / "test1.png").write_bytes(b"no picture")
    with pytest.raises(DataError) as caught:
        check_masks(splits, 2)
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "4 of 5 label maps cannot be used:\n"
        "  - train0.png: a mask of 6 x 5 pixels, but its picture has 6 x 4; restore the one that is wrong.\n"
        "  - train2.png: expected a mask of one byte a pixel (grey or palette), found colours; restore the file.\n"
        "  - test0.png: expected labels 0…1 and 255, found 9; restore the file.\n"
        "  - test1.png: expected an image, found something PIL cannot identify; replace the file."
    )


def test_all_headers_are_read_but_pixels_of_a_sample_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def noted(path: Path, num_classes: int) -> np.ndarray:
        read.append(path.name)
        return read_mask(path, num_classes)

    monkeypatch.setattr(segmentation, "READ", 2)
    monkeypatch.setattr(segmentation, "read_mask", noted)
    splits = {"train": split(tmp_path, "train", 5)}
    check_masks(splits, 2)
    first = list(read)
    check_masks(splits, 2)
    assert len(first) == 3 and read == first * 2  # the same ones every time; and the first, for its labels
    for index in range(5):
        Image.new("L", (7, 4)).save(tmp_path / f"train{index}.png")
    with pytest.raises(DataError, match="5 of 5 label maps cannot be used"):
        check_masks(splits, 2)


def test_pictures_and_masks_that_are_cut_off_are_named_though_no_pixel_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentation, "READ", 0)
    splits = {"train": split(tmp_path, "train", 3), "test": split(tmp_path, "test", 2)}
    for name in ("train1.jpg", "test0.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-2])
    with pytest.raises(DataError) as caught:
        check_masks(splits, 2)
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "2 of 5 label maps cannot be used:\n"
        "  - train1.jpg: the image is cut off (the file has no end of image); restore the file.\n"
        "  - test0.png: the image is cut off (the file has no end of image); restore the file."
    )


def blank(manifest: Manifest, *indices: int) -> None:
    """Make these label maps ones in which all pixels are ignored."""
    for index in indices:
        Image.new("L", (6, 4), 255).save(manifest.annotation(index))


def test_a_split_in_which_nothing_is_labelled_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation, "READ", 2)
    splits = {"train": split(tmp_path, "train", 5), "test": split(tmp_path, "test", 6)}
    blank(splits["train"], *range(4))
    blank(splits["test"], *range(5))
    check_masks(splits, 2)  # the last ones are labelled, wherever the sample lies
    blank(splits["test"], 5)
    said = (
        "expected labelled pixels in its {} label maps, found nothing but ignored ones (255); restore the maps, or "
        "name a labelled split in {}_split."
    )
    with pytest.raises(DataError) as caught:
        check_masks(splits, 2)
    assert str(caught.value) == "pets test: " + said.format(6, "test")
    blank(splits["train"], 4)
    with pytest.raises(DataError) as caught:
        check_masks(splits, 2)
    assert str(caught.value).splitlines() == [
        "pets train: " + said.format(5, "train"),
        "pets test: " + said.format(6, "test"),
    ]


def test_a_release_s_dummy_maps_are_not_labelled(tmp_path: Path) -> None:
    """Cityscapes' test set: labelIds that all stand for nothing."""
    listed = split(tmp_path, "test", 2)
    listed = replace(listed, annotations=tuple(f"{index}_gtFine_labelIds.png" for index in range(2)))
    for index in range(2):
        Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) % 4).save(listed.annotation(index))
    with pytest.raises(DataError, match="^pets test: expected labelled pixels in its 2 label maps, found nothing but"):
        check_masks({"test": listed}, 19)


def test_parts_of_a_sweep_in_which_nothing_is_labelled_are_refused(tmp_path: Path) -> None:
    train = split(tmp_path, "train", 4)
    blank(train, 1, 2)
    with pytest.raises(DataError, match="the 2 held-out images, found none; raise settings.lr_sweep.held_out.$"):
        held_out(train, 2, np.array([1, 2]))
    with pytest.raises(DataError, match="the 2 remaining images, found none; lower settings.lr_sweep.held_out.$"):
        held_out(train, 2, np.array([0, 3]))
    parts = held_out(train, 2, np.array([0, 2]))
    assert [Path(image["img_path"]).name for image in parts.fit] == ["train1.jpg", "train3.jpg"]
    assert [Path(image["img_path"]).name for image in parts.test] == ["train0.jpg", "train2.jpg"]


def test_nothing_labelled_when_it_was_tested_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The maps were replaced while it was trained, say: no record of mIoU 0."""
    splits = {"train": split(tmp_path, "train", 3), "test": split(tmp_path, "test", 2)}
    found = {name: np.ones((2, 2), np.int64) for name in segmentation.COUNTS}
    found["labelled"] = found["intersect"] = np.zeros((2, 2), np.int64)
    monkeypatch.setattr(segmentation, "dataset_config", lambda name: SimpleNamespace(classes=("left", "right")))
    monkeypatch.setattr(segmentation, "measure", lambda *args, **options: ({}, found))
    job: Any = SimpleNamespace(settings=None, manifests=splits)
    with pytest.raises(DataError) as caught:
        segmentation.run(job)
    assert str(caught.value) == (
        "pets test: expected labelled pixels to score, found none in the 2 label maps when they were tested; restore "
        "the maps."
    )
