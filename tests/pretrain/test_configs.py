"""Every recipe in configs/pretrain is complete, named after its file, and the published ones are the protocol's."""

from pathlib import Path
from typing import Any

import pytest

from pretrain.preflight import least_deviation
from zoo.config import load
from zoo.datasets import dataset_config
from zoo.files import ROOT
from zoo.recipe import Arithmetic, PretrainConfig
from zoo.transforms import IMAGENET_PIXELS

PATHS = sorted((ROOT / "configs" / "pretrain").rglob("*.yaml"))
PUBLISHED = {"simsiam_r50_100e": (256, 100), "simsiam_r50_200e": (256, 200), "simsiam_r50_100e_b512": (512, 100)}

REFERENCE = Arithmetic(precision="fp32", channels_last=False, compile=False, fused_sgd=False, accumulate=1)


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
    lines = path.read_text().splitlines()
    header = [line for line in lines if line.startswith("#")]
    is_variant = path.parent.name == "ablations"  # of a recipe whose header says the rest
    assert any(line.startswith("base: ") for line in lines) or not is_variant
    for word in ("# source: ",) if is_variant else ("# command: ", "# source: ", "# hours: "):
        assert any(line.startswith(word) for line in header), word
    assert len(path.read_text().splitlines()) <= 48


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_published_recipes_are_those_of_section_1(name: str) -> None:
    config = load(ROOT / "configs" / "pretrain" / f"{name}.yaml", PretrainConfig)
    assert (config.batch_size, config.epochs) == PUBLISHED[name]
    assert config.lr == pytest.approx(0.05 * config.batch_size / 256)
    assert (config.momentum, config.weight_decay, config.warmup_epochs) == (0.9, 1e-4, 0)
    assert config.arch == "resnet50" and config.arithmetic == REFERENCE and config.pixels == IMAGENET_PIXELS
    assert config.method.model_dump() == {
        "name": "simsiam",
        "projector_dim": 2048,
        "predictor_dim": 512,
        "predictor": "mlp",
        "predictor_lr": "constant",
        "head_norm": "default",
        "similarity": "cosine",
        "symmetry": "symmetric",
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
        "photometric": "pil",
    }


BASE = "simsiam_r50_100e_b512"
# protocols §1.6 and §1.4: what each experiment of the paper changes in the run of 100 epochs at batch size 512
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "decayed_predictor": {"method": {"predictor_lr": "decayed"}},
    "no_stop_gradient": {"method": {"predictor_lr": "decayed", "stop_gradient": False}, "let_run": True},
    "no_predictor": {"method": {"predictor": "none"}, "let_run": True},
    "fixed_random_predictor": {"method": {"predictor": "fixed_random"}, "let_run": True},
    "b64": {"batch_size": 64},
    "b128": {"batch_size": 128},
    "b1024": {"batch_size": 1024, "warmup_epochs": 10},
    "b2048": {"batch_size": 2048, "warmup_epochs": 10},
    "b4096": {"batch_size": 4096, "warmup_epochs": 10},
    "heads_without_norm": {"method": {"head_norm": "none"}, "warmup_epochs": 10, "let_run": True},
    "hidden_norm": {"method": {"head_norm": "hidden"}, "let_run": True},
    "affine_norm": {"method": {"head_norm": "affine"}},
    "predictor_norm": {"method": {"head_norm": "predictor_output"}, "let_run": True},
    "cross_entropy": {"method": {"similarity": "cross_entropy"}, "let_run": True},
    "asymmetric": {"method": {"symmetry": "asymmetric"}},
    "asymmetric_double": {"method": {"symmetry": "asymmetric_double"}},
}


def test_every_experiment_at_full_size_is_known_here() -> None:
    found = {path.stem for path in PATHS if path.parent.name == "ablations" and path.stem.startswith("simsiam_r50_")}
    assert found == {f"simsiam_r50_{name}" for name in EXPERIMENTS}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_changes_what_the_paper_changed_and_nothing_else(name: str) -> None:
    base = load(ROOT / "configs" / "pretrain" / f"{BASE}.yaml", PretrainConfig)
    found = load(ROOT / "configs" / "pretrain" / "ablations" / f"simsiam_r50_{name}.yaml", PretrainConfig)
    changes = dict(EXPERIMENTS[name])
    let_run = changes.pop("let_run", False)
    expected = base.numerical()
    expected["method"].update(changes.pop("method", {}))
    assert found.numerical() == {**expected, **changes}
    assert (found.epochs, found.weight_decay, found.momentum) == (100, 1e-4, 0.9)
    assert found.lr == pytest.approx(0.05 * found.batch_size / 256)
    assert found.collapse is not None and base.collapse is not None
    assert found.collapse == base.collapse.model_copy(update={"action": "record"} if let_run else {})


def test_small_experiments_differ_in_what_they_are_named_after() -> None:
    base = load(ROOT / "configs" / "pretrain" / "cifar10_simsiam_r18.yaml", PretrainConfig)
    for path in PATHS:
        if path.stem.startswith("cifar10_simsiam_r18_4e"):
            found = load(path, PretrainConfig)
            free = {"epochs", "method", "batch_size", "warmup_epochs"}
            kept = {key: value for key, value in found.numerical().items() if key not in free}
            assert kept == {key: value for key, value in base.numerical().items() if key not in free}, path
            assert found.epochs == 4 and found.base_lr == base.base_lr, path
