"""Why a file that someone may take for a ResNet checkpoint cannot be evaluated: one small function a reason.

Each returns the reason where it holds, and None where it does not: what the names and shapes show, never a guess. They
are asked in this order, other kinds of network first, when no layout fits a file or what was read is not whole.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from torch import Tensor

from converters.layouts.table import Content, StateDict

Tensors = Mapping[str, Tensor]
_FIRST_BLOCK: Final = "layer1.0.conv1.weight"  # in every ResNet with torchvision's names, whatever its stem
_OTHER_DEPTHS: Final[dict[tuple[int, ...], int]] = {(3, 8, 36, 3): 152, (3, 24, 36, 3): 200}


def vision_transformer(content: Content) -> str | None:
    """cls_token, patch_embed, and torchvision's, VISSL's and CLIP's names of them."""
    tokens = r"(.+\.)?(cls_token|class_token|class_embedding|patch_embed\.proj(ection)?\.weight)"
    if _any_name(content, tokens):
        return "a vision transformer, not a ResNet"
    return None


def convnext(content: Content) -> str | None:
    """facebookresearch/ConvNeXt and timm: a layer scale `gamma` beside a depthwise convolution of 7x7."""
    for found in content.state_dicts.values():
        for name, tensor in found.tensors.items():
            depthwise = re.fullmatch(r"(.+\.)?(dwconv|conv_dw|depthwise_conv)\.weight", name)
            if depthwise and tensor.dim() == 4 and tuple(tensor.shape[1:]) == (1, 7, 7):
                return "a ConvNeXt, not a ResNet"
    return None


def efficientnet(content: Content) -> str | None:
    """timm's and lukemelas/EfficientNet-PyTorch's names: conv_stem and blocks; torchvision's: features.0.0."""
    if _any_name(content, r"(.+\.)?_?conv_stem\.weight") and _any_name(content, r"(.+\.)?_?blocks\.\d+\..+"):
        return "an EfficientNet or a MobileNet, not a ResNet"
    if _any_name(content, r"(.+\.)?features\.0\.0\.weight"):
        return "an EfficientNet or another network of torchvision's `features`, not a ResNet"
    return None


def regnet(content: Content) -> str | None:
    """torchvision and VISSL: trunk_output.block1.block1-0; timm: s1.b1.conv1.conv."""
    names = r"(.+\.)?((trunk_output|_feature_blocks)\.block\d\.block\d-\d+|s[1-4]\.b\d+\.conv1\.conv)\..+"
    return "a RegNet, not a ResNet" if _any_name(content, names) else None


def caffe2(content: Content) -> str | None:
    """detectron2's MSRA files and Caffe2's own (D2:detectron2/checkpoint/c2_model_loading.py): res2_0_branch2a_w."""
    if _any_name(content, r"(.+/)?(conv1_w|res[2-5]_\d+_branch(1|2[abc])_w)"):
        return (
            "a Caffe2 or MSRA ResNet (names like conv1_w): its stride lies in the 1x1 convolutions, its pixels are BGR "
            "and its batch norm is folded, so it is another network than torchvision's"
        )
    return None


def quantised(content: Content) -> str | None:
    """Quantised tensors, or the packed parameters and zero points beside them."""
    packed = r"(.+\.)?(_packed_params(\..+)?|zero_point)"
    tensors = (tensor for found in content.state_dicts.values() for tensor in found.tensors.values())
    if any(tensor.is_quantized for tensor in tensors) or _any_name(content, packed):
        return "quantised: ask for the weights in floating point"
    return None


def two_encoders(content: Content) -> str | None:
    """CMC (HobbitLong/PyContrast:pycontrast/networks/build_backbone.py): one network for L, one for ab."""
    inputs = {
        number: {
            tensors["conv1.weight"].shape[1]
            for tensors in _below(content, rf"(?:.+\.)?encoder{number}\.", "conv1.weight")
            if _dim(tensors, "conv1.weight") == 4
        }
        for number in (1, 2)
    }
    if inputs == {1: {1}, 2: {2}}:
        return (
            "CMC's two encoders, encoder1 for the lightness of an image and encoder2 for its two colour channels: "
            "neither takes an RGB image, and a benchmark of one network cannot take both"
        )
    return None


def deep_stem(content: Content) -> str | None:
    """Three 3x3 convolutions for the 7x7: mmseg V1c `stem.0`, mmpretrain `stem.0.conv` (§3.4), timm `conv1.0`, CLIP."""
    for tensors in _resnets(content):
        stems = ("stem.0.weight", "stem.0.conv.weight", "conv1.0.weight")
        clip = "conv3.weight" in tensors and "bn3.weight" in tensors and _size(tensors, "conv1.weight") == 3
        if clip or any(_size(tensors, name) == 3 for name in stems):
            return (
                "a ResNet with a deep stem (V1c, V1d, timm's …d, CLIP): three 3x3 convolutions where the evaluated "
                "ResNet has one of 7x7"
            )
    return None


def averaged_shortcuts(content: Content) -> str | None:
    """V1d and timm's …d: average pooling before the shortcut's convolution, which is downsample.1 then."""
    if any(_dim(tensors, "layer2.0.downsample.1.weight") == 4 for tensors in _resnets(content)):
        return "a ResNet-D: its shortcuts average before their convolution"
    return None


