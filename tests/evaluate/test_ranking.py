"""Average precision against plain loops and scikit-learn, and its bootstrap against data with the images repeated."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from evaluate import ranking
from evaluate.bootstrap import resample_counts
from evaluate.ranking import (
    average_precision_every_point,
    average_precision_step,
    bootstrap_average_precision,
)
from zoo.errors import NonFiniteError


def plain_every_point(scores: np.ndarray, positive: np.ndarray) -> float:
    """The protocol sheet's rule for one column, step by step."""
    order = np.argsort(scores, kind="stable")[::-1]
    hits, recall, precision = 0, [0.0], [0.0]
    for seen, row in enumerate(order, start=1):
        hits += bool(positive[row])
        recall.append(hits / positive.sum())
        precision.append(hits / seen)
    area = 0.0
    for point in range(1, len(recall)):
        area += (recall[point] - recall[point - 1]) * max(precision[point:])
    return area


def drawn(rows: int = 60, columns: int = 7, *, ties: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(rows, columns)).astype(np.float32)
    if ties:
        scores = scores.round(0)
    positive = rng.random((rows, columns)) < 0.2
    positive[0] = True
    keep = rng.random((rows, columns)) < 0.8
    keep[0] = True
    return scores, positive, keep


@pytest.mark.parametrize("ties", [False, True])
def test_both_definitions_equal_a_plain_loop_and_scikit_learn(ties: bool) -> None:
    scores, positive, keep = drawn(ties=ties)
    every, step = (
        average_precision_every_point(scores, positive, keep),
        average_precision_step(scores, positive, keep),
    )
    for column in range(scores.shape[1]):
        rows = keep[:, column]
        kept, truth = scores[rows, column], positive[rows, column]
        assert every[column] == pytest.approx(plain_every_point(kept, truth), abs=1e-12)
        assert step[column] == pytest.approx(average_precision_score(truth, kept), abs=1e-12)


def test_among_equal_scores_the_later_row_comes_first() -> None:
    scores = np.zeros(4)
    assert average_precision_every_point(scores, np.array([False, False, False, True])) == 1.0
    assert average_precision_every_point(scores, np.array([True, False, False, False])) == 0.25
    assert average_precision_step(scores, np.array([True, False, False, False])) == 0.25  # one step, no order


def test_by_hand() -> None:
    scores, positive = np.array([4.0, 3.0, 2.0, 1.0]), np.array([False, True, True, False])
    assert average_precision_every_point(scores, positive) == pytest.approx(2 / 3)  # the envelope lifts 1/2 to 2/3
    assert average_precision_step(scores, positive) == pytest.approx((1 / 2 + 2 / 3) / 2)
    ignored = average_precision_every_point(scores, positive, np.array([False, True, True, True]))
    assert ignored == 1.0


def test_a_column_does_not_depend_on_its_neighbours_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, positive, keep = drawn(rows=300, columns=9)
    positive[:, 0] = True  # its many positives widen the padding of the others
    together = average_precision_every_point(scores, positive, keep), average_precision_step(scores, positive, keep)
    counts = resample_counts(300, manifest_sha256="ab" * 32)[:50]
    replicates = bootstrap_average_precision(scores, positive, keep, counts=counts)
    monkeypatch.setattr(ranking, "BLOCK_CELLS", 1)
    np.testing.assert_array_equal(average_precision_every_point(scores, positive, keep), together[0])
    np.testing.assert_array_equal(average_precision_step(scores, positive, keep), together[1])
    np.testing.assert_array_equal(bootstrap_average_precision(scores, positive, keep, counts=counts), replicates)


def test_one_column_of_flags_serves_all_and_one_column_of_scores_gives_a_number() -> None:
    scores, positive, keep = drawn()
    shared = average_precision_every_point(scores, positive[:, 0], keep[:, 0])
    assert shared.shape == (7,)
    assert average_precision_every_point(scores[:, 2], positive[:, 0], keep[:, 0]) == shared[2]


def test_without_a_positive_it_is_nan() -> None:
    scores, positive, keep = drawn()
    positive[:, 1] = False
    keep[:, 4] &= ~positive[:, 4]
    found = average_precision_every_point(scores, positive, keep)
    assert np.isnan(found).tolist() == [False, True, False, False, True, False, False]
    assert np.isnan(average_precision_step(scores[:, 1], positive[:, 1], keep[:, 1]))


def test_a_replicate_is_the_ap_of_the_data_with_its_rows_repeated() -> None:
    scores, positive, keep = drawn()
    counts = resample_counts(len(scores), manifest_sha256="cd" * 32)[:40]
    found = bootstrap_average_precision(scores, positive, keep, counts=counts)
    for replicate, times in zip(found, counts, strict=True):
        rows = np.repeat(np.arange(len(scores)), times)
        expected = average_precision_every_point(scores[rows], positive[rows], keep[rows])
        np.testing.assert_allclose(replicate, expected, atol=1e-12)
    ones = np.ones((1, len(scores)), dtype=np.uint16)
    itself = average_precision_every_point(scores, positive, keep)
    np.testing.assert_allclose(bootstrap_average_precision(scores, positive, keep, counts=ones)[0], itself, atol=1e-12)


def test_a_replicate_without_positives_is_nan() -> None:
    counts = np.array([[0, 2, 1], [1, 1, 1]], dtype=np.uint16)
    found = bootstrap_average_precision(np.array([3.0, 2.0, 1.0]), np.array([True, False, False]), counts=counts)
    assert np.isnan(found[0]) and found[1] == 1.0


def test_sums_beyond_16_bits_are_exact() -> None:
    scores, positive, _ = drawn(rows=40, columns=1)
    few = np.random.default_rng(1).integers(0, 4, (3, 40))
    many = bootstrap_average_precision(scores, positive, counts=few * 5000)
    np.testing.assert_allclose(many, bootstrap_average_precision(scores, positive, counts=few), atol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_named(value: float) -> None:
    scores, positive, _ = drawn()
    scores[7, 3] = value
    with pytest.raises(NonFiniteError, match=r"score of row 7, column 3 is NaN or infinite \(1 of 420\)"):
        average_precision_step(scores, positive)
