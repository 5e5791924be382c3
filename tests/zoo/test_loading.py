"""Batches in the caller's order, for any number of workers; an unreadable image keeps its name."""

import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch

from zoo.errors import DataError
from zoo.loading import Sample, load_batches

BATCHES = [[3, 1], [2], [0, 5, 4]]


def two_views(key: int) -> Sample:
    return np.full((4, 5, 3), key, dtype=np.uint8), np.full((2, 2, 3), 100 + key, dtype=np.uint8)


def broken(key: int) -> Sample:
    if key == 2:
        raise DataError("/images/2.jpg: the image cannot be decoded")
    return two_views(key)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_as_uint8_views(workers: int) -> None:
    found = list(load_batches(two_views, BATCHES, num_workers=workers))
    assert [[int(image[0, 0, 0]) for image in first] for first, _ in found] == BATCHES
    assert [[int(image[0, 0, 0]) - 100 for image in second] for _, second in found] == BATCHES
    assert found[0][0].shape == (2, 3, 4, 5) and found[2][1].shape == (3, 3, 2, 2)
    assert all(view.dtype == torch.uint8 and view.is_contiguous() for batch in found for view in batch)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named(workers: int) -> None:
    batches = load_batches(broken, BATCHES, num_workers=workers)
    assert next(batches)[0].shape == (2, 3, 4, 5)
    with pytest.raises(DataError, match="^/images/2.jpg: the image cannot be decoded$"):
        next(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_generator_alone(workers: int) -> None:
    before = torch.get_rng_state()
    list(load_batches(two_views, BATCHES, num_workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_of_numbers_are_stacked_as_they_are() -> None:
    def with_row(key: int) -> Sample:
        return np.zeros((4, 5, 3), np.uint8), np.array([key, np.nan], np.float32)

    ((images, rows),) = load_batches(with_row, [[3, 1]], num_workers=0)
    assert images.shape == (2, 3, 4, 5) and images.is_contiguous()
    assert rows.dtype == torch.float32 and rows[:, 0].tolist() == [3, 1] and rows[:, 1].isnan().all()


def test_no_batches_are_none() -> None:
    assert list(load_batches(two_views, [], num_workers=0)) == []


def test_the_workers_end_although_the_error_is_still_held() -> None:
    batches = load_batches(two_views, ([key] for key in range(10**9)), num_workers=2)
    next(batches)
    pid = multiprocessing.active_children()[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises((RuntimeError, OSError, EOFError)) as held:  # depends on what the loader was doing
        list(batches)
    assert held.traceback and not multiprocessing.active_children()
