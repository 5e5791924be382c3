"""What `converters inspect` says of a file: identity, coverage, sizes, hashes; and of one not whole or not known."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from typer.testing import CliRunner

from converters.__main__ import app
from converters.counts import num_parameters, operations
from converters.inspect import describe, lines
from pretrain.simsiam import SimSiam, num_trainable
from tests.converters.made import State
from tests.pretrain.test_simsiam import WIDE
from zoo.backbone import build, canonical_shapes, fingerprint
from zoo.files import sha256_file


def empty(shapes: dict[str, tuple[int, ...]]) -> State:
    """Zeros that take no memory, and counters."""
    return {
        name: torch.tensor(1) if name.endswith("tracked") else torch.zeros(()).expand(shape)
        for name, shape in shapes.items()
    }


def simsiam_file(path: Path) -> Path:
    """The reference code's checkpoint of a ResNet-50, without values (names: facebookresearch/simsiam, builder.py)."""
    with torch.device("meta"):
        network = SimSiam("resnet50", WIDE)
    state: State = {}
    for name, tensor in empty({n: tuple(t.shape) for n, t in network.state_dict().items()}).items():
        bare = name.replace("backbone.", "encoder.").replace("projector.", "encoder.fc.")
        state[f"module.{bare}"] = tensor
    state["module.encoder.fc.6.bias"] = torch.zeros(2048)
    optimizer = {"state": {}, "param_groups": [{"lr": 0.05, "momentum": 0.9, "params": [0]}]}
    torch.save({"epoch": 100, "arch": "resnet50", "state_dict": state, "optimizer": optimizer}, path)
    return path


def test_the_counts_are_the_published_ones() -> None:
    """MP:configs/simsiam/metafile.yml, as protocols §1.1 explains it."""
    assert operations("resnet50", pooled=False) == 4_109_364_224
    assert operations("resnet50", pooled=True) == 4_109_464_576
    with torch.device("meta"):
        simsiam = SimSiam("resnet50", WIDE)
        classifier = torchvision.models.resnet50()
    assert num_parameters(simsiam.state_dict()) == num_trainable(simsiam) == 38_199_360
    assert num_parameters(classifier.state_dict()) == 25_557_032
    assert num_parameters(build("resnet18").state_dict()) == sum(p.numel() for p in build("resnet18").parameters())


def test_a_simsiam_checkpoint_is_described_whole(tmp_path: Path) -> None:
    path = simsiam_file(tmp_path / "checkpoint_0099.pth.tar")
    found = describe(path)
    assert found["problems"] == []
    assert (found["layout"], found["method"], found["arch"]) == ("simsiam", "SimSiam", "resnet50")
    assert (found["where"], found["prefix"], found["stem"]) == ("state_dict", "module.encoder.", "7x7 convolution")
    coverage = found["coverage"]
    assert (coverage["matched"], coverage["expected"], coverage["missing"], coverage["unexpected"]) == (
        318,
        318,
        [],
        [],
    )
    assert {group: numbers["tensors"] for group, numbers in coverage["groups"].items()} == {
        "projector": 17,
        "predictor": 8,
    }
    assert found["size"] == {
        "backbone_parameters": 23_508_032,
        "parameters": 38_199_360,  # without the frozen bias
        "operations": 4_109_364_224,
    }
    assert (found["sha256"], found["bytes"]) == (sha256_file(path), path.stat().st_size)
    assert found["tensors_sha256"] == fingerprint(empty(canonical_shapes("resnet50")))
    assert found["training"] == {"epoch": 100, "arch": "resnet50", "optimizer.lr": 0.05, "optimizer.momentum": 0.9}
    assert found["epochs"] == 100
    text = "\n".join(lines(found))
    assert "318 of 318 tensors matched (float32), 0 missing, 0 unexpected" in text
    assert "38.20 M parameters (backbone 23.51 M), 4.11 G operations at 224 x 224" in text


