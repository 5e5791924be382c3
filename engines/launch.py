"""Parent's side of an engine's child process: find its interpreter, run it, bring back what it measured."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from engines.installed import installed
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
    # of the packages that the requirements pin: major and minor version, and the names they are distributed under
    releases: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)


ENGINES: Final[dict[Name, Engine]] = {
    "detectron2": Engine(
        packages=("detectron2", "torchvision", "pycocotools"),
        variable="ZOO_DETECTION_PYTHON",
        hint="pip install --no-deps --no-build-isolation -r requirements-detectron2.txt",
        releases={"detectron2": ("0.6", ("detectron2", "pb1-detectron2"))},
    ),
    "mmseg": Engine(
        packages=("mmseg", "mmcv", "mmengine"),
        variable="ZOO_SEGMENTATION_PYTHON",
        hint="pip install -r requirements-mmseg.txt",
        releases={
            "mmseg": ("1.4", ("mmsegmentation", "onedl-mmsegmentation")),
            "mmcv": ("2.3", ("mmcv", "mmcv-lite", "onedl-mmcv")),
            "mmengine": ("0.10", ("mmengine", "mmengine-lite", "onedl-mmengine")),
        },
    ),
}


def interpreter(name: Name) -> str:
    """The Python that runs an engine: the one its variable names, else this one.

    Raises ZooError when it is no program, lacks a package, or has another release of the engine than ours (the same
    major and minor version will do, under whatever name it is distributed), with the line that installs it. Imports
    nothing.
    """
    engine = ENGINES[name]
    named = os.environ.get(engine.variable)
    if named is None:
        python = sys.executable
        found = installed(_asked(engine))
    else:
        python = shutil.which(named) or ""
        if not python:
            raise ZooError(f"{engine.variable}: expected a Python interpreter, found '{named}'.")
        found = _installed_in(python, engine)
    fix = f"{engine.hint}, or name another interpreter in {engine.variable}."
    missing = [package for package in engine.packages if found[package] is None]
    if missing:
        raise ZooError(f"{name} is not installed in {python} (missing: {', '.join(missing)}): {fix}")
    other = [
        f"expected {package} {release}, found {' and '.join(found[package] or []) or 'no version of it'}"
        for package, (release, _) in engine.releases.items()
        if {_release(version) for version in found[package] or []} != {release}
    ]
    if other:
        raise ZooError(f"{name} is another version in {python} ({'; '.join(other)}): {fix}")
    return python


def _release(version: str) -> str:
    """Major and minor number: 0.6 of 0.6+cu111."""
    return ".".join(version.partition("+")[0].split(".")[:2])


def _asked(engine: Engine) -> dict[str, tuple[str, ...]]:
    return {package: engine.releases[package][1] if package in engine.releases else () for package in engine.packages}


def _installed_in(python: str, engine: Engine) -> dict[str, list[str] | None]:
    command = [python, "-m", "engines.installed", json.dumps(_asked(engine))]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    try:
        if ended.returncode == 0:
            return json.loads(ended.stdout)
    except ValueError:
        pass
    said = (ended.stderr.strip() or ended.stdout.strip())[-200:]
    raise ZooError(f"{engine.variable}: {python} is no working Python: {said or 'it gave no answer'}")


def measure(name: Name, folder: Path, *, procs: int = 1) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Run the job in `folder` (engines.contract) and return its measurement and arrays.

    Raises ZooError with the child's own message when it refused, NonFiniteError when its loss did, RuntimeError with
    its traceback when it failed otherwise. Stopped by a signal, it waits until the child has saved its state.
    """
    module = f"engines.{name}"
    command = [interpreter(name), "-m", module, str(folder)]
    if procs > 1:
        launcher = ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(procs)]
        launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", module, str(folder)]
        command[1:] = launcher
    patient = os.environ | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "100"}  # seconds to save a state in, as zoo.distributed
    child = subprocess.Popen(command, cwd=ROOT, stdout=2, env=patient, preexec_fn=die_with_parent)
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
