"""The canonical backbone: torchvision's ResNet with torchvision's names, without its classifier.

Canonical state: for every convolution one weight, for every batch norm weight, bias, running mean and running variance,
and optionally a batch counter; 318 tensors for ResNet-50 (265 without counters). A state that lacks one, has one more,
or differs in one shape is refused with a list of what is wrong (DESIGN §5).
"""

import hashlib
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from zoo.checkpoint import CheckpointCard
from zoo.errors import CheckpointError, several
from zoo.resnet import BasicBlock, Block, Bottleneck, ResNet
from zoo.transforms import Pixels

LAYERS: dict[str, tuple[Block, list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
    "resnet101": (Bottleneck, [3, 4, 23, 3]),
}
COUNTER = ".num_batches_tracked"


class Backbone(ResNet):
    """(N, 3, H, W) normalised RGB → (N, D) global-average-pooled last stage; D is 512 for ResNet-18/34, else 2048."""

    def __init__(self, arch: str, *, zero_init_residual: bool = False) -> None:
        block, layers = LAYERS[arch]
        super().__init__(block, layers, zero_init_residual=zero_init_residual)
        self.arch = arch
        self.num_features = 512 * block.expansion


class RawPixels(nn.Module):
    """No network: (N, 3, H, W) → (N, 3·H·W). The row that says what pixels alone are worth."""

    arch = "raw_pixels"

    def forward(self, images: Tensor) -> Tensor:
        return torch.flatten(images, 1)

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        return {"avgpool": self(images)}


def build(arch: str) -> Backbone | RawPixels:
    """An untrained network of architecture `arch`, torchvision's initialisation."""
    return RawPixels() if arch == "raw_pixels" else Backbone(arch)


@cache
def canonical_shapes(arch: str) -> dict[str, tuple[int, ...]]:
    """Name → shape of every canonical tensor, counters included."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build(arch).state_dict().items()}


def num_channels(arch: str, layer: str) -> int | None:
    """Channels of a stage's map (or of its global average, "avgpool"); None for raw pixels, which have no stages."""
    if arch == "raw_pixels":
        return None
    expansion = LAYERS[arch][0].expansion
    return {"feature1": 64, "avgpool": 512 * expansion}.get(layer) or 64 * 2 ** (int(layer[-1]) - 2) * expansion


def check_state(state: Mapping[str, Tensor], arch: str, *, source: str) -> None:
    """Raise CheckpointError unless `state` is exactly `arch`'s canonical state (counters: all or none), finite."""
    problems = state_problems(state, arch)
    if problems:
        required = required_names(state, arch)
        matched = len(set(state) & required)
        title = f"{source} is not a whole {arch}: {matched} of {len(required)} expected tensors found."
        raise CheckpointError(several(title, problems[:20]))


def state_problems(state: Mapping[str, Tensor], arch: str) -> list[str]:
    """All that keeps `state` from being exactly `arch`'s canonical state; empty when nothing does.

    Values are looked at only where shape and type are right: a tensor may claim any shape in a few bytes.
    """
    shapes, required = canonical_shapes(arch), required_names(state, arch)
    problems = [f"missing: {_listed(required - set(state))}"] if required - set(state) else []
    problems += [f"unexpected: {_listed(set(state) - set(shapes))}"] if set(state) - set(shapes) else []
    found = (tensor_problem(name, state[name], shapes[name]) for name in sorted(set(state) & set(shapes)))
    return problems + [problem for problem in found if problem is not None]


def tensor_problem(name: str, tensor: Tensor, shape: tuple[int, ...]) -> str | None:
    """What keeps `tensor` from being a weight, or a batch counter, of this shape; None when nothing does."""
    if tuple(tensor.shape) != shape:
        return f"{name}: expected shape {shape}, found {tuple(tensor.shape)}"
    if tensor.layout != torch.strided or tensor.is_quantized:
        return f"{name}: expected a dense tensor, found a sparse or quantised one"
    if name.endswith(COUNTER):
        wrong = tensor.is_complex() or tensor.dtype == torch.bool
        return f"{name}: expected a number, found {tensor.dtype}" if wrong else None
    if not tensor.is_floating_point():
        return f"{name}: expected floating-point values, found {tensor.dtype}"
    return None if _is_finite(tensor) else f"{name}: holds NaN or infinite values"


def _is_finite(tensor: Tensor) -> bool:
    """By its extremes, which NaN and infinity are among: no temporary of the tensor's size."""
    narrow = tensor.element_size() == 1  # eight-bit floats cannot be compared
    return all(torch.isfinite(value) for value in torch.aminmax(tensor.float() if narrow else tensor))


def required_names(state: Mapping[str, Tensor], arch: str) -> set[str]:
    """The canonical names that must be there: batch counters all or none."""
    names = set(canonical_shapes(arch))
    counters = {name for name in names if name.endswith(COUNTER)}
    return names if counters & set(state) else names - counters


def _listed(names: set[str]) -> str:
    first = ", ".join(sorted(names)[:5])
    return f"{len(names)} tensors ({first}{', …' if len(names) > 5 else ''})"


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 over names, shapes and fp32 bytes in name order. Batch counters are left out."""
    result = hashlib.sha256()
    for name in sorted(state):
        if name.endswith(COUNTER):
            continue
        tensor = state[name].detach().to("cpu", torch.float32).contiguous()
        result.update(f"{name}|{tuple(tensor.shape)}|".encode())
        result.update(tensor.numpy().data)
    return result.hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """A canonical safetensors file's tensors. Raises CheckpointError when it is truncated or no safetensors file."""
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}).") from error


