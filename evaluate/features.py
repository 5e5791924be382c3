"""Features of a frozen backbone: computed once for each content key, shared by every benchmark that asks for them.

The images are cut into fixed batches of consecutive samples, and whole batches are shared out among processes: a batch
always holds the same images, so its features have the same bits for any number of processes and loader workers. Rows
are written at their sample's index into one file; a mask beside it says which batches are there, so a killed
extraction goes on where it was. A complete extraction is published by renaming its folder.
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from evaluate.job import FeatureSpec, feature_key
from zoo.backbone import Backbone, RawPixels, load, normalise
from zoo.checkpoint import CheckpointCard
from zoo.datasets import Manifest, decode
from zoo.distributed import World, barrier, gather_by_index, share
from zoo.errors import NonFiniteError, ZooError
from zoo.files import cache_dir, ensure_writable, sync_folder
from zoo.loading import load_batches
from zoo.transforms import Pixels, TestTransform, apply_test

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _TestImages:
    """Index → the one test view of that image. A class, not a closure, so that it can be sent to a spawned worker."""

    manifest: Manifest
    transform: TestTransform

    def __call__(self, index: int) -> tuple[np.ndarray]:
        return (apply_test(decode(self.manifest.path(index)), self.transform),)


def feature_folder(key: str) -> Path:
    return cache_dir() / "features" / key


def is_extracted(key: str) -> bool:
    """Whether the features of content key `key` are there, complete."""
    return (feature_folder(key) / "features.npy").is_file()


def obtain(
    card: CheckpointCard, weights: Path, manifest: Manifest, spec: FeatureSpec, *, num_workers: int, me: World
) -> np.ndarray:
    """(N, D) float32 features of a whole split, memory-mapped read-only; extracted first when they are not there.

    Every process of `me` must call this. Raises DataError, NonFiniteError or CheckpointError as what it calls does.
    """
    key = feature_key(card, manifest.sha256, spec)
    folder = feature_folder(key)
    if not is_extracted(key):
        backbone = load(card, weights, me.device)
        with _claimed(folder, me):
            if not is_extracted(key):  # another process may have finished it while we waited for the lock
                _extract_to(folder, backbone, card.pixels, manifest, spec, num_workers=num_workers, me=me)
    barrier(me)
    if me.is_main:
        os.utime(folder)  # the cache evicts what was used least recently
    return np.load(folder / "features.npy", mmap_mode="r")


@contextmanager
def _claimed(folder: Path, me: World) -> Iterator[None]:
    """One group of processes at a time extracts into `folder`; a second one waits, and then finds it done."""
    if me.is_main:
        ensure_writable(folder.parent)
        with (folder.parent / f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            barrier(me)
            yield
    else:
        barrier(me)
        yield


def _extract_to(
    folder: Path,
    backbone: Backbone | RawPixels,
    pixels: Pixels,
    manifest: Manifest,
    spec: FeatureSpec,
    *,
    num_workers: int,
    me: World,
) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    batches = fixed_batches(np.arange(len(manifest)), spec.batch_size)
    if me.is_main and not (partial / "done.npy").exists():
        width = _width(backbone, pixels, manifest, spec, me)
        _make_room(bytes_needed=4 * width * len(manifest), keep=partial)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        np.lib.format.open_memmap(partial / "features.npy", "w+", np.float32, (len(manifest), width))
        _claim_space(partial / "features.npy")
        done = np.lib.format.open_memmap(partial / "done.new", "w+", np.uint8, (len(batches),))
        done.flush()
        (partial / "done.new").replace(partial / "done.npy")  # last: its presence says that both files are there
    barrier(me)
    rows = np.load(partial / "features.npy", mmap_mode="r+")
    done = np.load(partial / "done.npy", mmap_mode="r+")
    left = [number for number in share(range(len(batches)), me) if not done[number]]
    if me.is_main and done.any():
        log.info("extraction goes on: %d of %d batches are there", int(done.sum()), len(batches))
    barrier(me)  # nobody writes before everybody has read what is left
    title = f"features of {manifest.dataset} {manifest.split}"
    computed = _compute(backbone, pixels, manifest, spec.transform, [batches[i] for i in left], num_workers, me)
    for number, features in track(zip(left, computed, strict=True), title, total=len(left), disable=not me.is_main):
        rows[batches[number]] = features
        done[number] = 1  # after its rows: a kill in between computes this batch again
    rows.flush()
    done.flush()
    barrier(me)
    if me.is_main:
        if not np.load(partial / "done.npy").all():
            raise ZooError(
                f"{partial}: expected every batch to be there after extraction; this is a bug of the project."
            )
        (partial / "done.npy").unlink()
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        sync_folder(folder.parent)
    barrier(me)


def _claim_space(path: Path) -> None:
    """Take the disk space of a memory-mapped file now: a full disk would kill the process at some later write."""
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        shutil.rmtree(path.parent)
        error.filename = error.filename or str(path)
        raise


def _width(backbone: Backbone | RawPixels, pixels: Pixels, manifest: Manifest, spec: FeatureSpec, me: World) -> int:
    """The number of features an image: asked of the backbone itself, with the first image."""
    first = _compute(backbone, pixels, manifest, spec.transform, [np.array([0])], 0, me)
    return next(iter(first)).shape[1]


def extract(
    backbone: Backbone | RawPixels,
    manifest: Manifest,
    *,
    transform: TestTransform,
    pixels: Pixels,
    batch_size: int,
    num_workers: int,
    me: World,
    indices: np.ndarray | None = None,
) -> np.ndarray:
    """(n, D) float32 average-pooled features of some samples, in the order of `indices`, in memory on every process.

    For monitoring during training; nothing is cached. The backbone must be in eval mode.
    """
    wanted = np.arange(len(manifest)) if indices is None else indices
    positions = fixed_batches(np.arange(len(wanted)), batch_size)
    mine = share(positions, me)
    parts = list(_compute(backbone, pixels, manifest, transform, [wanted[rows] for rows in mine], num_workers, me))
    where = np.concatenate(mine) if mine else np.empty(0, np.int64)
    width = parts[0].shape[1] if parts else 0
    rows = np.concatenate(parts) if parts else np.empty((0, width), np.float32)
    return gather_by_index(where, rows, total=len(wanted), me=me)


def fixed_batches(indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Consecutive batches; the last may be smaller. A function of the split alone, never of the processes."""
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]


