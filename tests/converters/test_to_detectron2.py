"""Canonical names become detectron2's, the file holds arrays only, and the overlay says what the weights need."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from converters.__main__ import PARITY_NAME, app
from converters.canonical import write_checkpoint
from converters.probe import HEIGHT, STAGES, WIDTH, dilate, write_probe
from converters.to_detectron2 import arrays, overlay, placed, renamed, to_detectron2
from engines.compatibility import load_arrays_only
from zoo.backbone import COUNTER, Backbone, canonical_shapes
from zoo.config import read_yaml
from zoo.transforms import IMAGENET_PIXELS, Pixels

# the examples of protocols §3.3, with one of each kind of name
NAMES = {
    "conv1.weight": "stem.conv1.weight",
    "bn1.running_mean": "stem.conv1.norm.running_mean",
    "layer1.0.downsample.0.weight": "res2.0.shortcut.weight",
    "layer1.0.downsample.1.bias": "res2.0.shortcut.norm.bias",
    "layer4.2.bn3.running_var": "res5.2.conv3.norm.running_var",
    "layer3.22.conv2.weight": "res4.22.conv2.weight",
}


def test_names_are_those_of_the_sheet() -> None:
    assert {name: renamed(name) for name in NAMES} == NAMES


@pytest.mark.parametrize(
    "name", ["fc.weight", "module.conv1.weight", "layer5.0.conv1.weight", "layer1.0.conv1.weight.x"]
)
def test_foreign_names_are_refused(name: str) -> None:
    with pytest.raises(KeyError):
        renamed(name)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnet101"])
def test_every_tensor_gets_a_name_of_its_own(arch: str) -> None:
    names = [name for name in canonical_shapes(arch) if not name.endswith(COUNTER)]
    assert len({renamed(name) for name in names}) == len(names)


def test_c4_keeps_res5_in_its_heads() -> None:
    assert placed("res5.0.conv1.weight", "c4") == "roi_heads.res5.0.conv1.weight"
    assert placed("res4.0.conv1.weight", "c4") == "backbone.res4.0.conv1.weight"
    assert placed("res5.0.conv1.weight", "fpn") == "backbone.bottom_up.res5.0.conv1.weight"


def test_the_file_is_what_detectron2_takes_for_its_own(tmp_path: Path) -> None:
    state = Backbone("resnet18").state_dict()
    with to_detectron2(tmp_path, state, "resnet18", IMAGENET_PIXELS).open("rb") as stream:
        content = load_arrays_only(stream)  # numpy arrays in dicts: nothing else is let in
    assert content["__author__"] not in ("", "Caffe2") and content["matching_heuristics"] is True
    assert len(content["model"]) == 100
    assert np.array_equal(content["model"]["res3.0.shortcut.weight"], state["layer2.0.downsample.0.weight"].numpy())
    assert all(array.dtype == np.float32 for array in content["model"].values())
    assert read_yaml(tmp_path / "detectron2_overlay.yaml")["MODEL"]["RESNETS"]["STRIDE_IN_1X1"] is False


def test_the_overlay_follows_architecture_and_pixels() -> None:
    found = overlay("resnet50", IMAGENET_PIXELS)
    assert found["INPUT"] == {"FORMAT": "RGB"}
    assert found["MODEL"]["PIXEL_MEAN"] == pytest.approx([123.675, 116.28, 103.53], abs=1e-9)
    assert found["MODEL"]["PIXEL_STD"] == pytest.approx([58.395, 57.12, 57.375], abs=1e-9)
    assert found["MODEL"]["RESNETS"] == {"DEPTH": 50, "RES2_OUT_CHANNELS": 256, "STRIDE_IN_1X1": False}
    assert overlay("resnet34", IMAGENET_PIXELS)["MODEL"]["RESNETS"]["RES2_OUT_CHANNELS"] == 64
    half = Pixels(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), order="rgb")
    assert overlay("resnet18", half)["MODEL"]["PIXEL_MEAN"] == [127.5] * 3


def test_a_pickle_of_anything_but_arrays_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"model": Path("x")}))
    with path.open("rb") as stream, pytest.raises(pickle.UnpicklingError, match="is not allowed: expected numpy"):
        load_arrays_only(stream)


@pytest.mark.parametrize("dilated", [False, True])
def test_the_probe_holds_every_stage_in_both_precisions(tmp_path: Path, dilated: bool) -> None:
    state = Backbone("resnet50").state_dict()
    with np.load(write_probe(tmp_path, state, "resnet50", IMAGENET_PIXELS, dilated=dilated)) as probe:
        shapes = {name: probe[name].shape for name in probe.files}
        close = [np.abs(probe[f"fp32/{stage}"] - probe[f"fp64/{stage}"]).max() for stage in STAGES]
    last = (1, 2048, HEIGHT // 8, WIDTH // 8) if dilated else (1, 2048, HEIGHT // 32, WIDTH // 32)
    assert shapes["pixels"] == (1, 3, HEIGHT, WIDTH) and shapes["fp64/feature5"] == last
    assert 0 < max(close) < 1e-2


def test_dilation_is_torchvisions() -> None:
    """An independent construction of the same network: torchvision dilates Bottlenecks itself."""
    from torchvision.models import resnet50

    theirs = resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    ours = Backbone("resnet50")
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    dilate(ours)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found = ours.eval().stages(images)["feature5"]
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
    assert torch.equal(found, expected) and found.shape[-2:] == (8, 12)


def checkpoint(folder: Path) -> Path:
    torch.manual_seed(0)
    write_checkpoint(
        folder,
        Backbone("resnet18").state_dict(),
        name="random",
        family="random",
        arch="resnet18",
        pixels=IMAGENET_PIXELS,
        source_format="canonical",
        lineage=(),
    )
    return folder


@pytest.mark.slow  # two children
def test_converting_for_detectron2_proves_itself(tmp_path: Path) -> None:
    """The card is read where there is one, and the engine's word is kept beside the weights."""
    ended = CliRunner().invoke(
        app, ["convert", str(checkpoint(tmp_path / "in")), str(tmp_path / "out"), "--to", "detectron2"]
    )
    assert ended.exit_code == 0, ended.output
    assert "pixels: taken to be" not in ended.output  # the card says them
    assert "c4: 100 tensors bit for bit" in ended.stdout and "fpn: 100 tensors bit for bit" in ended.stdout
    proofs = json.loads((tmp_path / "out" / PARITY_NAME).read_text())
    assert set(proofs) == {"c4", "fpn"}
    for proof in proofs.values():
        assert max(proof["largest_difference"]["fp64"].values()) <= 1e-10


def test_without_the_proof_no_engine_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DETECTION_PYTHON", "no-such-python")
    source, out = str(checkpoint(tmp_path / "in")), str(tmp_path / "out")
    ended = CliRunner().invoke(app, ["convert", source, out, "--to", "detectron2"])
    assert "ZOO_DETECTION_PYTHON: expected a Python interpreter, found 'no-such-python'" in str(ended.exception)
    assert not (tmp_path / "out" / "detectron2.pkl").exists()
    assert CliRunner().invoke(app, ["convert", source, out, "--to", "detectron2", "--no-prove"]).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["detectron2.pkl", "detectron2_overlay.yaml"]


def test_arrays_leave_the_counters_out() -> None:
    assert not [name for name in arrays(Backbone("resnet18").state_dict()) if "batches" in name]
