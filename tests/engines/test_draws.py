"""Iteration n's images and draws are the same whatever ran before it, and however many processes load them."""

import multiprocessing
import os
import random
import signal
from itertools import islice
from typing import Any

import numpy as np
import torch

from engines.draws import PRECISE_BN, TRAIN, Batches, grouped, seed_all, seed_of, shuffled


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def read(index: int) -> tuple[int, tuple[float, float, float]]:
    return index, drawn()


def steps(count: int, **changes: Any) -> list[Any]:
    """Per iteration: its samples with their draws, and what a model would draw."""
    options = {"start": 0, "workers": 0, "purpose": TRAIN, "rank": 0, "seed": 3} | changes
    batches = Batches(
        dataset=range(7),
        read=read,
        places=lambda purpose: shuffled(7, options["seed"], options["rank"], 2, purpose),
        batch=3,
        collate=list,
        **options,
    )
    found = [(batch, drawn()) for batch in islice(batches, count)]
    batches.close()
    return found


def test_a_seed_depends_on_all_of_its_key() -> None:
    keys = [(0,), (0, 0), (1, 0), (0, 1), (10,), (1, 0, 0), (2**40, 1)]
    assert len({seed_of(*key) for key in keys}) == len(keys) and all(0 <= seed_of(*key) < 2**63 for key in keys)
    seed_all(1, 2)
    first = drawn()
    seed_all(1, 2)
    assert drawn() == first


def test_processes_share_one_endless_stream() -> None:
    """Every image once an epoch, whichever process reads it; an epoch's order is not the last one's."""
    alone = list(islice(shuffled(5, 0, 0, 1, TRAIN), 20))
    assert [position for position, _ in alone] == list(range(20))
    epochs = [[index for _, index in alone[start : start + 5]] for start in range(0, 20, 5)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs) and len(set(map(tuple, epochs))) > 1
    both = [list(islice(shuffled(5, 0, rank, 2, TRAIN), 10)) for rank in range(2)]
    assert sorted(both[0] + both[1]) == alone
    more = [list(islice(shuffled(5, 0, rank, 8, TRAIN), 2)) for rank in range(8)]  # than images
    assert sorted(sum(more, [])) == alone[:16]
    assert alone != list(islice(shuffled(5, 1, 0, 1, TRAIN), 20)) != list(islice(shuffled(5, 0, 0, 1, PRECISE_BN), 20))


def test_images_of_one_shape_come_together() -> None:
    wide = [True, False, True, False, True, False]
    places = list(islice(grouped(enumerate([0, 1, 2, 3, 4, 5, 1, 0]), wide, 3), 6))
    assert places == [(0, 0), (2, 2), (4, 4), (1, 1), (3, 3), (5, 5)]


def test_an_iteration_is_the_same_wherever_training_began() -> None:
    straight = steps(6)
    assert steps(2, start=4) == straight[4:]
    assert steps(4, start=2, workers=2) == straight[2:]
    assert (
        len({model for _, model in straight}) == 6 and len({draws for batch, _ in straight for _, draws in batch}) == 18
    )
    assert steps(6, seed=4) != straight and steps(6, purpose=PRECISE_BN) != straight
    other = steps(6, rank=1)
    assert not {model for _, model in straight} & {model for _, model in other}


def test_a_signal_to_all_processes_does_not_end_the_loaders() -> None:
    batches = Batches(
        dataset=range(9),
        read=lambda index: os.getpid(),
        places=lambda purpose: shuffled(9, 0, 0, 1, purpose),
        batch=2,
        seed=0,
        rank=0,
        workers=2,
        collate=list,
    )
    begun = iter(batches)
    loaders = set(next(begun))
    assert len(loaders) == 2 and os.getpid() not in loaders
    for pid in loaders:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(pid, signum)
    assert set(sum(islice(begun, 20), [])) == loaders
    batches.close()
    assert not multiprocessing.active_children()


def test_the_draws_before_do_not_matter() -> None:
    seed_all(0)
    first = steps(2)
    seed_all(1)
    assert steps(2) == first
