"""What is the small world made of, and which draw of chance belongs to which image?

Two things inside scikit-learn, so nothing is downloaded: `load_digits` (1,797 handwritten digits scanned at 8×8, from
UCI's Optical Recognition of Handwritten Digits) and `load_sample_images` (two photographs, CC BY 2.0, credited in the
world's README.txt). The scans are dealt once, by world seed, to "train" and "val": no dataset's val split ever shows a
scan that any train split shows, though each image repeats a scan at another place, size and grey.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASS_NAMES: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VAL_SHARE: Final = 0.2


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """All that scenes are drawn from; small enough (2 MB) to be sent to worker processes."""

    scans: NDArray[np.uint8]  # (1797, 8, 8), 0 paper .. 255 ink
    labels: NDArray[np.int64]  # (1797,), 0 .. 9
    photographs: tuple[Image.Image, ...]  # each 640×427, RGB


def generator(seed: int, dataset: str, split: str, index: int) -> np.random.Generator:
    """The random numbers of one image: a function of these four alone, so workers and order cannot matter."""
    # Always four words: SeedSequence pads with zeros, so keys of different lengths could coincide.
    return np.random.default_rng([seed, zlib.crc32(dataset.encode()), zlib.crc32(split.encode()), index])


def load_material() -> Material:
    """Scans and photographs from scikit-learn's own files."""
    # Not at the top: it takes a second, which neither workers nor a call that finds the world built should pay.
    from sklearn.datasets import load_digits, load_sample_images

    ink, labels = load_digits(return_X_y=True)  # (1797, 64) from 0 to 16
    return Material(
        scans=np.rint(np.asarray(ink).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8),
        labels=np.asarray(labels).astype(np.int64),
        photographs=tuple(Image.fromarray(image) for image in load_sample_images().images),
    )


def deal_scans(labels: NDArray[np.int64], *, seed: int) -> Mapping[str, tuple[NDArray[np.int64], ...]]:
    """For "train" and "val", the indices of each class's scans in random order; the two share no scan."""
    train: list[NDArray[np.int64]] = []
    val: list[NDArray[np.int64]] = []
    for label in range(len(CLASS_NAMES)):
        shuffled = generator(seed, "world", "scans", label).permutation(np.flatnonzero(labels == label))
        num_val = round(VAL_SHARE * len(shuffled))
        val.append(shuffled[:num_val])
        train.append(shuffled[num_val:])
    return {"train": tuple(train), "val": tuple(val)}


def choose_scans(
    scans: Sequence[NDArray[np.int64]], *, seed: int, dataset: str, split: str, index: int, most: int
) -> tuple[int, ...]:
    """The scans that an image with 1 to `most` digits shows, out of `scans`, which are sorted by class.

    The first digits of ten consecutive images are of ten classes, so ten images are enough to show them all.
    """
    turn, place = divmod(index, len(CLASS_NAMES))
    first = generator(seed, dataset, f"{split} labels", turn).permutation(len(CLASS_NAMES))[place]
    rng = generator(seed, dataset, f"{split} scans", index)
    labels = [first, *rng.integers(len(CLASS_NAMES), size=rng.integers(most))]
    return tuple(int(rng.choice(scans[label])) for label in labels)
