"""Which few images may a low-shot SVM learn from? One fixed draw, the same for everybody (protocols §2.7, D17).

A set holds, class by class, k positives and a multiple of k negatives; every other cell is -1, not in the set. Every
(trial, k) is drawn anew, so a larger k does not contain a smaller one.

The published draws have no seed. Here a set is a function of names: for a trial (from 1), a k and a class, the images
are taken by rising order of the first 8 bytes of
    SHA-256("{seed}/{trial}/{k}/{class name}/{image id}" in UTF-8), an image id being its file name without suffix,
and the first k among those labelled 1 and the first m · k among those labelled 0 are in (difficult ones never are). No
generator is involved, so the sets are the same on any machine and with any version of any library.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoo.errors import ConfigError, DataError, several
from zoo.files import write_atomic

FILE_NAME = "train_targets_sample{sample}_k{k}.npy"  # as the published tools name them


def low_shot_sets(
    image_ids: Sequence[str],
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    ks: Sequence[int],
    trials: int,
    seed: int,
    negatives_per_positive: int,
) -> np.ndarray:
    """The sets of every trial and k: 1 positive, 0 negative, -1 not in the set.

    image_ids: of N images. labels: (N, C), 1 present, 0 absent, -1 difficult. Returns (trials, len(ks), N, C) int8.
    Raises one ConfigError naming every class that has too few images for the largest k.
    """
    _check_enough(labels, class_names, max(ks), negatives_per_positive)
    sets = np.full((trials, len(ks), *labels.shape), -1, dtype=np.int8)
    for trial in range(trials):
        for position, k in enumerate(ks):
            for column, name in enumerate(class_names):
                order = _order(f"{seed}/{trial + 1}/{k}/{name}/", image_ids)
                ranked = labels[order, column]
                chosen = sets[trial, position, :, column]
                chosen[order[ranked == 1][:k]] = 1
                chosen[order[ranked == 0][: negatives_per_positive * k]] = 0
    return sets


def read_sets(
    pattern: str, labels: np.ndarray, *, ks: Sequence[int], trials: int, negatives_per_positive: int
) -> np.ndarray:
    """Sets from files in the published format, checked against the dataset's labels; as `low_shot_sets` returns them.

    pattern: a path with {sample} (from 1) and {k}; each file holds an (N, C) integer array of 1, 0 and -1.
    Raises one DataError for every file that is missing or is no such set of this dataset.
    """
    sets = np.full((trials, len(ks), *labels.shape), -1, dtype=np.int8)
    problems: list[str] = []
    for trial in range(trials):
        for position, k in enumerate(ks):
            path = Path(pattern.format(sample=trial + 1, k=k))
            try:
                sets[trial, position] = _read(path, labels, k, negatives_per_positive)
            except (OSError, ValueError) as error:
                problems.append(f"{path}: {error.strerror if isinstance(error, OSError) else error}")
    if problems:
        more = [f"… and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise DataError(several("low-shot sets that cannot be used:", [*problems[:20], *more]))
    return sets


def write_sets(folder: Path, sets: np.ndarray, ks: Sequence[int]) -> list[Path]:
    """Write the sets in the published format, train_targets_sample{1…}_k{k}.npy, (N, C) int32; the files' paths."""
    paths: list[Path] = []
    for trial, by_k in enumerate(sets):
        for k, cells in zip(ks, by_k, strict=True):
            buffer = io.BytesIO()
            np.save(buffer, cells.astype(np.int32), allow_pickle=False)
            paths.append(folder / FILE_NAME.format(sample=trial + 1, k=k))
            write_atomic(paths[-1], buffer.getvalue())
    return paths


def sets_sha256(sets: np.ndarray, ks: Sequence[int]) -> str:
    """Who the sets are: SHA-256 over a line with their shape and the ks, then the cells as int8, trial by trial."""
    trials, _, rows, classes = sets.shape
    header = f"low-shot sets: {trials} trials, k {' '.join(map(str, ks))}, {rows} images, {classes} classes\n"
    return hashlib.sha256(header.encode() + np.ascontiguousarray(sets, dtype=np.int8).tobytes()).hexdigest()


def check_pinned(sets: np.ndarray, ks: Sequence[int], pinned: str | None) -> str:
    """The sets' hash. Raises ConfigError when it is not the pinned one (None: not pinned)."""
    found = sets_sha256(sets, ks)
    if pinned is not None and found != pinned:
        raise ConfigError(
            f"settings.low_shot.sha256: expected low-shot sets {pinned}, found {found}; the training images, their "
            "labels or the sets' files are not those that were pinned."
        )
    return found


def _order(prefix: str, image_ids: Sequence[str]) -> np.ndarray:
    """(N,) int64: row numbers by rising hash."""
    keys = b"".join(hashlib.sha256((prefix + name).encode()).digest()[:8] for name in image_ids)
    return np.argsort(np.frombuffer(keys, dtype=">u8"), kind="stable")


def _check_enough(labels: np.ndarray, class_names: Sequence[str], k: int, negatives_per_positive: int) -> None:
    num_positive, num_negative = (labels == 1).sum(0), (labels == 0).sum(0)
    problems = [
        f"{name}: {positive} positive and {negative} negative"
        for name, positive, negative in zip(class_names, num_positive, num_negative, strict=True)
        if positive < k or negative < negatives_per_positive * k
    ]
    if problems:
        title = (
            f"settings.low_shot.k: k={k} needs {k} positive and {negatives_per_positive * k} negative training images "
            "of every class; choose a smaller k. Too few:"
        )
        raise ConfigError(several(title, problems))


def _read(path: Path, labels: np.ndarray, k: int, negatives_per_positive: int) -> np.ndarray:
    """One file's cells. Raises ValueError saying what is wrong, OSError when it cannot be read."""
    try:
        cells = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"not a NumPy array file ({error})") from error
    if not isinstance(cells, np.ndarray) or cells.shape != labels.shape or not np.issubdtype(cells.dtype, np.integer):
        shown = f"{cells.dtype} {cells.shape}" if isinstance(cells, np.ndarray) else "an archive of several"
        raise ValueError(f"expected integers of shape {labels.shape}, images by classes, found {shown}")
    if not np.isin(cells, (-1, 0, 1)).all():
        raise ValueError(f"expected the values 1, 0 and -1, found {np.unique(cells)[:5].tolist()}")
    for what, value, wanted in (("positives", 1, k), ("negatives", 0, negatives_per_positive * k)):
        numbers = (cells == value).sum(0)
        if (numbers != wanted).any():
            column = int(np.argmax(numbers != wanted))
            raise ValueError(f"expected {wanted} {what} a class, found {numbers[column]} in class {column}")
    wrong = (cells != -1) & (cells != labels)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"row {row}, class {column}: {cells[row, column]} in the set but {labels[row, column]} in the dataset "
            f"({int(wrong.sum())} such cells); rows must be the training images by rising id"
        )
    return cells
