"""Do the set-up scripts do what they say? They run here in a copy of the repository's root, with a PATH that holds
a fake python3.11 (a shell script that notes how it was called) in place of every real one, so nothing is installed."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("bash", "cat", "dirname", "env", "flock", "mkdir", "mv", "realpath", "rm", "sha256sum", "sleep", "tail")

# Answers scripts/environment.sh's questions and notes every other call in calls.txt. FAKE_FACTS: what it says of
# itself; FAKE_FAILS, FAKE_SLEEPS: a word of the command line of a call that is to fail, or to take long.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$*" in
  "-I -S -c "*) echo 3.11.7; exit ;;
  "-I -c "*) echo "${FAKE_FACTS:-CPython 3.11.7 Linux x86_64 with venv $0}"; exit ;;
esac
echo "$*" >>calls.txt
if [[ "$*" == "-m venv .venv" ]]; then mkdir .venv/bin; cat "$0" >.venv/bin/python; chmod +x .venv/bin/python; fi
if [[ -n ${FAKE_FAILS:-} && "$*" == *"$FAKE_FAILS"* ]]; then echo "no space left"; exit 7; fi
if [[ -n ${FAKE_SLEEPS:-} && "$*" == *"$FAKE_SLEEPS"* ]]; then sleep 30; fi
"""
UNSUITABLE = (
    "error: expected CPython 3.11 on x86-64 Linux with venv; found: {}; put such a python3.11 on PATH, "
    "or set ZOO_PYTHON to an interpreter that has the packages\n"
)
INSTALLS = [
    "-m venv .venv",
    "-m pip --disable-pip-version-check --no-input install -r requirements-pip.txt",
    "-m pip --disable-pip-version-check --no-input uninstall --yes faiss-gpu",
    "-m pip --disable-pip-version-check --no-input install --progress-bar off -c requirements-constraints.txt "
    "--build-constraint requirements-constraints.txt -r requirements.txt -r requirements-faiss-cpu.txt",
    "-m pip --disable-pip-version-check --no-input install --no-deps "
    "--build-constraint requirements-constraints.txt -r requirements-mmseg.txt",
    "-m pip --disable-pip-version-check --no-input install --no-deps --no-build-isolation "
    "-r requirements-detectron2.txt",
    "-m pip --disable-pip-version-check --no-input install --no-deps --no-build-isolation -r requirements-readers.txt",
]
SET_UP = 'set -euo pipefail; source scripts/environment.sh; zoo_environment; echo "$PYTHON"'
READY = "environment: .venv (Python 3.11.7, cpu)\n"


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class Checkout:
    """A copy of the scripts and requirements, and a PATH without the machine's interpreters."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        (root / "scripts").mkdir()
        self.bin.mkdir()
        for path in (ROOT / "scripts/environment.sh", ROOT / "run_all.sh", ROOT / "run_tests.sh"):
            shutil.copy(path, root / path.relative_to(ROOT))
        for path in ROOT.glob("requirements*.txt"):
            shutil.copy(path, root)
        for tool in (*TOOLS, "chmod"):
            found = shutil.which(tool)
            assert found, f"this test needs {tool}"
            (self.bin / tool).symlink_to(found)
        executable(self.bin / "nproc", "#!/usr/bin/env bash\necho 2\n")

    def command(self, arguments: list[str], **environment: str) -> subprocess.Popen[str]:
        # --default-signal: a test run started in the background ignores Ctrl-C, and its children would too
        return subprocess.Popen(
            ["env", "--default-signal=INT", "bash", *arguments],
            cwd=self.root,
            env={"PATH": str(self.bin), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        process = self.command(list(arguments), **environment)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def set_up(self, **environment: str) -> tuple[int, str, str]:
        return self.run("-c", SET_UP, **environment)

    def calls(self) -> list[str]:
        """What the fake interpreters were asked to do since the last look."""
        notes = self.root / "calls.txt"
        if not notes.exists():
            return []
        lines = notes.read_text().splitlines()
        notes.unlink()
        return lines

    def is_busy_with(self, command: str) -> bool:
        notes = self.root / "calls.txt"
        return notes.exists() and command in notes.read_text()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def python(checkout: Checkout) -> Path:
    return executable(checkout.bin / "python3.11", FAKE_PYTHON)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited 30 s in vain"
        time.sleep(0.02)


# --- which interpreter makes .venv


@pytest.mark.parametrize(
    "facts",
    [
        "CPython 3.9.2 Linux x86_64 with venv",
        "CPython 3.12.1 Linux x86_64 with venv",
        "PyPy 3.11.7 Linux x86_64 with venv",
        "CPython 3.11.7 Darwin arm64 with venv",
        "CPython 3.11.7 Linux aarch64 with venv",
        "CPython 3.11.7 Linux x86_64 without venv",
    ],
)
def test_an_unsuitable_python_is_refused_in_one_line(checkout: Checkout, python: Path, facts: str) -> None:
    code, out, err = checkout.set_up(FAKE_FACTS=f"{facts} {python}")
    assert (code, out, err) == (2, "", UNSUITABLE.format(f"{python} is {facts}"))
    assert not (checkout.root / ".venv").exists()


def test_a_broken_python_is_refused_in_one_line(checkout: Checkout) -> None:
    python = executable(checkout.bin / "python3.11", "#!/usr/bin/env bash\necho shim: no such version >&2\nexit 127\n")
    assert checkout.set_up() == (2, "", UNSUITABLE.format(f"{python} is broken: it does not start"))


def test_no_python_at_all_is_refused_in_one_line(checkout: Checkout) -> None:
    assert checkout.set_up() == (2, "", UNSUITABLE.format("no python3.11 or python3 on PATH"))


def test_python3_serves_where_python311_is_broken(checkout: Checkout) -> None:
    executable(checkout.bin / "python3.11", "#!/usr/bin/env bash\nexit 127\n")
    python3 = executable(checkout.bin / "python3", FAKE_PYTHON)
    code, _, err = checkout.set_up()
    assert code == 0
    assert err.startswith(f"environment: making .venv with {python3} (cpu); log: .venv/install.log\n")


# --- ZOO_PYTHON


def test_zoo_python_that_is_no_executable_is_refused(checkout: Checkout) -> None:
    for name in ("missing", "scripts", "run_all.sh.txt"):
        path = checkout.root / name
        if name.endswith(".txt"):
            path.write_text("not executable")
        expected = (
            f"error: ZOO_PYTHON={path} is not an executable file: set it to a Python interpreter's absolute path\n"
        )
        assert checkout.set_up(ZOO_PYTHON=str(path)) == (2, "", expected)


def test_zoo_python_that_does_not_start_is_refused_with_its_last_line(checkout: Checkout) -> None:
    path = executable(checkout.root / "python", "#!/usr/bin/env bash\necho first >&2\necho no libpython >&2\nexit 1\n")
    expected = f"error: ZOO_PYTHON={path} does not run as Python: no libpython\n"
    assert checkout.set_up(ZOO_PYTHON=str(path)) == (2, "", expected)


@pytest.mark.parametrize("version", ["3.10", "2.7"])
def test_zoo_python_that_is_too_old_is_refused(checkout: Checkout, version: str) -> None:
    path = executable(checkout.root / "python", f"#!/usr/bin/env bash\necho {version}\n")
    expected = f"error: ZOO_PYTHON={path} is Python {version}, expected 3.11 or newer: set it to another interpreter\n"
    assert checkout.set_up(ZOO_PYTHON=str(path)) == (2, "", expected)


def real_python_with(checkout: Checkout, modules: list[str]) -> Path:
    """A wrapper of this test's own interpreter that finds the standard library and empty MODULES only."""
    site = checkout.root / "site"
    site.mkdir()
    for module in modules:
        (site / f"{module}.py").touch()
    return executable(
        checkout.root / "python", f'#!/usr/bin/env bash\nPYTHONPATH={site} exec {sys.executable} -S "$@"\n'
    )


