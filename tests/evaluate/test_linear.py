"""Heads in company and alone, resumed and uninterrupted; the grid; what a record keeps of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from pydantic import ValidationError

from evaluate import linear
from evaluate.cells import resolve
from evaluate.linear import _held_out, _plan, _shift
from evaluate.predict import choose_head, newest_record, predict
from evaluate.recipes import Settings
from evaluate.run import run_cell
from tests.evaluate.tiny_world import CLASSES, LINEAR, RECIPE, TRAIN
from zoo.checkpoint import CARD_NAME
from zoo.datasets import manifest
from zoo.distributed import World
from zoo.errors import CheckpointError, ConfigError, DataError, NonFiniteError, RecordError
from zoo.record import read_record
from zoo.state import read_state
from zoo.transforms import lighting_shift, sample_rng

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
SGD: dict[str, Any] = RECIPE | {"layers": ["avgpool"]}


def measured(
    tiny: Path, folder: Path, recipes: Mapping[str, Any], *overrides: str
) -> tuple[Any, dict[str, torch.Tensor]]:
    """The record of the tiny linear benchmark with these recipes, and its heads."""
    layers = {name for recipe in recipes.values() for name in recipe["layers"]}
    pools = {name: pool for name, pool in LINEAR["settings"]["layers"].items() if name in layers}
    given = (f"settings.recipes={json.dumps(recipes)}", f"settings.layers={json.dumps(pools)}", *overrides)
    cell = resolve("tiny_linear", tiny / "checkpoint" / CARD_NAME, 0, given)
    path = run_cell(cell, folder / "records", num_workers=0, me=ALONE)
    return read_record(path), safetensors.torch.load_file(folder / "records" / f"{cell.id}.heads.safetensors")


def test_a_head_in_company_equals_the_head_alone_bit_for_bit(tiny: Path, tmp_path: Path) -> None:
    recipes = LINEAR["settings"]["recipes"] | {"long": SGD | {"epochs": 4, "batch_size": 16}}
    together, heads = measured(tiny, tmp_path / "together", recipes)
    for name, recipe in recipes.items():
        alone, head = measured(tiny, tmp_path / name, {name: recipe})
        assert len(head) >= 2
        for key, tensor in head.items():
            assert torch.equal(tensor, heads[key]), key
        assert {k: together.metrics[k] for k in alone.metrics} == alone.metrics
    assert {entry["epoch"] for entry in together.details["history"]} == {0, 1, 2, 3}


def test_a_run_that_was_cut_off_within_an_epoch_ends_in_the_same_bits(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = LINEAR["settings"]["recipes"]
    whole, heads = measured(tiny, tmp_path / "whole", recipes)
    assert not (tmp_path / "whole/work").exists() or not any((tmp_path / "whole/work").iterdir())
    real, calls = linear._save, []

    def cut(job: Any, trainers: Any, history: Any, done: int) -> None:
        real(job, trainers, history, done)
        calls.append(done)
        if len(calls) == 4:  # three chunks an epoch: in the middle of the second
            raise KeyboardInterrupt

    monkeypatch.setattr(linear, "_save", cut)
    with pytest.raises(KeyboardInterrupt):
        measured(tiny, tmp_path / "cut", recipes)
    (state,) = (tmp_path / "cut/work").rglob(linear.STATE)
    assert read_state(state)["done"] == 4
    resumed, again = measured(tiny, tmp_path / "cut", recipes)
    assert calls[4:] == [5, 6, 7, 8] and not state.exists()
    assert resumed.metrics == whole.metrics and resumed.details["history"] == whole.details["history"]
    assert all(torch.equal(heads[key], again[key]) for key in heads)


def test_a_damaged_state_is_said_and_passed_over(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipes = {"sgd": SGD | {"epochs": 1}}
    whole, _ = measured(tiny, tmp_path / "whole", recipes)
    work = tmp_path / "other/work" / whole.cell_id
    work.mkdir(parents=True)
    (work / linear.STATE).write_bytes(b"x" * 100)
    again, _ = measured(tiny, tmp_path / "other", recipes)
    assert "do not match the checksum" in caplog.text and again.metrics == whole.metrics


def test_a_grid_is_chosen_on_images_its_heads_never_saw(tiny: Path, tmp_path: Path) -> None:
    grid = SGD | {"base_lr": [0.0, 1.0], "weight_decay": [0.0, 0.001], "held_out_per_class": 4}
    record, _ = measured(tiny, tmp_path, {"grid": grid})
    choices = record.details["grid"]["grid_avgpool"]
    assert [(c["base_lr"], c["weight_decay"]) for c in choices] == [(0, 0), (0, 0.001), (1, 0), (1, 0.001)]
    scores = [choice["held_out_top1"] for choice in choices]
    finals = {e["head"]: e["top1"] for e in record.details["history"] if e["epoch"] == grid["epochs"] - 1}
    best = choices[int(np.argmax(scores))]
    assert (
        record.metrics["top1_grid_avgpool"] == finals[f"grid_avgpool/lr{best['base_lr']:g}/wd{best['weight_decay']:g}"]
    )
    assert "held-out training images" in record.selection


def test_held_out_images_are_as_many_of_each_class_and_a_function_of_the_seed(tiny: Path) -> None:
    train = manifest("tiny", "train")
    chosen = _held_out(train, 5, 0)
    assert np.bincount(train.labels[chosen]).tolist() == [5] * CLASSES and len(set(chosen)) == 5 * CLASSES
    assert np.array_equal(chosen, _held_out(train, 5, 0)) and not np.array_equal(chosen, _held_out(train, 5, 1))
    with pytest.raises(ConfigError, match=r"held_out_per_class: expected fewer than the smallest class has, 14"):
        _held_out(train, 14, 0)


def test_every_epoch_shows_every_image_once_in_batches_that_end_with_the_epoch() -> None:
    plan = _plan(TRAIN, 2, 16, seed=0)
    assert [(len(chunk.indices), chunk.is_last) for chunk in plan] == [(16, False), (16, False), (11, True)] * 2
    for epoch in (0, 1):
        seen = np.concatenate([chunk.indices for chunk in plan if chunk.epoch == epoch])
        assert sorted(seen.tolist()) == list(range(TRAIN))


def test_lighting_is_each_samples_own_whatever_its_batch() -> None:
    whole = _shift(0.1, [(0, 3), (0, 4), (1, 3)], seed=0)
    assert whole is not None and torch.equal(whole[1], _shift(0.1, [(0, 4)], seed=0)[0])  # type: ignore[index]
    assert not torch.equal(whole[0], whole[2])
    np.testing.assert_array_equal(whole[0].numpy(), lighting_shift(0.1, sample_rng(0, 0, 3, linear.LIGHTING_VIEW)))
    assert _shift(0.0, [(0, 3)], seed=0) is None


def test_trained_heads_say_of_a_picture_what_they_said_when_they_were_measured(tiny: Path, tmp_path: Path) -> None:
    record, _ = measured(tiny, tmp_path, LINEAR["settings"]["recipes"])
    path = tmp_path / "records" / f"{record.cell_id}.json"
    assert newest_record(tmp_path.parent).parent.name == "records"
    test = manifest("tiny", "val")
    images = [test.path(index) for index in range(len(test))]
    for head in ("lars_avgpool", "sgd_feature3"):
        found = predict(images, path, record, head)
        assert 100 * np.mean([f.classes[0] for f in found] == test.labels) == record.metrics[f"top1_{head}"]
        assert found[0].names == tuple(f"class{label}" for label in found[0].classes)
        assert len(found[0].classes) == CLASSES and sum(found[0].probabilities) == pytest.approx(1)
    best = choose_head(record, None)
    assert record.metrics[f"top1_{best}"] == max(record.metrics[f"top1_{h}"] for h in ("lars_avgpool", "sgd_feature3"))

    with pytest.raises(ConfigError, match="--head: expected one of lars_avgpool, sgd_feature3, found 'other'"):
        choose_head(record, "other")
    with pytest.raises(DataError, match=r"no such image:\s.*gone\.jpg"):
        predict([tmp_path / "gone.jpg"], path, record, best)
    with pytest.raises(CheckpointError, match="name its card with --checkpoint"):
        predict(images, path, record, best, tmp_path / "gone.yaml")
    (tmp_path / "records" / f"{record.cell_id}.heads.safetensors").write_bytes(b"")
    with pytest.raises(RecordError, match="expected sha256"):
        predict(images, path, record, best)
    with pytest.raises(RecordError, match="no trained heads in any suite's records"):
        newest_record(tmp_path / "empty")


def test_a_head_that_diverges_is_named(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"head sgd_avgpool/lr1e\+38/wd0: its loss is NaN or infinite in epoch"):
        measured(tiny, tmp_path, {"sgd": SGD | {"base_lr": [1e38]}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipes": {"a": SGD | {"batch_size": 6}}}, "expected a multiple of forward.batch_size (4)"),
        ({"recipes": {"a": SGD | {"batch_size": 8}, "b": SGD | {"batch_size": 12}}}, "divides the largest batch (12)"),
        ({"recipes": {"a": SGD | {"layers": ["feature1"]}}}, "feature1 not among settings.layers"),
        ({"recipes": {"a": SGD}}, "layers: no recipe uses feature3"),
        ({"recipes": {"a": SGD | {"base_lr": [1, 2]}}}, "held_out_per_class: expected images to choose on"),
        ({"recipes": {"a": SGD | {"held_out_per_class": 2}}}, "and 0 otherwise; found 2 with 1 pair(s)"),
        ({"layers": {"feature3": None, "avgpool": None}}, "feature3: expected {kernel, stride, padding} for a map"),
    ],
)
def test_bad_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate_json(json.dumps(LINEAR["settings"] | change))
    assert message in str(caught.value)
