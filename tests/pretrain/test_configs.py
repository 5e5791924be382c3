"""Every recipe in configs/pretrain is complete, named after its file, and the published ones are the protocol's."""

from pathlib import Path

import pytest

from pretrain.preflight import least_deviation
from zoo.config import load
from zoo.datasets import dataset_config
from zoo.files import ROOT
from zoo.recipe import PretrainConfig
from zoo.transforms import IMAGENET_PIXELS

PATHS = sorted((ROOT / "configs" / "pretrain").rglob("*.yaml"))
PUBLISHED = {"simsiam_r50_100e": (256, 100), "simsiam_r50_200e": (256, 200), "simsiam_r50_100e_b512": (512, 100)}


def test_there_are_recipes() -> None:
    assert set(PUBLISHED) <= {path.stem for path in PATHS}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_recipe_is_sound(path: Path) -> None:
    config = load(path, PretrainConfig)
    assert config.name == path.stem
    splits = dataset_config(config.dataset).splits
    assert {config.split, config.monitor.bank_split, config.monitor.query_split} <= set(splits)
    assert config.monitor.k <= config.monitor.bank_images
    if config.collapse is not None:
        assert config.collapse.below > least_deviation(config.batch_size)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("# command: ", "# source: ", "# hours: "):
        assert any(line.startswith(word) for line in header), word
    assert len(path.read_text().splitlines()) <= 48


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_published_recipes_are_those_of_section_1(name: str) -> None:
    config = load(ROOT / "configs" / "pretrain" / f"{name}.yaml", PretrainConfig)
    assert (config.batch_size, config.epochs) == PUBLISHED[name]
    assert config.lr == pytest.approx(0.05 * config.batch_size / 256)
    assert (config.momentum, config.weight_decay, config.warmup_epochs) == (0.9, 1e-4, 0)
    assert config.arch == "resnet50" and config.precision == "fp32" and config.pixels == IMAGENET_PIXELS
    assert config.method.model_dump() == {
        "name": "simsiam",
        "projector_dim": 2048,
        "predictor_dim": 512,
        "predictor_lr": "constant",
        "stop_gradient": True,
    }
    assert config.views.model_dump() == {
        "crop": 224,
        "area": (0.2, 1.0),
        "interpolation": "bilinear",
        "jitter": (0.4, 0.4, 0.4, 0.1),
        "jitter_probability": 0.8,
        "grayscale_probability": 0.2,
        "blur_sigma": (0.1, 2.0),
        "blur_probability": 0.5,
        "flip_probability": 0.5,
    }
