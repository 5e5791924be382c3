"""The fixed low-shot draw: what is in a set, that it never changes, and sets from files."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from evaluate.low_shot import check_pinned, low_shot_sets, read_sets, sets_sha256, write_sets
from zoo.errors import ConfigError, DataError

KS = (1, 2, 4)
NAMES = ("cat", "dog", "tree")
IDS = [f"{number:06d}" for number in range(1, 121)]


def drawn_labels() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.choice([1, 0, -1], p=[0.15, 0.8, 0.05], size=(len(IDS), len(NAMES))).astype(np.int8)


def sets(seed: int = 0, ids: list[str] = IDS, labels: np.ndarray | None = None, ks: tuple[int, ...] = KS) -> np.ndarray:
    return low_shot_sets(
        ids,
        drawn_labels() if labels is None else labels,
        NAMES,
        ks=ks,
        trials=5,
        seed=seed,
        negatives_per_positive=19,
    )


def test_every_class_has_k_positives_and_19k_negatives_from_its_own_labels() -> None:
    labels, found = drawn_labels(), sets()
    assert found.shape == (5, 3, 120, 3) and found.dtype == np.int8
    for position, k in enumerate(KS):
        assert ((found[:, position] == 1).sum(1) == k).all()
        assert ((found[:, position] == 0).sum(1) == 19 * k).all()
    cells = np.broadcast_to(labels, found.shape)
    np.testing.assert_array_equal(found[found != -1], cells[found != -1])  # so no difficult image is in


def test_trials_classes_seeds_and_ks_are_drawn_anew() -> None:
    found = sets()
    chosen = [set(np.flatnonzero(found[trial, 2, :, 0] == 1)) for trial in range(5)]
    assert len({frozenset(rows) for rows in chosen}) == 5
    assert (sets(seed=1) != found).any()
    nested = [
        set(np.flatnonzero(found[trial, 1, :, label] == 1)) <= set(np.flatnonzero(found[trial, 2, :, label] == 1))
        for trial in range(5)
        for label in range(3)
    ]
    assert not all(nested)


def test_the_draw_is_fixed_for_ever() -> None:
    """Another hash here means other images behind every low-shot number that has been measured."""
    labels = np.where((np.arange(360).reshape(120, 3) * 7 % 11) < 3, 1, 0)
    found = sets(labels=labels)
    assert sets_sha256(found, KS) == "a1e12eb79471d06ed122fa33b7af44af0ad082ae4e8227c69ced6400cd693105"
    present = np.flatnonzero(labels[:, 1] == 1)
    first = min(present, key=lambda row: hashlib.sha256(f"0/3/1/dog/{IDS[row]}".encode()).digest())
    assert np.flatnonzero(found[2, 0, :, 1] == 1).tolist() == [first]


def test_a_draw_depends_on_names_only_not_on_row_order_or_on_other_ks() -> None:
    labels, found = drawn_labels(), sets()
    order = np.random.default_rng(1).permutation(len(IDS))
    shuffled = sets(ids=[IDS[row] for row in order], labels=labels[order])
    np.testing.assert_array_equal(shuffled, found[:, :, order])
    np.testing.assert_array_equal(sets(ks=(2,))[:, 0], found[:, 1])


def test_classes_with_too_few_images_are_all_named() -> None:
    labels = drawn_labels()
    labels[:, 0] = np.where(np.arange(120) < 3, 1, 0)
    labels[:, 2] = np.where(np.arange(120) < 60, 1, 0)
    with pytest.raises(ConfigError) as caught:
        sets(labels=labels)
    text = str(caught.value)
    assert "k=4 needs 4 positive and 76 negative training images of every class; choose a smaller k" in text
    assert "cat: 3 positive and 117 negative" in text and "tree: 60 positive and 60 negative" in text
    assert "dog" not in text


def test_the_hash_covers_cells_and_ks_and_a_pinned_one_must_match() -> None:
    found = sets()
    own = sets_sha256(found, KS)
    changed = found.copy()
    changed[0, 0, 0, 0] = 1 - changed[0, 0, 0, 0]
    assert len({own, sets_sha256(changed, KS), sets_sha256(found, (1, 2, 5))}) == 3
    assert check_pinned(found, KS, None) == check_pinned(found, KS, own) == own
    with pytest.raises(ConfigError, match=f"sha256: expected low-shot sets {'0' * 64}, found {own}"):
        check_pinned(found, KS, "0" * 64)


def written(folder: Path) -> str:
    write_sets(folder, sets(), KS)
    return f"{folder}/train_targets_sample{{sample}}_k{{k}}.npy"


def read(pattern: str) -> np.ndarray:
    return read_sets(pattern, drawn_labels(), ks=KS, trials=5, negatives_per_positive=19)


def test_written_files_have_the_published_names_and_read_back(tmp_path: Path) -> None:
    pattern = written(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"train_targets_sample{sample}_k{k}.npy" for sample in range(1, 6) for k in KS}
    one = np.load(tmp_path / "train_targets_sample2_k4.npy")
    assert one.dtype == np.int32 and one.shape == (120, 3)
    np.testing.assert_array_equal(read(pattern), sets())


def test_every_unusable_file_is_named_with_its_reason(tmp_path: Path) -> None:
    pattern = written(tmp_path)

    def file(sample: int, k: int) -> Path:
        return Path(pattern.format(sample=sample, k=k))

    def change(sample: int, k: int, cells: np.ndarray) -> None:
        np.save(file(sample, k), cells)

    file(1, 1).unlink()
    file(1, 2).write_bytes(b"no array")
    change(1, 4, sets()[0, 2][:-1])
    change(2, 1, np.full((120, 3), 3))
    change(2, 2, sets()[1, 2])  # the sets of k=4
    change(2, 4, sets()[1, 2].astype(float))
    change(3, 1, np.roll(sets()[2, 0], 1, axis=0))
    with file(3, 2).open("wb") as archive:
        np.savez(archive, first=sets()[0, 0])
    file(3, 4).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        read(pattern)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 9
    for line, expected in zip(
        lines[1:],
        (
            "sample1_k1.npy: No such file or directory",
            "sample1_k2.npy: not a NumPy array file",
            "sample1_k4.npy: expected integers of shape (120, 3), images by classes, found int8 (119, 3)",
            "sample2_k1.npy: expected the values 1, 0 and -1, found [3]",
            "sample2_k2.npy: expected 2 positives a class, found 4 in class 0",
            "sample2_k4.npy: expected integers of shape (120, 3), images by classes, found float64 (120, 3)",
            "sample3_k1.npy: row ",
            "sample3_k2.npy: expected integers of shape (120, 3), images by classes, found an archive of several",
            "sample3_k4.npy: not a NumPy array file",
        ),
        strict=True,
    ):
        assert expected in line
    assert "rows must be the training images by rising id" in lines[7]
