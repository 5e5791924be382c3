"""The engine that is missing, the interpreter that is none, the child that fails: each has its message."""

import json
import os
import re
import stat
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from engines import launch
from engines.installed import installed
from engines.launch import Name, interpreter, measure
from zoo.errors import NonFiniteError, ZooError
from zoo.files import ROOT


def test_the_engines_are_here() -> None:
    assert interpreter("detectron2") == interpreter("mmseg") == sys.executable


def test_a_missing_engine_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {package: ["0.6"] for package in launch.ENGINES["detectron2"].packages}
    monkeypatch.setattr(launch, "installed", lambda asked: {name: here.get(name) for name in asked})
    with pytest.raises(
        ZooError,
        match=r"mmseg is not installed in .* \(missing: mmseg, mmcv, mmengine\): pip install -r requirements-mms",
    ):
        interpreter("mmseg")
    interpreter("detectron2")


def test_packages_are_found_without_importing_them() -> None:
    asked = {"json": (), "torch": ("no-such-distribution", "torch"), "no_such_module": ("torch",)}
    assert installed(asked) == {"json": [], "torch": [version("torch")], "no_such_module": None}


@pytest.mark.parametrize("name", ["detectron2", "mmseg"])
def test_the_releases_are_those_the_requirements_pin(name: Name) -> None:
    pinned = dict(re.findall(r"^([\w-]+)==(\d+\.\d+)", (ROOT / f"requirements-{name}.txt").read_text(), re.MULTILINE))
    releases = launch.ENGINES[name].releases.values()
    assert pinned == {next(title for title in titles if title in pinned): release for release, titles in releases}


def answering(path: Path, **found: list[str] | None) -> str:
    """An interpreter with these packages, as it answers when it is asked."""
    return program(path, f"print({json.dumps(found)!r})")


OTHER_VERSIONS = {
    "0.6": (["0.6"], None),
    "a build of it": (["0.6+cu111"], None),
    "a patch": (["0.6.1"], None),
    "both names": (["0.6", "0.6.3"], None),
    "older": (["0.5"], "expected detectron2 0.6, found 0.5"),
    "newer": (["0.60"], "expected detectron2 0.6, found 0.60"),
    "one of two": (["0.5", "0.6"], "expected detectron2 0.6, found 0.5 and 0.6"),
    "unknown": ([], "expected detectron2 0.6, found no version of it"),
}


@pytest.mark.parametrize("case", OTHER_VERSIONS)
def test_an_engine_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    versions, words = OTHER_VERSIONS[case]
    monkeypatch.setattr(launch, "installed", lambda asked: {name: versions for name in asked})
    if words is None:
        assert interpreter("detectron2") == sys.executable
        return
    fix = (
        "pip install --no-deps --no-build-isolation -r requirements-detectron2.txt, or name another interpreter in ZOO"
    )
    with pytest.raises(ZooError, match=rf"detectron2 is another version in .*python.* \({words}\): {fix}"):
        interpreter("detectron2")


def program(path: Path, text: str) -> str:
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_another_interpreter_is_asked_for_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DETECTION_PYTHON", "no-such-python")
    with pytest.raises(ZooError, match="ZOO_DETECTION_PYTHON: expected a Python interpreter, found 'no-such-python'"):
        interpreter("detectron2")
    rest: dict[str, list[str] | None] = {"torchvision": [], "pycocotools": []}
    monkeypatch.setenv("ZOO_DETECTION_PYTHON", answering(tmp_path / "bare", detectron2=None, **rest))
    with pytest.raises(ZooError, match=r"detectron2 is not installed in .*bare \(missing: detectron2\)"):
        interpreter("detectron2")
    monkeypatch.setenv("ZOO_DETECTION_PYTHON", program(tmp_path / "broken", "raise SystemExit('no libpython')"))
    with pytest.raises(ZooError, match="is no working Python: no libpython"):
        interpreter("detectron2")
    monkeypatch.setenv("ZOO_DETECTION_PYTHON", program(tmp_path / "mute", ""))
    with pytest.raises(ZooError, match="is no working Python: it gave no answer"):
        interpreter("detectron2")
    monkeypatch.setenv("ZOO_DETECTION_PYTHON", answering(tmp_path / "old", detectron2=["0.5"], **rest))
    with pytest.raises(ZooError, match=r"another version in .*old \(expected detectron2 0.6, found 0.5\)"):
        interpreter("detectron2")
    monkeypatch.setenv("ZOO_DETECTION_PYTHON", answering(tmp_path / "good", detectron2=["0.6"], **rest))
    assert interpreter("detectron2") == str(tmp_path / "good")
    monkeypatch.setenv("ZOO_DETECTION_PYTHON", sys.executable)  # asked in earnest
    assert interpreter("detectron2") == sys.executable


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
