"""The file and the settings handed to mmsegmentation. That mmseg itself arrives at the same values: tests/engines."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converters.to_mmseg import OVERLAY_NAME, WEIGHTS_NAME, check_target, overlay, prepared, to_mmseg
from engines.contract import tensor_sha256
from zoo.backbone import COUNTER, Backbone
from zoo.config import read_yaml
from zoo.errors import CheckpointError
from zoo.files import CONFIGS, sha256_file
from zoo.native import resolved
from zoo.transforms import IMAGENET_PIXELS

NATIVE = sorted((CONFIGS / "engines/mmseg").glob("*.yaml"))


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: tensor.double() for name, tensor in Backbone("resnet18").state_dict().items()}


def test_the_file_holds_bare_canonical_names_and_nothing_but_tensors(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    stored = torch.load(to_mmseg(tmp_path, state, "resnet18", IMAGENET_PIXELS), weights_only=True)
    assert set(stored) == {"state_dict", "meta"} and stored["meta"] == {}
    assert set(stored["state_dict"]) == set(state)
    for name, tensor in stored["state_dict"].items():
        assert tensor.dtype == (torch.int64 if name.endswith(COUNTER) else torch.float32)
        assert torch.equal(tensor.double(), state[name].float().double())


def test_counters_are_not_invented(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    bare = {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
    stored = torch.load(to_mmseg(tmp_path, bare, "resnet18", IMAGENET_PIXELS), weights_only=True)
    assert set(stored["state_dict"]) == set(bare)


def test_prepared_says_what_must_arrive(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    weights = prepared(tmp_path, state, "resnet18", IMAGENET_PIXELS)
    assert weights.weights == str((tmp_path / WEIGHTS_NAME).resolve())
    assert weights.weights_sha256 == sha256_file(tmp_path / WEIGHTS_NAME)
    assert weights.tensors == {f"backbone.{name}": tensor_sha256(tensor) for name, tensor in state.items()}
    assert weights.fresh == []
    with np.load(weights.probe) as probe:  # 64x96 at strides 4, 8, 8, 8: the dilated network's
        shapes = [probe[f"fp64/feature{number}"].shape for number in (2, 3, 4, 5)]
    assert shapes == [(1, 64, 16, 24), (1, 128, 8, 12), (1, 256, 8, 12), (1, 512, 8, 12)]


@pytest.mark.parametrize(
    ("arch", "depth", "decode", "auxiliary"),
    [
        ("resnet18", 18, (512, 128), (256, 64)),
        ("resnet34", 34, (512, 128), (256, 64)),
        ("resnet50", 50, (2048, 512), (1024, 256)),
        ("resnet101", 101, (2048, 512), (1024, 256)),
    ],
)
def test_heads_follow_the_architecture(
    arch: str, depth: int, decode: tuple[int, int], auxiliary: tuple[int, int]
) -> None:
    model = overlay(arch, IMAGENET_PIXELS)["model"]
    assert model["backbone"] == {"type": "ResNet", "depth": depth}
    assert (model["decode_head"]["in_channels"], model["decode_head"]["channels"]) == decode
    assert (model["auxiliary_head"]["in_channels"], model["auxiliary_head"]["channels"]) == auxiliary


def test_the_overlay_brings_the_pixel_statistics_in_0_to_255(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    to_mmseg(tmp_path, state, "resnet18", IMAGENET_PIXELS)
    preprocessor = read_yaml(tmp_path / OVERLAY_NAME)["model"]["data_preprocessor"]
    assert preprocessor["mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert preprocessor["std"] == pytest.approx([58.395, 57.12, 57.375])
    assert preprocessor["bgr_to_rgb"] is True


def test_configurations_of_the_project_are_targets() -> None:
    assert len(NATIVE) >= 3
    for path in NATIVE:
        check_target(resolved(path))


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({"type": "ResNetV1c"}, ["type: expected ResNet, found ResNetV1c"]),
        ({"type": "ResNetV1d"}, ["type: expected ResNet, found ResNetV1d"]),
        (
            {"deep_stem": True, "avg_down": True},
            ["deep_stem: expected False, found True", "avg_down: expected False, found True"],
        ),
    ],
)
def test_a_deep_stem_is_refused_with_all_that_is_wrong(changes: dict[str, Any], problems: list[str]) -> None:
    config = deepcopy(resolved(NATIVE[0]))
    config["model"]["backbone"] |= changes
    with pytest.raises(CheckpointError, match="one 7x7 convolution") as caught:
        check_target(config)
    assert [line.removeprefix("  - ") for line in str(caught.value).splitlines()[1:]] == problems
