"""Batches of decoded images, in an order fixed by the caller: the same for any number of loader workers.

One loader serves a whole run: the caller lists every batch of sample keys from where it starts to where it ends, so
workers never stop between epochs and a resumed run sees what the uninterrupted one would have seen.
"""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from zoo.errors import DataError

Key = TypeVar("Key")  # what identifies a sample's draw: an index, or (epoch, index)
Sample = tuple[np.ndarray, ...]  # one (H, W, 3) uint8 array a view


class _Samples(Generic[Key]):
    """A map-style dataset. An image that cannot be read travels back as a value: torch would garble the exception."""

    def __init__(self, read: Callable[[Key], Sample]) -> None:
        self.read = read

    def __getitem__(self, key: Key) -> Sample | DataError:
        try:
            return self.read(key)
        except DataError as error:
            return error


def _collate(samples: Sequence[Sample | DataError]) -> tuple[Tensor, ...] | DataError:
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
        good.append(sample)
    views = zip(*good, strict=True)
    return tuple(torch.from_numpy(np.stack(view).transpose(0, 3, 1, 2).copy()) for view in views)


def _outlive_signals(worker: int) -> None:
    """A signal to the whole process group is the main process's to answer: it may want a last batch, and it ends us."""
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)


def load_batches(
    read: Callable[[Key], Sample], batches: Iterable[Sequence[Key]], *, num_workers: int, pin: bool = False
) -> Iterator[tuple[Tensor, ...]]:
    """One tuple of (B, 3, H, W) uint8 tensors (one a view) for each batch of keys, in order.

    Raises DataError, named by `read`, at the first image that cannot be read.
    """
    loader = DataLoader(
        _Samples(read),  # type: ignore[arg-type]  # torch types a Dataset, documents any object with __getitem__
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of lists
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=pin,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=_outlive_signals,
        generator=torch.Generator(),  # else the global one is advanced, for a seed that no worker uses
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield tuple(batch)
