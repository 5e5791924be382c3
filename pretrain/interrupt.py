"""Stopping between two steps: a signal in the middle of one would leave weights that belong to no step."""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM and a first SIGINT only make the yielded function return True.

    A second SIGINT leaves at once: from the keyboard, patience must be optional. SIGTERM may come repeatedly (torchrun
    and Slurm both send it), and whoever sends it follows up with SIGKILL.
    """
    seen: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and signal.SIGINT in seen:
            raise KeyboardInterrupt
        if not seen:
            logger.info("stopping after this step, with its state saved")
        seen.append(signum)

    before = {signum: signal.signal(signum, note) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(seen)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
