"""Features of a frozen backbone: computed once for each content key, shared by every benchmark that asks for them.

Each image is read once for all the stages that are asked for. The images are cut into fixed batches of consecutive
samples, and whole batches are shared out among processes: a batch always holds the same images, so its features have
the same bits for any number of processes and loader workers. Rows are written at their sample's index into one file a
stage; a mask beside them says which batches are there, so a killed extraction goes on where it was. A complete one is
published by renaming each stage's folder to its content key.
"""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from evaluate.forward import Extractor, Stage
from evaluate.job import FeatureSpec, LayerName, extraction_key, feature_keys
from zoo.backbone import load
from zoo.checkpoint import CheckpointCard
from zoo.datasets import Manifest, decode
from zoo.distributed import World, barrier, gather_by_index, share
from zoo.errors import NonFiniteError, ZooError
from zoo.files import cache_dir, ensure_writable, sync_folder
from zoo.loading import load_batches
from zoo.transforms import TestTransform, apply_test

log = logging.getLogger(__name__)
FLUSH_SECONDS = 5.0  # how much work a kill can cost


@dataclass(frozen=True)
class TestImages:
    """Index → the one test view of that image. A class, not a closure, so that it can be sent to a spawned worker."""

    __test__ = False  # not a test case, whatever pytest makes of the name

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
) -> dict[LayerName, np.ndarray]:
    """Layer → (N, D) float32 or float16 features of a whole split, memory-mapped; extracted first when not there.

    Every process of `me` must call this. Raises DataError, NonFiniteError or CheckpointError as what it calls does.
    """
    ensure(card, weights, manifest, [spec], num_workers=num_workers, me=me)
    keys = feature_keys(card, manifest.sha256, spec)
    for key in keys.values() if me.is_main else ():
        os.utime(feature_folder(key))  # the cache evicts what was used least recently
    return {layer: np.load(feature_folder(key) / "features.npy", mmap_mode="r") for layer, key in keys.items()}


def ensure(
    card: CheckpointCard,
    weights: Path,
    manifest: Manifest,
    specs: Sequence[FeatureSpec],
    *,
    num_workers: int,
    me: World,
) -> None:
    """Extract what is missing of all `specs`; those that differ in layers only share one pass over the images."""
    passes: dict[str, tuple[FeatureSpec, dict[str, Stage]]] = {}  # one for each kind of pass
    for spec in specs:
        keys = feature_keys(card, manifest.sha256, spec)
        _, stages = passes.setdefault(extraction_key(card, manifest.sha256, spec), (spec, {}))
        stages |= {key: (layer, spec.layers[layer]) for layer, key in keys.items()}
    for base, (spec, stages) in passes.items():
        if not all(map(is_extracted, stages)):
            backbone = load(card, weights, me.device)
            partial = feature_folder(f"{base}.partial")
            with _claimed(feature_folder(base), me):
                if me.is_main and _is_complete(partial):  # killed while it was being published
                    _publish(partial)
                barrier(me)
                # another process may have finished some while we waited for the lock
                missing = {key: stage for key, stage in stages.items() if not is_extracted(key)}
                barrier(me)  # nobody publishes before everybody has looked
                if missing:
                    extractor = Extractor(backbone, card.pixels, list(missing.values()), spec.forward)
                    _extract_to(partial, list(missing), extractor, manifest, spec, num_workers=num_workers, me=me)
        barrier(me)


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
    partial: Path,
    keys: list[str],
    extractor: Extractor,
    manifest: Manifest,
    spec: FeatureSpec,
    *,
    num_workers: int,
    me: World,
) -> None:
    """Compute the stages of `extractor` in `partial` and publish each under its key."""
    batches = fixed_batches(np.arange(len(manifest)), spec.forward.batch_size)
    read = TestImages(manifest, spec.transform)
    if me.is_main and not ((partial / "done.npy").exists() and set(_parts(partial)) == set(keys)):
        dtype = np.dtype({"fp32": np.float32, "fp16": np.float16}[spec.storage])
        widths = [rows.shape[1] for rows in next(_compute(extractor, manifest, read, [np.array([0])], 0, me))]
        _make_room(bytes_needed=dtype.itemsize * sum(widths) * len(manifest), keep=partial)
        shutil.rmtree(partial, ignore_errors=True)
        for key, width in zip(keys, widths, strict=True):
            (partial / key).mkdir(parents=True)
            path = partial / key / "features.npy"
            np.lib.format.open_memmap(path, "w+", dtype, (len(manifest), width))
            _claim_space(path, partial)
        np.save(partial / "done.new.npy", np.zeros(len(batches), np.uint8))
        (partial / "done.new.npy").replace(partial / "done.npy")  # last: its presence says that all files are there
    barrier(me)
    if not (partial / "done.npy").exists():
        raise ZooError(f"{partial}: the main process could not begin the extraction; its message says why.")
    rows = [np.load(partial / key / "features.npy", mmap_mode="r+") for key in keys]
    done = np.load(partial / "done.npy", mmap_mode="r+")
    left = [number for number in share(range(len(batches)), me) if not done[number]]
    if me.is_main and done.any():
        log.info("extraction goes on: %d of %d batches are there", int(done.sum()), len(batches))
    barrier(me)  # nobody writes before everybody has read what is left
    title = f"features of {manifest.dataset} {manifest.split}"
    computed = _compute(extractor, manifest, read, [batches[i] for i in left], num_workers, me)
    written: list[int] = []
    flushed = time.monotonic()
    for number, features in track(zip(left, computed, strict=True), title, total=len(left), disable=not me.is_main):
        for target, values in zip(rows, features, strict=True):
            target[batches[number]] = _stored(values, target.dtype, manifest, batches[number])
        written.append(number)
        if time.monotonic() - flushed >= FLUSH_SECONDS or number == left[-1]:
            # a batch counts as done once its rows are on the disk: not even a power cut can leave holes
            for target in rows:
                target.flush()
            done[written] = 1
            done.flush()
            written, flushed = [], time.monotonic()
    barrier(me)
    if me.is_main:
        if not _is_complete(partial):
            raise ZooError(
                f"{partial}: expected every batch to be there after extraction; this is a bug of the project."
            )
        _publish(partial)
    barrier(me)


