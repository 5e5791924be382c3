"""The Python API: a model from any reference, its stages, its description, its answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.models.feature_extraction import create_feature_extractor

from converters.cards import names
from converters.to_torchvision import to_torchvision
from evaluate.api import USUAL, Model, get_model, list_models
from evaluate.predict import newest_record, predict
from tests.converters.made import shaken
from tests.evaluate.test_linear import measured
from tests.evaluate.tiny_world import RECIPE
from zoo.backbone import normalise
from zoo.datasets import manifest
from zoo.errors import CheckpointError, ConfigError, DataError
from zoo.record import read_record
from zoo.transforms import IMAGENET_PIXELS, Pixels, TestTransform, apply_test

SMALL = TestTransform(resize=40, crop=32, interpolation="bilinear", fit="centre_crop")
NODES = {"relu": "feature1", "layer1": "feature2", "layer2": "feature3", "layer3": "feature4", "layer4": "feature5"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def network() -> torchvision.models.ResNet:
    return shaken(torchvision.models.resnet18())


@pytest.fixture
def model(network: torchvision.models.ResNet, tmp_path: Path) -> Model:
    torch.save({"epoch": 9, "state_dict": network.state_dict()}, tmp_path / "some.pth.tar")
    return get_model(tmp_path / "some.pth.tar", device="cpu")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (3, 48, 60, 3), dtype=np.uint8))


def test_every_stage_is_torchvisions_own(
    model: Model, network: torchvision.models.ResNet, pictures: list[np.ndarray]
) -> None:
    found = model.extract(pictures, transform=SMALL, batch_size=2)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "feature1": (3, 64, 16, 16),
        "feature2": (3, 64, 8, 8),
        "feature3": (3, 128, 4, 4),
        "feature4": (3, 256, 2, 2),
        "feature5": (3, 512, 1, 1),
        "avgpool": (3, 512),
    }
    crops = np.stack([apply_test(Image.fromarray(picture), SMALL) for picture in pictures])
    images = normalise(torch.from_numpy(crops.transpose(0, 3, 1, 2).copy()), IMAGENET_PIXELS)
    with torch.inference_mode():
        theirs = create_feature_extractor(network, {**NODES, "flatten": "avgpool"})(images)
    for name, value in theirs.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)


def test_a_picture_is_the_same_as_path_image_array_and_tensor(
    model: Model, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    array = pictures[0]
    Image.fromarray(array).save(tmp_path / "a.png")
    ways = [str(tmp_path / "a.png"), tmp_path / "a.png", Image.fromarray(array), array]
    features = model.extract(ways, transform=SMALL)["avgpool"]
    crop = torch.from_numpy(apply_test(Image.fromarray(array), SMALL).transpose(2, 0, 1).copy())
    for row in (*features, model.extract(crop[None])["avgpool"][0]):
        torch.testing.assert_close(row, features[0])
    assert model.extract([array])["feature1"].shape == (1, 64, USUAL.crop // 2, USUAL.crop // 2)


def test_the_checkpoints_own_pixel_statistics_count(model: Model, pictures: list[np.ndarray], tmp_path: Path) -> None:
    other = Pixels(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), order="rgb")
    changed = get_model(tmp_path / "some.pth.tar", pixels=other, device="cpu")
    assert changed.describe()["pixels"] == {**other.model_dump(mode="json"), "from": "stated"}
    usual, unusual = (m.extract(pictures, transform=SMALL)["avgpool"] for m in (model, changed))
    assert not torch.allclose(usual, unusual, atol=1e-3)


def test_a_model_describes_itself(model: Model) -> None:
    found = model.describe()
    assert (found["name"], found["arch"], found["layout"]) == ("some", "resnet18", "torchvision")
    assert found["parameters"] == 11_176_512 and found["operations"] == 1_818_528_768
    assert found["pixels"]["from"] == "assumed" and found["url"] is None and found["licence"] is None
    assert found["lineage"][0].startswith("some.pth.tar (sha256 ") and "read as torchvision" in found["lineage"][0]


def test_a_model_of_a_card_is_the_model_of_its_file(model: Model, tmp_path: Path) -> None:
    model._taken.write(tmp_path / "card")
    path = to_torchvision(tmp_path / "other", dict(model.backbone.state_dict()), "resnet18")
    described = [m.describe()["tensors_sha256"] for m in (model, get_model(tmp_path / "card"), get_model(path))]
    assert len(set(described)) == 1
    assert get_model(tmp_path / "card").describe()["pixels"]["from"] == "its card"


def test_published_checkpoints_are_listed() -> None:
    assert list_models() == list(names())
    some = list_models("simsiam_*")
    assert some and set(some) < set(names()) and all(name.startswith("simsiam_") for name in some)
    assert list_models("no such") == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "expected at least one"),
        (
            ["gone.jpg", np.zeros((4, 4), np.uint8)],
            r"gone.jpg: no such file\n.*image 1: expected \(H, W, 3\) uint8 RGB",
        ),
        (
            torch.zeros(1, 3, 8, 8),
            r"expected a tensor \(N, 3, H, W\) of uint8 RGB, found \(1, 3, 8, 8\) of torch.float32",
        ),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "expected a tensor"),
    ],
)
def test_what_is_no_image_is_listed(model: Model, images: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        model.extract(images)  # type: ignore[arg-type]


def test_a_reference_that_is_none_says_what_is_understood() -> None:
    with pytest.raises(ConfigError, match="did you mean simsiam_r50_100e"):
        get_model("simsiam_r50_100")


def test_a_trained_head_answers_through_the_model(tiny: Path, tmp_path: Path) -> None:
    measured(tiny, tmp_path / "single", {"sgd": RECIPE | {"layers": ["avgpool"]}})
    record = newest_record(tmp_path)
    images = [manifest("tiny", "val").path(index) for index in range(3)]
    model = get_model(tiny / "checkpoint", device="cpu")
    assert model.predict(images, record) == predict(images, record, read_record(record), "sgd_avgpool")


def test_another_checkpoints_head_is_refused(tiny: Path, tmp_path: Path, model: Model) -> None:
    measured(tiny, tmp_path / "single", {"sgd": RECIPE | {"layers": ["avgpool"]}})
    with pytest.raises(CheckpointError, match=r"its heads were trained on random, tensors .*…; this model's are"):
        model.predict([], newest_record(tmp_path))
