"""What does a frozen backbone say about images, at which stages, computed how?

Shared by extraction and by the linear probes, so that a recipe's `forward` means the same in both.
"""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from evaluate.job import Forward, LayerName, Pool
from zoo.backbone import Backbone, RawPixels, fused, normalise
from zoo.errors import ConfigError
from zoo.transforms import Pixels

Stage = tuple[LayerName, Pool | None]
PLAIN = Forward(batch_size=1, precision="fp32", memory_format="contiguous", fuse_batch_norm=False, compile=False)


class Extractor:
    """(B, 3, H, W) uint8 RGB → the features of each wanted stage, (B, D) float32, in the order of `stages`.

    backbone: in eval mode, without gradients. It is used as it is unless `forward` says otherwise (`frozen` then holds
    the network made from it).
    """

    def __init__(
        self, backbone: Backbone | RawPixels, pixels: Pixels, stages: list[Stage], forward: Forward = PLAIN
    ) -> None:
        if isinstance(backbone, RawPixels) and {name for name, _ in stages} != {"avgpool"}:
            raise ConfigError("raw pixels have no stages: expected layers {avgpool: null}, found feature maps too.")
        self.pixels = pixels
        self.stages = stages
        self.dtype = torch.bfloat16 if forward.precision == "bf16" else torch.float32
        self.layout = torch.channels_last if forward.memory_format == "channels_last" else torch.contiguous_format
        self.frozen = _network(backbone, forward, self.dtype, self.layout)
        self._run = torch.compile(self.frozen.stages) if forward.compile else self.frozen.stages

    @torch.inference_mode()
    def __call__(self, images: Tensor, shift: Tensor | None = None) -> list[Tensor]:
        """shift: (B, 3) PCA lighting, or None."""
        ready = normalise(images, self.pixels, shift).to(self.dtype, memory_format=self.layout)
        maps: Mapping[str, Tensor] = self._run(ready)
        return [pooled(maps[name], pool) for name, pool in self.stages]


def pooled(features: Tensor, pool: Pool | None) -> Tensor:
    """A (B, C, H, W) map average-pooled and flattened channel by channel, or (B, D) features as they are; float32."""
    features = features.float()
    if pool is None:
        return features
    if min(features.shape[2:]) + 2 * pool.padding < pool.kernel:
        raise ConfigError(
            f"pooling: a kernel of {pool.kernel} does not fit a map of {features.shape[2]} x {features.shape[3]} with "
            f"padding {pool.padding}; choose triplets for this image size (protocols §2.2's are for 224)."
        )
    return torch.flatten(avg_pool2d(features, pool.kernel, pool.stride, pool.padding), 1)


def _network(
    backbone: Backbone | RawPixels, forward: Forward, dtype: torch.dtype, layout: torch.memory_format
) -> Backbone | RawPixels:
    if isinstance(backbone, RawPixels) or (
        dtype == torch.float32 and layout == torch.contiguous_format and not forward.fuse_batch_norm
    ):
        return backbone
    network: nn.Module = fused(backbone) if forward.fuse_batch_norm else deepcopy(backbone)
    network = network.to(dtype).to(memory_format=layout)  # type: ignore[call-overload]  # torch's stub lacks this form
    assert isinstance(network, Backbone)
    return network
