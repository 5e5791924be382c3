"""Which images, augmented how, with which draws of the model, make up iteration n? The seed and n decide, nothing else.

So a training that was killed goes on with the bits it would have had, and the number of loader processes changes none.
Bits are promised for the same processes, threads, packages and machine, on CPUs: what a GPU's atomic additions do, and
how more than two processes' gradients are rounded, this file cannot decide. Another number of processes is another
training: each fills its batches from its own share of the images. Needs torch and numpy only.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from zoo.loading import outlive_signals

Place = tuple[int, int]  # position in the endless stream of samples that all processes share, index in the dataset
_ORDER, _SAMPLE, _STEP = range(3)  # what a seed is for
TRAIN, PRECISE_BN = range(2)  # passes over the data that must not draw alike


def seed_of(*key: int) -> int:
    """63 bits that depend on every number of `key`, and on their order."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def seed_all(*key: int) -> None:
    """Set Python's, numpy's and torch's global generators (of all devices) by `key`."""
    seed = seed_of(*key)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def shuffled(size: int, seed: int, rank: int, processes: int, purpose: int) -> Iterator[Place]:
    """One process's places of the endless stream: permutation after permutation of range(size), dealt out in turn."""
    epoch, order = -1, []
    for position in count(rank, processes):
        if position // size != epoch:
            epoch = position // size
            generator = torch.Generator().manual_seed(seed_of(seed, purpose, _ORDER, epoch))
            order = torch.randperm(size, generator=generator).tolist()
        yield position, order[position % size]


def grouped(places: Iterator[Place], wide: Sequence[bool], batch: int) -> Iterator[Place]:
    """`places` in the order in which batches of wide images, and of others, fill up, as detectron2 has it.

    wide: of each image, whether it is wider than high. No image is read, so that any iteration's batch can be known
    without those before.
    """
    buckets: tuple[list[Place], list[Place]] = ([], [])
    for place in places:
        bucket = buckets[wide[place[1]]]
        bucket.append(place)
        if len(bucket) == batch:
            yield from bucket
            bucket.clear()


@dataclass(frozen=True, kw_only=True)
class _Samples(Dataset[Any]):
    """By place, what `read` makes of the image there; the place alone decides its draws."""

    read: Callable[[int], Any]
    seed: int
    purpose: int

    def __getitem__(self, place: Place) -> Any:
        position, index = place
        seed_all(self.seed, self.purpose, _SAMPLE, position)
        return self.read(index)


@dataclass(kw_only=True)
class Batches:
    """The batches of this process from iteration `start` on, without end; a new iteration of this begins there again.

    As it hands over iteration n's batch it seeds the process for n: the draws of the model that follow depend on
    (seed, purpose, n, rank) alone. Samples are read one by one, so that all loader processes work on one batch.
    """

    dataset: Any  # what `read` indexes; engines look at its description
    read: Callable[[int], Any]
    places: Callable[[int], Iterator[Place]]  # by purpose; of all iterations, from the first
    batch: int  # images of this process
    seed: int
    rank: int
    workers: int
    collate: Callable[[list[Any]], Any]
    purpose: int = TRAIN
    start: int = 0
    _samples: Iterator[Any] | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        """Batches in the dataset, as a DataLoader counts them: mmengine asks."""
        return -(-len(self.dataset) // self.batch)

    def __iter__(self) -> Iterator[Any]:
        self._samples = iter(
            DataLoader(
                _Samples(read=self.read, seed=self.seed, purpose=self.purpose),
                batch_size=None,
                sampler=islice(self.places(self.purpose), self.start * self.batch, None),
                num_workers=self.workers,
                collate_fn=_unchanged,
                worker_init_fn=outlive_signals,
                prefetch_factor=max(2, -(-2 * self.batch // self.workers)) if self.workers else None,  # two batches
            )
        )
        for iteration in count(self.start):
            assert self._samples is not None, "closed"
            batch = self.collate(list(islice(self._samples, self.batch)))
            seed_all(self.seed, self.purpose, _STEP, iteration, self.rank)
            yield batch

    def close(self) -> None:
        """End the loader processes: they heed no signal, and would keep this process from leaving.

        Asked for by name: after an error its traceback still holds the loader, which would end them when it goes.
        """
        samples: Any = self._samples
        self._samples = None
        if self.workers and samples is not None:
            samples._shutdown_workers()


def _unchanged(sample: Any) -> Any:
    return sample
