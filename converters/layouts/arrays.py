"""Readers of files that hold arrays under names of another form: detectron2's pickles and DeepMind's BYOL (haiku).

Every function gets a file's content and returns None where it is not of that layout (protocols §3.1, §3.3). Tensors
come out as views of what was read; nothing is copied.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from torch import Tensor

from converters.layouts.table import FLAT, MODEL, STATE_DICT, Content, Reading

_TENSOR = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_D2_BACKBONE = (
    rf"(?:backbone\.(?:bottom_up\.)?|roi_heads\.)?(stem|res[2-5]\.\d+)\.(conv[123]|shortcut)(\.norm)?\.{_TENSOR}"
)
_D2_NOTE = (
    "the file does not say where its stride lies nor the order of its pixels: they are taken to be torchvision's "
    "(stride in the 3x3, RGB), which holds for converted weights, not for models that began with MSRA's"
)
_BYOL_NOTE = (
    "DeepMind's network pads maps of even size on two sides where it halves them (TensorFlow's SAME), torchvision's on "
    "all four: features are those of every PyTorch version of these weights, not exactly the original's"
)
_MODULE = r"(?:\w+/~/)?"  # the network's own name, res_net50
_BLOCK = rf"{_MODULE}block_group_(?P<group>[0-3])/~/block_(?P<block>\d+)/~/"
_NORM = r"(?P<norm>scale|offset|~/mean_ema/average|~/var_ema/average)"
_NORMS: Final = {
    "scale": "weight",
    "offset": "bias",
    "~/mean_ema/average": "running_mean",
    "~/var_ema/average": "running_var",
}
_HAIKU: Final = (  # each anchored to the whole path; `group` and `number` count from 0
    (rf"{_MODULE}initial_conv(?:_1)?/w", "conv1.weight"),
    (rf"{_MODULE}initial_batchnorm(?:_1)?/{_NORM}", "bn1.{norm}"),
    (rf"{_BLOCK}conv_(?P<number>[0-2])/w", "layer{group}.{block}.conv{number}.weight"),
    (rf"{_BLOCK}batchnorm_(?P<number>[0-2])/{_NORM}", "layer{group}.{block}.bn{number}.{norm}"),
    (rf"{_BLOCK}shortcut_conv/w", "layer{group}.{block}.downsample.0.weight"),
    (rf"{_BLOCK}shortcut_batchnorm/{_NORM}", "layer{group}.{block}.downsample.1.{norm}"),
)
_MLP = r"(?:linear(?:_\d)?/[wb]|batch_norm/(?:scale|offset|~/(?:mean|var)_ema/(?:average|hidden|counter)))"
_BYOL_OTHERS: Final = {
    rf"projector/{_MLP}": "projector",
    rf"predictor/{_MLP}": "predictor",
    r"classifier/[wb]": "classifier",
    r".+/~/(?:mean|var)_ema/(?:hidden|counter)": "running sums",
}
_BYOL: Final = ("experiment_state",)
_BYOL_PARTS: Final = {"online_params", "target_params", "online_state", "target_state", "opt_state"}


def detectron2(content: Content) -> Reading | None:
    """detectron2's names: pickles of arrays, as our converter writes, and trained C4 or FPN models (§3.3).

    D2:detectron2/modeling/backbone/resnet.py, roi_heads/roi_heads.py (res5 of C4), detection_checkpoint.py. A file by
    "Caffe2" has other names and is refused.
    """
    if content.get("__author__") == "Caffe2":
        return None
    reading = content.sort(
        layout="detectron2",
        method="not said by the file",
        at=(MODEL, STATE_DICT, FLAT),
        anchors=(_D2_BACKBONE,),
        backbone=_from_detectron2,
        others={
            r"stem\.fc\.(weight|bias)": "classifier",
            rf"backbone\.(fpn_(lateral|output)[2-5](\.norm)?|top_block\.p[67])\.{_TENSOR}": "neck",
            rf"proposal_generator\.(rpn_head|anchor_generator)\..+|roi_heads\.res5\.norm\.{_TENSOR}": "detector",
            r"roi_heads\.(box|mask|keypoint)_(head|predictor)\..+|(sem_seg_head|head)\..+": "detector",
            r"(anchor_generator\.cell_anchors\.\d+|pixel_(mean|std))": "detector",
        },
    )
    if reading is None or content.get("matching_heuristics") is True:
        return reading
    return replace(reading, notes=(_D2_NOTE,))


def byol(content: Content) -> Reading | None:
    """DeepMind's BYOL: haiku parameters and state of the online network (§3.1).

    deepmind-research:byol/byol_experiment.py, utils/networks.py, utils/checkpointing.py; dm-haiku's ResNet and
    BatchNorm. Convolutions are HWIO, batch norms (1, 1, 1, C) with running statistics in mean_ema and var_ema
    (`average`); ajtejankar/byol-convert reads the same.
    """
    parts = content.get(*_BYOL)
    parameters, states = content.get(*_BYOL, "online_params"), content.get(*_BYOL, "online_state")
    if not isinstance(parameters, Mapping) or not isinstance(states, Mapping):
        return None
    state: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    groups: dict[str, dict[str, Tensor]] = {}
    unexpected = [str(part) for part in parts if part not in _BYOL_PARTS]
    for part, modules in (("online_params", parameters), ("online_state", states)):
        for name, tensor in _leaves(modules):
            canonical = _from_haiku(name)
            group = next((g for pattern, g in _BYOL_OTHERS.items() if re.fullmatch(pattern, name)), None)
            if canonical is not None and canonical not in state:
                state[canonical], names[canonical] = _as_torch(name, tensor), f"{part}/{name}"
            elif group is not None:
                groups.setdefault(group, {})[f"{part}/{name}"] = tensor
            else:
                unexpected.append(f"{part}/{name}")
    if not state:
        return None
    for part in ("target_params", "target_state"):
        found = content.get(*_BYOL, part)
        for name, tensor in _leaves(found) if isinstance(found, Mapping) else ():
            groups.setdefault("momentum encoder", {})[f"{part}/{name}"] = tensor
    return Reading(
        layout="byol",
        method="BYOL",
        where=_BYOL,
        wrapper="",
        prefix="",
        state=state,
        names=names,
        groups=groups,
        unexpected=tuple(unexpected),
        notes=(_BYOL_NOTE,),
    )


def _from_detectron2(name: str) -> str | None:
    """The canonical name of a tensor of a detectron2 ResNet: stem, res2 … res5 become conv1/bn1, layer1 … layer4."""
    found = re.fullmatch(_D2_BACKBONE, name)
    if found is None:
        return None
    place, convolution, norm, tensor = found.groups()
    if norm is None and tensor != "weight":
        return None
    if place == "stem":
        layer = {"conv1": "bn1" if norm else "conv1"}.get(convolution)
        return None if layer is None else f"{layer}.{tensor}"
    block = f"layer{int(place[3]) - 1}{place[4:]}"
    if convolution == "shortcut":
        return f"{block}.downsample.{1 if norm else 0}.{tensor}"
    return f"{block}.{'bn' if norm else 'conv'}{convolution[-1]}.{tensor}"


def _leaves(modules: Mapping[str, object]) -> Iterator[tuple[str, Tensor]]:
    """("res_net50/~/initial_conv/w", tensor) of every tensor in haiku's mapping of modules to tensors by name."""
    for module, tensors in modules.items():
        for name, tensor in tensors.items() if isinstance(tensors, Mapping) else ():
            if isinstance(tensor, Tensor):
                yield f"{module}/{name}", tensor


def _from_haiku(name: str) -> str | None:
    for pattern, template in _HAIKU:
        found = re.fullmatch(pattern, name)
        if found is not None:
            parts: dict[str, str | int] = dict(found.groupdict())
            parts |= {key: int(parts[key]) + 1 for key in ("group", "number") if key in parts}
            parts |= {"norm": _NORMS[found["norm"]]} if "norm" in parts else {}
            return template.format(**parts)
    return None


def _as_torch(name: str, tensor: Tensor) -> Tensor:
    """HWIO → OIHW; (1, 1, 1, C) → (C,). A tensor of another form stays as it is, to be refused for its shape."""
    if tensor.dim() != 4:
        return tensor
    if name.endswith("/w"):
        return tensor.permute(3, 2, 0, 1)
    return tensor[0, 0, 0] if tensor.shape[:3] == (1, 1, 1) else tensor
