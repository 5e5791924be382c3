"""The files handed to torchvision and timm: both libraries themselves load them, and compute what we compute."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from converters.read import read
from converters.to_torchvision import TIMM_NAME, TORCHVISION_NAME, counted, to_timm, to_torchvision
from tests.converters.made import shaken
from zoo.backbone import COUNTER, Backbone, canonical_shapes
from zoo.errors import CheckpointError
from zoo.files import sha256_file

WRITERS = (to_torchvision, to_timm)


@pytest.fixture(scope="module")
def network() -> Backbone:
    return shaken(Backbone("resnet18"))


@pytest.fixture(scope="module")
def state(network: Backbone) -> dict[str, Tensor]:
    return network.state_dict()


def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_torchvision_lacks_its_classifier_alone(tmp_path: Path, network: Backbone, state: dict[str, Tensor]) -> None:
    import torchvision

    stored = torch.load(to_torchvision(tmp_path, state, "resnet18"), weights_only=True)
    theirs: Any = torchvision.models.get_model("resnet18")
    found = theirs.load_state_dict(stored, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["fc.weight", "fc.bias"], [])
    theirs.fc = torch.nn.Identity()
    with torch.no_grad():
        assert torch.equal(theirs.eval()(images()), network(images()))


def test_timm_loads_strictly_and_computes_the_same(tmp_path: Path, network: Backbone, state: dict[str, Tensor]) -> None:
    import timm

    path = to_timm(tmp_path, state, "resnet18")
    theirs: Any = timm.create_model("resnet18", pretrained=False, num_classes=0, checkpoint_path=str(path))
    assert theirs.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in theirs.state_dict().items())
    with torch.no_grad():
        assert (theirs.eval()(images()) - network(images())).abs().max() < 1e-5


@pytest.mark.parametrize("to", WRITERS)
def test_what_is_read_back_is_the_state(tmp_path: Path, to: Any, state: dict[str, Tensor]) -> None:
    """Whatever type the source had; fp64 that holds fp32's values loses nothing."""
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    back = read(to(tmp_path, wide, "resnet18"))
    assert (back.reading.layout, back.arch, set(back.state)) == ("torchvision", "resnet18", set(state))
    for name, tensor in back.state.items():
        assert tensor.dtype == state[name].dtype and torch.equal(tensor, state[name])


@pytest.mark.parametrize("to", WRITERS)
def test_counters_that_the_source_lacks_are_zeros(tmp_path: Path, to: Any, state: dict[str, Tensor]) -> None:
    bare = {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
    back = read(to(tmp_path, bare, "resnet18")).state
    assert back.keys() == canonical_shapes("resnet18").keys()
    for name, tensor in back.items():
        expected = torch.zeros((), dtype=torch.int64) if name.endswith(COUNTER) else bare[name]
        assert tensor.dtype == expected.dtype and torch.equal(tensor, expected)


@pytest.mark.parametrize(("to", "name"), [(to_torchvision, TORCHVISION_NAME), (to_timm, TIMM_NAME)])
def test_the_same_weights_give_the_same_bytes(tmp_path: Path, to: Any, name: str, state: dict[str, Tensor]) -> None:
    one, two = (to(tmp_path / folder, order, "resnet18") for folder, order in _orders(state))
    assert one.name == two.name == name and sha256_file(one) == sha256_file(two)
    assert [path.name for path in one.parent.iterdir()] == [name]  # nothing temporary is left


def _orders(state: dict[str, Tensor]) -> list[tuple[str, dict[str, Tensor]]]:
    return [("a", state), ("b", dict(reversed(state.items())))]


def test_pixels_alone_have_no_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="raw_pixels: expected weights of one of resnet18, resnet34, resnet50, "):
        to_torchvision(tmp_path, {}, "raw_pixels")
    assert not list(tmp_path.iterdir())


def test_tensors_are_not_copied_to_be_counted(state: dict[str, Tensor]) -> None:
    assert all(tensor is state[name] for name, tensor in counted(state, "resnet18").items())