def load(card: CheckpointCard, weights: Path, device: torch.device) -> Backbone | RawPixels:
    """The card's backbone in eval mode on `device`, every tensor checked against the card's fingerprint."""
    model = build(card.arch)
    state = read_weights(weights)
    check_state(state, card.arch, source=str(weights))
    if fingerprint(state) != card.tensors_sha256:
        raise CheckpointError(
            f"{weights}: expected tensors with sha256 {card.tensors_sha256[:16]}…, as its card says, "
            f"found {fingerprint(state)[:16]}…."
        )
    own = model.state_dict()
    own.update(state)  # batch counters may be absent from the file; nothing else can be, `check_state` saw to it
    model.load_state_dict(own)
    return model.to(device).eval().requires_grad_(False)


def fused(model: Backbone) -> Backbone:
    """A copy of `model`, which must be in eval mode, with every batch norm folded into the convolution before it."""
    model = deepcopy(model)
    for module in model.modules():
        for number in (1, 2, 3):
            convolution, norm = getattr(module, f"conv{number}", None), getattr(module, f"bn{number}", None)
            if convolution is not None and norm is not None:
                setattr(module, f"conv{number}", fuse_conv_bn_eval(convolution, norm))
                setattr(module, f"bn{number}", nn.Identity())
        shortcut = getattr(module, "downsample", None)
        if shortcut is not None:
            shortcut[0], shortcut[1] = fuse_conv_bn_eval(shortcut[0], shortcut[1]), nn.Identity()
    left = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert not left, left
    return model


def normalise(pixels_uint8: Tensor, pixels: Pixels, shift: Tensor | None = None) -> Tensor:
    """(N, 3, H, W) uint8 RGB → float32 as the checkpoint wants it: in [0, 1], minus mean, over std.

    shift: (N, 3), added to the values in [0, 1] first (PCA lighting).
    """
    mean = torch.tensor(pixels.mean, device=pixels_uint8.device).view(1, 3, 1, 1)
    std = torch.tensor(pixels.std, device=pixels_uint8.device).view(1, 3, 1, 1)
    images = pixels_uint8.float().div_(255)
    if shift is not None:
        images.add_(shift.view(-1, 3, 1, 1))
    return images.sub_(mean).div_(std)
