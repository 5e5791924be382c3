"""Anybody's checkpoint file → a whole canonical state, or a refusal that says what was seen. Nothing is executed."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor

from converters.read import differences, read
from zoo.backbone import COUNTER, canonical_shapes, check_state
from zoo.errors import CheckpointError

State = dict[str, Tensor]


def drawn(arch: str = "resnet18", *, classifier: bool = True) -> State:
    """A torchvision state: random where that is cheap, else zeros that take no memory."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in torchvision.models.get_model(arch).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state: State = {}
    for name, shape in shapes.items():
        if name.endswith(COUNTER):
            state[name] = torch.tensor(3)
        else:
            state[name] = torch.randn(shape, generator=generator) if len(shape) < 2 else torch.zeros(()).expand(shape)
    return state if classifier else {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def saved(folder: Path, content: Any, name: str = "file.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


@pytest.mark.parametrize("classifier", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_torchvisions_state_is_read_without_its_classifier(tmp_path: Path, classifier: bool, wrapped: bool) -> None:
    state = drawn(classifier=classifier)
    content = {"state_dict": state, "epoch": 90, "arch": "resnet18", "best": 1.5} if wrapped else state
    checkpoint = read(saved(tmp_path, content))
    found = checkpoint.state
    assert (checkpoint.reading.layout, checkpoint.arch) == ("torchvision", "resnet18")
    assert checkpoint.reading.groups.keys() == ({"classifier"} if classifier else set())
    assert found.keys() == canonical_shapes("resnet18").keys()
    assert all(torch.equal(found[name], state[name]) for name in found)


@pytest.mark.parametrize("arch", ["resnet34", "resnet50", "resnet101"])
def test_the_architecture_is_found_by_the_blocks(tmp_path: Path, arch: str) -> None:
    assert read(saved(tmp_path, drawn(arch))).arch == arch


def test_counters_may_be_absent(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in drawn().items() if not name.endswith(COUNTER)}
    assert len(read(saved(tmp_path, state)).state) == 100


def test_safetensors_are_read(tmp_path: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in drawn(classifier=False).items()}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    found = read(tmp_path / "a.safetensors")
    assert found.arch == "resnet18" and all(torch.equal(found.state[name], state[name]) for name in state)


def test_the_old_file_layout_of_torch_is_read(tmp_path: Path) -> None:
    torch.save(drawn(), tmp_path / "old.tar", _use_new_zipfile_serialization=False)
    assert read(tmp_path / "old.tar").arch == "resnet18"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1, 2], "list"),
        (torch.zeros(3), "Tensor"),
        ({"a": 1}, "dict"),
        ({"state_dict": {"a": [1]}}, "dict"),
        (7, "int"),
    ],
)
def test_something_other_than_a_state_is_refused(tmp_path: Path, content: Any, found: str) -> None:
    message = refused(saved(tmp_path, content))
    assert message.endswith(f"expected a state dict (names to tensors), found {found} without tensors by name.")


@pytest.mark.parametrize("content", [{"a": torch.zeros(1)}, {"state_dict": {"trunk.0.weight": torch.zeros(2)}}])
def test_tensors_of_no_known_layout_are_refused_with_their_first_names(tmp_path: Path, content: Any) -> None:
    message = refused(saved(tmp_path, content))
    tensors = content.get("state_dict", content)
    place = " under state_dict" if "state_dict" in content else ""
    assert f"none of the known layouts. Found {len(tensors)} tensors{place}: {next(iter(tensors))}." in message
    assert message.endswith("No place in it holds the names of a ResNet's tensors.")


def test_an_unknown_prefix_is_shown_with_the_nearest_layout_and_the_way_on(tmp_path: Path) -> None:
    state = {f"trunk.body.{name}": tensor for name, tensor in drawn(classifier=False).items()}
    path = saved(tmp_path, {"net": state | {"queue": torch.zeros(3)}})
    message = refused(path)
    assert "none of the known layouts. Found 121 tensors under net: trunk.body.conv1.weight, trunk.body.bn1" in message
    assert "  --take 'net:trunk.body.'  (resnet18)" in message
    checkpoint = read(path, take="net:trunk.body.")
    assert (checkpoint.arch, checkpoint.reading.layout, checkpoint.reading.prefix) == (
        "resnet18",
        "stated",
        "trunk.body.",
    )
    assert all(torch.equal(tensor, state[f"trunk.body.{name}"]) for name, tensor in checkpoint.state.items())
    assert checkpoint.reading.groups.keys() == {"passed over"}