def _compute(
    backbone: Backbone | RawPixels,
    pixels: Pixels,
    manifest: Manifest,
    transform: TestTransform,
    batches: Sequence[np.ndarray],
    num_workers: int,
    me: World,
) -> Iterator[np.ndarray]:
    """(B, D) float32 average-pooled features of each batch of samples. Raises NonFiniteError naming the first image."""
    read = _TestImages(manifest, transform)
    keys = [batch.tolist() for batch in batches]
    with torch.inference_mode():
        loaded = load_batches(read, keys, num_workers=num_workers if len(keys) > 1 else 0, pin=me.device.type != "cpu")
        for batch, (images,) in zip(batches, loaded, strict=True):
            features = backbone(normalise(images.to(me.device, non_blocking=True), pixels)).float().cpu().numpy()
            finite = np.isfinite(features).all(1)
            if not finite.all():
                raise NonFiniteError(
                    f"the features of {manifest.path(int(batch[np.argmin(finite)]))} are NaN or infinite: the "
                    "checkpoint overflows on this image; check its card's pixel mean and std."
                )
            yield features


def _make_room(*, bytes_needed: int, keep: Path) -> None:
    """Evict least recently used features until the new ones fit ZOO_CACHE_GB (default 100), saying so."""
    try:
        budget = float(os.environ.get("ZOO_CACHE_GB", "100")) * 1e9
    except ValueError:
        raise ZooError(f"ZOO_CACHE_GB: expected a number, found '{os.environ['ZOO_CACHE_GB']}'.") from None
    folders = [f for f in keep.parent.iterdir() if f.is_dir() and f != keep] if keep.parent.exists() else []
    sizes = {f: sum(file.stat().st_size for file in f.iterdir()) for f in folders}
    excess = sum(sizes.values()) + bytes_needed - budget
    for folder in sorted(folders, key=lambda f: f.stat().st_mtime):
        if excess <= 0 or folder.name.endswith(".partial"):
            continue
        log.info("cache: removing %s (%.1f GB), used least recently", folder.name[:12], sizes[folder] / 1e9)
        shutil.rmtree(folder)
        excess -= sizes[folder]
