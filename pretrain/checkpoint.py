"""What a run leaves behind: the state it goes on from, and the backbone the next stage reads.

The last two states (zoo/state.py) are kept. One that cannot be read is passed over for the one before, aloud. The state
is that of (epoch, step), whatever the number of processes or loader workers, and names the run's key: another recipe,
seed or dataset never continues it.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from converters.canonical import write_checkpoint
from zoo.backbone import check_state
from zoo.checkpoint import CARD_NAME, Arch
from zoo.errors import CheckpointError, ConfigError, NonFiniteError
from zoo.state import read_state, write_state
from zoo.transforms import Pixels

logger = logging.getLogger(__name__)

KEPT = 2


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything the rest of a run depends on. `deviations` feed the collapse rule."""

    key: str
    epoch: int  # epochs completed
    step: int  # steps completed since the run began
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    deviations: list[float]


def save_state(folder: Path, state: State) -> Path:
    """Write `state` into `folder` and remove all but the last two there. Raises OSError; nothing half-written stays."""
    path = folder / f"state-{state.step:09d}.pt"
    write_state(path, vars(state))
    for old in _state_files(folder)[KEPT:]:
        old.unlink()
    return path


def _state_files(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("state-*.pt"), reverse=True)


def latest_state(folder: Path, key: str) -> State | None:
    """The newest readable state, on the CPU; None when there is no file.

    Raises ConfigError when it belongs to another run, CheckpointError when there are files and none can be read.
    """
    paths = _state_files(folder)
    for path in paths:
        try:
            state = _read_state(path)
        except CheckpointError as error:
            logger.warning("%s Going back to the state before.", error)
            continue
        if state.key != key:
            raise ConfigError(
                f"{path}: belongs to run {state.key[:12]}…, expected {key[:12]}…: the recipe, seed or dataset has "
                "changed. Choose another --out, or remove the folder to start anew."
            )
        return state
    if paths:
        raise CheckpointError(
            f"{folder}: none of its {len(paths)} states can be read; remove the folder to start anew."
        )
    return None


def _read_state(path: Path) -> State:
    try:
        return State(**read_state(path))
    except TypeError as error:
        raise CheckpointError(f"{path}: not a training state of this version ({error}).") from error


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The part of a card that is known before the weights are."""

    name: str
    family: str
    arch: Arch
    pixels: Pixels
    pretrain_seed: int | None
    epochs: int | None
    lineage: tuple[str, ...]


def export_backbone(folder: Path, state: Mapping[str, Tensor], origin: Origin) -> Path:
    """Write canonical weights, then the card that names them; the card's path.

    state: the backbone's, under canonical names. Raises NonFiniteError when a weight is NaN or infinite.
    """
    tensors = {name: tensor.detach().cpu() for name, tensor in state.items()}
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        raise NonFiniteError(f"the trained weights hold NaN or infinite values in {len(bad)} tensors ({bad[0]}, …).")
    check_state(tensors, origin.arch, source="the trained backbone")
    write_checkpoint(folder, tensors, source_format="canonical", **vars(origin))
    return folder / CARD_NAME
