"""Canonical weights → files that torchvision and timm start from; both give a ResNet the canonical names.

Neither file holds a classifier: torchvision loads its own with strict=False and lacks fc.weight and fc.bias alone, timm
loads strictly into a network of num_classes=0 (protocols §3.1).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor

from converters.to_mmseg import tensors
from zoo.backbone import COUNTER, LAYERS, canonical_shapes
from zoo.errors import CheckpointError
from zoo.files import atomic_file, write_atomic

TORCHVISION_NAME: Final = "torchvision.pth"
TIMM_NAME: Final = "timm.safetensors"


def counted(state: Mapping[str, Tensor], arch: str) -> dict[str, Tensor]:
    """Every canonical name of `arch`, in the network's order → the state's tensor itself, counters never left out.

    Raises CheckpointError when `arch` has no weights (raw_pixels). The state must be whole (zoo.backbone.check_state).
    """
    if arch not in LAYERS:
        raise CheckpointError(f"{arch}: expected weights of one of {', '.join(LAYERS)}; {arch} has none to write.")
    # A counter that the source lacks is written as 0: then a reader that compares names finds all of its own. The value
    # enters no output, only the running statistics of batch norms without momentum, and a ResNet's have 0.1.
    zeros = {name: torch.zeros((), dtype=torch.int64) for name in canonical_shapes(arch) if name.endswith(COUNTER)}
    filled = {**zeros, **state}
    assert filled.keys() == canonical_shapes(arch).keys(), filled.keys() ^ canonical_shapes(arch).keys()
    return {name: filled[name] for name in canonical_shapes(arch)}


def save(path: Path, content: Any) -> Path:
    """torch.save, whole or not at all, straight to the disk; the path. The same content gives the same bytes."""
    with atomic_file(path) as stream:
        torch.save(content, stream)
    return path


def to_torchvision(folder: Path, state: Mapping[str, Tensor], arch: str) -> Path:
    """Write `folder`/torchvision.pth: a flat state dict, fp32, without fc. The path."""
    return save(folder / TORCHVISION_NAME, tensors(counted(state, arch)))


def to_timm(folder: Path, state: Mapping[str, Tensor], arch: str) -> Path:
    """Write `folder`/timm.safetensors, fp32, for `create_model(arch, num_classes=0, checkpoint_path=…)`. The path."""
    write_atomic(folder / TIMM_NAME, safetensors.torch.save(tensors(counted(state, arch))))
    return folder / TIMM_NAME
