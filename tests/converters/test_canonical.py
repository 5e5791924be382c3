"""Canonical weights and their card: what is written is what is read back."""

from pathlib import Path

import pytest
import torch

from converters.canonical import write_checkpoint
from converters.read import read
from zoo.backbone import COUNTER, build, fingerprint, load, read_weights
from zoo.checkpoint import CARD_NAME, WEIGHTS_NAME, CheckpointCard, read_card
from zoo.transforms import IMAGENET_PIXELS


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build("resnet18").state_dict()


def written(folder: Path, state: dict[str, torch.Tensor]) -> CheckpointCard:
    return write_checkpoint(
        folder,
        state,
        name="a",
        family="a",
        arch="resnet18",
        pixels=IMAGENET_PIXELS,
        source_format="torchvision",
        lineage=("from a.pth",),
        epochs=100,
    )


def test_a_written_checkpoint_is_read_back_whole(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    card = written(tmp_path / "a", state)
    assert read_card(tmp_path / "a") == card and card.tensors_sha256 == fingerprint(state)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [WEIGHTS_NAME, CARD_NAME]
    checkpoint = read(tmp_path / "a" / WEIGHTS_NAME)
    found = checkpoint.state
    assert (checkpoint.reading.layout, checkpoint.arch) == ("torchvision", "resnet18")
    assert all(torch.equal(found[name], state[name]) for name in state)
    network = load(card, tmp_path / "a" / WEIGHTS_NAME, torch.device("cpu"))
    assert fingerprint(network.state_dict()) == card.tensors_sha256


def test_equal_tensors_in_any_order_are_the_same_bytes(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    first, second = written(tmp_path / "a", state), written(tmp_path / "b", dict(reversed(state.items())))
    assert first == second
    assert (tmp_path / "a" / WEIGHTS_NAME).read_bytes() == (tmp_path / "b" / WEIGHTS_NAME).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_written_in_fp32(state: dict[str, torch.Tensor], tmp_path: Path, dtype: torch.dtype) -> None:
    other = {name: tensor if name.endswith(COUNTER) else tensor.to(dtype) for name, tensor in state.items()}
    card = written(tmp_path, other)
    found = read_weights(tmp_path / WEIGHTS_NAME)
    assert {tensor.dtype for name, tensor in found.items() if not name.endswith(COUNTER)} == {torch.float32}
    assert {tensor.dtype for name, tensor in found.items() if name.endswith(COUNTER)} == {torch.int64}
    assert card.tensors_sha256 == fingerprint(found) == fingerprint(other)


def test_tensors_that_share_one_storage_are_written(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """A flattened model's parameters are views of one tensor."""
    floats = [name for name in state if not name.endswith(COUNTER)]
    flat = torch.cat([state[name].flatten() for name in floats])
    views = {
        name: part.view(state[name].shape)
        for name, part in zip(floats, flat.split([state[name].numel() for name in floats]), strict=True)
    }
    assert written(tmp_path, views).tensors_sha256 == fingerprint(state)
