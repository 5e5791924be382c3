"""Canonical weights → a pickle that detectron2 loads, and the settings without which they mean something else.

The names are those of protocols §3.3. Weights alone are not enough: detectron2's defaults are BGR pixels of another
mean, and a Bottleneck that halves its map in the 1x1 convolution. The overlay says what these weights need.
"""

import io
import pickle
import re
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from torch import Tensor

from converters.probe import write_probe
from engines.contract import Weights, tensor_sha256
from zoo.backbone import COUNTER
from zoo.config import dump_yaml
from zoo.files import sha256_file, write_atomic
from zoo.transforms import Pixels

Layout = Literal["c4", "fpn"]
WEIGHTS_NAME: Final = "detectron2.pkl"
OVERLAY_NAME: Final = "detectron2_overlay.yaml"
_RENAMED: Final = (  # each anchored to the whole name: no string is replaced anywhere else
    (re.compile(r"conv1\.weight"), r"stem.conv1.weight"),
    (re.compile(r"bn1\.(\w+)"), r"stem.conv1.norm.\1"),
    (re.compile(r"layer([1-4])\.(\d+)\.conv([123])\.weight"), r"res{stage}.\2.conv\3.weight"),
    (re.compile(r"layer([1-4])\.(\d+)\.bn([123])\.(\w+)"), r"res{stage}.\2.conv\3.norm.\4"),
    (re.compile(r"layer([1-4])\.(\d+)\.downsample\.0\.weight"), r"res{stage}.\2.shortcut.weight"),
    (re.compile(r"layer([1-4])\.(\d+)\.downsample\.1\.(\w+)"), r"res{stage}.\2.shortcut.norm.\3"),
)


def renamed(name: str) -> str:
    """detectron2's name of a canonical tensor: layer1 … layer4 become res2 … res5. Raises KeyError for others."""
    for pattern, target in _RENAMED:
        found = pattern.fullmatch(name)
        if found:
            stage = str(int(found[1]) + 1) if "{stage}" in target else ""
            return found.expand(target.replace("{stage}", stage))
    raise KeyError(name)


def arrays(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """detectron2's names → fp32 arrays; batch counters are left out, as in every published file."""
    return {
        renamed(name): np.ascontiguousarray(tensor.detach().cpu().float().numpy())
        for name, tensor in state.items()
        if not name.endswith(COUNTER)
    }


def overlay(arch: str, pixels: Pixels) -> dict[str, Any]:
    """The detectron2 settings that weights of this architecture and these pixel statistics need."""
    return {
        "INPUT": {"FORMAT": pixels.order.upper()},
        "MODEL": {
            "PIXEL_MEAN": [255 * value for value in pixels.mean],
            "PIXEL_STD": [255 * value for value in pixels.std],
            "RESNETS": {
                "DEPTH": int(arch.removeprefix("resnet")),
                "RES2_OUT_CHANNELS": 64 if arch in ("resnet18", "resnet34") else 256,
                "STRIDE_IN_1X1": False,
            },
        },
    }


def to_detectron2(folder: Path, state: dict[str, Tensor], arch: str, pixels: Pixels) -> Path:
    """Write `folder`/detectron2.pkl and its overlay; the pickle's path.

    {model, __author__, matching_heuristics}: what detectron2's checkpointer takes for a backbone whose names it must
    find in its own model (protocols §3.3).
    """
    stream = io.BytesIO()
    content = {"model": arrays(state), "__author__": "TransferZoo", "matching_heuristics": True}
    pickle.dump(content, stream, protocol=4)
    write_atomic(folder / WEIGHTS_NAME, stream.getvalue())
    write_atomic(folder / OVERLAY_NAME, dump_yaml(overlay(arch, pixels)))
    return folder / WEIGHTS_NAME


def placed(name: str, layout: Layout) -> str:
    """Where a tensor of detectron2's name stands in a whole model: C4 keeps res5 in its heads."""
    if layout == "fpn":
        return f"backbone.bottom_up.{name}"
    return f"roi_heads.{name}" if name.startswith("res5.") else f"backbone.{name}"


def prepared(folder: Path, state: dict[str, Tensor], arch: str, pixels: Pixels, layout: Layout) -> Weights:
    """Weights, overlay and all that proves their arrival, for a model of this layout."""
    path = to_detectron2(folder, state, arch, pixels)
    fresh = {"c4": ["roi_heads.res5.norm."], "fpn": ["backbone.fpn_"]}
    return Weights(
        weights=str(path.resolve()),
        weights_sha256=sha256_file(path),
        overlay=overlay(arch, pixels),
        tensors={
            placed(renamed(name), layout): tensor_sha256(tensor)
            for name, tensor in state.items()
            if not name.endswith(COUNTER)
        },
        fresh=fresh[layout],
        probe=str(write_probe(folder, state, arch, pixels, dilated=False).resolve()),
    )
