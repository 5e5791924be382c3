"""Can the engines be used here? python -m engines: a JSON list, each engine imported by the interpreter that runs it.

`python -m engines NAME` is what those interpreters are asked: import NAME as its child process does, and print what was
found as one line of JSON.
"""

import importlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from engines.launch import ENGINES, Name, interpreter
from zoo.errors import ZooError
from zoo.files import ROOT

PATIENCE = 600  # seconds for one import: minutes are real on a network disk that is asked for the first time


def ask(name: Name) -> dict[str, Any]:
    """One engine's state, as JSON values. Never raises for an engine that does not work.

    engine; and python, versions, device (zoo.device.facts) of a working one; or error, fix, and broken: False where the
    engine is merely not installed and nobody has named an interpreter for it.
    """
    engine = ENGINES[name]
    try:
        python = interpreter(name)
    except ZooError as error:
        text, missing, fix = str(error).partition("): ")
        fix = fix or f"name a Python that works in {engine.variable}, or unset it."
        return _bad(name, text + missing.removesuffix(": "), fix, broken=engine.variable in os.environ)
    title = f"{name} is installed in {python}, but"
    fix = f"{engine.hint}, or name another interpreter in {engine.variable}."
    try:
        command = [python, "-m", "engines", name]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if ended.returncode == 0:
            return {"engine": name, "python": python, **json.loads(ended.stdout.splitlines()[-1])}
    except subprocess.TimeoutExpired:
        return _bad(name, f"{title} importing it took more than {PATIENCE} s", fix, broken=True)
    except (IndexError, ValueError):
        return _bad(name, f"{title} it gave no answer: is it a Python?", fix, broken=True)
    last = ended.stderr.strip().rpartition("\n")[2] or f"exit code {ended.returncode}"
    return _bad(name, f"{title} does not import there: {last}", fix, broken=True)


def _bad(name: Name, error: str, fix: str, *, broken: bool) -> dict[str, Any]:
    return {"engine": name, "error": error, "fix": fix, "broken": broken}


def here(name: Name) -> dict[str, Any]:
    """Import the engine in this process; the versions of its packages, and what its torch sees."""
    importlib.import_module(f"engines.{name}")
    from zoo.device import facts

    versions = {package: getattr(sys.modules.get(package), "__version__", None) for package in ENGINES[name].packages}
    return {"versions": {package: version for package, version in versions.items() if version}, "device": facts()}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(here(next(name for name in ENGINES if name == sys.argv[1]))))
    else:
        with ThreadPoolExecutor() as pool:
            print(json.dumps(list(pool.map(ask, ENGINES))))
