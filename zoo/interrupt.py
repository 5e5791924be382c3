"""How does a command stop when it is asked to, and is it to be run again?

By hand (SIGINT, SIGTERM) it ends with 130. It ends with 75, "run the same line again", on SIGUSR1, which Slurm sends
before the time limit, on SIGTERM inside a Slurm job, which is a preemption, and after $ZOO_STOP_AFTER hours. What has a
state to save finishes its step and saves it first (`deferred`); everything else stops at once. Needs no torch.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from zoo.errors import ConfigError

logger = logging.getLogger(__name__)
INTERRUPTED: Final = 130
REQUEUE: Final = 75
REQUESTS: Final = (signal.SIGUSR1, signal.SIGALRM)  # to stop and be run again; SIGALRM is our own timer
_asked: list[int] = []  # the signals so far: the first one decides


def arm() -> None:
    """Answer SIGTERM and the requests with KeyboardInterrupt, and start the timer. Raises ConfigError."""
    _asked.clear()
    for signum in (signal.SIGTERM, *REQUESTS):
        signal.signal(signum, _stop)
    text = os.environ.get("ZOO_STOP_AFTER")
    if text:
        try:
            seconds = 3600 * float(text)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            raise ConfigError(f"ZOO_STOP_AFTER: expected hours above 0, found '{text}'.")
        signal.setitimer(signal.ITIMER_REAL, seconds)


def note(signum: int) -> None:
    """Remember that `signum` asked for the end."""
    _asked.append(signum)


def note_requeue() -> None:
    """Another process of this command is to be run again, and so all are, whatever else was asked here."""
    _asked.insert(0, signal.SIGUSR1)


def exit_code() -> int:
    """Of a command that was stopped: 75 when whoever stopped it wants it to go on, else 130."""
    first = _asked[0] if _asked else signal.SIGINT
    preempted = first == signal.SIGTERM and "SLURM_JOB_ID" in os.environ
    return REQUEUE if preempted or first in REQUESTS else INTERRUPTED


def _stop(signum: int, frame: FrameType | None) -> None:
    if signum in REQUESTS:
        signal.signal(signum, signal.SIG_IGN)  # a second one would break off the tidying of the first
    note(signum)
    raise KeyboardInterrupt


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Within the block every request to stop but a second SIGINT only makes the yielded function return True.

    A signal in the middle of a step would leave weights that belong to no step. A second SIGINT leaves at once: from
    the keyboard, patience must be optional. SIGTERM may come repeatedly (torchrun and Slurm both send it), and whoever
    sends it follows up with SIGKILL. Outside the main thread, where no signal arrives, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    seen: list[int] = []

    def remember(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and signal.SIGINT in seen:
            raise KeyboardInterrupt
        if not seen:
            logger.info("stopping after this step, with its state saved")
        seen.append(signum)
        note(signum)

    before = {signum: signal.signal(signum, remember) for signum in (signal.SIGTERM, signal.SIGINT, *REQUESTS)}
    try:
        yield lambda: bool(seen)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
