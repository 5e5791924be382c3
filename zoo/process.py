"""Child processes that never outlive what started them, and leave its signals to it."""

import ctypes
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """In a child, or as Popen's `preexec_fn`: it is terminated when what started it dies, however that dies.

    Slurm sends SIGUSR1 to all processes of a job: it is for commands of ours, which answer it (zoo/interrupt.py), and
    must not kill what else runs, nor a command that is still being loaded.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
