"""What a run leaves behind: the state it goes on from, and the backbone the next stage reads.

The last states (zoo/state.py) are kept, and those of every so many steps if `save` says so. One that cannot be read is
passed over for the one before, aloud. The state is that of (epoch, step), whatever the number of processes or loader
workers, and says what the run depends on: another recipe, seed or dataset never continues it.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from converters.canonical import write_checkpoint
from zoo.backbone import check_state
from zoo.checkpoint import CARD_NAME, Arch
from zoo.errors import CheckpointError, NonFiniteError, ZooError
from zoo.files import digest
from zoo.recipe import Save, other_run
from zoo.state import read_state, write_state
from zoo.transforms import Pixels

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything the rest of a run depends on."""

    run: dict[str, Any]  # zoo.recipe.run_identity
    epoch: int  # epochs completed
    step: int  # steps completed since the run began
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    deviations: list[float]  # for the collapse rule
    replaced: dict[int, int]  # unreadable images and how often each was replaced


def save_state(folder: Path, state: State, keep: Save) -> Path:
    """Write `state` into `folder` and remove those before it that `keep` does not keep.

    Raises OSError; nothing half-written stays, and the states before are still there.
    """
    path = folder / f"state-{state.step:09d}.pt"
    write_state(path, vars(state))
    older = [each for each in _state_files(folder) if _step_of(each) < state.step]
    for old in older[keep.keep_last - 1 :]:
        if keep.keep_every_steps is None or _step_of(old) % keep.keep_every_steps:
            old.unlink()
    return path


def check_room(folder: Path, *, state_bytes: int, total_steps: int, keep: Save) -> None:
    """Raise ZooError when `folder`'s disk cannot hold the states of a whole run beside each other.

    state_bytes: of one; those already there count as room, and one more is needed while it is written.
    """
    forever = total_steps // keep.keep_every_steps if keep.keep_every_steps is not None else 0
    needed = (keep.keep_last + 1 + forever) * state_bytes - sum(path.stat().st_size for path in _state_files(folder))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ZooError(
            f"{folder}: expected {needed / 1e9:.2f} GB of free disk for states of {state_bytes / 1e9:.2f} GB (save: "
            f"keep_last {keep.keep_last}, keep_every_steps {keep.keep_every_steps}), found {free / 1e9:.2f} GB. Free "
            "space, keep fewer states, or choose another --out."
        )


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("state-"))


def _state_files(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("state-*.pt"), reverse=True)


def latest_state(folder: Path, run: Mapping[str, Any]) -> State | None:
    """The newest readable state, on the CPU; None when there is no file.

    run: zoo.recipe.run_identity of what is to go on. Raises ConfigError that lists what has changed when the state is
    another run's, CheckpointError when there are files and none can be read.
    """
    paths = _state_files(folder)
    for path in paths:
        try:
            state = _read_state(path)
        except CheckpointError as error:
            logger.warning("%s Going back to the state before.", error)
            continue
        if digest(state.run) != digest(run):
            raise other_run(path, state.run, run)
        return state
    if paths:
        raise CheckpointError(
            f"{folder}: none of its {len(paths)} states can be read; remove the folder to start anew."
        )
    return None


def set_aside_after(folder: Path, step: int) -> None:
    """Rename the states after `step`, where a run goes on because they cannot be read: they are states no more."""
    for path in _state_files(folder):
        if _step_of(path) > step:
            aside = path.with_name(f"{path.name}.unreadable")
            path.rename(aside)
            logger.warning("%s: kept as %s; remove it if nobody is to look at it.", path, aside.name)


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
