"""The ResNet of He et al. 2015 as torchvision builds it: its names, its strides (on the 3x3), its initialisation.

Written out because importing torchvision's costs 2.4 s (its operators load torch's compiler), which every one of our
processes would pay. A test holds the two together: names and shapes, the same weights from the same seed, and the same
outputs, bit for bit.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn


def _convolution(num_in: int, num_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(num_in, num_out, kernel_size=size, stride=stride, padding=size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ResNet-18 and -34. (N, num_in, H, W) → (N, width, H/stride, W/stride)."""

    expansion: ClassVar[int] = 1

    def __init__(self, num_in: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _convolution(num_in, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut: ResNet-50 and -101. (N, num_in, H, W) → (N, 4·width, H/stride, W/stride).

    The stride is on the 3x3 convolution (the "v1.5" of most checkpoints), not on the first 1x1.
    """

    expansion: ClassVar[int] = 4

    def __init__(self, num_in: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _convolution(num_in, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _convolution(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


Block = type[BasicBlock] | type[Bottleneck]


class ResNet(nn.Module):
    """(N, 3, H, W) → (N, 512·expansion): four stages of blocks and the global average; no classifier."""

    def __init__(self, block: Block, layers: list[int], *, zero_init_residual: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _stage(block, 64, 64, layers[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, layers[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, layers[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, layers[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        nn.Linear(512 * block.expansion, 1000)  # torchvision's classifier draws here: the same seed, the same weights
        for module in self.modules():
            # on the meta device there are no values, and drawing them loads torch's decompositions: 2 s, 150 MB
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, BasicBlock | Bottleneck):
                    last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
                    nn.init.zeros_(last.weight)

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        """feature1 (after conv1-BN-ReLU, before the max-pool: protocols §2.2) … feature5, and avgpool (N, D)."""
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

    def forward(self, images: Tensor) -> Tensor:
        return self.stages(images)["avgpool"]


def _stage(block: Block, num_in: int, width: int, blocks: int, *, stride: int) -> nn.Sequential:
    num_out = width * block.expansion
    downsample = None
    if stride != 1 or num_in != num_out:
        downsample = nn.Sequential(_convolution(num_in, num_out, 1, stride), nn.BatchNorm2d(num_out))
    first = block(num_in, width, stride, downsample)
    return nn.Sequential(first, *(block(num_out, width, 1, None) for _ in range(blocks - 1)))
