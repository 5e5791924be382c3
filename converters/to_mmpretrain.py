"""Canonical weights → a file that mmpretrain's ResNet starts from, and the settings without which it means another.

mmpretrain's plain ResNet has the canonical names below `backbone.` (protocols §3.4). The overlay brings the depth, the
width that a classifier reads, and the pixels: mean and std of 0 to 255 in RGB, where the decoder gives BGR.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from converters import to_mmseg
from converters.to_torchvision import counted, save
from zoo.backbone import num_channels
from zoo.config import dump_yaml
from zoo.files import write_atomic
from zoo.transforms import Pixels

WEIGHTS_NAME: Final = "mmpretrain.pth"
OVERLAY_NAME: Final = "mmpretrain_overlay.yaml"
PREFIX: Final = "backbone."


def overlay(arch: str, pixels: Pixels) -> dict[str, Any]:
    """The mmpretrain settings that weights of this architecture and these pixel statistics need.

    The preprocessor stands beside the model, where mmpretrain's own configurations have it. `checkpoint` is the bare
    file name: mmengine looks for it where training is started, and stops when it is not there.
    """
    shared = to_mmseg.overlay(arch, pixels)["model"]
    preprocessor = shared["data_preprocessor"]
    start = {"type": "Pretrained", "checkpoint": WEIGHTS_NAME, "prefix": PREFIX}
    return {
        "data_preprocessor": {
            "mean": preprocessor["mean"],
            "std": preprocessor["std"],
            "to_rgb": preprocessor["bgr_to_rgb"],
        },
        "model": {
            "backbone": {**shared["backbone"], "init_cfg": start},
            "head": {"in_channels": num_channels(arch, "avgpool")},
        },
    }


def to_mmpretrain(folder: Path, state: Mapping[str, Tensor], arch: str, pixels: Pixels) -> Path:
    """Write `folder`/mmpretrain.pth and its overlay; the weights' path.

    {state_dict, meta}, every name behind `backbone.`: for `init_cfg` {type: Pretrained, prefix: backbone.} (§3.4).
    """
    weights = to_mmseg.tensors(counted(state, arch))
    content = {"state_dict": {PREFIX + name: tensor for name, tensor in weights.items()}, "meta": {}}
    path = save(folder / WEIGHTS_NAME, content)
    write_atomic(folder / OVERLAY_NAME, dump_yaml(overlay(arch, pixels)))
    return path
