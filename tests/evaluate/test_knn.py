"""kNN against brute force, between back ends, and at its edges."""

import numpy as np
import pytest

from evaluate import knn
from evaluate.knn import BackEnd, classify, search
from zoo.errors import ConfigError, NonFiniteError

BACK_ENDS: tuple[BackEnd, ...] = ("faiss", "torch")


def clusters(rng: np.random.Generator, count: int, *, spread: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, 4, count)
    return (np.eye(16)[labels] + spread * rng.normal(size=(count, 16))).astype(np.float32), labels


def brute_force(
    queries: np.ndarray, bank: np.ndarray, labels: np.ndarray, k: int, num_classes: int, temperature: float
) -> np.ndarray:
    """The protocol sheet's rule, one query at a time, in fp64."""
    unit = bank.astype(np.float64) / np.linalg.norm(bank.astype(np.float64), axis=1, keepdims=True)
    ranked = []
    for query in queries.astype(np.float64):
        similarities = unit @ (query / np.linalg.norm(query))
        nearest = np.argsort(-similarities, kind="stable")[:k]
        votes = np.zeros(num_classes)
        for neighbour in nearest:
            votes[labels[neighbour]] += np.exp(similarities[neighbour] / temperature)
        ranked.append(np.argsort(-votes, kind="stable")[: min(5, k, num_classes)])
    return np.array(ranked)


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_it_equals_brute_force_for_every_k_in_one_pass(back_end: BackEnd) -> None:
    rng = np.random.default_rng(0)
    bank, labels = rng.normal(size=(500, 32)).astype(np.float32), rng.integers(0, 10, 500)
    queries = rng.normal(size=(60, 32)).astype(np.float32)
    ranked = classify(
        queries, bank, labels, ks=(1, 10, 200), num_classes=10, temperature=0.07, back_end=back_end, block_mb=1
    )
    for k in (1, 10, 200):
        np.testing.assert_array_equal(ranked[k], brute_force(queries, bank, labels, k, 10, 0.07))


def test_back_ends_and_block_sizes_find_the_same_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    bank, queries = rng.normal(size=(3000, 16)).astype(np.float32), rng.normal(size=(70, 16)).astype(np.float32)
    whole = search(queries, bank, k=20, back_end="faiss", block_mb=512)
    monkeypatch.setattr(knn, "QUERY_BLOCK", 32)
    for back_end in BACK_ENDS:
        for block_mb in (0, 1):  # 0: the smallest blocks there are, k rows
            similarities, rows = search(queries, bank, k=20, back_end=back_end, block_mb=block_mb)
            np.testing.assert_array_equal(rows, whole[1])
            np.testing.assert_allclose(similarities, whole[0], atol=1e-6)


def test_separable_clusters_give_100_and_shuffled_labels_chance() -> None:
    rng = np.random.default_rng(2)
    bank, labels = clusters(rng, 400)
    queries, truth = clusters(rng, 400)

    def accuracy(bank_labels: np.ndarray) -> float:
        ranked = classify(
            queries, bank, bank_labels, ks=(10,), num_classes=4, temperature=0.07, back_end="faiss", block_mb=1
        )
        return float((ranked[10][:, 0] == truth).mean())

    assert accuracy(labels) == 1.0
    assert abs(accuracy(rng.permutation(labels)) - 0.25) < 0.1


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_one_query_and_a_k_as_large_as_the_bank_are_fine(back_end: BackEnd) -> None:
    bank, labels = clusters(np.random.default_rng(3), 12)
    ranked = classify(
        bank[:1], bank, labels, ks=(1, 12), num_classes=4, temperature=0.07, back_end=back_end, block_mb=1
    )
    assert ranked[1].shape == (1, 1) and ranked[12].shape == (1, 4)
    assert ranked[12][0, 0] == labels[0]


def test_equal_similarities_go_to_the_lower_row_and_equal_votes_to_the_lower_class() -> None:
    bank = np.ones((6, 4), np.float32)
    _, rows = search(bank[:1], bank, k=3, back_end="torch", block_mb=0)
    assert sorted(rows[0]) == [0, 1, 2]
    ranked = classify(
        bank[:1],
        bank,
        np.array([2, 1, 0, 0, 1, 2]),
        ks=(6,),
        num_classes=3,
        temperature=1.0,
        back_end="torch",
        block_mb=1,
    )
    assert ranked[6][0].tolist() == [0, 1, 2]


def test_a_k_larger_than_the_bank_is_refused_with_both_numbers() -> None:
    bank, labels = clusters(np.random.default_rng(4), 12)
    with pytest.raises(ConfigError, match=r"at most the bank's size, 12, found 13; choose a smaller k"):
        classify(bank, bank, labels, ks=(1, 13), num_classes=4, temperature=0.07, back_end="torch", block_mb=1)


@pytest.mark.parametrize(("what", "row"), [("bank", 7), ("query", 3)])
def test_a_feature_that_is_not_finite_is_named(what: str, row: int) -> None:
    bank, labels = clusters(np.random.default_rng(5), 12)
    queries = bank.copy()
    (bank if what == "bank" else queries)[row, 0] = np.nan
    with pytest.raises(NonFiniteError, match=rf"{what} feature {row} is NaN or infinite"):
        classify(queries, bank, labels, ks=(1,), num_classes=4, temperature=0.07, back_end="torch", block_mb=1)


def test_temperature_changes_the_vote() -> None:
    """One near neighbour of class 0 against three farther ones of class 1."""
    angles = np.array([0.0, 0.6, 0.6, 0.6])
    bank = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    labels = np.array([0, 1, 1, 1])
    near = np.array([[1.0, 0.0]], np.float32)
    winners = [
        classify(near, bank, labels, ks=(4,), num_classes=2, temperature=t, back_end="torch", block_mb=1)[4][0, 0]
        for t in (0.07, 1.0)
    ]
    assert winners == [0, 1]
