"""What the tests of both engines share: weights, children, and what a proof must say."""

import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engines import launch
from zoo.backbone import Backbone
from zoo.files import ROOT


def backbone(arch: str) -> dict[str, torch.Tensor]:
    """Random weights whose batch norms are no identities."""
    torch.manual_seed(0)
    model = Backbone(arch)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.state_dict()


def program(text: str, *arguments: str) -> Any:
    """The last line that a child's program prints, as JSON."""
    command = [sys.executable, "-c", text, *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def runs(engine: str, folders: list[Path]) -> dict[str, tuple[int, str]]:
    """Folder name → (exit code, what was refused) of the jobs in these folders, all run in one child."""
    text = f"""
import json, sys
from pathlib import Path
from engines import {engine} as engine
from engines.contract import Refused, read_job
said = {{}}
for folder in map(Path, sys.argv[1:]):
    try:
        engine.run(folder, read_job(folder))
        said[folder.name] = [0, ""]
    except Refused as refusal:
        said[folder.name] = [refusal.exit_code, str(refusal)]
    if hasattr(engine, "DatasetCatalog"):
        engine.DatasetCatalog.clear()  # detectron2 takes a name once in a process
print(json.dumps(said))
"""
    return {name: (code, message) for name, (code, message) in program(text, *map(str, folders)).items()}


def stopped_twice(engine: str, folder: Path) -> list[int]:
    """Start the job in `folder`, kill -9 it after its first checkpoint; again, with SIGTERM after the next. Exit codes.

    One process that forks both: each of its own would import the engine again.
    """
    text = f"""
import json, os, signal, sys, time
from pathlib import Path
from engines import {engine} as engine
from engines.contract import child
folder = Path(sys.argv[1])
os.environ.pop("SLURM_JOB_ID", None)
tag, codes = folder / "last_checkpoint", []
for signum in (signal.SIGKILL, signal.SIGTERM):
    before = tag.read_text() if tag.exists() else ""
    pid = os.fork()
    if pid == 0:
        child(engine.run)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not tag.exists() or tag.read_text() in ("", before)):
        time.sleep(0.005)
    os.kill(pid, signum)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(json.dumps(codes))
"""
    return program(text, str(folder))


def stored(folder: Path) -> dict[str, Any]:
    """Every tensor and number of the one checkpoint in `folder`, by its place: weights, momentum, schedule."""
    (path,) = folder.glob("*.pth")
    found = torch.load(path, weights_only=True)
    return dict(_leaves({key: value for key, value in found.items() if key not in ("meta", "message_hub")}, ""))


def _leaves(value: Any, at: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, f"{at}/{key}")
    else:
        yield at, value.numpy().tobytes() if isinstance(value, torch.Tensor) else value


def watched(engine: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on tests.engines.witness runs in the place of `engine`."""
    path = folder / "python"
    swap = (
        f"[sys.executable, *('tests.engines.witness' if word == 'engines.{engine}' else word for word in sys.argv[1:])]"
    )
    path.write_text(f"#!{sys.executable}\nimport os, sys\nos.execv(sys.executable, {swap})\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("WITNESSED", engine)
    monkeypatch.setattr(launch, "interpreter", lambda name: str(path))


def check_ranks(folder: Path, measurement: dict[str, Any], *, batch: int, lr: float, first: float) -> None:
    """Two processes hold the same tensors; the global batch and the rates, as the processes had them."""
    said = [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(2)]
    assert said[0]["state"] == said[1]["state"] and said[0]["state"]
    assert sum(one["images"] for one in said) == batch == measurement["batch"]
    assert measurement["lr"] == lr and [one["rate"] for one in said] == [first, first]


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def check_proofs(proofs: dict[str, Any], tensors: int) -> None:
    assert proofs["tensors"] == tensors
    for precision, limit in (("fp32", 1e-5), ("fp64", 1e-10)):
        differences = proofs["largest_difference"][precision]
        assert set(differences) == {"feature2", "feature3", "feature4", "feature5"}
        assert max(differences.values()) <= limit
