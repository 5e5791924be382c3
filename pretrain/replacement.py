"""What happens to a training whose images cannot all be read?

With `bad_images: stop` it ends, naming them. With `replace` another image stands in, drawn by a rule that knows (seed,
epoch, sample index) only, so that a resumed run, or one with other processes, draws the same. Each is named in the log
and counted in log.jsonl, run.json and the card. More than MAX_SHARE of the images, and at least two, end the run.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch.distributed as dist

from pretrain.schedule import Key
from zoo.datasets import Manifest, decode
from zoo.distributed import World
from zoo.errors import DataError, several
from zoo.loading import Replaced, Sample, load_batches

logger = logging.getLogger(__name__)

DRAWS = 16  # in place of one sample: when all of them fail, the disk has gone
MAX_SHARE = 0.01
NAMED = 10  # images in one message, and on the card


def substitutes(seed: int, num_samples: int, key: Key) -> Iterator[Key]:
    """The samples to try in place of `key`, of the same epoch; uniform among all but itself."""
    epoch, index = key
    # five numbers, the last unlike epoch_order's: this family of streams meets neither that one nor the views'
    rng = np.random.default_rng((seed, epoch, index, 0, 2))
    for _ in range(DRAWS):
        other = int(rng.integers(num_samples - 1))
        yield epoch, other + (other >= index)


def readable(manifest: Manifest, indices: np.ndarray, *, num_workers: int, me: World) -> np.ndarray:
    """Those of `indices`, (n,) int64, whose images can be read, in their order; the same on all processes.

    Each process reads its share. The others are named in the log.
    """
    bad: list[Replaced[int]] = []
    mine = indices[me.rank :: me.size].tolist()
    batches = [mine[start : start + 64] for start in range(0, len(mine), 64)]
    read = partial(_looked_at, manifest)
    for _ in load_batches(
        read, batches, num_workers=num_workers, substitutes=lambda index: (_NO_IMAGE,), on_replaced=bad.extend
    ):
        pass
    everyone: list[list[Replaced[int]] | None] = [bad]
    if me.size > 1:
        everyone = [None] * me.size
        dist.all_gather_object(everyone, bad)
    found = {each.key: each.problem for part in everyone for each in part or ()}
    if me.is_main:
        for problem in found.values():
            logger.warning("%s The kNN monitor does without it.", problem)
    return indices[~np.isin(indices, list(found))]


_NO_IMAGE: int = -1


def _looked_at(manifest: Manifest, index: int) -> Sample:
    if index != _NO_IMAGE:
        decode(manifest.path(index))
    return (np.zeros((1, 1, 3), np.uint8),)


class Replacements:
    """The images that could not be read, over all processes since the run began, and how often each was replaced."""

    def __init__(self, images: Manifest, times: Mapping[int, int]) -> None:
        self.images, self.times = images, dict(times)
        self._loaded: list[Replaced[Key]] = []  # of the batch that has just been loaded
        self._by_step: dict[int, list[Replaced[Key]]] = {}  # this process's

    def loaded(self, replaced: Sequence[Replaced[Key]]) -> None:
        """Take note of the next batch's, before it comes."""
        self._loaded += replaced

    def used(self, step: int, keys: Sequence[Key]) -> list[Key]:
        """`keys`, those of the batch that has just come, as they were read."""
        replaced, self._loaded = self._loaded, []
        if replaced:
            self._by_step[step] = replaced
        instead = {each.key: each.instead for each in replaced}
        return [instead.get(key, key) for key in keys]

    def count(self, step: int) -> int:
        """How many samples of this process's share of `step` were replaced."""
        return len(self._by_step.get(step, ()))

    def gather(self, step: int, me: World) -> list[str]:
        """Add those of all processes, and name them: "PATH by PATH". To be called on all processes or on none.

        Raises DataError, on all processes, when too many images cannot be read.
        """
        everyone: list[list[Replaced[Key]]] = [self._by_step.pop(step, [])]
        if me.size > 1:
            gathered: list[list[Replaced[Key]] | None] = [None] * me.size
            dist.all_gather_object(gathered, everyone[0])
            everyone = [part or [] for part in gathered]
        together = [each for part in everyone for each in part]
        for each in together:
            index = each.key[1]
            if index not in self.times and me.is_main:
                logger.warning("%s Replaced by %s.", each.problem, self.images.path(each.instead[1]))
            self.times[index] = self.times.get(index, 0) + 1
        limit = max(1, int(MAX_SHARE * len(self.images)))
        if len(self.times) > limit:
            raise DataError(
                several(
                    f"{len(self.times)} of {len(self.images):,} images cannot be read; bad_images: replace makes do "
                    f"without {limit} ({MAX_SHARE:.0%}). Restore them, then give the same command again. The first:",
                    self.names()[:NAMED],
                )
            )
        return [f"{self._name(each.key)} by {self._name(each.instead)}" for each in together]

    def names(self) -> list[str]:
        """Of every image that was replaced, in the order of the list."""
        return [self._name((0, index)) for index in sorted(self.times)]

    def record(self) -> dict[str, int]:
        """For run.json: how often each was replaced."""
        return {self._name((0, index)): self.times[index] for index in sorted(self.times)}

    def lineage(self) -> tuple[str, ...]:
        """For the card; nothing where every image could be read."""
        if not self.times:
            return ()
        names = self.names()
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return (
            f"{len(names)} images could not be read and were replaced {sum(self.times.values())} times: "
            f"{', '.join(names[:NAMED])}{more}",
        )

    def _name(self, key: Key) -> str:
        """Within the dataset: its place on this machine is not the card's."""
        return self.images.paths[key[1]]
