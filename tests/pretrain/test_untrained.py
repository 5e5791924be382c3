"""The rows that have seen no training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pretrain.untrained import BATCH, Statistics, main, reestimate, untrained
from zoo.backbone import Backbone, build, load, normalise, read_weights
from zoo.checkpoint import read_card
from zoo.datasets import Manifest, decode, manifest
from zoo.errors import CheckpointError, ConfigError
from zoo.transforms import IMAGENET_PIXELS, TestTransform, apply_test

TRANSFORM = TestTransform(resize=24, crop=24, interpolation="bilinear", fit="centre_crop")


def repeated(tiny: Any) -> Manifest:
    """Two batches' worth of images: the dataset three times over."""
    images = manifest("tiny", "train")
    return Manifest(**{**vars(images), "paths": images.paths * 3, "labels": np.tile(images.labels, 3)})


def test_a_random_backbone_is_a_function_of_its_seed(tmp_path: Path) -> None:
    generator = torch.random.get_rng_state()
    paths = [
        untrained("resnet18", seed=s, out=tmp_path / n, statistics=None, num_workers=0)
        for s, n in ((0, "a"), (0, "b"), (1, "c"))
    ]
    assert torch.equal(torch.random.get_rng_state(), generator)
    cards = [read_card(path) for path in paths]
    assert cards[0] == cards[1] and cards[0].tensors_sha256 != cards[2].tensors_sha256
    assert (cards[0].name, cards[2].name) == ("resnet18, random weights", "resnet18, random weights, seed 1")
    assert cards[0].family == cards[2].family == "resnet18, random weights"
    assert load(cards[0], tmp_path / "a" / cards[0].weights, torch.device("cpu")).arch == "resnet18"


def test_reestimated_statistics_are_the_average_over_fixed_batches(tiny: Any) -> None:
    images = repeated(tiny)
    model = build("resnet18")
    assert isinstance(model, Backbone)
    weights = {name: tensor.clone() for name, tensor in model.named_parameters()}
    reestimate(model, Statistics(images=images, num_images=2 * BATCH, transform=TRANSFORM), num_workers=0)
    order = np.random.default_rng(0).permutation(len(images))[: 2 * BATCH]
    pixels = np.stack([apply_test(decode(images.path(int(i))), TRANSFORM) for i in order]).transpose(0, 3, 1, 2)
    with torch.no_grad():
        maps = model.conv1(normalise(torch.from_numpy(pixels.copy()), IMAGENET_PIXELS))
    means = torch.stack([half.mean((0, 2, 3)) for half in maps.chunk(2)]).mean(0)
    variances = torch.stack([half.var((0, 2, 3)) for half in maps.chunk(2)]).mean(0)
    state = model.state_dict()
    assert torch.allclose(state["bn1.running_mean"], means, atol=1e-5)
    assert torch.allclose(state["bn1.running_var"], variances, rtol=1e-4)
    assert int(state["bn1.num_batches_tracked"]) == 2 and not model.training
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.named_parameters())
    assert all(norm.momentum is None for norm in model.modules() if isinstance(norm, nn.BatchNorm2d))


def test_the_card_says_what_the_statistics_come_from(tiny: Any, tmp_path: Path) -> None:
    statistics = Statistics(images=repeated(tiny), num_images=BATCH, transform=TRANSFORM)
    card = read_card(untrained("resnet18", seed=0, out=tmp_path, statistics=statistics, num_workers=0))
    assert card.name == "resnet18, random weights, BN re-estimated"
    assert f"{BATCH} images of tiny train" in card.lineage[1] and "24/24 bilinear" in card.lineage[1]


def test_raw_pixels_are_a_card_and_no_weights(tmp_path: Path) -> None:
    card = read_card(untrained("raw_pixels", seed=0, out=tmp_path, statistics=None, num_workers=0))
    assert card.arch == "raw_pixels" and card.pretrain_seed is None and card.epochs is None
    assert read_weights(tmp_path / card.weights) == {}
    assert load(card, tmp_path / card.weights, torch.device("cpu"))(torch.zeros(2, 3, 4, 5)).shape == (2, 60)


def test_what_is_there_is_kept_or_refused(tmp_path: Path) -> None:
    path = untrained("raw_pixels", seed=0, out=tmp_path, statistics=None, num_workers=0)
    before = path.stat().st_mtime_ns
    assert untrained("raw_pixels", seed=0, out=tmp_path, statistics=None, num_workers=0).stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="holds 'no network: the pixels themselves', expected 'resnet18"):
        untrained("resnet18", seed=0, out=tmp_path, statistics=None, num_workers=0)
    (tmp_path / "backbone.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="found e3b0c44298fc1c14"):
        untrained("raw_pixels", seed=0, out=tmp_path, statistics=None, num_workers=0)


def test_all_wrong_options_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        main(arch="vgg", batch_norm="reestimated", images=100, out=tmp_path / "out")
    text = str(error.value)
    assert "--arch: expected one of resnet18, resnet34, resnet50, resnet101, raw_pixels, found 'vgg'" in text
    assert "--images: expected a multiple of 64, found 100" in text and "--dataset goes with" in text
    assert not (tmp_path / "out").exists()
