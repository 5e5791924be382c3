"""From counted pixels to mIoU: as scikit-learn's confusion matrix has it, with nothing undefined."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, jaccard_score

from evaluate.segmentation import accuracy, class_iou, mean_iou


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
