"""The canonical backbone: torchvision's ResNet with torchvision's names, without its classifier.

Canonical state: for every convolution one weight, for every batch norm weight, bias, running mean and running variance,
and optionally a batch counter; 318 tensors for ResNet-50 (265 without counters). A state that lacks one, has one more,
or differs in one shape is refused with a list of what is wrong (DESIGN §5).
"""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from zoo.checkpoint import CheckpointCard
from zoo.errors import CheckpointError, several
from zoo.transforms import Pixels

LAYERS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
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
        self.fc = nn.Identity()

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        """feature1 (after conv1-BN-ReLU, before the max-pool: §2.2) … feature5, and avgpool (N, D)."""
        feature1 = self.relu(self.bn1(self.conv1(images)))  # (N, 64, H/2, W/2)
        feature2 = self.layer1(self.maxpool(feature1))  # H/4
        feature3 = self.layer2(feature2)  # H/8
        feature4 = self.layer3(feature3)  # H/16
        feature5 = self.layer4(feature4)  # H/32
        return {
            "feature1": feature1,
            "feature2": feature2,
            "feature3": feature3,
            "feature4": feature4,
            "feature5": feature5,
            "avgpool": torch.flatten(self.avgpool(feature5), 1),
        }


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


def check_state(state: Mapping[str, Tensor], arch: str, *, source: str) -> None:
    """Raise CheckpointError unless `state` is exactly `arch`'s canonical state (counters: all or none), finite."""
    shapes = canonical_shapes(arch)
    counters = {name for name in shapes if name.endswith(COUNTER)}
    required = set(shapes) if counters & set(state) else set(shapes) - counters
    problems = [f"missing: {_listed(required - set(state))}"] if required - set(state) else []
    problems += [f"unexpected: {_listed(set(state) - set(shapes))}"] if set(state) - set(shapes) else []
    for name in sorted(set(state) & set(shapes)):
        if tuple(state[name].shape) != shapes[name]:
            problems.append(f"{name}: expected shape {shapes[name]}, found {tuple(state[name].shape)}")
        elif not name.endswith(COUNTER) and not torch.isfinite(state[name]).all():
            problems.append(f"{name}: holds NaN or infinite values")
    if problems:
        matched = len(set(state) & required)
        title = f"{source} is not a whole {arch}: {matched} of {len(required)} expected tensors found."
        raise CheckpointError(several(title, problems[:20]))


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
        result.update(tensor.numpy().tobytes())
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


def normalise(pixels_uint8: Tensor, pixels: Pixels) -> Tensor:
    """(N, 3, H, W) uint8 RGB → float32 as the checkpoint wants it: in [0, 1], minus mean, over std."""
    mean = torch.tensor(pixels.mean, device=pixels_uint8.device).view(1, 3, 1, 1)
    std = torch.tensor(pixels.std, device=pixels_uint8.device).view(1, 3, 1, 1)
    return pixels_uint8.float().div_(255).sub_(mean).div_(std)
