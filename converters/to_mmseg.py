"""Canonical weights → a file that mmsegmentation's ResNet starts from, and the settings without which it means another.

mmseg's plain ResNet has the canonical names (protocols §3.4). Weights alone are not enough: the heads' widths follow
the architecture, and pixels are BGR, of another mean, unless the overlay says so.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from converters.probe import write_probe
from engines.contract import Weights, tensor_sha256
from zoo.backbone import COUNTER
from zoo.config import dump_yaml
from zoo.errors import CheckpointError, several
from zoo.files import sha256_file, write_atomic
from zoo.transforms import Pixels

WEIGHTS_NAME: Final = "mmseg.pth"
OVERLAY_NAME: Final = "mmseg_overlay.yaml"
_STEM: Final = (  # what a ResNet may not say: another stem, or shortcuts that pool before their convolution
    ("deep_stem", False),
    ("avg_down", False),
    ("stem_channels", 64),
    ("in_channels", 3),
)


def tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Canonical names → fp32 tensors on the CPU; batch counters, where there are any, stay integers."""
    return {
        name: tensor.detach().to("cpu", torch.int64 if name.endswith(COUNTER) else torch.float32).contiguous().clone()
        for name, tensor in state.items()
    }


def overlay(arch: str, pixels: Pixels) -> dict[str, Any]:
    """The mmseg settings that weights of this architecture and these pixel statistics need.

    The heads are a quarter as wide as what they read, as in mmseg's own configurations of ResNet-18 and ResNet-50.
    """
    last = 512 if arch in ("resnet18", "resnet34") else 2048
    return {
        "model": {
            "data_preprocessor": {
                "mean": [255 * value for value in pixels.mean],
                "std": [255 * value for value in pixels.std],
                "bgr_to_rgb": pixels.order == "rgb",  # mmcv reads BGR
            },
            "backbone": {"type": "ResNet", "depth": int(arch.removeprefix("resnet"))},
            "decode_head": {"in_channels": last, "channels": last // 4},
            "auxiliary_head": {"in_channels": last // 2, "channels": last // 8},
        },
    }


def check_target(config: Mapping[str, Any]) -> None:
    """Raises CheckpointError unless the native configuration's backbone is a ResNet that these weights can fill."""
    backbone = config.get("model", {}).get("backbone", {})
    found = [f"type: expected ResNet, found {backbone.get('type')}"] if backbone.get("type") != "ResNet" else []
    for key, expected in _STEM:
        if backbone.get(key, expected) != expected:
            found.append(f"{key}: expected {expected}, found {backbone[key]}")
    if found:
        title = (
            "model.backbone cannot take these weights: they begin with one 7x7 convolution (conv1, bn1), a deep stem "
            "(ResNetV1c, ResNetV1d) with three 3x3 ones, which would stay random (protocols §3.4):"
        )
        raise CheckpointError(several(title, found))


def to_mmseg(folder: Path, state: Mapping[str, Tensor], arch: str, pixels: Pixels) -> Path:
    """Write `folder`/mmseg.pth and its overlay; the weights' path.

    {state_dict, meta} with bare names: for `init_cfg` {type: Pretrained} of the backbone (protocols §3.4).
    """
    stream = io.BytesIO()
    torch.save({"state_dict": tensors(state), "meta": {}}, stream)
    write_atomic(folder / WEIGHTS_NAME, stream.getvalue())
    write_atomic(folder / OVERLAY_NAME, dump_yaml(overlay(arch, pixels)))
    return folder / WEIGHTS_NAME


def prepared(folder: Path, state: dict[str, Tensor], arch: str, pixels: Pixels) -> Weights:
    """Weights, overlay and all that proves their arrival."""
    path = to_mmseg(folder, state, arch, pixels)
    return Weights(
        weights=str(path.resolve()),
        weights_sha256=sha256_file(path),
        overlay=overlay(arch, pixels),
        tensors={f"backbone.{name}": tensor_sha256(tensor) for name, tensor in state.items()},
        fresh=[],
        probe=str(write_probe(folder, state, arch, pixels, dilated=True).resolve()),
    )