def test_of_two_networks_in_a_file_each_can_be_taken(tmp_path: Path) -> None:
    one, two = drawn(classifier=False), {name: tensor + 1 for name, tensor in drawn(classifier=False).items()}
    path = saved(
        tmp_path, {"a": {f"x.{name}": t for name, t in one.items()}, "b": {f"module.{n}": t for n, t in two.items()}}
    )
    message = refused(path)
    assert "--take 'a:x.'  (resnet18)" in message and "--take 'b:module.'  (resnet18)" in message
    assert torch.equal(read(path, take="a:x.").state["bn1.bias"], one["bn1.bias"])
    assert torch.equal(read(path, take="b:module.").state["bn1.bias"], two["bn1.bias"])


@pytest.mark.parametrize("take", ["nowhere:x.", "a:y.", "", "a"])
def test_a_place_that_holds_no_network_is_refused_with_those_that_do(tmp_path: Path, take: str) -> None:
    path = saved(tmp_path, {"a": {f"x.{name}": tensor for name, tensor in drawn(classifier=False).items()}})
    with pytest.raises(CheckpointError) as caught:
        read(path, take=take)
    assert f"--take {take}: no tensors of a ResNet there.\nThese places hold" in str(caught.value)
    assert "--take 'a:x.'  (resnet18)" in str(caught.value)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_are_taken_off_every_name(tmp_path: Path, wrapper: str) -> None:
    state = drawn()
    reading = read(saved(tmp_path, {f"{wrapper}{name}": tensor for name, tensor in state.items()})).reading
    assert (reading.layout, reading.prefix, reading.wrapper) == ("torchvision", wrapper, wrapper)
    assert reading.names["bn1.bias"] == f"{wrapper}bn1.bias"
    assert all(torch.equal(tensor, state[name]) for name, tensor in reading.state.items())


def test_half_a_network_is_refused(tmp_path: Path) -> None:
    state = drawn()
    half = dict(list(state.items())[: len(state) // 2])
    message = refused(saved(tmp_path, half))
    assert (
        "expected the blocks of one of resnet18, resnet34, resnet50, resnet101, found stages of 2, 2, 1, 0" in message
    )
    assert "basic blocks: another network, or only a part of one" in message


def test_a_missing_batch_norm_is_named(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in drawn().items() if not name.startswith("layer3.1.bn2")}
    message = refused(saved(tmp_path, state))
    assert "(torchvision): not a whole resnet18: 115 of 120 expected tensors found" in message
    assert "missing: 5 tensors (layer3.1.bn2.bias, layer3.1.bn2.num_batches_tracked, " in message


def test_tensors_too_many_are_named(tmp_path: Path) -> None:
    message = refused(saved(tmp_path, {**drawn(), "projector.0.weight": torch.zeros(2)}))
    assert "unexpected: 1 tensors that torchvision does not have (projector.0.weight)" in message


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    state = drawn()
    state["bn1.weight"][0] = float("nan")
    assert "bn1.weight: holds NaN or infinite values" in refused(saved(tmp_path, state))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(64, dtype=torch.int8), "expected floating-point values, found torch.int8"),
        (torch.zeros(64, dtype=torch.complex64), "expected floating-point values, found torch.complex64"),
        (torch.zeros(1).expand(10**15), r"expected shape \(64,\), found \(1000000000000000,\)"),
        (torch.zeros(64).to_sparse(), "expected a dense tensor, found a sparse or quantised one"),
    ],
)
def test_a_tensor_that_is_no_weight_is_named(tensor: Tensor, message: str) -> None:
    state = {name: value for name, value in drawn(classifier=False).items()} | {"bn1.weight": tensor}
    with pytest.raises(CheckpointError, match=f"bn1.weight: {message}"):
        check_state(state, "resnet18", source="it")


def test_two_backbones_are_compared_tensor_by_tensor() -> None:
    one = drawn(classifier=False)
    two = one | {"bn1.bias": one["bn1.bias"] + 0.5, "bn1.num_batches_tracked": torch.tensor(9)}
    assert differences(one, one) == []
    assert differences(one, two) == ["bn1.bias: largest difference 0.5"]
    del two["bn1.weight"]
    assert differences(one, two)[1] == "bn1.weight: in one of them only"
