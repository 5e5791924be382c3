"""kNN against brute force, between back ends and processes, and at its edges."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from evaluate import knn
from evaluate.knn import BackEnd, classify, search
from zoo.distributed import World, share
from zoo.errors import ConfigError, DataError, NonFiniteError

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


def noise(rows: int, width: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_back_ends_find_the_same_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, queries = noise(3000, 16), noise(70, 16, seed=2)
    whole = search(queries, bank, k=20, back_end="faiss", block_mb=512)
    monkeypatch.setattr(knn, "QUERY_BLOCK", 32)
    for back_end in BACK_ENDS:
        for size in (7, 500):  # smaller than k, and not
            monkeypatch.setattr(knn, "BANK_BLOCK", size)
            similarities, rows = search(queries, bank, k=20, back_end=back_end, block_mb=1)
            np.testing.assert_array_equal(rows, whole[1])
            np.testing.assert_allclose(similarities, whole[0], atol=1e-6)


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_no_bit_depends_on_processes_threads_or_memory(back_end: BackEnd) -> None:
    """With the real blocks, the last ones of odd shapes."""
    bank, queries = noise(knn.BANK_BLOCK + 33, 32), noise(2 * knn.QUERY_BLOCK + 19, 32, seed=2)

    def searched(rows: np.ndarray, block_mb: int = 64) -> tuple[np.ndarray, np.ndarray]:
        return search(queries[rows], bank, k=20, back_end=back_end, block_mb=block_mb)

    everything = np.arange(len(queries))
    whole = searched(everything)
    for count, block_mb in ((1, 64), (3, 1), (2, 0)):
        with threads(count):
            for expected, found in zip(whole, searched(everything, block_mb), strict=True):
                np.testing.assert_array_equal(found, expected)
    blocks = np.split(everything, range(knn.QUERY_BLOCK, len(queries), knn.QUERY_BLOCK))
    for size in (2, 4):
        for rank in range(size):
            me = World(rank=rank, size=size, local_rank=rank, device=torch.device("cpu"))
            mine = np.concatenate([*share(blocks, me), everything[:0]])  # the fourth of four has nothing
            with threads(1):
                for expected, found in zip(whole, searched(mine), strict=True):
                    np.testing.assert_array_equal(found, expected[mine])


def test_long_rows_in_small_blocks_have_the_same_bits_for_any_number_of_threads() -> None:
    """Where a library's threads would share out the sums themselves."""
    bank, queries = noise(33, 2048), noise(300, 2048, seed=2)
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(search(queries, bank, k=33, back_end="torch", block_mb=1)[0])
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def test_the_number_of_threads_is_left_as_it_was() -> None:
    bank = noise(30, 4)
    with threads(3):
        search(bank, bank, k=1, back_end="torch", block_mb=1)
        assert torch.get_num_threads() == 3
        bank[3] = np.nan
        with pytest.raises(NonFiniteError):
            search(bank, bank, k=1, back_end="torch", block_mb=1)
        assert torch.get_num_threads() == 3


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("width", [4, 1])  # 16 different directions; 2
def test_of_equal_similarities_the_lower_rows_are_taken(
    monkeypatch: pytest.MonkeyPatch, back_end: BackEnd, width: int
) -> None:
    monkeypatch.setattr(knn, "BANK_BLOCK", 64)
    bank = np.sign(noise(300, width))  # unit rows of halves or ones: products are exact
    queries = np.sign(noise(40, width, seed=2))
    exact = (queries @ bank.T) / width
    for k in (1, 10, 100, 300):
        similarities, rows = search(queries, bank, k=k, back_end=back_end, block_mb=1)
        np.testing.assert_array_equal(rows, np.argsort(-exact, axis=1, kind="stable")[:, :k])
        np.testing.assert_array_equal(similarities, -np.sort(-exact, axis=1)[:, :k])


def test_a_bank_sorted_so_that_the_nearest_come_last_is_searched_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "BANK_BLOCK", 50)
    angles = np.linspace(1.5, 0, 400)
    bank = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    _, rows = search(bank[-1:], bank, k=120, back_end="torch", block_mb=1)
    np.testing.assert_array_equal(rows[0], np.arange(399, 279, -1))


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_fp16_is_an_exact_search_of_the_rounded_values_in_fp32(tmp_path: Path, back_end: BackEnd) -> None:
    bank, queries = noise(700, 24).astype(np.float16), noise(30, 24, seed=2).astype(np.float16)
    np.save(tmp_path / "bank.npy", bank)
    mapped = np.load(tmp_path / "bank.npy", mmap_mode="r")
    halves = search(queries, mapped, k=15, back_end=back_end, block_mb=1)
    floats = search(queries.astype(np.float32), bank.astype(np.float32), k=15, back_end=back_end, block_mb=1)
    for half, single in zip(halves, floats, strict=True):
        np.testing.assert_array_equal(half, single)


