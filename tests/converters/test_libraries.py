"""Files as libraries write them are read whole: the right backbone, every tensor, and nothing else."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from converters.read import identify, read, understand
from converters.to_detectron2 import arrays
from tests.converters import made_libraries
from tests.converters.held import content, fits, names, tensors
from tests.converters.made import State
from tests.converters.made_libraries import MADE
from zoo.backbone import COUNTER, build
from zoo.errors import CheckpointError

ARCH = "resnet18"


def picture(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def features(state: State, side: int) -> Tensor:
    network = build(ARCH)
    network.load_state_dict(state, strict=False)  # arrays have no counters
    return network.eval()(picture(side))


# Aliases


def test_simsiam_of_mmselfsup_0_has_676_tensors_on_resnet50() -> None:
    """§1.5's counts: 318 and 16, twice, and the predictor's 8."""
    with torch.device("meta"):
        backbone = made_libraries.resnet("resnet50").to("meta").state_dict()
    made = MADE["mmselfsup_simsiam"](ARCH)
    state = made.content["state_dict"]
    found = identify(content(made.content))
    assert len(backbone) == 318 and len(found.groups["projector"]) == 16 and len(found.groups["predictor"]) == 8
    assert len(found.groups["aliases"]) == 120 + 16 and 2 * (len(backbone) + 16) + 8 == 676
    assert len(state) == 2 * (120 + 16) + 8


@pytest.mark.parametrize(
    ("name", "alias", "original"),
    [
        ("mmselfsup_simsiam", "encoder.0.layer3.1.bn2.running_mean", "backbone.layer3.1.bn2.running_mean"),
        ("mmselfsup_simsiam", "encoder.1.bn2.running_var", "neck.bn2.running_var"),
        ("mmselfsup_moco", "encoder_q.0.conv1.weight", "backbone.conv1.weight"),
        ("mmselfsup_moco", "neck.fc.bias", "encoder_q.1.fc.bias"),
        ("mmpretrain_swav", "neck.norm.bias", "neck.projection_neck.1.bias"),
        ("openselfsup_byol", "online_net.0.bn1.num_batches_tracked", "backbone.bn1.num_batches_tracked"),
    ],
)
def test_an_alias_that_differs_in_one_bit_is_refused(name: str, alias: str, original: str) -> None:
    made = MADE[name](ARCH)
    state: State = made.content["state_dict"]
    changed = state[alias].clone()
    changed.view(-1)[:1].view(torch.uint8)[:1] ^= 1
    state[alias] = changed
    with pytest.raises(CheckpointError) as caught:
        identify(content(made.content))
    assert str(caught.value).startswith(f"a.pth ({made.layout}): ")
    assert "1 tensors are there twice and differ, where the library writes one tensor under two" in str(caught.value)
    assert f"  - {alias}: differs from {original}" in str(caught.value)


def test_equal_copies_are_taken_and_an_alias_of_nothing_is_refused() -> None:
    state = names("backbone.", "encoder.0.")  # not one storage under two names
    assert identify(content({"state_dict": state})).layout == "mmselfsup0"
    state |= tensors("encoder.0.bn1.weight")
    with pytest.raises(CheckpointError, match=r"encoder\.0\.bn1\.weight: there is no backbone\.bn1\.weight"):
        identify(content({"state_dict": state}))


def test_a_batch_counter_may_be_left_out_of_the_backbone_alone() -> None:
    state = names("backbone.", "encoder.0.") | tensors("encoder.0.bn1.num_batches_tracked")
    assert len(identify(content({"state_dict": state})).groups["aliases"]) == 3


def test_an_alias_that_claims_any_size_is_not_compared() -> None:
    """A trillion elements in four bytes: refused, not looked at."""
    state = names("backbone.", "encoder.0.")
    state["backbone.bn1.bias"] = torch.zeros(1).expand(10**12)
    state["encoder.0.bn1.bias"] = torch.zeros(1).expand(10**12)
    with pytest.raises(CheckpointError, match=r"encoder\.0\.bn1\.bias: differs"):
        identify(content({"state_dict": state}))


def test_many_differences_are_counted_and_five_are_named() -> None:
    state = names("backbone.", "encoder.0.") | tensors(*(f"encoder.0.layer1.{n}.bn1.bias" for n in range(1, 8)))
    with pytest.raises(CheckpointError) as caught:
        identify(content({"state_dict": state}))
    lines = str(caught.value).splitlines()
    assert "7 tensors are there twice" in lines[0] and len(lines) == 7 and lines[-1] == "  - … and 2 more"


# What stands beside the backbone, and where


def test_a_moving_average_beside_the_weights_is_told() -> None:
    for place, name in (("state_dict", "state_dict_ema"), ("model", "model_ema")):
        found = identify(content({place: names(""), name: names("module.")}))
        assert found.notes == (f"taken: {place}; the moving average beside it ({name}) is not",)
    assert not identify(content({"state_dict": names("")})).notes


def test_an_author_beside_a_bare_state_means_an_extracted_one() -> None:
    assert fits({"state_dict": names(""), "author": "OpenSelfSup"}) == ["mm_extracted"]
    assert fits({"state_dict": names(""), "author": 3}) == ["torchvision"]
    assert fits({"model": names(""), "author": "somebody"}) == ["torchvision"]


@pytest.mark.parametrize(
    "more",
    [
        ("head.mlp.0.weight", "head.last_layer.weight_v"),  # DINO's teacher, saved again
        ("neck.lateral_convs.0.conv.weight", "rpn_head.rpn_cls.weight"),  # mmdetection
        ("neck.fc0.weight", "decode_head.conv_seg.weight"),  # mmsegmentation
        ("projector.0.weight", "bn.num_batches_tracked"),  # Barlow Twins, cut
        ("something.weight",),
    ],
)
def test_what_only_looks_alike_is_not_taken(more: tuple[str, ...]) -> None:
    assert fits({"state_dict": names("backbone.") | tensors(*more)}) == []


@pytest.mark.parametrize(
    ("layout", "state"),
    [
        ("mmselfsup1", names("backbone.") | tensors("neck.fc0.weight", "queue3")),
        ("lightly", names("backbone.") | tensors("projection_head.layers.0.weight", "projection_head.0.weight")),
        ("lightly", tensors("backbone.0.weight", "projection_head.layers.0.weight", "backbone_momentum.2.weight")),
        ("solo_learn", names("backbone.") | tensors("classifier.weight", "backbone.fc.weight")),
        ("detectron2", tensors("stem.conv1.weight", "stem.conv1.bias")),
        ("detectron2", tensors("stem.conv1.weight", "res2.0.conv1.norm.weight", "xres2.0.conv1.norm.weight")),
        ("vissl", names("_feature_blocks.") | tensors("_feature_blocks.clf.weight")),
        ("torchvision", names("") | tensors("head.fc.weight")),
    ],
)
def test_a_name_that_no_row_knows_is_unexpected(layout: str, state: State) -> None:
    found = identify(content({"model": state} if layout == "detectron2" else state))
    assert found.layout == layout and found.unexpected == (list(state)[-1],)


def test_the_same_place_twice_is_unexpected() -> None:
    """backbone.res5 and roi_heads.res5 are one place in a ResNet, and nobody knows which was trained."""
    state = tensors("backbone.stem.conv1.weight", "backbone.res5.0.conv1.weight", "roi_heads.res5.0.conv1.weight")
    assert identify(content({"model": state})).unexpected == ("roi_heads.res5.0.conv1.weight",)


@pytest.mark.parametrize("part", ["fpn", "c4"])
def test_trained_detectors_come_with_the_doubt_about_their_stride(part: str) -> None:
    (note,) = identify(content(MADE[f"detectron2_{part}"](ARCH).content)).notes
    assert "the file does not say where its stride lies" in note


def test_our_own_pickle_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = MADE["torchvision"](ARCH).backbone
    path = tmp_path / "detectron2.pkl"
    path.write_bytes(pickle.dumps({"model": arrays(state), "__author__": "TransferZoo", "matching_heuristics": True}))
    found = read(path)
    kept = {key: tensor for key, tensor in state.items() if not key.endswith(COUNTER)}
    assert found.reading.layout == "detectron2" and not found.reading.notes and found.state.keys() == kept.keys()
    assert all(torch.equal(found.state[key], tensor) for key, tensor in kept.items())


# DeepMind's BYOL


def as_tensors(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: as_tensors(part) for key, part in value.items()}
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def test_byols_note_is_true() -> None:
    """On even sides its own padding gives other features; on odd ones the same (test_features above)."""
    made = MADE["byol"](ARCH)
    reading = identify(content(as_tensors(made.content)))
    (note,) = reading.notes
    assert "not exactly the original's" in note
    with torch.no_grad():
        difference = (features(reading.state, 64) - made.forward(picture(64))).abs().max()
    assert difference > 1e-3


def test_byols_own_resnet18_has_a_shortcut_too_many() -> None:
    """DeepMind's ResNet18 projects in its first group as well, which torchvision's does not."""
    made = made_libraries.byol_of(ARCH, (True, True, True, True))
    found = identify(content(as_tensors(made.content)))
    assert "layer1.0.downsample.0.weight" in found.state  # which check then names as unexpected


def test_byols_tensors_are_views_of_what_was_read() -> None:
    opened = content(as_tensors(MADE["byol"](ARCH).content))
    held = opened.get("experiment_state", "online_params", "res_net18/~/initial_conv", "w")
    assert identify(opened).state["conv1.weight"].data_ptr() == held.data_ptr()


def test_an_array_of_another_form_is_refused_for_its_shape() -> None:
    made = MADE["byol"](ARCH)
    parameters = made.content["experiment_state"]["online_params"]
    parameters["res_net18/~/initial_batchnorm"]["scale"] = np.ones((2, 64), np.float32)
    parameters["res_net18/~/initial_conv"]["w"] = np.ones(9, np.float32)
    parameters["surprise"] = {"w": np.ones(1, np.float32)}
    made.content["experiment_state"]["another_net"] = {}
    with pytest.raises(CheckpointError) as caught:
        understand(content(as_tensors(made.content)).opened)
    assert "(byol): not a whole resnet18: 98 of 100 expected tensors found" in str(caught.value)
    assert "bn1.weight: expected shape (64,), found (2, 64)" in str(caught.value)
    assert "conv1.weight: expected shape (64, 3, 7, 7), found (9,)" in str(caught.value)
    assert "unexpected: 2 tensors that byol does not have (another_net, online_params/surprise/w)" in str(caught.value)
