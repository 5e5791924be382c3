"""One pass for all stages, whatever order they are asked in; what each option of `forward` does to the numbers."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluate import features
from evaluate.features import ensure, feature_folder, obtain
from evaluate.forward import Extractor, pooled
from evaluate.job import FeatureSpec, Forward, Pool, feature_keys
from tests.evaluate.tiny_world import FORWARD, TEST_TRANSFORM
from zoo.backbone import Backbone, RawPixels, load, num_channels
from zoo.checkpoint import read_card
from zoo.datasets import manifest
from zoo.distributed import World
from zoo.errors import ConfigError, NonFiniteError
from zoo.transforms import IMAGENET_PIXELS

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
POOL = {"kernel": 2, "stride": 1, "padding": 0}


def spec(layers: dict, **changes: object) -> FeatureSpec:
    forward = FORWARD | {key: value for key, value in changes.items() if key in FORWARD}
    others = {key: value for key, value in changes.items() if key not in FORWARD}
    content = {"transform": TEST_TRANSFORM, "layers": layers, "forward": forward, "storage": "fp32"} | others
    return FeatureSpec.model_validate(content)


def extracted(tiny: Path, wanted: FeatureSpec) -> dict:
    card = read_card(tiny / "checkpoint")
    found = obtain(card, tiny / "checkpoint" / card.weights, manifest("tiny", "val"), wanted, num_workers=0, me=ALONE)
    return {layer: np.array(rows) for layer, rows in found.items()}


def ensured(tiny: Path, *wanted: FeatureSpec) -> None:
    card = read_card(tiny / "checkpoint")
    ensure(card, tiny / "checkpoint" / card.weights, manifest("tiny", "val"), wanted, num_workers=0, me=ALONE)


def test_the_published_pooling_gives_the_published_sizes_at_224_pixels() -> None:
    """protocols §2.2: 9216, 9216, 8192, 9216 and 8192 values of ResNet-50's maps."""
    from evaluate.benchmarks import load_benchmark

    layers = load_benchmark("imagenet_linear_stages").settings.layers
    sides = {"feature1": 112, "feature2": 56, "feature3": 28, "feature4": 14, "feature5": 7}
    for (layer, pool), size in zip(layers.items(), (9216, 9216, 8192, 9216, 8192), strict=True):
        channels = num_channels("resnet50", layer)
        assert channels is not None
        assert pooled(torch.ones(1, channels, sides[layer], sides[layer]), pool).shape == (1, size)
    corner = pooled(torch.ones(1, 64, 112, 112), layers["feature1"])[0, 0]
    assert float(corner) == pytest.approx(36 / 100)  # padding counts in the average


def test_channels_are_those_of_the_maps() -> None:
    for arch in ("resnet18", "resnet50"):
        with torch.inference_mode():
            maps = Backbone(arch).eval().stages(torch.zeros(1, 3, 32, 32))
        assert {layer: num_channels(arch, layer) for layer in maps} == {k: v.shape[1] for k, v in maps.items()}


def test_every_image_is_read_once_for_all_stages(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    real = features.TestImages.__call__

    def counted(self: features.TestImages, index: int) -> tuple[np.ndarray]:
        reads.append(index)
        return real(self, index)

    monkeypatch.setattr(features.TestImages, "__call__", counted)
    both = spec({"feature4": POOL, "avgpool": None}), spec({"feature4": POOL | {"stride": 2}})
    ensured(tiny, *both)
    assert sorted(reads) == sorted([0, *range(len(manifest("tiny", "val")))])  # the first once more: how wide?
    reads.clear()
    together = extracted(tiny, both[0]) | {"other": extracted(tiny, both[1])["feature4"]}
    assert not reads
    later = extracted(tiny, spec({"feature5": {"kernel": 1, "stride": 1, "padding": 0}, "avgpool": None}))
    assert len(reads) == len(manifest("tiny", "val")) + 1
    np.testing.assert_array_equal(later["avgpool"], together["avgpool"])
    np.testing.assert_allclose(later["feature5"], later["avgpool"], atol=1e-6)  # 1 x 1 at 24 pixels


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"memory_format": "contiguous", "fuse_batch_norm": False}, 0.0),
        ({"memory_format": "contiguous"}, 1e-5),
        ({"fuse_batch_norm": False}, 1e-5),
        ({}, 1e-5),
        ({"precision": "bf16"}, 3e-2),
    ],
)
def test_options_change_speed_and_little_else(tiny: Path, changes: dict, tolerance: float) -> None:
    card = read_card(tiny / "checkpoint")
    backbone = load(card, tiny / "checkpoint" / card.weights, ALONE.device)
    assert isinstance(backbone, Backbone)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 24, 24), generator=generator, dtype=torch.uint8)
    pool = Pool(kernel=2, stride=1, padding=0)
    forward = Forward.model_validate(FORWARD | changes)
    plain = Extractor(backbone, IMAGENET_PIXELS, [("feature2", pool), ("avgpool", None)])(images)
    ours = Extractor(backbone, IMAGENET_PIXELS, [("feature2", pool), ("avgpool", None)], forward)(images)
    for expected, found in zip(plain, ours, strict=True):
        assert found.dtype == torch.float32
        assert float((found - expected).abs().max() / expected.abs().max()) <= tolerance


def test_half_precision_storage_rounds_and_refuses_what_does_not_fit(tiny: Path) -> None:
    full, half = (extracted(tiny, spec({"avgpool": None}, storage=s))["avgpool"] for s in ("fp32", "fp16"))
    assert half.dtype == np.float16
    np.testing.assert_array_equal(full.astype(np.float16), half)
    with pytest.raises(NonFiniteError, match=r"a feature of .* is 1e\+05, too large for fp16; set storage: fp32"):
        features._stored(np.full((2, 3), 1e5, np.float32), np.dtype(np.float16), manifest("tiny", "val"), np.arange(2))


def test_an_extraction_killed_while_it_is_published_is_published_by_the_next(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = spec({"feature4": POOL, "feature5": {"kernel": 1, "stride": 1, "padding": 0}})
    real = Path.rename
    renamed: list[Path] = []

    def cut(self: Path, target: Path) -> Path:
        if self.parent.name.endswith(".partial") and len(renamed) == 1:
            raise KeyboardInterrupt
        renamed.append(self)
        return real(self, target)

    monkeypatch.setattr(Path, "rename", cut)
    with pytest.raises(KeyboardInterrupt):
        extracted(tiny, wanted)
    monkeypatch.undo()
    monkeypatch.setenv("ZOO_CACHE", str(renamed[0].parents[2]))
    keys = feature_keys(read_card(tiny / "checkpoint"), manifest("tiny", "val").sha256, wanted)
    there = [feature_folder(key).is_dir() for key in keys.values()]
    assert sorted(there) == [False, True]
    monkeypatch.setattr(features, "_compute", None)  # nothing is computed again
    with caplog.at_level(logging.INFO):
        assert set(extracted(tiny, wanted)) == {"feature4", "feature5"}
    assert not list(renamed[0].parents[1].glob("*.partial"))


def test_raw_pixels_have_no_stages() -> None:
    with pytest.raises(ConfigError, match="raw pixels have no stages"):
        Extractor(RawPixels(), IMAGENET_PIXELS, [("feature1", Pool(kernel=1, stride=1, padding=0))])


def test_a_kernel_that_does_not_fit_the_map_is_named() -> None:
    with pytest.raises(ConfigError, match="a kernel of 6 does not fit a map of 4 x 4 with padding 0"):
        pooled(torch.zeros(1, 2, 4, 4), Pool(kernel=6, stride=1, padding=0))
