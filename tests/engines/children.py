"""What the tests of both engines share: weights, children, and what a proof must say."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

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
print(json.dumps(said))
"""
    return {name: (code, message) for name, (code, message) in program(text, *map(str, folders)).items()}


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def check_proofs(proofs: dict[str, Any], tensors: int) -> None:
    assert proofs["tensors"] == tensors
    for precision, limit in (("fp32", 1e-5), ("fp64", 1e-10)):
        differences = proofs["largest_difference"][precision]
        assert set(differences) == {"feature2", "feature3", "feature4", "feature5"}
        assert max(differences.values()) <= limit
