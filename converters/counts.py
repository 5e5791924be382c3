"""How large is a ResNet: parameters, and operations for one 224 x 224 image, counted as the published tables count."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Final

import torch
from torch import Tensor, nn

from zoo.backbone import Backbone, build
from zoo.resnet import BasicBlock, Bottleneck

SIZE: Final = 224
_BUFFERS: Final = ("running_mean", "running_var", "num_batches_tracked")


@cache
def operations(arch: str, *, pooled: bool) -> int:
    """Multiply-adds of the convolutions and two operations a batch-norm output (scale, shift), in a pass at 224 x 224.

    pooled: and one a value that the global average pooling reads, which the published figure of a classifier includes
    and that of a pre-training model leaves out; neither counts linear layers. So ResNet-50 has 4,109,364,224 and
    4,109,464,576 (protocols §1.1).
    """
    with torch.device("meta"):
        network = build(arch)
    assert isinstance(network, Backbone)
    side = _out(SIZE, network.conv1)
    total = _layer(network.conv1, side)
    side //= 2  # the max-pool
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in stage:
            assert isinstance(block, BasicBlock | Bottleneck)
            into = side
            for name in ("conv1", "conv2", "conv3")[: 3 if isinstance(block, Bottleneck) else 2]:
                side = _out(side, getattr(block, name))
                total += _layer(getattr(block, name), side)
            if isinstance(block.downsample, nn.Sequential):
                total += _layer(block.downsample[0], _out(into, block.downsample[0]))
    return total + (network.num_features * side * side if pooled else 0)


def _out(side: int, convolution: nn.Module) -> int:
    """Length of a map's side behind a convolution that is padded to keep it."""
    assert isinstance(convolution, nn.Conv2d)
    return -(-side // convolution.stride[0])


def _layer(convolution: nn.Module, side: int) -> int:
    """Operations of a convolution and the batch norm behind it, for an output of side x side."""
    assert isinstance(convolution, nn.Conv2d)
    return (convolution.weight[0].numel() + 2) * convolution.out_channels * side * side


def num_parameters(tensors: Mapping[str, Tensor], frozen: Iterable[str] = ()) -> int:
    """How many numbers of a state dict are trained: all but batch-norm statistics, counters and what is `frozen`."""
    return sum(
        tensor.numel()
        for name, tensor in tensors.items()
        if name.rpartition(".")[2] not in _BUFFERS and name not in frozen
    )
