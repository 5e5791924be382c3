"""What every command shares: exit codes, plain error messages, logging.

A ZooError is printed as its message; so is a full disk or a missing permission. Anything else is a bug: traceback and
exit code 1.
"""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable

from zoo import interrupt
from zoo.errors import ZooError
from zoo.interrupt import INTERRUPTED, REQUEUE
from zoo.process import die_with_parent

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
    if "TORCHELASTIC_RUN_ID" in os.environ:  # started by torchrun's launcher, which may be killed
        die_with_parent()  # before `arm`, which answers SIGUSR1 again
    try:
        interrupt.arm()
        sys.exit(main() or 0)
    except ZooError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            raise
        code = interrupt.exit_code()  # typer ends every KeyboardInterrupt with 130
        how = "stopped, to be run again" if code == REQUEUE else "interrupted"
        _say(f"{how}; run the same command again to go on from the last saved point")
        sys.exit(code)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            where = error.filename or "writing"
            _say(f"{where}: {_DISK[error.errno]} ({error.strerror}). Nothing half-written was kept.")
            sys.exit(ZooError.exit_code)
        # not left to the interpreter: that would keep the traceback, and with it loader workers, which heed no signal
        # and would then be waited for without end
        traceback.print_exc()
        sys.exit(1)


def _say(message: str) -> None:
    rank = os.environ.get("RANK", "0")
    sys.stdout.flush()
    print(f"error{'' if rank == '0' else f' [rank {rank}]'}: {message}", file=sys.stderr, flush=True)
