"""The file and the settings handed to mmpretrain: it starts from them by itself, and computes what we compute."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from converters.probe import picture
from converters.read import read
from converters.to_mmpretrain import OVERLAY_NAME, PREFIX, WEIGHTS_NAME, overlay, to_mmpretrain
from tests.converters.made import shaken
from zoo.backbone import COUNTER, Backbone, canonical_shapes, normalise
from zoo.config import read_yaml
from zoo.files import sha256_file
from zoo.transforms import IMAGENET_PIXELS, Pixels

PIXELS = Pixels(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), order="rgb")  # no two alike: exchanged channels are seen


@pytest.fixture(scope="module")
def network() -> Backbone:
    return shaken(Backbone("resnet18"))


@pytest.fixture(scope="module")
def state(network: Backbone) -> dict[str, Tensor]:
    return network.state_dict()


def started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """mmpretrain's ResNet-50 classifier with the overlay of `folder` merged in, started from within that folder."""
    import mmpretrain.models  # noqa: F401  registers the classes
    from mmengine.config import Config
    from mmpretrain.registry import MODELS

    classifier = {
        "type": "ImageClassifier",
        "backbone": {"type": "ResNet", "depth": 50, "style": "pytorch"},
        "neck": {"type": "GlobalAveragePooling"},
        "head": {"type": "LinearClsHead", "num_classes": 10, "in_channels": 2048},
    }
    config = Config({"model": classifier, "data_preprocessor": {"num_classes": 10, "to_rgb": False}})
    config.merge_from_dict(Config.fromfile(folder / OVERLAY_NAME).to_dict())
    monkeypatch.chdir(folder)  # the overlay says the file's name alone
    model = MODELS.build({**config.model, "data_preprocessor": config.data_preprocessor})
    model.init_weights()
    return model.eval()


def test_mmpretrain_starts_from_the_weights_and_the_overlay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Backbone, state: dict[str, Tensor]
) -> None:
    """Of a BGR picture, as its decoder gives it, to the features: pixels, names and strides are ours."""
    to_mmpretrain(tmp_path, state, "resnet18", PIXELS)
    theirs = started(tmp_path, monkeypatch)
    assert all(torch.equal(tensor, state[name]) for name, tensor in theirs.backbone.state_dict().items())
    assert theirs.backbone.state_dict().keys() == state.keys()
    rgb = torch.from_numpy(picture().copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        inputs = theirs.data_preprocessor({"inputs": rgb.flip(1)})["inputs"]
        assert (inputs - normalise(rgb, PIXELS)).abs().max() < 1e-5
        (features,) = theirs.neck(theirs.backbone(inputs))
        assert (features - network(normalise(rgb, PIXELS))).abs().max() < 1e-5
        assert theirs.head((features,)).shape == (1, 10)


def test_mmpretrain_stops_where_the_file_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Tensor]
) -> None:
    """Nothing starts from random weights unseen."""
    to_mmpretrain(tmp_path, state, "resnet18", PIXELS).unlink()
    with pytest.raises(FileNotFoundError, match=WEIGHTS_NAME):
        started(tmp_path, monkeypatch)


def test_what_is_read_back_is_the_state(tmp_path: Path, state: dict[str, Tensor]) -> None:
    back = read(to_mmpretrain(tmp_path, state, "resnet18", IMAGENET_PIXELS))
    assert (back.arch, back.reading.prefix, back.state.keys()) == ("resnet18", PREFIX, state.keys())
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.state.items())


def test_the_file_is_plain_whole_and_always_the_same(tmp_path: Path, state: dict[str, Tensor]) -> None:
    bare = {name: tensor.double() for name, tensor in state.items() if not name.endswith(COUNTER)}
    path = to_mmpretrain(tmp_path / "a", bare, "resnet18", IMAGENET_PIXELS)
    stored = torch.load(path, weights_only=True)
    assert set(stored) == {"state_dict", "meta"} and stored["meta"] == {}
    assert list(stored["state_dict"]) == [PREFIX + name for name in canonical_shapes("resnet18")]
    for name, tensor in stored["state_dict"].items():
        assert tensor.dtype == (torch.int64 if name.endswith(COUNTER) else torch.float32)
        assert not name.endswith(COUNTER) or tensor == 0
    again = to_mmpretrain(tmp_path / "b", dict(reversed(bare.items())), "resnet18", IMAGENET_PIXELS)
    assert sha256_file(path) == sha256_file(again)
    assert sorted(file.name for file in path.parent.iterdir()) == [WEIGHTS_NAME, OVERLAY_NAME]


@pytest.mark.parametrize(
    ("arch", "depth", "width"), [("resnet18", 18, 512), ("resnet34", 34, 512), ("resnet101", 101, 2048)]
)
def test_the_overlay_follows_the_architecture(arch: str, depth: int, width: int) -> None:
    model = overlay(arch, IMAGENET_PIXELS)["model"]
    assert (model["backbone"]["type"], model["backbone"]["depth"]) == ("ResNet", depth)
    assert model["backbone"]["init_cfg"] == {"type": "Pretrained", "checkpoint": WEIGHTS_NAME, "prefix": "backbone."}
    assert model["head"] == {"in_channels": width}


def test_the_overlay_brings_the_pixel_statistics_in_0_to_255(tmp_path: Path, state: dict[str, Tensor]) -> None:
    to_mmpretrain(tmp_path, state, "resnet18", IMAGENET_PIXELS)
    preprocessor = read_yaml(tmp_path / OVERLAY_NAME)["data_preprocessor"]
    assert preprocessor["mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert preprocessor["std"] == pytest.approx([58.395, 57.12, 57.375])
    assert preprocessor["to_rgb"] is True
