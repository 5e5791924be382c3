"""A checkpoint to measure with: speed does not depend on the weights."""

from pathlib import Path

import torch

from converters.canonical import write_checkpoint
from zoo.backbone import Backbone
from zoo.checkpoint import CARD_NAME, Arch
from zoo.transforms import IMAGENET_PIXELS


def random_checkpoint(folder: Path, arch: Arch) -> Path:
    """Write an untrained network of `arch` into `folder`; its card."""
    torch.manual_seed(0)
    write_checkpoint(
        folder,
        Backbone(arch).state_dict(),
        name="random",
        family="random",
        arch=arch,
        pixels=IMAGENET_PIXELS,
        source_format="canonical",
        lineage=(),
    )
    return folder / CARD_NAME
