"""Anybody's checkpoint file → a whole canonical state, or a refusal that says what was seen. Nothing is executed."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor

from converters.read import FORMATS, read
from zoo.backbone import COUNTER, canonical_shapes
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
    source, arch, found = read(saved(tmp_path, content))
    assert (source, arch) == ("torchvision", "resnet18")
    assert found.keys() == canonical_shapes("resnet18").keys()
    assert all(torch.equal(found[name], state[name]) for name in found)


@pytest.mark.parametrize("arch", ["resnet34", "resnet50", "resnet101"])
def test_the_architecture_is_found_by_the_blocks(tmp_path: Path, arch: str) -> None:
    assert read(saved(tmp_path, drawn(arch)))[1] == arch


def test_counters_may_be_absent(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in drawn().items() if not name.endswith(COUNTER)}
    assert len(read(saved(tmp_path, state))[2]) == 100


def test_safetensors_are_read(tmp_path: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in drawn(classifier=False).items()}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    _, arch, found = read(tmp_path / "a.safetensors")
    assert arch == "resnet18" and all(torch.equal(found[name], state[name]) for name in state)


def test_the_old_file_layout_of_torch_is_read(tmp_path: Path) -> None:
    torch.save(drawn(), tmp_path / "old.tar", _use_new_zipfile_serialization=False)
    assert read(tmp_path / "old.tar")[1] == "resnet18"


@pytest.mark.parametrize("name", ["gone.pth", "."])
def test_a_file_that_does_not_exist_is_named(tmp_path: Path, name: str) -> None:
    assert "no such checkpoint file; expected .safetensors, .pth, .pt or .tar" in refused(tmp_path / name)


class _Attack:
    """Unpickled as code, this would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.system, (f"mkdir {self.folder}",)


@pytest.mark.parametrize("way", ["pickle", "torch", "beside tensors"])
def test_code_in_a_file_does_not_run(tmp_path: Path, way: str) -> None:
    path, attack = tmp_path / "file.pth", _Attack(tmp_path / "attacked")
    if way == "pickle":
        path.write_bytes(pickle.dumps(attack, protocol=2))
    else:
        saved(tmp_path, attack if way == "torch" else {**drawn(), "extra": attack})
    message = refused(path)
    assert "not readable as tensors only" in message and "ask for a plain state dict or safetensors" in message
    assert "weights_only=False" not in message  # torch's own hint would have the code run
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("content", [b"", b"\x80", b"404 Not Found", bytes(1000), b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.pth").write_bytes(content)
    assert "not readable as tensors only" in refused(tmp_path / "file.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's, of a spoilt byte
@pytest.mark.parametrize("zipped", [True, False])
def test_damage_anywhere_is_refused_and_never_a_crash(tmp_path: Path, zipped: bool) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "file.pth"
    torch.save({"conv1.weight": torch.zeros(4, 3)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for trial in range(150):
        spoilt = bytearray(whole[: int(rng.integers(1, len(whole)))] if trial % 3 == 0 else whole)
        for position in rng.integers(0, min(len(spoilt), 400), 3):
            spoilt[position] = rng.integers(0, 256)
        path.write_bytes(spoilt)
        refused(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, drawn())
    path.write_bytes(path.read_bytes()[:-2000])
    assert "The file is damaged, or holds more than tensors" in refused(path)


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
    assert message.endswith(f"expected a state dict (names to tensors), found {found}.")


@pytest.mark.parametrize(
    "content", [{}, {"a": torch.zeros(1)}, {0: torch.zeros(1)}, {"state_dict": {"encoder.0.weight": torch.zeros(2)}}]
)
def test_tensors_of_no_known_layout_are_refused_with_their_first_names(tmp_path: Path, content: Any) -> None:
    message = refused(saved(tmp_path, content))
    tensors = content.get("state_dict", content)
    assert f"none of the known layouts ({', '.join(FORMATS)}). Found {len(tensors)} tensors: " in message
    assert "Expected a flat state dict with torchvision's names (conv1.weight, " in message
    assert all(str(name) in message for name in tensors)


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.encoder_q."])
def test_a_prefix_that_no_reader_knows_is_refused_and_shown(tmp_path: Path, prefix: str) -> None:
    message = refused(saved(tmp_path, {f"{prefix}{name}": tensor for name, tensor in drawn().items()}))
    assert f"none of the known layouts (torchvision). Found 122 tensors: {prefix}conv1.weight, {prefix}bn1." in message


def test_half_a_network_is_refused(tmp_path: Path) -> None:
    state = drawn()
    half = dict(list(state.items())[: len(state) // 2])
    message = refused(saved(tmp_path, half))
    assert "expected the blocks of one of resnet18, resnet34, resnet50, resnet101, found" in message
    assert "another network, or only a part of one" in message


def test_a_missing_batch_norm_is_named(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in drawn().items() if not name.startswith("layer3.1.bn2")}
    message = refused(saved(tmp_path, state))
    assert "is not a whole resnet18: 115 of 120 expected tensors found" in message
    assert "missing: 5 tensors (layer3.1.bn2.bias, layer3.1.bn2.num_batches_tracked, " in message


def test_a_tensor_too_many_is_named(tmp_path: Path) -> None:
    message = refused(saved(tmp_path, {**drawn(), "projector.0.weight": torch.zeros(2)}))
    assert "unexpected: 1 tensors (projector.0.weight)" in message


def test_a_wide_resnet50_is_not_taken_for_a_resnet50(tmp_path: Path) -> None:
    message = refused(saved(tmp_path, drawn("wide_resnet50_2")))
    assert "is not a whole resnet50" in message and "layer1.0.conv1.weight: expected shape (64, 64, 1, 1)" in message


def test_a_deeper_network_is_not_taken_for_one_of_ours(tmp_path: Path) -> None:
    assert "another network, or only a part of one" in refused(saved(tmp_path, drawn("resnet152")))


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    state = drawn()
    state["bn1.weight"][0] = float("nan")
    assert "bn1.weight: holds NaN or infinite values" in refused(saved(tmp_path, state))