def test_a_classifier_counts_its_pooling_and_its_classes(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {n: tuple(t.shape) for n, t in torchvision.models.resnet50().state_dict().items()}
    torch.save(empty(shapes), tmp_path / "a.pth")
    size = describe(tmp_path / "a.pth")["size"]
    assert (size["parameters"], size["operations"]) == (25_557_032, 4_109_464_576)


def resnet18(**extra: Any) -> dict[str, Any]:
    return {"state_dict": {n: t.clone() for n, t in empty(canonical_shapes("resnet18")).items()}, **extra}


def test_what_else_lies_in_the_file_is_told(tmp_path: Path) -> None:
    content = resnet18(
        args=Namespace(lr=0.3, data="/x", betas=[1, 2]),
        state_dict_ema=resnet18()["state_dict"],
        best=torch.tensor(1.0),
        note="x" * 500,
    )
    torch.save(content, tmp_path / "a.pth")
    found = describe(tmp_path / "a.pth")
    assert found["coverage"]["elsewhere"] == {"state_dict_ema": 120, "best": 1}
    assert found["training"] == {"args.lr": 0.3, "args.data": "/x"}
    assert found["reduced_to_data"] == ["argparse.Namespace"]
    assert "reduced to data: argparse.Namespace" in "\n".join(lines(found))


def inspected(*arguments: str | Path) -> tuple[int, str, BaseException | None]:
    ended = CliRunner().invoke(app, ["inspect", *map(str, arguments)])
    return ended.exit_code, ended.stdout, ended.exception


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def test_the_command_says_how_to_go_on(tmp_path: Path) -> None:
    torch.save(resnet18(), tmp_path / "a.pth")
    code, out, error = inspected(tmp_path / "a.pth")
    assert (code, error) == (0, None)
    next_command = f"python -m evaluate run --checkpoint {tmp_path / 'a.pth'} --benchmark NAME"
    assert out.splitlines()[-2:] == [
        "  licence   not known",
        f"every tensor is accounted for; next: {next_command}",
    ]
    code, out, _ = inspected(tmp_path / "a.pth", "--json")
    assert code == 0 and json.loads(out) == describe(tmp_path / "a.pth") | {"licence": None, "published_as": None}


def test_what_is_missing_and_what_is_unexpected_is_listed(tmp_path: Path) -> None:
    content = resnet18()
    del content["state_dict"]["layer2.0.bn1.bias"]
    content["state_dict"]["neck.weight"] = torch.zeros(1)
    torch.save(content, tmp_path / "a.pth")
    code, out, error = inspected(tmp_path / "a.pth", "--json")
    found = json.loads(out)
    assert found["coverage"]["missing"] == ["layer2.0.bn1.bias"] and found["coverage"]["unexpected"] == ["neck.weight"]
    assert (found["coverage"]["matched"], found["coverage"]["expected"]) == (119, 120)
    assert code == 1 and getattr(error, "exit_code", None) == 2  # the runner's 1: `guarded` turns the error into 2
    assert "not a whole resnet18: 119 of 120 expected tensors found" in str(error)
    _, out, _ = inspected(tmp_path / "a.pth")
    assert "119 of 120 tensors matched (float32), 1 missing, 1 unexpected" in out


def test_an_unknown_file_is_described_as_far_as_it_is_known(tmp_path: Path) -> None:
    state = {f"net.{name}": tensor for name, tensor in resnet18()["state_dict"].items()}
    torch.save({"epoch": 3, "weights": state}, tmp_path / "a.pth")
    code, out, error = inspected(tmp_path / "a.pth", "--json")
    found = json.loads(out)
    assert found["backbones"] == {"weights:net.": "resnet18"} and found["training"] == {"epoch": 3}
    assert "--take 'weights:net.'" in str(error)
    code, out, error = inspected(tmp_path / "a.pth", "--take", "weights:net.")
    assert (code, error) == (0, None) and "layout    stated; method: not said by the file" in out


def test_an_unreadable_file_still_gets_its_hash(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"no checkpoint")
    code, out, error = inspected(tmp_path / "a.pth", "--json")
    assert json.loads(out)["sha256"] == sha256_file(tmp_path / "a.pth")
    assert getattr(error, "exit_code", None) == 2 and str(error).startswith(f"{tmp_path / 'a.pth'}: ")
