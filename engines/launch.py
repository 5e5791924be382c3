"""Parent's side of an engine's child process: find its interpreter, run it, bring back what it measured."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from zoo.errors import NonFiniteError, ZooError
from zoo.files import ROOT
from zoo.process import die_with_parent

Name = Literal["detectron2", "mmseg"]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine: the packages it needs, the variable that names another interpreter, and how to get it."""

    packages: tuple[str, ...]
    variable: str
    hint: str


ENGINES: Final[dict[Name, Engine]] = {
    "detectron2": Engine(
        packages=("detectron2", "torchvision", "pycocotools"),
        variable="ZOO_DETECTION_PYTHON",
        hint="pip install --no-deps --no-build-isolation -r requirements-detectron2.txt",
    ),
    "mmseg": Engine(
        packages=("mmseg", "mmcv", "mmengine"),
        variable="ZOO_SEGMENTATION_PYTHON",
        hint="pip install -r requirements-mmseg.txt",
    ),
}


def interpreter(name: Name) -> str:
    """The Python that runs an engine: the one its variable names, else this one.

    Raises ZooError when it is no program or lacks a package, with the line that installs it. Imports nothing.
    """
    engine = ENGINES[name]
    named = os.environ.get(engine.variable)
    if named is None:
        missing = [package for package in engine.packages if importlib.util.find_spec(package) is None]
        python = sys.executable
    else:
        python = shutil.which(named) or ""
        if not python:
            raise ZooError(f"{engine.variable}: expected a Python interpreter, found '{named}'.")
        missing = _missing_in(python, engine)
    if missing:
        raise ZooError(
            f"{name} is not installed in {python} (missing: {', '.join(missing)}): {engine.hint}, "
            f"or name another interpreter in {engine.variable}."
        )
    return python


def _missing_in(python: str, engine: Engine) -> list[str]:
    program = "import importlib.util, sys\nfor n in sys.argv[1:]:\n    if not importlib.util.find_spec(n): print(n)"
    ended = subprocess.run([python, "-c", program, *engine.packages], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise ZooError(f"{engine.variable}: {python} is no working Python: {ended.stderr.strip()[-200:]}")
    return ended.stdout.split()


def measure(name: Name, folder: Path, *, procs: int = 1) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Run the job in `folder` (engines.contract) and return its measurement and arrays.

    Raises ZooError with the child's own message when it refused, NonFiniteError when its loss did, RuntimeError with
    its traceback when it failed otherwise.
    """
    module = f"engines.{name}"
    command = [interpreter(name), "-m", module, str(folder)]
    if procs > 1:
        launcher = ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(procs)]
        launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", module, str(folder)]
        command[1:] = launcher
    child = subprocess.Popen(command, cwd=ROOT, stdout=2, preexec_fn=die_with_parent)
    try:
        code = child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    if code == 0 and (folder / "measurement.json").exists():
        with np.load(folder / "arrays.npz", allow_pickle=False) as stored:
            return json.loads((folder / "measurement.json").read_text()), {n: stored[n] for n in stored.files}
    raise _failure(name, folder, code)


def _failure(name: Name, folder: Path, code: int) -> Exception:
    path = folder / "failure.json"
    if not path.exists():
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return ZooError(
            f"{name}'s process ended {how} and left no message; its log stands above. If memory ran out, lower the "
            "batch size or the number of workers. The same command goes on from its last checkpoint."
        )
    failure = json.loads(path.read_text())
    kinds = {ZooError.exit_code: ZooError, NonFiniteError.exit_code: NonFiniteError}
    return kinds.get(failure["exit_code"], RuntimeError)(f"{name}: {failure['message']}")
