"""How is the drawing shared among processes? Who draws an image cannot matter: it depends on its index only."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any, Final

PIECE: Final = 250  # images a task: small enough for a smooth progress bar, large enough to make sending material cheap

Each = Callable[[Callable[[Sequence[Any]], None], Sequence[Any]], None]


@contextmanager
def hire(workers: int, advance: Callable[[int], None]) -> Iterator[Each]:
    """A function `each(task, items)`: run `task` on all items in pieces, in `workers` processes (1: in this one)."""
    if workers <= 1:
        yield lambda task, items: _alone(task, items, advance)
        return
    # Spawned, not forked: the caller may have started threads (torch has), and a fork would inherit their locks.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_live_as_long_as_parent) as pool:
        yield lambda task, items: _together(pool, task, items, advance)


def _alone(task: Callable[[Sequence[Any]], None], items: Sequence[Any], advance: Callable[[int], None]) -> None:
    for piece in _pieces(items):
        task(piece)
        advance(len(piece))


def _together(
    pool: ProcessPoolExecutor,
    task: Callable[[Sequence[Any]], None],
    items: Sequence[Any],
    advance: Callable[[int], None],
) -> None:
    sizes = {pool.submit(task, piece): len(piece) for piece in _pieces(items)}
    try:
        for future in as_completed(sizes):
            future.result()
            advance(sizes[future])
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


def _pieces(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), PIECE):
        yield items[start : start + PIECE]


def _live_as_long_as_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and end when the parent does, even if it was killed.

    Without this, workers of a killed parent wait for ever for work that nobody can send.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None, "runs in workers only"
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
