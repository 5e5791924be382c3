"""How a command that is asked to stop ends: by hand 130, to be run again 75."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import typer

from zoo import interrupt
from zoo.command import guarded
from zoo.interrupt import deferred


@pytest.fixture(autouse=True)
def quiet_process() -> Iterator[None]:
    """`guarded` arms this process and sets its root logger: put both back."""
    signals = (signal.SIGTERM, signal.SIGINT, *interrupt.REQUESTS)
    before, root = {number: signal.getsignal(number) for number in signals}, logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started with it ignored
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)
    root.setLevel(level)
    root.handlers[:] = handlers
    interrupt._asked.clear()


def ended(*signals: int, seconds: float = 0) -> int | str | None:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def main() -> None:
        for number in signals:
            os.kill(os.getpid(), number)
        time.sleep(seconds)

    with pytest.raises(SystemExit) as caught:
        guarded(lambda: app([]))
    return caught.value.code


@pytest.mark.parametrize(
    ("signals", "in_slurm", "code"),
    [
        ((signal.SIGUSR1,), False, 75),
        ((signal.SIGTERM,), False, 130),
        ((signal.SIGTERM,), True, 75),
        ((signal.SIGINT,), True, 130),
    ],
)
def test_the_exit_code_says_whether_to_run_it_again(
    signals: tuple[int, ...], in_slurm: bool, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if in_slurm:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert ended(*signals) == code
    assert ("to be run again" in capsys.readouterr().err) == (code == 75)


def test_the_hours_of_zoo_stop_after_end_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_STOP_AFTER", "0.00001")
    assert ended(seconds=20) == 75


@pytest.mark.parametrize("hours", ["soon", "0", "-1", "inf", "nan"])
def test_wrong_hours_are_named(hours: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ZOO_STOP_AFTER", hours)
    assert ended() == 2
    assert capsys.readouterr().err == f"error: ZOO_STOP_AFTER: expected hours above 0, found '{hours}'.\n"


def test_a_request_waits_for_the_step_and_handlers_are_put_back() -> None:
    interrupt.arm()
    before = signal.getsignal(signal.SIGUSR1)
    with deferred() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
    assert signal.getsignal(signal.SIGUSR1) is before and interrupt.exit_code() == 75


def test_from_the_keyboard_the_second_time_is_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), deferred() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        os.kill(os.getpid(), signal.SIGINT)


def test_beside_the_main_thread_nothing_is_deferred() -> None:
    found: list[bool] = []

    def work() -> None:
        with deferred() as asked:
            found.append(asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