def needed_modules() -> dict[str, list[str]]:
    text = (ROOT / "scripts/environment.sh").read_text()
    found = re.findall(r"^(ZOO_\w*MODULES)=\(([^)]*)\)", text, re.MULTILINE)
    return {name: words.split() for name, words in found}


def test_zoo_python_lacking_modules_is_refused_with_all_of_them_named(checkout: Checkout) -> None:
    needed = sum(needed_modules().values(), [])
    python = real_python_with(checkout, [name for name in needed if name not in ("scipy", "faiss", "mmcv")])
    expected = (
        f"error: ZOO_PYTHON={python} lacks scipy, faiss, mmcv: install them there (requirements*.txt) "
        "or unset ZOO_PYTHON\n"
    )
    assert checkout.set_up(ZOO_PYTHON=str(python)) == (2, "", expected)


def test_zoo_python_is_used_as_it_is_and_engines_may_live_elsewhere(checkout: Checkout) -> None:
    python = real_python_with(checkout, needed_modules()["ZOO_MODULES"])
    others = {"ZOO_DETECTION_PYTHON": "/somewhere/python", "ZOO_SEGMENTATION_PYTHON": "/elsewhere/python"}
    code, out, err = checkout.set_up(ZOO_PYTHON=str(python), **others)
    version = "{}.{}".format(*sys.version_info)
    assert (code, out, err) == (0, f"{python}\n", f"environment: ZOO_PYTHON={python} (Python {version})\n")
    assert not (checkout.root / ".venv").exists()


