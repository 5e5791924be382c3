"""Is a dataset whole, do its images decode, have its bytes changed, and how fast are they read?

Listing (`zoo.datasets.manifest`) compares names, counts and sizes. Here are the looks that it spares: a sample of
images and annotations is decoded, all bytes are read again and compared with what they were, loaders are timed.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from zoo.coco import read_instances
from zoo.datasets import DatasetConfig, Manifest, decode
from zoo.errors import DataError
from zoo.files import cache_dir, sha256_file, write_atomic
from zoo.layouts import MOST_NAMED, numbered_lines
from zoo.masks import read_mask, size_problem
from zoo.transforms import TestTransform, apply_test
from zoo.voc import read_annotation

SAMPLE = 64  # images of a split that are decoded
TIMED = 200  # images that a throughput is measured on
BATCH = 4  # of timed images: small, so that what the workers have read ahead when the clock starts is little
_TRANSFORM = TestTransform(resize=256, crop=224, interpolation="bilinear", fit="centre_crop")  # protocols §2, 256/224


def described(found: Manifest, config: DatasetConfig) -> str:
    """A split's counts, classes and identity, for people."""
    if found.labels.ndim == 2:
        positive = (found.labels == 1).sum(axis=0)
        classes = f"{config.num_classes} classes, {positive.min():,} to {positive.max():,} images each"
    elif len(found.labels):
        classes = f"{len(set(found.labels.tolist())):,} of {config.num_classes:,} classes"
    else:
        classes = f"{config.num_classes} classes, an annotation an image"
    return f"{len(found):,} images, {classes}, sha256 {found.sha256}"


def sample(found: Manifest, number: int = SAMPLE) -> list[int]:
    """The indices of `number` images (all, where there are fewer) of a split: the same ones every time."""
    drawn = np.random.default_rng(0).permutation(len(found))[:number]
    return sorted(drawn.tolist())


def broken(found: Manifest, config: DatasetConfig, indices: Sequence[int]) -> list[str]:
    """Decode these images and read their annotations; a message for each file that is not what it should be."""
    problems: list[str] = []
    in_one_file = bool(found.annotations) and found.annotations[0].endswith(".json")
    sizes = _sizes(found.annotation(0), config, problems) if in_one_file else {}
    for index in indices:
        path = found.path(index)
        try:
            size = decode(path).size
            if found.annotations and not in_one_file:
                _read_annotation(found.annotation(index), config, size)
            elif sizes.get(path.name, size) != size:
                width, height = sizes[path.name]
                raise DataError(f"{path}: written for {width} x {height} pixels, {_found(size)}")
        except DataError as error:
            problems.append(str(error))
    return problems


def _sizes(path: Path, config: DatasetConfig, problems: list[str]) -> dict[str, tuple[int, int]]:
    """File name → width and height, from COCO's annotations of a whole split; {} where they cannot be read."""
    try:
        images = read_instances(path, config.classes or ())
    except DataError as error:
        problems.append(str(error))
        return {}
    return {name: (image.width, image.height) for name, image in images.items()}


def _read_annotation(path: Path, config: DatasetConfig, size: tuple[int, int]) -> None:
    """Boxes (.xml) or a mask (an image of class numbers) of a picture of `size`. Raises DataError naming the file."""
    if path.suffix == ".xml":
        annotation = read_annotation(path, config.classes or ())
        if (annotation.width, annotation.height) != size:
            raise DataError(f"{path}: written for {annotation.width} x {annotation.height} pixels, {_found(size)}")
        return
    height, width = read_mask(path, config.num_classes).shape
    if problem := size_problem(path, (width, height), size):
        raise DataError(problem)


def _found(size: tuple[int, int]) -> str:
    return f"but its picture has {size[0]} x {size[1]}; restore the one that is wrong."


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """What reading every file of a split has shown. recorded: there was nothing to compare with, so it was kept."""

    num_files: int
    recorded: bool
    ledger: Path
    problems: tuple[str, ...]


def check_bytes(found: Manifest, *, workers: int) -> Bytes:
    """SHA-256 of every image and annotation of a split, against those of the first time.

    The first time writes them to <cache>/checksums/<dataset>-<split>.sha256, as sha256sum does, unless a file cannot be
    read. Later calls name each file that is unreadable, changed, gone or new. Raises DataError when the list is none.
    """
    ledger = cache_dir() / "checksums" / f"{found.dataset}-{found.split}.sha256"
    paths = list(dict.fromkeys((*found.paths, *found.annotations)))
    hashes: dict[str, str] = {}
    problems: list[str] = []
    for path, value in zip(paths, _hashed(found.root, paths, workers), strict=True):
        if isinstance(value, OSError):
            problems.append(f"{path}: cannot be read ({value.strerror}); restore it")
        else:
            hashes[path] = value
    first = not ledger.exists()
    if first and not problems:
        write_atomic(ledger, "".join(f"{value}  {path}\n" for path, value in hashes.items()))
    elif not first:
        problems += _differences(_recorded(ledger), hashes, set(paths))
    return Bytes(num_files=len(paths), recorded=first and not problems, ledger=ledger, problems=tuple(problems))


def _hashed(root: Path, paths: Sequence[str], workers: int) -> Iterator[str | OSError]:
    def one(path: str) -> str | OSError:
        try:
            return sha256_file(root / path)
        except OSError as error:
            return error

    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in range(0, len(paths), 10_000):  # `map` queues all that it is given at once
            yield from pool.map(one, paths[start : start + 10_000])


def _recorded(ledger: Path) -> dict[str, str]:
    recorded: dict[str, str] = {}
    for number, line in numbered_lines(ledger):
        value, separator, path = line.partition("  ")
        if len(value) != 64 or not separator:
            raise DataError(f"{ledger}, line {number}: expected 'sha256  path', found '{line}'; remove the file.")
        recorded[path] = value
    return recorded


def _differences(recorded: dict[str, str], hashes: dict[str, str], listed: set[str]) -> list[str]:
    changed = [path for path in recorded if path in hashes and recorded[path] != hashes[path]]
    return [
        *(f"{path}: its bytes have changed since they were recorded" for path in changed),
        *(f"{path}: was recorded, is not part of the split any more" for path in recorded if path not in listed),
        *(f"{path}: was no part of the split when it was recorded" for path in sorted(hashes.keys() - recorded.keys())),
    ]


def named(problems: Sequence[str]) -> list[str]:
    """The first 20 problems, and how many more there are."""
    more = [f"… and {len(problems) - MOST_NAMED:,} more"] if len(problems) > MOST_NAMED else []
    return [*problems[:MOST_NAMED], *more]


def throughput(found: Manifest, *, workers: int) -> float:
    """Images a second that `workers` loader processes (0: this one) decode and bring to 224 x 224 pixels.

    Measured on 200 images drawn from the whole split (repeated where it has fewer), from when every worker has started;
    what the operating system still holds in memory is faster than a first reading. Raises DataError at a broken image.
    """
    from zoo.loading import load_batches  # loads torch

    def read(index: int) -> tuple[np.ndarray]:
        return (apply_test(decode(found.path(index)), _TRANSFORM),)

    warm = max(1, workers)
    order = np.random.default_rng(1).permutation(len(found))
    order = np.resize(order, warm * BATCH + TIMED).tolist()
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    started = perf_counter()
    for number, _ in enumerate(load_batches(read, batches, num_workers=workers), start=1):
        if number == warm:
            started = perf_counter()
    return TIMED / (perf_counter() - started)