class Watched:
    """A bank that notes which rows are asked for."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, self.asked = rows, []
        self.shape, self.ndim, self.dtype = rows.shape, rows.ndim, rows.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.asked.append((rows.start, rows.stop))
        return self.rows[rows]


@pytest.mark.parametrize(("block_mb", "passes"), [(0, 3), (1, 2), (2, 1)])
def test_memory_allows_so_many_queries_a_pass_and_a_pass_reads_the_bank_once(block_mb: int, passes: int) -> None:
    width, k = 200, 10
    bank = Watched(noise(knn.BANK_BLOCK + 700, width))
    queries = noise(2 * knn.QUERY_BLOCK + 1, width, seed=2)
    search(queries, bank, k=k, back_end="torch", block_mb=block_mb)  # pyright: ignore[reportArgumentType]
    fit = block_mb * 2**20 // ((4 * width + 12 * k) * knn.QUERY_BLOCK)
    assert passes == math.ceil(3 / max(1, fit))
    whole = sorted(set(bank.asked))
    assert [start for start, _ in whole] == [0, *(stop for _, stop in whole[:-1])] and whole[-1][1] == len(bank)
    assert sorted(bank.asked) == sorted(whole * passes)
    assert max(stop - start for start, stop in whole) <= knn.QUERY_BLOCK


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


def test_equal_votes_go_to_the_lower_class() -> None:
    bank, labels = np.ones((6, 4), np.float32), np.array([2, 1, 0, 0, 1, 2])
    ranked = classify(bank[:1], bank, labels, ks=(6,), num_classes=4, temperature=1.0, back_end="torch", block_mb=1)
    assert ranked[6][0].tolist() == [0, 1, 2, 3]  # the last without a vote


def test_a_k_larger_than_the_bank_is_refused_with_both_numbers() -> None:
    bank, labels = clusters(np.random.default_rng(4), 12)
    with pytest.raises(ConfigError, match=r"at most the bank's size, 12, found 13; choose a smaller k"):
        classify(bank, bank, labels, ks=(1, 13), num_classes=4, temperature=0.07, back_end="torch", block_mb=1)


@pytest.mark.parametrize(
    ("what", "row", "value"), [("bank", 7, np.nan), ("query", 3, np.inf), ("bank", 600, -np.inf), ("query", 600, 1e30)]
)
def test_a_feature_that_is_not_finite_is_named(what: str, row: int, value: float) -> None:
    bank, queries = noise(700, 4), noise(700, 4)
    (bank if what == "bank" else queries)[row, 0] = value
    with pytest.raises(NonFiniteError, match=rf"{what} feature {row} is NaN or infinite, or too large .* \(1 of "):
        search(queries, bank, k=1, back_end="torch", block_mb=0)


def test_features_that_do_not_fit_are_refused_all_at_once() -> None:
    good = np.ones((3, 4), np.float32)
    for queries, bank, problems in (
        (good.astype(np.float64), good[0], [r"query .* \(3, 4\) of float64", r"bank .* \(4,\) of float32"]),
        (good.astype(np.int64), good, [r"query .* of int64"]),
        (good, good[:, :2], ["a query has 4 features, a bank row 2"]),
    ):
        with pytest.raises(DataError, match="extract both again") as refused:
            search(queries, bank, k=1, back_end="torch", block_mb=1)
        lines = str(refused.value).splitlines()[1:]
        assert len(lines) == len(problems)
        assert all(re.search(problem, line) for problem, line in zip(problems, lines, strict=True))


def test_on_a_gpu_faiss_must_be_the_one_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, bank = torch.device("meta", 1), noise(50, 8)  # stands for a GPU: no tensor of ours may get there
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    with pytest.raises(ConfigError, match=r"installed faiss is the one for CPUs; .* choose back_end: torch"):
        search(bank, bank, k=1, back_end="faiss", block_mb=1, device=gpu)
    seen = []

    def knn_gpu(
        resources: str, queries: np.ndarray, block: np.ndarray, k: int, *, metric: int, device: int
    ) -> tuple[np.ndarray, np.ndarray]:
        seen.append((resources, device))
        return faiss.knn(queries, block, k, metric=metric)

    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "its memory", raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu)
    _, rows = search(bank, bank, k=5, back_end="faiss", block_mb=1, device=gpu)
    np.testing.assert_array_equal(rows, search(bank, bank, k=5, back_end="faiss", block_mb=1)[1])
    assert seen == [("its memory", 1)]


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


def test_a_very_low_temperature_leaves_the_nearest_neighbours_class() -> None:
    bank, labels = clusters(np.random.default_rng(6), 40)
    ranked = classify(bank, bank, labels, ks=(40,), num_classes=4, temperature=1e-4, back_end="torch", block_mb=1)
    np.testing.assert_array_equal(ranked[40][:, 0], labels)