def test_this_interpreter_has_every_module_that_is_asked_for(checkout: Checkout) -> None:
    code, _, err = checkout.set_up(ZOO_PYTHON=sys.executable)
    assert code == 0, err


# --- .venv


def test_a_fresh_set_up_pins_pip_first_and_stamps_last(checkout: Checkout, python: Path) -> None:
    code, out, err = checkout.set_up()
    assert code == 0
    assert out == f"{checkout.root}/.venv/bin/python\n"
    assert re.sub(r"\d+ s\n", "N s\n", err) == (
        f"environment: making .venv with {python} (cpu); log: .venv/install.log\n"
        "  1/5 virtual environment and pip ... N s\n"
        "  2/5 torch and the other packages (3 GB; some minutes) ... N s\n"
        "  3/5 mmsegmentation ... N s\n"
        "  4/5 detectron2 ... N s\n"
        "  5/5 libraries that the tests compare with ... N s\n" + READY
    )
    assert checkout.calls() == INSTALLS
    assert re.fullmatch(r"3\.11\.7 cpu [0-9a-f]{64}\n", (checkout.root / ".venv/zoo-stamp").read_text())


def test_a_second_set_up_does_nothing_and_says_one_line(checkout: Checkout, python: Path) -> None:
    checkout.set_up()
    checkout.calls()
    python.unlink()  # not looked for either
    started = time.monotonic()
    assert checkout.set_up() == (0, f"{checkout.root}/.venv/bin/python\n", READY)
    assert time.monotonic() - started < 5
    assert checkout.calls() == []


def test_edited_requirements_are_installed_in_place(checkout: Checkout, python: Path) -> None:
    checkout.set_up()
    checkout.calls()
    with (checkout.root / "requirements-constraints.txt").open("a") as file:
        file.write("another==1.0\n")
    code, _, err = checkout.set_up()
    assert code == 0
    assert err.startswith("environment: bringing .venv up to date with requirements*.txt (cpu); log: .venv/install.log")
    assert checkout.calls() == INSTALLS[1:]


def test_a_failing_pip_ends_the_script_with_its_log_and_the_next_run_starts_anew(
    checkout: Checkout, python: Path
) -> None:
    code, out, err = checkout.set_up(FAKE_FAILS="requirements-mmseg.txt")
    assert (code, out) == (1, "")
    assert "  3/5 mmsegmentation ... failed. The log ends:\n" in err
    assert err.endswith(
        "\n## 3/5 mmsegmentation\nno space left\n"
        "error: setting up .venv failed at step 3/5 mmsegmentation; "
        f"whole log: {checkout.root}/.venv/install.log; run again to retry\n"
    )
    assert checkout.calls() == INSTALLS[:5]
    assert checkout.set_up()[0] == 0
    assert checkout.calls() == INSTALLS


