"""States that survive damage, and backbones that the next stage can read."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.checkpoint import Origin, State, export_backbone, latest_state, save_state
from pretrain.session import build_model
from zoo.backbone import build, fingerprint, load
from zoo.checkpoint import read_card
from zoo.errors import CheckpointError, ConfigError, NonFiniteError
from zoo.transforms import IMAGENET_PIXELS


def state(step: int, key: str = "a" * 64) -> State:
    model = {"weight": torch.full((3,), float(step))}
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return State(key=key, epoch=step // 10, step=step, model=model, optimizer=optimizer, deviations=[0.5, 0.25])


def origin(**changes: Any) -> Origin:
    values = {
        "name": "tiny",
        "family": "tiny",
        "arch": "resnet18",
        "pixels": IMAGENET_PIXELS,
        "pretrain_seed": 0,
        "epochs": 1,
        "lineage": ("tiny seed 0",),
    }
    return Origin(**{**values, **changes})


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    save_state(tmp_path, state(7))
    found = latest_state(tmp_path, "a" * 64)
    assert found is not None and (found.epoch, found.step, found.deviations) == (0, 7, [0.5, 0.25])
    assert torch.equal(found.model["weight"], torch.full((3,), 7.0))
    assert torch.equal(found.optimizer["state"][0]["momentum_buffer"], torch.ones(3))


def test_there_is_none_before_the_first(tmp_path: Path) -> None:
    assert latest_state(tmp_path, "a" * 64) is None


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 20, 1000):
        save_state(tmp_path, state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-000000020.pt", "state-000001000.pt"]
    found = latest_state(tmp_path, "a" * 64)
    assert found is not None and found.step == 1000


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_state_is_passed_over_aloud(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    save_state(tmp_path, state(10))
    path = save_state(tmp_path, state(20))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    broken = {"truncated": path.read_bytes()[:-9], "flipped": bytes(data), "empty": b"", "foreign": b"#!/bin/sh\n" * 9}
    path.write_bytes(broken[damage])
    with caplog.at_level(logging.WARNING):
        found = latest_state(tmp_path, "a" * 64)
    assert found is not None and found.step == 10
    assert "state-000000020.pt: damaged" in caplog.text and "Going back to the state before" in caplog.text


def test_nothing_readable_is_an_error_and_no_silent_new_start(tmp_path: Path) -> None:
    save_state(tmp_path, state(10)).write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of its 1 states can be read; remove the folder to start anew"):
        latest_state(tmp_path, "a" * 64)


def test_another_runs_state_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, state(10))
    with pytest.raises(ConfigError, match=r"belongs to run a{12}…, expected b{12}….*Choose another --out"):
        latest_state(tmp_path, "b" * 64)


def test_the_exported_backbone_is_canonical_and_named_by_its_card(tmp_path: Path, tiny: Any) -> None:
    backbone = build_model(tiny.config(), num_classes=2, seed=0).backbone
    card = read_card(export_backbone(tmp_path, backbone.state_dict(), origin()))
    assert card.tensors_sha256 == fingerprint(backbone.state_dict())
    assert card.pixels == IMAGENET_PIXELS and card.source_format == "canonical"
    loaded = load(card, tmp_path / card.weights, torch.device("cpu"))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(images), backbone.eval()(images))


def test_non_finite_weights_are_never_exported(tmp_path: Path) -> None:
    weights = build("resnet18").state_dict()
    weights["layer2.0.conv1.weight"][0, 0, 0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match="1 tensors .layer2.0.conv1.weight"):
        export_backbone(tmp_path, weights, origin())
    assert not list(tmp_path.iterdir())


def test_an_incomplete_backbone_is_never_exported(tmp_path: Path) -> None:
    weights = build("resnet18").state_dict()
    del weights["conv1.weight"]
    with pytest.raises(CheckpointError, match="missing: 1 tensors .conv1.weight"):
        export_backbone(tmp_path, weights, origin())
    assert not list(tmp_path.iterdir())