def _parts(partial: Path) -> list[str]:
    """The content keys that are being extracted there."""
    return [folder.name for folder in partial.iterdir() if folder.is_dir()] if partial.exists() else []


def _is_complete(partial: Path) -> bool:
    return (partial / "done.npy").exists() and bool(np.load(partial / "done.npy").all())


def _publish(partial: Path) -> None:
    """Rename each stage's folder to its key; a kill in between leaves the others to be published by the next call."""
    for key in _parts(partial):
        shutil.rmtree(feature_folder(key), ignore_errors=True)
        (partial / key).rename(feature_folder(key))
    sync_folder(partial.parent)
    shutil.rmtree(partial)


def _stored(values: np.ndarray, dtype: np.dtype, manifest: Manifest, batch: np.ndarray) -> np.ndarray:
    """`values` as they are stored. Raises NonFiniteError when one does not fit into fp16."""
    if dtype == np.float16 and (beyond := np.abs(values).max(1) > np.finfo(np.float16).max).any():
        raise NonFiniteError(
            f"a feature of {manifest.path(int(batch[np.argmax(beyond)]))} is {np.abs(values).max():.3g}, too large for "
            "fp16; set storage: fp32."
        )
    return values.astype(dtype)


def _claim_space(path: Path, partial: Path) -> None:
    """Take the disk space of a memory-mapped file now: a full disk would kill the process at some later write."""
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        shutil.rmtree(partial)
        error.filename = error.filename or str(path)
        raise


def extract(
    extractor: Extractor,
    manifest: Manifest,
    *,
    transform: TestTransform,
    batch_size: int,
    num_workers: int,
    me: World,
    indices: np.ndarray | None = None,
) -> list[np.ndarray]:
    """(n, D) float32 features of some samples a stage, in the order of `indices`, in memory on every process.

    For looking on during a training; nothing is cached.
    """
    wanted = np.arange(len(manifest)) if indices is None else indices
    positions = fixed_batches(np.arange(len(wanted)), batch_size)
    mine = share(positions, me)
    read = TestImages(manifest, transform)
    parts = list(_compute(extractor, manifest, read, [wanted[rows] for rows in mine], num_workers, me))
    where = np.concatenate(mine) if mine else np.empty(0, np.int64)
    return [
        gather_by_index(
            where,
            np.concatenate([part[stage] for part in parts]) if parts else np.empty((0, 0), np.float32),
            total=len(wanted),
            me=me,
        )
        for stage in range(len(extractor.stages))
    ]


def fixed_batches(indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Consecutive batches; the last may be smaller. A function of the split alone, never of the processes."""
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]


def _compute(
    extractor: Extractor,
    manifest: Manifest,
    read: TestImages,
    batches: Sequence[np.ndarray],
    num_workers: int,
    me: World,
) -> Iterator[list[np.ndarray]]:
    """For each batch of samples, (B, D) float32 features a stage. Raises NonFiniteError naming the first image."""
    keys = [batch.tolist() for batch in batches]
    loaded = load_batches(read, keys, num_workers=num_workers if len(keys) > 1 else 0, pin=me.device.type != "cpu")
    for batch, (images,) in zip(batches, loaded, strict=True):
        features = [rows.cpu().numpy() for rows in extractor(images.to(me.device, non_blocking=True))]
        finite = np.logical_and.reduce([np.isfinite(rows).all(1) for rows in features])
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
    sizes = {f: sum(file.stat().st_size for file in f.rglob("*") if file.is_file()) for f in folders}
    excess = sum(sizes.values()) + bytes_needed - budget
    for folder in sorted(folders, key=lambda f: f.stat().st_mtime):
        if excess <= 0 or folder.name.endswith(".partial"):
            continue
        log.info("cache: removing %s (%.1f GB), used least recently", folder.name[:12], sizes[folder] / 1e9)
        shutil.rmtree(folder)
        excess -= sizes[folder]