@pytest.mark.parametrize("failing", ["-m venv", "requirements-pip.txt", "uninstall", "requirements-faiss-cpu.txt"])
def test_no_failing_command_is_passed_over(checkout: Checkout, python: Path, failing: str) -> None:
    assert checkout.set_up(FAKE_FAILS=failing)[0] == 1
    assert failing in checkout.calls()[-1]
    assert not (checkout.root / ".venv/zoo-stamp").exists()


def test_a_set_up_killed_within_pip_is_repeated(checkout: Checkout, python: Path) -> None:
    process = checkout.command(["-c", SET_UP], FAKE_SLEEPS="requirements-faiss-cpu.txt")
    wait_until(lambda: checkout.is_busy_with("requirements-faiss-cpu.txt"))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    checkout.calls()
    assert checkout.set_up()[0] == 0
    assert checkout.calls() == INSTALLS


def test_a_venv_whose_interpreter_vanished_is_made_anew(checkout: Checkout, python: Path) -> None:
    checkout.set_up()
    checkout.calls()
    interpreter = checkout.root / ".venv/bin/python"
    interpreter.unlink()
    interpreter.symlink_to("/gone/python3.11")
    assert checkout.set_up()[0] == 0
    assert checkout.calls() == INSTALLS


def test_a_gpu_swaps_faiss_and_its_loss_swaps_it_back(checkout: Checkout, python: Path) -> None:
    checkout.set_up()
    checkout.calls()
    smi = executable(checkout.bin / "nvidia-smi", "#!/usr/bin/env bash\necho 'GPU 0: Some (UUID: GPU-1)'\n")
    code, _, err = checkout.set_up()
    assert (code, err.splitlines()[-1]) == (0, "environment: .venv (Python 3.11.7, gpu)")
    calls = checkout.calls()
    assert calls[1].endswith("uninstall --yes faiss-cpu")
    assert calls[2].endswith("-r requirements.txt -r requirements-faiss-gpu.txt")

    executable(smi, "#!/usr/bin/env bash\necho 'No devices were found'\nexit 6\n")
    assert checkout.set_up()[2].endswith(READY)
    assert checkout.calls() == INSTALLS[1:]


