"""Checkpoint files → canonical state. One small function a source; FORMATS is the whole list.

A reader gets the file's tensors by name and returns (architecture, canonical state) or None when the file is not of its
kind. Whatever it returns must be a whole canonical state: `zoo.backbone.check_state` lists what is missing, unexpected
or of another shape. Files are opened with safetensors or `torch.load(weights_only=True)`; nothing in them is executed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from zoo.backbone import LAYERS, canonical_shapes, check_state, read_weights
from zoo.errors import CheckpointError

State = dict[str, Tensor]


def from_torchvision(tensors: Mapping[str, Tensor]) -> State | None:
    """Flat canonical names, with or without the classifier `fc` (torchvision, timm, our own files; protocols §3.1)."""
    if "conv1.weight" not in tensors:
        return None
    return {name: tensor for name, tensor in tensors.items() if name not in ("fc.weight", "fc.bias")}


FORMATS: Final[dict[str, Callable[[Mapping[str, Tensor]], State | None]]] = {
    "torchvision": from_torchvision,
}


def read(path: Path) -> tuple[str, str, State]:
    """(format, architecture, canonical state) of a checkpoint file. Raises CheckpointError saying what it saw."""
    tensors = _tensors(path)
    for name, reader in FORMATS.items():
        state = reader(tensors)
        if state is not None:
            arch = _architecture(state, path)
            check_state(state, arch, source=str(path))
            return name, arch, state
    first = ", ".join(str(name) for name in list(tensors)[:5])
    raise CheckpointError(
        f"{path}: none of the known layouts ({', '.join(FORMATS)}). Found {len(tensors)} tensors: {first}, …. "
        "Expected a flat state dict with torchvision's names (conv1.weight, layer1.0.conv1.weight, …)."
    )


def _architecture(state: State, path: Path) -> str:
    """The one architecture whose blocks are those of `state`."""
    blocks = {name.rsplit(".", 2)[0] for name in state if name.startswith("layer")}
    convolutions = {name for name in state if name.endswith(".weight") and ".conv" in name}
    for arch in LAYERS:
        shapes = canonical_shapes(arch)
        if convolutions == {n for n in shapes if n.endswith(".weight") and ".conv" in n}:
            return arch
    raise CheckpointError(
        f"{path}: expected the blocks of one of {', '.join(LAYERS)}, found {len(blocks)} modules with "
        f"{len(convolutions)} block convolutions: another network, or only a part of one."
    )


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file; expected .safetensors, .pth, .pt or .tar.")
    if path.suffix == ".safetensors":
        return read_weights(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises anything: IndexError, TypeError, AssertionError, struct.error
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path}: not readable as tensors only ({first}). The file is damaged, or holds more than tensors, "
            "which would have to be executed to be read: ask for a plain state dict or safetensors."
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: expected a state dict (names to tensors), found {type(content).__name__}.")
    return dict(content)
