"""What every command shares: exit codes, plain error messages, logging.

A ZooError is printed as its message; so is a full disk or a missing permission. Anything else is a bug: traceback and
exit code 1.
"""

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from zoo.errors import ZooError

INTERRUPTED = 130
_DISK = {
    errno.ENOSPC: "the disk is full: free space, or set ZOO_RUNS / ZOO_CACHE to a larger one",
    errno.EDQUOT: "the disk quota is used up: free space, or set ZOO_RUNS / ZOO_CACHE to another place",
    errno.EACCES: "no permission: choose a folder you may write to (ZOO_RUNS, ZOO_CACHE)",
    errno.EROFS: "the file system is read-only: set ZOO_RUNS / ZOO_CACHE to a writable place",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n)",
}


def guarded(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and leave the process with DESIGN §3's exit code."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO, stream=sys.stderr)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        sys.exit(main() or 0)
    except ZooError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            raise
        _say("interrupted; run the same command again to go on from the last saved point")  # typer ends it with 130
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        _say(f"{error.filename or 'writing'}: {_DISK[error.errno]} ({error.strerror}). Nothing half-written was kept.")
        sys.exit(ZooError.exit_code)


def _say(message: str) -> None:
    rank = os.environ.get("RANK", "0")
    sys.stdout.flush()
    print(f"error{'' if rank == '0' else f' [rank {rank}]'}: {message}", file=sys.stderr, flush=True)


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
