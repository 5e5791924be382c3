"""What a pre-training run is known by: every value that can change the weights, and none that cannot."""

from pathlib import Path

import pytest

from zoo.config import load
from zoo.errors import ConfigError
from zoo.files import CONFIGS
from zoo.recipe import PretrainConfig, row_label, run_key

SIMSIAM = CONFIGS / "pretrain" / "simsiam_r50_100e.yaml"


def recipe(*overrides: str, path: Path = SIMSIAM) -> PretrainConfig:
    return load(path, PretrainConfig, overrides=overrides)


def key(*overrides: str) -> str:
    return run_key(recipe(*overrides), "d" * 64, 0)


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "family=other",
        "display=other",
        "monitor.k=5",
        "collapse.window=7",
        "save.every_steps=3",
        "bad_images=replace",
    ],
)
def test_names_monitor_and_saving_do_not_change_a_runs_key(override: str) -> None:
    assert key(override) == key()


@pytest.mark.parametrize(
    "override",
    [
        "method.predictor_lr=decayed",
        "method.stop_gradient=false",
        "arch=resnet34",
        "split=val",
        "pixels.mean=[0, 0, 0]",
        "views.crop=192",
        "epochs=99",
        "batch_size=512",
        "base_lr=0.06",
        "weight_decay=0",
        "arithmetic.precision=bf16",
        "views.photometric=device",
    ],
)
def test_a_value_that_changes_the_weights_changes_the_key(override: str) -> None:
    assert key(override) != key()


def test_the_images_and_the_seed_are_part_of_the_key() -> None:
    keys = {run_key(recipe(), dataset, seed) for dataset in ("a", "b") for seed in (0, 1)}
    assert len(keys) == 4


def test_the_rate_scales_with_the_batch() -> None:
    assert recipe("batch_size=512", "base_lr=0.05").lr == pytest.approx(0.1)


def test_a_row_names_its_seed_unless_it_is_the_usual_one() -> None:
    assert row_label(recipe("display=SimSiam"), 0) == "SimSiam"
    assert row_label(recipe("display=SimSiam"), 2) == "SimSiam, seed 2"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("collapse=", "expected a rule for simsiam and null for supervised"),
        ("method={name: supervised, label_smoothing: 0}", "expected a rule for simsiam and null for supervised"),
        ("warmup_epochs=100", r"warmup_epochs: expected fewer than epochs \(100\), found 100"),
        ("epochs=0", "epochs: input should be greater than 0, found 0"),
        ("views.flip_probability=1.5", "views.flip_probability: input should be less than or equal to 1, found 1.5"),
        ("momentum=1", "momentum: input should be less than 1, found 1"),
        ("arithmetic.precision=fp16", "arithmetic.precision: input should be 'fp32' or 'bf16', found 'fp16'"),
        ("arithmetic.accumulate=0", "arithmetic.accumulate: input should be greater than 0, found 0"),
        ("method={name: byol}", "method.name: expected one of 'simsiam', 'supervised', found 'byol'"),
    ],
)
def test_an_impossible_recipe_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(override)