def test_two_set_ups_at_once_install_once(checkout: Checkout, python: Path) -> None:
    executable(python, FAKE_PYTHON.replace("sleep 30", "sleep 1"))
    processes = [checkout.command(["-c", SET_UP], FAKE_SLEEPS="requirements-pip.txt") for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("environment: waiting for another set-up of .venv\n" in text for text in errors) == 1
    assert checkout.calls() == INSTALLS


# --- run_all.sh and run_tests.sh


@pytest.fixture
def ready(checkout: Checkout, python: Path) -> Checkout:
    """A checkout that is set up and has two suites."""
    (checkout.root / "configs/suites").mkdir(parents=True)
    for name in ("mini", "real"):
        (checkout.root / f"configs/suites/{name}.yaml").touch()
    assert checkout.set_up()[0] == 0
    checkout.calls()
    return checkout


def test_run_all_prints_its_usage_without_setting_up(checkout: Checkout) -> None:
    for option in ("-h", "--help"):
        code, out, err = checkout.run("run_all.sh", option)
        assert (code, out.splitlines()[0], err) == (0, "usage: ./run_all.sh [SUITE.yaml] [OPTION...]", "")


def test_run_all_refuses_a_missing_suite_before_setting_up(checkout: Checkout) -> None:
    (checkout.root / "configs/suites").mkdir(parents=True)
    (checkout.root / "configs/suites/mini.yaml").touch()
    expected = "error: no suite file configs/suites/minni.yaml; there are: configs/suites/mini.yaml \n"
    assert checkout.run("run_all.sh", "configs/suites/minni.yaml") == (2, "", expected)


def test_run_all_makes_the_world_for_a_mini_suite_only(ready: Checkout) -> None:
    assert ready.run("run_all.sh") == (0, "", READY)
    assert ready.calls() == ["-m mini", "-m evaluate suite configs/suites/mini.yaml"]
    assert ready.run("run_all.sh", "configs/suites/real.yaml") == (0, "", READY)
    assert ready.calls() == ["-m evaluate suite configs/suites/real.yaml"]


def test_run_all_passes_options_on_and_takes_a_path_from_any_folder(ready: Checkout) -> None:
    assert ready.run("run_all.sh", "--set", "seeds=[0]")[0] == 0
    assert ready.calls() == ["-m mini", "-m evaluate suite configs/suites/mini.yaml --set seeds=[0]"]
    assert ready.run("-c", "cd configs/suites && bash ../../run_all.sh mini.yaml -x")[0] == 0
    assert ready.calls() == ["-m mini", "-m evaluate suite configs/suites/mini.yaml -x"]


def test_run_all_stops_at_the_first_failure_with_its_code(ready: Checkout) -> None:
    assert ready.run("run_all.sh", FAKE_FAILS="-m mini")[0] == 7
    assert ready.calls() == ["-m mini"]


@pytest.mark.parametrize(("script", "busy"), [("run_all.sh", "-m mini"), ("run_tests.sh", "-m ruff format")])
def test_ctrl_c_ends_a_script_with_130(ready: Checkout, script: str, busy: str) -> None:
    process = ready.command([script], FAKE_SLEEPS=busy)
    wait_until(lambda: ready.is_busy_with(busy))
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(ready.calls()) == 1


def test_run_tests_runs_every_check_and_hands_its_arguments_to_pytest(ready: Checkout) -> None:
    code, out, _ = ready.run("run_tests.sh", "-k", "knn")
    titles = [line for line in out.splitlines() if line.startswith("==")]
    assert (code, titles) == (0, ["== ruff format --check", "== ruff check", "== pyright", "== pytest"])
    assert ready.calls() == [
        "-m ruff format --check .",
        "-m ruff check .",
        f"-m pyright --pythonpath {ready.root}/.venv/bin/python",
        "-m pytest -n 2 --maxschedchunk 1 -k knn",
    ]
    executable(ready.bin / "nproc", "#!/usr/bin/env bash\necho 64\n")
    ready.run("run_tests.sh")
    assert ready.calls()[-1] == "-m pytest -n 4 --maxschedchunk 1"  # each of them loads torch


def test_run_tests_stops_at_the_first_failure_with_its_code(ready: Checkout) -> None:
    code, out, _ = ready.run("run_tests.sh", FAKE_FAILS="-m pyright")
    assert (code, out.splitlines()[-1]) == (7, "no space left")
    assert "-m pyright" in ready.calls()[-1]


# --- requirements*.txt


def pins(path: Path) -> dict[str, str]:
    """Package -> version; a line that is not an exact pin fails."""
    found = {}
    for line in path.read_text().splitlines():
        requirement = line.split("#")[0].split(" --")[0].strip()
        if not requirement:
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[\w+\])?==([\w.]+)", requirement)
        assert match, f"{path.name}: expected NAME==VERSION, found {line!r}"
        found[match[1].lower().replace("_", "-")] = match[2]
    return found


def test_every_requirement_is_pinned_and_the_constraints_agree() -> None:
    constraints = pins(ROOT / "requirements-constraints.txt")
    for name, version in pins(ROOT / "requirements.txt").items():
        assert constraints.get(name) == version, name
    engines = ["pip", "faiss-cpu", "faiss-gpu", "mmseg", "detectron2"]
    assert all(pins(ROOT / f"requirements-{name}.txt") for name in engines)
    # each would bring another cv2 beside opencv-python-headless, or another faiss
    assert not {"opencv-python", "faiss-cpu", "faiss-gpu"} & {*constraints}
