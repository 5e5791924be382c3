"""Batches of decoded images, in an order fixed by the caller: the same for any number of loader workers.

One loader serves a whole run: the caller lists every batch of sample keys from where it starts to where it ends, so
workers never stop between epochs and a resumed run sees what the uninterrupted one would have seen. A sample that
cannot be read ends it, or gives way to another where the caller has a rule for that.
"""

import signal
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from zoo.errors import DataError, several

Key = TypeVar("Key")  # what identifies a sample's draw: an index, or (epoch, index)
Sample = tuple[np.ndarray, ...]  # (H, W, 3) uint8 images, and rows of numbers, (n,)


@dataclass(frozen=True, kw_only=True)
class Replaced(Generic[Key]):
    """A sample that could not be read, and what stands in its place."""

    key: Key
    instead: Key
    problem: str


class _Samples(Generic[Key]):
    """A map-style dataset. An image that cannot be read travels back as a value: torch would garble the exception."""

    def __init__(self, read: Callable[[Key], Sample], substitutes: Callable[[Key], Iterable[Key]] | None) -> None:
        self.read, self.substitutes = read, substitutes

    def __getitem__(self, key: Key) -> tuple[Sample, Replaced[Key] | None] | DataError:
        try:
            return self.read(key), None
        except DataError as error:
            return error if self.substitutes is None else self._instead_of(key, self.substitutes(key), error)

    def _instead_of(
        self, key: Key, candidates: Iterable[Key], problem: DataError
    ) -> tuple[Sample, Replaced[Key]] | DataError:
        tried = 0
        for instead in candidates:
            tried += 1
            try:
                return self.read(instead), Replaced(key=key, instead=instead, problem=str(problem))
            except DataError:
                continue
        return DataError(f"{problem} None of {tried} others drawn in its place can be read either.")


def _collate(
    samples: Sequence[tuple[Sample, Replaced[Key] | None] | DataError],
) -> tuple[tuple[Tensor, ...], list[Replaced[Key]]] | DataError:
    good: list[tuple[Sample, Replaced[Key] | None]] = []
    bad: list[DataError] = []
    for sample in samples:
        if isinstance(sample, DataError):
            bad.append(sample)
        else:
            good.append(sample)
    if bad:
        return bad[0] if len(bad) == 1 else DataError(several(f"{len(bad)} images of one batch:", list(map(str, bad))))
    parts = zip(*(sample for sample, _ in good), strict=True)
    return tuple(map(_stacked, parts)), [replaced for _, replaced in good if replaced is not None]


def _stacked(parts: Sequence[np.ndarray]) -> Tensor:
    """(B, 3, H, W) of images, (B, n) of rows of numbers."""
    batch = torch.from_numpy(np.stack(parts))
    return batch.permute(0, 3, 1, 2).contiguous() if batch.dim() == 4 else batch


def outlive_signals(worker: int) -> None:
    """A signal to the whole process group is the main process's to answer: it may want a last batch, and it ends us."""
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)


def load_batches(
    read: Callable[[Key], Sample],
    batches: Iterable[Sequence[Key]],
    *,
    num_workers: int,
    pin: bool = False,
    substitutes: Callable[[Key], Iterable[Key]] | None = None,
    on_replaced: Callable[[Sequence[Replaced[Key]]], None] = lambda replaced: None,
) -> Generator[tuple[Tensor, ...], None, None]:
    """A tuple of tensors for each batch of keys, in order: (B, 3, H, W) uint8 of images, (B, n) of rows of numbers.

    substitutes: for a sample that cannot be read, the keys to try in its place; a batch that has such samples is
    preceded by a call of on_replaced in this process. Raises DataError, in `read`'s words, naming every image of a
    batch that cannot be read and has no substitute; RuntimeError, OSError or EOFError when a worker dies. Closing the
    iterator ends the workers.
    """
    loader = DataLoader(
        _Samples(read, substitutes),  # type: ignore[arg-type]  # torch types a Dataset, documents any object with __getitem__
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of lists
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=pin,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=outlive_signals,
        generator=torch.Generator(),  # else the global one is advanced, for a seed that no worker uses
    )
    loaded: Any = iter(loader)
    try:
        for batch in loaded:
            if isinstance(batch, DataError):
                raise batch
            views, replaced = batch
            if replaced:
                on_replaced(replaced)
            yield tuple(views)
    finally:
        if num_workers:
            # they end when the loader goes, but an error's traceback may hold it, and they heed no signal
            loaded._shutdown_workers()
