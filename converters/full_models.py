"""A whole SimSiam, heads included, from the reference's file to mmselfsup's and mmpretrain's, and back.

All have the same network under other names, but for one tensor: the reference's third projector layer has a bias that
is never trained, the others have none (protocols §1.1, §3.2). A batch norm follows, so in training the bias cancels; in
eval mode it is kept by taking it off the running mean, rounded as fp32 is. The way back writes a bias of zeros.

Only names change: every other tensor arrives bit for bit, in its own type. The epoch goes along where the source says
it. Optimiser and schedule do not, so these files are for evaluation and fine-tuning, not for going on with a training.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from converters.inspect import epochs
from converters.read import Checkpoint
from converters.to_torchvision import counted, save
from zoo.backbone import COUNTER, num_channels, tensor_problem
from zoo.errors import CheckpointError, several

SIMSIAM_NAME: Final = "simsiam.pth.tar"
MMSELFSUP0_NAME: Final = "mmselfsup0.pth"
MMSELFSUP1_NAME: Final = "mmselfsup1.pth"
BIAS: Final = "encoder.fc.6.bias"
SHIFTED: Final = "encoder.fc.7.running_mean"
# name in the reference (FB:simsiam/builder.py), name in mmselfsup and mmpretrain (None: it has no such tensor;
# MM0:mmselfsup/models/necks/nonlinear_neck.py), shape. features: the backbone's; the other widths are free.
HEADS: Final[tuple[tuple[str, str | None, tuple[str, ...]], ...]] = (
    ("encoder.fc.0.weight", "neck.fc0.weight", ("hidden", "features")),
    ("encoder.fc.1.weight", "neck.bn0.weight", ("hidden",)),
    ("encoder.fc.1.bias", "neck.bn0.bias", ("hidden",)),
    ("encoder.fc.1.running_mean", "neck.bn0.running_mean", ("hidden",)),
    ("encoder.fc.1.running_var", "neck.bn0.running_var", ("hidden",)),
    ("encoder.fc.1.num_batches_tracked", "neck.bn0.num_batches_tracked", ()),
    ("encoder.fc.3.weight", "neck.fc1.weight", ("hidden", "hidden")),
    ("encoder.fc.4.weight", "neck.bn1.weight", ("hidden",)),
    ("encoder.fc.4.bias", "neck.bn1.bias", ("hidden",)),
    ("encoder.fc.4.running_mean", "neck.bn1.running_mean", ("hidden",)),
    ("encoder.fc.4.running_var", "neck.bn1.running_var", ("hidden",)),
    ("encoder.fc.4.num_batches_tracked", "neck.bn1.num_batches_tracked", ()),
    ("encoder.fc.6.weight", "neck.fc2.weight", ("out", "hidden")),
    (BIAS, None, ("out",)),
    (SHIFTED, "neck.bn2.running_mean", ("out",)),
    ("encoder.fc.7.running_var", "neck.bn2.running_var", ("out",)),
    ("encoder.fc.7.num_batches_tracked", "neck.bn2.num_batches_tracked", ()),
    ("predictor.0.weight", "head.predictor.fc0.weight", ("bottleneck", "out")),
    ("predictor.1.weight", "head.predictor.bn0.weight", ("bottleneck",)),
    ("predictor.1.bias", "head.predictor.bn0.bias", ("bottleneck",)),
    ("predictor.1.running_mean", "head.predictor.bn0.running_mean", ("bottleneck",)),
    ("predictor.1.running_var", "head.predictor.bn0.running_var", ("bottleneck",)),
    ("predictor.1.num_batches_tracked", "head.predictor.bn0.num_batches_tracked", ()),
    ("predictor.3.weight", "head.predictor.fc1.weight", ("out", "bottleneck")),
    ("predictor.3.bias", "head.predictor.fc1.bias", ("out",)),
)
_OURS: Final = {reference: reference for reference, _, _ in HEADS}
_MM: Final = {mm: reference for reference, mm, _ in HEADS if mm is not None}
_NAMES: Final[dict[str, dict[str, str]]] = {"simsiam": _OURS, "mmselfsup0": _MM, "mmselfsup1": _MM}
_BESIDE: Final = ("aliases", "pixel statistics")  # groups that hold nothing of the network that is not told already
_SHAPES: Final = {reference: shape for reference, _, shape in HEADS}


@dataclass(frozen=True, kw_only=True)
class SimSiam:
    """A SimSiam with all of its tensors; counters that the source lacks are 0.

    backbone: canonical names. heads: the reference's names, each of HEADS. epoch: epochs trained, where it is known.
    """

    arch: str
    backbone: dict[str, Tensor]
    heads: dict[str, Tensor]
    epoch: int | None


def simsiam(checkpoint: Checkpoint) -> SimSiam:
    """The whole model in a file. Raises CheckpointError: no SimSiam, or heads that are incomplete or do not fit."""
    reading, path = checkpoint.reading, checkpoint.opened.path
    names = _NAMES.get(reading.layout)
    if names is None:
        raise CheckpointError(
            f"{path}: expected a SimSiam with its heads (layout {', '.join(_NAMES)}), found layout {reading.layout}: "
            "write its backbone alone (canonical, torchvision, timm, mmpretrain)."
        )
    found = {n: t for group, held in reading.groups.items() if group not in _BESIDE for n, t in held.items()}
    problems = _problems(found, names, checkpoint.arch)
    if problems:
        title = (
            f"{path} ({reading.layout}): not a whole SimSiam: {len(found.keys() & names)} of its heads' {len(names)} "
            "tensors found. Write its backbone alone (canonical, torchvision, timm, mmpretrain), or take a file of the "
            "pre-training itself:"
        )
        raise CheckpointError(several(title, problems[:20]))
    heads = {reference: found[name] for name, reference in names.items() if name in found}
    heads |= {name: torch.zeros((), dtype=torch.int64) for name in _SHAPES.keys() - heads.keys() - {BIAS}}
    heads.setdefault(BIAS, torch.zeros_like(heads[SHIFTED]))
    return SimSiam(
        arch=checkpoint.arch,
        backbone=_plain(counted(checkpoint.state, checkpoint.arch)),
        heads=_plain({name: heads[name] for name in _SHAPES}),
        epoch=epochs(checkpoint.content, reading),
    )


def _problems(found: Mapping[str, Tensor], names: Mapping[str, str], arch: str) -> list[str]:
    """All that keeps `found` from being the heads under `names` (name in the file → the reference's)."""
    counters = {name for name in names if name.endswith(COUNTER)}
    required = names.keys() if counters & found.keys() else names.keys() - counters
    problems = [f"missing: {name}" for name in names if name in required - found.keys()]
    problems += [f"unexpected: {name}" for name in found if name not in names]
    features = num_channels(arch, "avgpool")
    assert features is not None
    widths = {"features": features}
    for name, reference in names.items():  # the weights come first, and say the widths that batch norms must have
        if name not in found:
            continue
        tensor, symbols = found[name], _SHAPES[reference]
        if tensor.dim() != len(symbols):
            problems.append(f"{name}: expected {len(symbols)} dimensions, found shape {tuple(tensor.shape)}")
            continue
        if tensor.layout == torch.strided and tensor.nbytes > tensor.untyped_storage().nbytes():
            # widths are free, so a few bytes may claim any: looking at such values, or writing them, could take all
            problems.append(f"{name}: shape {tuple(tensor.shape)} claims more values than the file holds")
            continue
        shape = tuple(widths.setdefault(symbol, size) for symbol, size in zip(symbols, tensor.shape, strict=True))
        problem = tensor_problem(name, tensor, shape)
        problems += [problem] if problem is not None else []
    return problems


def reference_state(model: SimSiam) -> dict[str, Tensor]:
    """The reference's state dict, from inside its DistributedDataParallel: 343 tensors for ResNet-50 (§1.5).

    Raises CheckpointError when the projector's hidden layers are not as wide as the features: the reference has no
    others (FB:simsiam/builder.py).
    """
    hidden, features = model.heads["encoder.fc.0.weight"].shape
    if hidden != features:
        raise CheckpointError(
            f"encoder.fc.0: expected {features} outputs, as many as the {model.arch} has features, found {hidden}: "
            "the reference's SimSiam cannot hold this projector. Write it for mmselfsup or mmpretrain."
        )
    encoder = {f"module.encoder.{name}": tensor for name, tensor in model.backbone.items()}
    return encoder | {f"module.{name}": tensor for name, tensor in model.heads.items()}


def mmselfsup1_state(model: SimSiam) -> dict[str, Tensor]:
    """The state dict of mmselfsup 1.x and mmpretrain: 342 tensors for ResNet-50 (§1.5).

    The bias of the last projector layer, which they have not, is taken off the running mean after it: the same output.
    """
    heads = model.heads | {SHIFTED: (model.heads[SHIFTED] - model.heads[BIAS]).to(model.heads[SHIFTED].dtype)}
    backbone = {f"backbone.{name}": tensor for name, tensor in model.backbone.items()}
    return backbone | {mm: heads[reference] for mm, reference in _MM.items()}


def mmselfsup0_state(model: SimSiam) -> dict[str, Tensor]:
    """The state dict of mmselfsup 0.x: 676 tensors for ResNet-50, as backbone and neck have second names (§1.5).

    Both names have one storage, so the file is no larger (MM0:mmselfsup/models/algorithms/simsiam.py).
    """
    state = mmselfsup1_state(model)
    backbone = {f"encoder.0.{n.removeprefix('backbone.')}": t for n, t in state.items() if n.startswith("backbone.")}
    neck = {f"encoder.1.{n.removeprefix('neck.')}": t for n, t in state.items() if n.startswith("neck.")}
    return backbone | neck | state


def to_simsiam(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `folder`/simsiam.pth.tar as the reference saves it: {epoch (where known), arch, state_dict}. The path."""
    model = simsiam(checkpoint)
    return save(folder / SIMSIAM_NAME, {**_epoch(model), "arch": model.arch, "state_dict": reference_state(model)})


def to_mmselfsup0(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `folder`/mmselfsup0.pth for mmselfsup 0.x: {meta: {epoch (where known)}, state_dict}. The path."""
    return _to_mm(folder / MMSELFSUP0_NAME, checkpoint, mmselfsup0_state)


def to_mmselfsup1(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `folder`/mmselfsup1.pth for mmselfsup 1.x and mmpretrain: {meta, state_dict}. The path."""
    return _to_mm(folder / MMSELFSUP1_NAME, checkpoint, mmselfsup1_state)


def _to_mm(path: Path, checkpoint: Checkpoint, state: Callable[[SimSiam], dict[str, Tensor]]) -> Path:
    model = simsiam(checkpoint)
    return save(path, {"meta": _epoch(model), "state_dict": state(model)})


def _epoch(model: SimSiam) -> dict[str, Any]:
    """Both count the finished epochs: the reference stores e + 1 for e from 0, mmengine likewise (§1.5)."""
    return {} if model.epoch is None else {"epoch": model.epoch}


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values, each in a storage of its own size: of a view torch.save would write all that it is a part of."""
    found = {name: tensor.detach().to("cpu").contiguous() for name, tensor in state.items()}
    return {name: t if t.untyped_storage().nbytes() == t.nbytes else t.clone() for name, t in found.items()}
