"""python -m converters convert, as it is typed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from typer.testing import CliRunner

from converters.__main__ import app
from zoo.backbone import fingerprint, read_weights
from zoo.checkpoint import WEIGHTS_NAME, read_card
from zoo.files import ROOT, sha256_file


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def converters(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "converters", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_a_file_becomes_weights_with_a_card(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    torch.save({"state_dict": state}, tmp_path / "1e4.pth")  # a name that YAML would take for a number
    ended = CliRunner().invoke(app, ["convert", str(tmp_path / "1e4.pth"), str(tmp_path / "out"), "--to", "canonical"])
    assert (ended.exit_code, ended.stderr) == (0, "")
    card = read_card(tmp_path / "out")
    assumed, written = ended.stdout.splitlines()
    assert assumed.startswith("pixels: taken to be RGB with ImageNet's mean and std")
    assert written.startswith(f"resnet18, 120 tensors, {card.tensors_sha256[:16]}… -> ")
    assert (card.name, card.family, card.arch, card.source_format) == ("1e4", "1e4", "resnet18", "torchvision")
    assert card.lineage == (f"1e4.pth (sha256 {sha256_file(tmp_path / '1e4.pth')}), read as torchvision",)
    found = read_weights(tmp_path / "out" / WEIGHTS_NAME)
    assert fingerprint(found) == card.tensors_sha256
    assert all(torch.equal(found[name], state[name]) for name in found)


@pytest.mark.slow  # a Python of its own that loads torch
def test_what_cannot_be_read_ends_with_exit_code_2_and_writes_nothing(tmp_path: Path) -> None:
    torch.save({"module.conv1.weight": torch.zeros(2)}, tmp_path / "a.pth")
    ended = converters("convert", tmp_path / "a.pth", tmp_path / "out")
    assert ended.returncode == 2 and ended.stderr.startswith("error: ") and "Traceback" not in ended.stderr
    assert (
        "expected the blocks of one of resnet18, resnet34, resnet50, resnet101, found stages of 0, 0, 0, 0"
        in ended.stderr
    )
    assert not (tmp_path / "out").exists()


def test_an_unknown_target_is_refused_with_those_there_are(tmp_path: Path) -> None:
    ended = converters("convert", "a.pth", tmp_path / "out", "--to", "caffe")
    assert ended.returncode == 2 and "canonical" in ended.stderr
