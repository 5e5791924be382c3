"""The engine that is missing, the interpreter that is none, the child that fails: each has its message."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from engines import launch
from engines.launch import interpreter, measure
from zoo.errors import NonFiniteError, ZooError


def test_the_engines_are_here() -> None:
    assert interpreter("detectron2") == interpreter("mmseg") == sys.executable


def test_a_missing_engine_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None if name == "mmseg" else object())
    with pytest.raises(
        ZooError, match=r"mmseg is not installed in .* \(missing: mmseg\): pip install -r requirements-mms"
    ):
        interpreter("mmseg")
    interpreter("detectron2")


def program(path: Path, text: str) -> str:
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_another_interpreter_is_asked_for_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DETECTION_PYTHON", "no-such-python")
    with pytest.raises(ZooError, match="ZOO_DETECTION_PYTHON: expected a Python interpreter, found 'no-such-python'"):
        interpreter("detectron2")
    monkeypatch.setenv("ZOO_DETECTION_PYTHON", program(tmp_path / "bare", "print('detectron2')"))
    with pytest.raises(ZooError, match=r"detectron2 is not installed in .*bare \(missing: detectron2\)"):
        interpreter("detectron2")
    monkeypatch.setenv("ZOO_DETECTION_PYTHON", program(tmp_path / "broken", "raise SystemExit('no libpython')"))
    with pytest.raises(ZooError, match="is no working Python: no libpython"):
        interpreter("detectron2")
    monkeypatch.setenv("ZOO_DETECTION_PYTHON", program(tmp_path / "good", ""))
    assert interpreter("detectron2") == str(tmp_path / "good")


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program that runs as the engine's interpreter; a test fills in what it does."""
    path = tmp_path / "engine"
    monkeypatch.setattr(launch, "interpreter", lambda name: str(path))
    return path


def failing(code: int) -> str:
    note = json.dumps({"message": "the reason", "exit_code": code})
    return f"import sys\nopen(sys.argv[-1] + '/failure.json', 'w').write({note!r})\nsys.exit({code})"


@pytest.mark.parametrize(("code", "kind"), [(1, RuntimeError), (2, ZooError), (4, NonFiniteError)])
def test_a_childs_reason_is_passed_on(tmp_path: Path, child: Path, code: int, kind: type[Exception]) -> None:
    program(child, failing(code))
    with pytest.raises(kind, match="detectron2: the reason") as caught:
        measure("detectron2", tmp_path)
    assert type(caught.value) is kind


def test_a_killed_child_is_told_from_a_failed_one(tmp_path: Path, child: Path) -> None:
    program(child, "import os\nos.kill(os.getpid(), 9)")
    with pytest.raises(ZooError, match="mmseg's process ended by signal SIGKILL .*If memory ran out"):
        measure("mmseg", tmp_path)
    program(child, "raise SystemExit(7)")
    with pytest.raises(ZooError, match="with exit code 7"):
        measure("mmseg", tmp_path)
    program(child, "")  # says that all went well, and left nothing
    with pytest.raises(ZooError, match="with exit code 0 and left no message"):
        measure("mmseg", tmp_path)


def test_the_child_dies_with_its_parent(tmp_path: Path, child: Path) -> None:
    """A parent that is killed outright takes its engine along: a rerun must not meet a leftover."""
    import subprocess
    import time

    program(child, f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")
    code = f"from pathlib import Path\nfrom engines import launch\nlaunch.interpreter = lambda name: {str(child)!r}\n"
    code += f"launch.measure('mmseg', Path({str(tmp_path)!r}))"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=launch.ROOT)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.05)
    pid = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the child is still there")
