"""How commands end: the exit code of each kind of error, and what the user is told."""

import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
import typer

from zoo.command import guarded
from zoo.errors import (
    CheckpointError,
    CollapseError,
    ConfigError,
    DataError,
    NonFiniteError,
    RecordError,
    ZooError,
)
from zoo.files import ROOT


@pytest.fixture(autouse=True)
def quiet_process() -> Iterator[None]:
    """`guarded` sets this process's SIGTERM handler and its root logger: put both back."""
    handler, root = signal.getsignal(signal.SIGTERM), logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    signal.signal(signal.SIGTERM, handler)
    root.setLevel(level)
    root.handlers[:] = handlers


def raising(error: BaseException) -> Callable[[], int | None]:
    def main() -> NoReturn:
        raise error

    return main


def ended(main: Callable[[], int | None]) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        guarded(main)
    return caught.value.code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ZooError, 2),
        (ConfigError, 2),
        (CheckpointError, 2),
        (DataError, 2),
        (RecordError, 2),
        (CollapseError, 3),
        (NonFiniteError, 4),
    ],
)
def test_every_error_of_ours_has_its_exit_code_and_only_its_message(
    error: type[ZooError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(raising(error("what was expected\n  - what was found"))) == code
    assert capsys.readouterr().err == "error: what was expected\n  - what was found\n"


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (75, 75)])
def test_a_command_that_returns_ends_with_its_value(returned: int | None, code: int) -> None:
    assert ended(lambda: returned) == code


@pytest.mark.parametrize("rank", ["1", "7"])
def test_another_rank_says_which_it_is(
    rank: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    ended(raising(DataError("broken image")))
    assert capsys.readouterr().err == f"error [rank {rank}]: broken image\n"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "/d/a.npz: the disk is full: free space, or set ZOO_RUNS / ZOO_CACHE to a larger one"),
        (errno.EDQUOT, "/d/a.npz: the disk quota is used up"),
        (errno.EACCES, "/d/a.npz: no permission: choose a folder you may write to"),
        (errno.EROFS, "/d/a.npz: the file system is read-only"),
        (errno.EMFILE, "/d/a.npz: too many open files: raise the limit (ulimit -n)"),
    ],
)
def test_a_disk_that_cannot_be_written_is_the_users_matter(
    number: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(raising(OSError(number, os.strerror(number), "/d/a.npz"))) == 2
    found = capsys.readouterr().err
    assert words in found and os.strerror(number) in found and "Nothing half-written was kept" in found


def test_a_full_disk_without_a_file_name_is_still_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))) == 2
    assert capsys.readouterr().err.startswith("error: writing: the disk is full")


@pytest.mark.parametrize("error", [OSError(errno.EIO, "io"), RuntimeError("bug"), ValueError("bug")])
def test_anything_else_is_a_bug_and_keeps_its_traceback(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(raising(error)) == 1
    found = capsys.readouterr().err
    assert found.startswith("Traceback") and found.endswith(f"{type(error).__name__}: {error}\n")


def test_an_interrupt_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(raising(KeyboardInterrupt())) == 130
    assert "run the same command again to go on" in capsys.readouterr().err


def test_a_typer_exit_code_passes_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(_typer_app(lambda: typer.Exit(75))) == 75
    assert capsys.readouterr().err == ""


def test_an_interrupt_that_typer_answers_says_how_to_go_on_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(_typer_app(KeyboardInterrupt)) == 130
    assert "run the same command again to go on" in capsys.readouterr().err


def _typer_app(make: Callable[[], BaseException]) -> Callable[[], int | None]:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command()
    def command() -> None:
        raise make()

    return lambda: app([])


@pytest.mark.parametrize(
    ("statement", "code", "words"),
    [
        ("raise RuntimeError('a bug')", 1, "Traceback (most recent call last)"),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", 130, "error: interrupted;"),
        ("print('result'); raise ZooError('after it')", 2, "result\nerror: after it"),
    ],
)
def test_a_process_ends_as_promised(statement: str, code: int, words: str) -> None:
    program = "import os, signal, time\nfrom zoo.command import guarded\nfrom zoo.errors import ZooError\n"
    program += f"def main():\n    {statement}\nguarded(main)\n"
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.returncode == code and words in process.stdout


LOADING = """
import multiprocessing, os, signal
import numpy as np
from zoo.command import guarded
from zoo.loading import load_batches

def read(key):
    return (np.zeros((8, 8, 3), np.uint8),)

def main():
    batches = load_batches(read, ([key] for key in range(10**9)), num_workers=2)  # which the traceback holds
    for number, _ in enumerate(batches):
        if number == 2:
            {}

guarded(main)
"""


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("raise RuntimeError('out of memory')", "RuntimeError: out of memory"),
        ("os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)", "Traceback"),  # of one of several errors
    ],
)
def test_a_process_with_loader_workers_ends_too(statement: str, words: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", LOADING.format(statement)], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert process.returncode == 1 and words in process.stderr


@pytest.mark.parametrize("module", ["converters", "evaluate", "pretrain", "report", "mini"])
def test_every_command_refuses_an_unknown_option_with_exit_code_2(module: str) -> None:
    process = subprocess.run(
        [sys.executable, "-m", module, "--no-such-option"], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 2 and "No such option" in process.stderr
