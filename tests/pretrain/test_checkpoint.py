"""States that survive damage, and backbones that the next stage can read."""

import errno
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretrain.checkpoint import Origin, State, check_room, export_backbone, latest_state, save_state, set_aside_after
from pretrain.session import build_model
from zoo.backbone import build, fingerprint, load
from zoo.checkpoint import read_card
from zoo.config import validate
from zoo.errors import CheckpointError, ConfigError, NonFiniteError, ZooError
from zoo.recipe import Save
from zoo.transforms import IMAGENET_PIXELS

RUN: dict[str, Any] = {"recipe": {"base_lr": 0.05, "views": {"crop": 24}}, "dataset": "d" * 64, "seed": 0}
KEEP = Save(every_steps=5, keep_last=2, keep_every_steps=None)


def state(step: int) -> State:
    model = {"weight": torch.full((3,), float(step))}
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return State(
        run=RUN,
        epoch=step // 10,
        step=step,
        model=model,
        optimizer=optimizer,
        deviations=[0.5, 0.25],
        replaced={3: 2},
    )


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
    save_state(tmp_path, state(7), KEEP)
    found = latest_state(tmp_path, RUN)
    assert found is not None and (found.epoch, found.step, found.deviations) == (0, 7, [0.5, 0.25])
    assert (found.run, found.replaced) == (RUN, {3: 2})
    assert torch.equal(found.model["weight"], torch.full((3,), 7.0))
    assert torch.equal(found.optimizer["state"][0]["momentum_buffer"], torch.ones(3))


def test_there_is_none_before_the_first(tmp_path: Path) -> None:
    assert latest_state(tmp_path, RUN) is None


@pytest.mark.parametrize(
    "last, every, kept",
    [(2, None, [20, 25]), (3, None, [15, 20, 25]), (2, 10, [10, 20, 25]), (2, 5, [5, 10, 15, 20, 25])],
)
def test_the_last_ones_are_kept_and_those_of_every_so_many_steps(
    tmp_path: Path, last: int, every: int | None, kept: list[int]
) -> None:
    keep = Save(every_steps=5, keep_last=last, keep_every_steps=every)
    for step in (3, 5, 10, 15, 20, 25):
        save_state(tmp_path, state(step), keep)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"state-{step:09d}.pt" for step in kept]
    found = latest_state(tmp_path, RUN)
    assert found is not None and found.step == 25


def test_what_is_kept_for_ever_must_be_saved_at_all() -> None:
    with pytest.raises(ConfigError, match=r"expected a multiple of every_steps \(5\), found 12"):
        validate({"every_steps": 5, "keep_last": 2, "keep_every_steps": 12}, Save, where="save")


def test_a_disk_too_small_for_the_states_is_found_out_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Save(every_steps=5, keep_last=2, keep_every_steps=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=7 * 10**9))
    check_room(tmp_path, state_bytes=10**9, total_steps=49, keep=keep)  # two, a third being written, four for ever
    message = r"expected 8.00 GB of free disk for states of 1.00 GB \(save: keep_last 2, .* found 7.00 GB"
    with pytest.raises(ZooError, match=message):
        check_room(tmp_path, state_bytes=10**9, total_steps=50, keep=keep)


def test_a_full_disk_leaves_the_states_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, state(10), KEEP)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        save_state(tmp_path, state(15), KEEP)
    assert [path.name for path in tmp_path.iterdir()] == ["state-000000010.pt"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "zeroed", "other hash", "empty", "foreign"])
def test_a_damaged_state_is_passed_over_aloud(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    save_state(tmp_path, state(10), KEEP)
    path = save_state(tmp_path, state(20), KEEP)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    whole = path.read_bytes()
    broken = {
        "truncated": whole[:-9],
        "flipped": bytes(data),
        "zeroed": bytes(len(whole)),
        "other hash": whole[:-32] + bytes(32),
        "empty": b"",
        "foreign": b"#!/bin/sh\n" * 9,
    }
    path.write_bytes(broken[damage])
    with caplog.at_level(logging.WARNING):
        found = latest_state(tmp_path, RUN)
    assert found is not None and found.step == 10
    assert "state-000000020.pt: damaged" in caplog.text and "Going back to the state before" in caplog.text


def test_nothing_readable_is_an_error_and_no_silent_new_start(tmp_path: Path) -> None:
    save_state(tmp_path, state(10), KEEP).write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of its 1 states can be read; remove the folder to start anew"):
        latest_state(tmp_path, RUN)


def test_a_state_that_the_disk_does_not_give_back_is_passed_over_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_state(tmp_path, state(10), KEEP)
    path = save_state(tmp_path, state(20), KEEP)
    path.unlink()
    path.mkdir()  # opening it gives an OSError, as a broken disk does
    with caplog.at_level(logging.WARNING):
        found = latest_state(tmp_path, RUN)
    assert found is not None and found.step == 10
    assert "state-000000020.pt: cannot be read (Is a directory). Going back to the state before" in caplog.text


def test_damaged_states_never_cost_the_one_just_written(tmp_path: Path) -> None:
    for step in (500, 1000, 1100):
        save_state(tmp_path, state(step), Save(every_steps=5, keep_last=2, keep_every_steps=500))
    for step in (1000, 1100):
        (tmp_path / f"state-{step:09d}.pt").write_bytes(b"")
    for step in (600, 700):
        assert save_state(tmp_path, state(step), KEEP).exists()
    found = latest_state(tmp_path, RUN)
    assert found is not None and found.step == 700
    assert (tmp_path / "state-000000600.pt").exists()


def test_states_after_the_one_that_a_run_goes_on_from_are_set_aside_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 20):
        save_state(tmp_path, state(step), KEEP)
    set_aside_after(tmp_path, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-000000010.pt", "state-000000020.pt.unreadable"]
    assert "state-000000020.pt: kept as state-000000020.pt.unreadable" in caplog.text


def test_another_runs_state_is_refused_and_told_what_changed(tmp_path: Path) -> None:
    save_state(tmp_path, state(10), KEEP)
    now = {"recipe": {"base_lr": 0.05, "views": {"crop": 32}, "epochs": 3}, "dataset": "d" * 64, "seed": 0}
    with pytest.raises(ConfigError, match="state-000000010.pt: belongs to run") as error:
        latest_state(tmp_path, now)
    assert str(error.value).splitlines()[1:3] == ["  - views.crop: was 24, is 32", "  - epochs: was null, is 3"]


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
