"""python -m engines says of each engine that it works, that it is not here, or what is broken about it."""

import subprocess
from pathlib import Path

import pytest

import engines.__main__ as asking
from engines.__main__ import ask
from tests.engines.test_launch import program

VARIABLE = "ZOO_SEGMENTATION_PYTHON"


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program that is mmseg's interpreter; a test fills in what it does."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "python"))
    monkeypatch.setattr(asking, "interpreter", lambda name: str(tmp_path / "python"))
    return tmp_path / "python"


def test_a_working_engine_says_what_it_is(python: Path) -> None:
    program(python, """print('noise of an import'); print('{"versions": {"mmseg": "1.4.2"}, "device": {}}')""")
    assert ask("mmseg") == {"engine": "mmseg", "python": str(python), "versions": {"mmseg": "1.4.2"}, "device": {}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "raise ImportError('libGL.so.1: no such file')",
            "does not import there: ImportError: libGL.so.1: no such file",
        ),
        ("raise SystemExit(3)", "does not import there: exit code 3"),
        ("print('hello')", "it gave no answer: is it a Python?"),
        ("", "it gave no answer: is it a Python?"),
    ],
)
def test_a_broken_engine_says_why(python: Path, text: str, words: str) -> None:
    program(python, text)
    found = ask("mmseg")
    assert found["broken"] and found["error"] == f"mmseg is installed in {python}, but {words}"
    assert found["fix"].startswith("pip install -r requirements-mmseg.txt, or name another interpreter in ZOO_SEG")


def test_an_engine_that_hangs_is_given_up(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(asking.subprocess, "run", hang)
    assert "importing it took more than 600 s" in ask("mmseg")["error"]


def test_an_engine_that_is_not_here_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("engines.launch.installed", dict.fromkeys)
    found = ask("mmseg")
    assert found["error"].endswith("(missing: mmseg, mmcv, mmengine)") and not found["broken"]
    assert found["fix"].startswith("pip install -r requirements-mmseg.txt, or name")


def test_an_engine_of_another_version_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    versions = {"mmseg": ["1.4.0"], "mmcv": ["2.1.0"], "mmengine": ["0.9"]}
    monkeypatch.setattr("engines.launch.installed", lambda asked: versions)
    found = ask("mmseg")
    assert found["error"].endswith("(expected mmcv 2.3, found 2.1.0; expected mmengine 0.10, found 0.9)")
    assert found["fix"].startswith("pip install -r requirements-mmseg.txt, or name another interpreter")


def test_an_interpreter_that_is_none_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "no-such-python")
    found = ask("mmseg")
    assert found["broken"] and found["error"].startswith(f"{VARIABLE}: expected a Python interpreter")
    assert found["fix"] == f"name a Python that works in {VARIABLE}, or unset it."
