"""What can go wrong for a user, and the exit code each kind ends a command with (DESIGN §3).

    ZooError (2)
    ├── ConfigError      a YAML file, an override or a command line
    ├── CheckpointError  weights or their card
    ├── DataError        datasets, lists, images
    │   └── NoDataError  a dataset that has no place on this machine
    ├── RecordError      results that cannot be read or written
    ├── CollapseError    (3) pre-training collapsed to a constant
    └── NonFiniteError   (4) a loss or a feature is NaN or infinite

A message says what was expected, what was found and what to do; all problems of one input go into one message.
"""

from collections.abc import Sequence


class ZooError(Exception):
    """Something the user can put right. Commands print the message without a traceback."""

    exit_code = 2


class ConfigError(ZooError):
    """A configuration file or option is wrong."""


class CheckpointError(ZooError):
    """A checkpoint is missing, unreadable, incomplete or not what its card says."""


class DataError(ZooError):
    """A dataset, list file or image is missing or wrong."""


class NoDataError(DataError):
    """A dataset has no place: nobody has said where it lies. A suite does without the benchmarks that read it."""


class RecordError(ZooError):
    """A result record cannot be read or written."""


class CollapseError(ZooError):
    """Pre-training has collapsed: the outputs no longer depend on the image."""

    exit_code = 3


class NonFiniteError(ZooError):
    """A loss or feature is NaN or infinite."""

    exit_code = 4


def several(title: str, problems: Sequence[str]) -> str:
    """One message for all problems: a title line, then one indented line a problem."""
    return "\n".join([title, *(f"  - {problem}" for problem in problems)])