def small_images_stem(content: Content) -> str | None:
    """A 3x3 first convolution: the ResNet of CIFAR experiments."""
    for tensors in _resnets(content):
        if "conv3.weight" not in tensors and _size(tensors, "conv1.weight") == 3:
            return "a ResNet for small images (CIFAR): its first convolution is 3x3, not 7x7 with stride 2"
    return None


def attention(content: Content) -> str | None:
    """Squeeze and excitation, and CLIP's attention pooling."""
    for tensors in _resnets(content):
        if any(re.fullmatch(r"layer\d\.\d+\.(se|se_module|se_layer)\..+", name) for name in tensors):
            return "an SE-ResNet: its blocks have squeeze-and-excitation layers, which a plain ResNet has not"
        if any(name.startswith("attnpool.") for name in tensors):
            return "CLIP's ResNet: it pools by attention (attnpool), which a plain ResNet has not"
    return None


def grouped(content: Content) -> str | None:
    """ResNeXt: a 3x3 convolution that sees only a part of the channels before it."""
    for tensors in _resnets(content):
        before, inner = tensors[_FIRST_BLOCK], tensors.get("layer1.0.conv2.weight")
        if inner is None or inner.dim() != 4 or before.dim() != 4 or "layer1.0.conv3.weight" not in tensors:
            continue
        if before.shape[0] > inner.shape[1] > 0 and before.shape[0] % inner.shape[1] == 0:
            return f"a ResNeXt: its 3x3 convolutions have {before.shape[0] // inner.shape[1]} groups"
    return None


def wide(content: Content) -> str | None:
    """Widths other than 64, 128, 256, 512: the w2 and 2x of SwAV, SimCLR and BYOL, and torchvision's wide_resnet."""
    for tensors in _resnets(content):
        stem, inner = tensors.get("conv1.weight"), tensors[_FIRST_BLOCK]
        if stem is not None and stem.dim() == 4 and stem.shape[0] != 64:
            return f"a ResNet of another width (w2, 2x): its first convolution has {stem.shape[0]} channels, not 64"
        if inner.dim() == 4 and inner.shape[0] != 64:
            return f"a wide ResNet: the convolutions within its first blocks have {inner.shape[0]} channels, not 64"
    return None


def other_depth(content: Content) -> str | None:
    """ResNet-152 and -200, by the numbers of their blocks."""
    for tensors in _resnets(content):
        depth = _OTHER_DEPTHS.get(tuple(_num_blocks(tensors, stage) for stage in range(1, 5)))
        if depth is not None and "layer1.0.conv3.weight" in tensors:
            return f"a ResNet-{depth}: ResNet-18, -34, -50 and -101 are evaluated"
    return None


def no_running_statistics(content: Content) -> str | None:
    """Group normalisation has no running mean; nor has a state of parameters only."""
    for tensors in _resnets(content):
        if not any(name.endswith("running_mean") for name in tensors):
            return (
                "no running mean and variance: group normalisation (or none), or a file of parameters without buffers, "
                "which cannot be evaluated"
            )
    return None


REFUSALS: Final[tuple[Callable[[Content], str | None], ...]] = (
    vision_transformer,
    convnext,
    efficientnet,
    regnet,
    caffe2,
    quantised,
    two_encoders,
    deep_stem,
    attention,
    small_images_stem,
    grouped,
    wide,
    averaged_shortcuts,
    other_depth,
    no_running_statistics,
)


def _any_name(content: Content, pattern: str) -> bool:
    compiled = re.compile(pattern)
    return any(compiled.fullmatch(name) for found in content.state_dicts.values() for name in found.tensors)


def _resnets(content: Content) -> Iterator[Tensors]:
    """The tensors of everything in a file that has a ResNet's first block, under the names below its prefix."""
    return _below(content, r"(?:.*\.)?", _FIRST_BLOCK)


def _below(content: Content, prefix: str, anchor: str) -> Iterator[Tensors]:
    """For every prefix of this form before `anchor`: the tensors below it, by the rest of their names."""
    compiled = re.compile(f"({prefix}){re.escape(anchor)}")
    for found in content.state_dicts.values():
        for before in [match[1] for name in found.tensors if (match := compiled.fullmatch(name))]:
            yield _stripped(found, before)


def _stripped(found: StateDict, prefix: str) -> Tensors:
    return {name[len(prefix) :]: tensor for name, tensor in found.tensors.items() if name.startswith(prefix)}


def _dim(tensors: Tensors, name: str) -> int:
    return tensors[name].dim() if name in tensors else 0


def _size(tensors: Tensors, name: str) -> int:
    """Side of a convolution's kernel; 0 where there is no such convolution."""
    return tensors[name].shape[-1] if _dim(tensors, name) == 4 else 0


def _num_blocks(tensors: Tensors, stage: int) -> int:
    found = (re.match(rf"layer{stage}\.(\d+)\.", name) for name in tensors)
    return max((int(match[1]) + 1 for match in found if match), default=0)
