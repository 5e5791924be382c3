"""A card names its weights, and is refused beside others."""

from pathlib import Path
from typing import Any

import pytest

from zoo.checkpoint import CARD_NAME, CheckpointCard, read_card, verify_weights, write_card
from zoo.errors import CheckpointError, ConfigError
from zoo.files import sha256_file
from zoo.transforms import IMAGENET_PIXELS


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with something that passes for weights: a card asks for their hash, not for their tensors."""
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "backbone.safetensors").write_bytes(b"weights")
    return tmp_path / "checkpoint"


def card(folder: Path, **changes: Any) -> CheckpointCard:
    values: dict[str, Any] = {
        "name": "SimSiam, 100 epochs",
        "family": "simsiam_r50_100e",
        "arch": "resnet50",
        "pixels": IMAGENET_PIXELS,
        "weights": "backbone.safetensors",
        "weights_sha256": sha256_file(folder / "backbone.safetensors"),
        "tensors_sha256": "0" * 64,
        "pretrain_seed": 0,
        "epochs": 100,
        "source_format": "canonical",
        "licence": None,
        "lineage": ("first", "then: second"),
        "url": None,
    }
    return CheckpointCard.model_validate({**values, **changes})


def test_a_written_card_is_read_back_equal(folder: Path) -> None:
    written = card(folder)
    path = write_card(folder, written)
    assert path == folder / CARD_NAME
    assert read_card(path) == read_card(folder) == written


@pytest.mark.parametrize("name", ["1e4", "010", "no", "~", "a: b", "# 1", "größer", "'quoted'", "0x1F", " "])
def test_a_name_that_looks_like_another_value_is_read_back_equal(folder: Path, name: str) -> None:
    written = card(folder, name=name, lineage=(name,))
    assert read_card(write_card(folder, written)) == written


def test_changed_weights_are_refused(folder: Path) -> None:
    path = write_card(folder, card(folder))
    (folder / "backbone.safetensors").write_bytes(b"others!")
    with pytest.raises(CheckpointError, match="backbone.safetensors: expected sha256 .* as .*card.yaml says, found"):
        read_card(path)


def test_verifying_reads_the_bytes_and_not_the_ledger(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = card(folder)
    path = write_card(folder, written)
    assert verify_weights(path, written) == folder / "backbone.safetensors"
    monkeypatch.setattr("zoo.checkpoint.remembered_sha256", lambda path: pytest.fail("asked the ledger"))
    (folder / "backbone.safetensors").write_bytes(b"others!")
    with pytest.raises(CheckpointError, match="restore it, or remove its folder"):
        verify_weights(path, written)


def test_missing_weights_are_named(folder: Path) -> None:
    path = write_card(folder, card(folder))
    (folder / "backbone.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match="card.yaml: expected the weights at .*backbone.safetensors, found no such"
    ):
        read_card(path)


def test_a_folder_without_a_card_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="card.yaml: no such file"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("arch: resnet50", "arch: resnet51", "arch: input should be 'resnet18', "),
        ("order: rgb", "order: bgr", "pixels.order: input should be 'rgb', found 'bgr'"),
        ("epochs: 100", "epochs: many", "epochs: input should be a valid integer"),
        ("epochs: 100", "epoch: 100", "epoch: unknown key"),
    ],
)
def test_a_malformed_card_is_refused_with_its_line(folder: Path, old: str, new: str, message: str) -> None:
    path = write_card(folder, card(folder))
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=rf"card.yaml:\d+: {message}"):
        read_card(path)


def test_a_hash_that_is_none_is_refused(folder: Path) -> None:
    path = write_card(folder, card(folder))
    path.write_text(path.read_text().replace("0" * 64, "0123"))
    with pytest.raises(ConfigError, match="tensors_sha256: string should match pattern"):
        read_card(path)


def test_preprocessing_is_the_architecture_and_the_pixels(folder: Path) -> None:
    assert card(folder).preprocessing() == {
        "arch": "resnet50",
        "pixels": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "order": "rgb"},
    }
