"""Why a file is not evaluated is said where it holds, with what to do; and of a good file nothing is claimed."""

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from converters.layouts.refusals import REFUSALS
from converters.layouts.table import Content
from converters.opening import Opened
from converters.read import understand
from zoo.errors import CheckpointError

State = dict[str, Tensor]
ARCHS = ("resnet18", "resnet34", "resnet50", "resnet101")


def opened(content: Any) -> Opened:
    return Opened(
        path=Path("a.pth"), container="torch zip", way="weights_only", content=content, metadata={}, reduced=()
    )


def shaped(network: nn.Module, prefix: str = "") -> State:
    """Tensors of a network's shapes that take no memory."""
    return {
        prefix + name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
        for name, tensor in network.state_dict().items()
    }


def vision(name: str, prefix: str = "", **options: Any) -> State:
    with torch.device("meta"):
        network = torchvision.models.get_model(name, **options)
    return shaped(network, prefix)


def in_timm(name: str, **options: Any) -> State:
    import timm

    with torch.device("meta"):
        network = timm.create_model(name, **options)
    return shaped(network)


def put(state: State, shapes: dict[str, tuple[int, ...]], drop: tuple[str, ...] = ()) -> State:
    """`state` without names that begin with `drop`, and with these shapes."""
    kept = {name: tensor for name, tensor in state.items() if not drop or not name.startswith(drop)}
    return kept | {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def v1c(prefix: str = "backbone.") -> State:
    """mmseg's ResNetV1c (protocols §3.4)."""
    shapes = {f"stem.{n}.weight": (64 if n == 6 else 32, 3 if n == 0 else 32, 3, 3) for n in (0, 3, 6)}
    return put(
        vision("resnet50", prefix), {prefix + k: v for k, v in shapes.items()}, (f"{prefix}conv1", f"{prefix}bn1")
    )


def mmpretrain_deep_stem() -> State:
    shapes = {f"backbone.stem.{n}.conv.weight": (64 if n == 2 else 32, 3 if n == 0 else 32, 3, 3) for n in range(3)}
    return put(vision("resnet50", "backbone."), shapes, ("backbone.conv1", "backbone.bn1"))


def clip() -> State:
    """openai/CLIP:clip/model.py, ModifiedResNet."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual.conv1.weight": (32, 3, 3, 3),
        "visual.conv2.weight": (32, 32, 3, 3),
        "visual.conv3.weight": (64, 32, 3, 3),
        "visual.bn3.weight": (64,),
        "visual.attnpool.positional_embedding": (50, 2048),
    }
    return put(vision("resnet50", "visual."), shapes, ("visual.fc",))


def cmc(first: int = 1, second: int = 2) -> State:
    """HobbitLong/PyContrast:pycontrast/networks/build_backbone.py, CMCSingleHead."""
    one = {"module.encoder1.conv1.weight": (32, first, 7, 7), "module.encoder1.layer1.0.conv1.weight": (32, 32, 1, 1)}
    two = {"module.encoder2.conv1.weight": (32, second, 7, 7), "module.encoder2.layer1.0.conv1.weight": (32, 32, 1, 1)}
    return put({}, {**one, **two, "module.head1.0.weight": (128, 1024), "module.head2.0.weight": (128, 1024)})


def twice_as_wide() -> State:
    """facebookresearch/swav:src/resnet50.py, resnet50w2: every width doubled."""
    with torch.device("meta"):
        network: Any = torchvision.models.resnet50()
        network.conv1 = nn.Conv2d(3, 128, 7, bias=False)
        network.layer1[0].conv1 = nn.Conv2d(128, 128, 1, bias=False)
        network.layer1[0].conv2 = nn.Conv2d(128, 128, 3, bias=False)
    return shaped(network)


def quantised() -> State:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of quantised tensors
        weight = torch.quantize_per_tensor(torch.zeros(64, 64, 3, 3), 0.1, 0, torch.qint8)
    return vision("resnet18") | {"layer1.0.conv1.weight": weight}


CASES: dict[str, tuple[Any, str]] = {
    "torchvision ViT": (lambda: vision("vit_b_16"), "a vision transformer, not a ResNet"),
    "timm ViT": (lambda: in_timm("vit_tiny_patch16_224"), "a vision transformer, not a ResNet"),
    "facebook ConvNeXt": (lambda: in_timm("convnext_atto"), "a ConvNeXt, not a ResNet"),
    "timm EfficientNet": (lambda: in_timm("efficientnet_b0"), "an EfficientNet or a MobileNet, not a ResNet"),
    "torchvision EfficientNet": (
        lambda: vision("efficientnet_b0"),
        "an EfficientNet or another network of torchvision's `features`, not a ResNet",
    ),
    "torchvision RegNet": (lambda: shaped(torchvision.models.regnet_y_400mf()), "a RegNet, not a ResNet"),
    "timm RegNet": (lambda: in_timm("regnety_002"), "a RegNet, not a ResNet"),
    "VISSL RegNet": (
        lambda: put({}, {"_feature_blocks.block1.block1-0.proj.0.weight": (48, 32, 1, 1)}),
        "a RegNet, not a ResNet",
    ),
    "Caffe2": (
        lambda: {
            "model": put({}, {"conv1_w": (64, 3, 7, 7), "res2_0_branch2a_w": (64, 64, 1, 1)}),
            "__author__": "Caffe2",
        },
        "a Caffe2 or MSRA ResNet (names like conv1_w): its stride lies in the 1x1 convolutions",
    ),
    "quantised": (quantised, "quantised: ask for the weights in floating point"),
    "quantised, packed": (
        lambda: vision("resnet18") | {"conv1.zero_point": torch.tensor(0)},
        "quantised: ask for the weights in floating point",
    ),
    "CMC": (cmc, "CMC's two encoders, encoder1 for the lightness of an image and encoder2 for its two colour channels"),
    "mmseg V1c": (v1c, "a ResNet with a deep stem (V1c, V1d, timm's …d, CLIP): three 3x3 convolutions"),
    "mmpretrain deep stem": (mmpretrain_deep_stem, "a ResNet with a deep stem (V1c, V1d, timm's …d, CLIP)"),
    "timm resnet50d": (lambda: in_timm("resnet50d"), "a ResNet with a deep stem (V1c, V1d, timm's …d, CLIP)"),
    "CLIP": (clip, "a ResNet with a deep stem (V1c, V1d, timm's …d, CLIP)"),
    "timm SE-ResNet": (lambda: in_timm("seresnet50"), "an SE-ResNet: its blocks have squeeze-and-excitation layers"),
    "attention pooling": (
        lambda: vision("resnet50", "visual.") | put({}, {"visual.attnpool.c_proj.weight": (1024, 2048)}),
        "CLIP's ResNet: it pools by attention (attnpool)",
    ),
    "CIFAR": (
        lambda: put(vision("resnet18", "backbone."), {"backbone.conv1.weight": (64, 3, 3, 3)}),
        "a ResNet for small images (CIFAR): its first convolution is 3x3, not 7x7 with stride 2",
    ),
    "ResNeXt": (lambda: vision("resnext50_32x4d"), "a ResNeXt: its 3x3 convolutions have 32 groups"),
    "ResNeXt-101 64x4d": (lambda: vision("resnext101_64x4d"), "a ResNeXt: its 3x3 convolutions have 64 groups"),
    "wide_resnet50_2": (
        lambda: vision("wide_resnet50_2"),
        "a wide ResNet: the convolutions within its first blocks have 128 channels, not 64",
    ),
    "resnet50w2": (twice_as_wide, "a ResNet of another width (w2, 2x): its first convolution has 128 channels, not 64"),
    "averaged shortcuts": (
        lambda: put(vision("resnet50"), {"layer2.0.downsample.1.weight": (512, 256, 1, 1)}),
        "a ResNet-D: its shortcuts average before their convolution",
    ),
    "ResNet-152": (lambda: vision("resnet152"), "a ResNet-152: ResNet-18, -34, -50 and -101 are evaluated"),
    "group norm": (
        lambda: vision("resnet50", norm_layer=lambda channels: nn.GroupNorm(32, channels)),
        "no running mean and variance: group normalisation (or none), or a file of parameters without buffers",
    ),
    "parameters only": (
        lambda: {k: v for k, v in vision("resnet18").items() if "running" not in k and "num_batches" not in k},
        "no running mean and variance: group normalisation (or none), or a file of parameters without buffers",
    ),
}


@cache
def case(name: str) -> Opened:
    return opened(CASES[name][0]())


@pytest.mark.parametrize("name", CASES)
def test_the_reason_is_told(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        understand(case(name))
    assert CASES[name][1] in str(caught.value).splitlines()[0]


def test_every_reason_has_a_case() -> None:
    contents = [Content(case(name)) for name in CASES]
    told = {next(refusal for refusal in REFUSALS if refusal(content) is not None) for content in contents}
    assert told == set(REFUSALS)


@pytest.mark.parametrize("arch", ARCHS)
def test_nothing_is_claimed_of_a_resnet(arch: str) -> None:
    state = vision(arch)
    for prefix in ("", "backbone.", "encoder_q.0.", "_feature_blocks.", "module.encoder."):
        content = Content(opened({"state_dict": {prefix + name: tensor for name, tensor in state.items()}}))
        assert [reason for refusal in REFUSALS if (reason := refusal(content)) is not None] == []


@pytest.mark.parametrize(
    "state",
    [
        {"stem.conv1.weight": (64, 3, 7, 7), "res2.0.conv1.weight": (64, 64, 1, 1)},  # detectron2: no deep stem
        {"encoder1.conv1.weight": (64, 3, 7, 7), "encoder2.conv1.weight": (64, 3, 7, 7)},  # two of RGB
        {"encoder1.conv1.weight": (1,), "encoder2.conv1.weight": (2,)},
        {"stem.0.weight": (32, 3, 3, 3)},  # of whatever network
        {"conv1.weight": (64, 3, 3, 3)},
        {"blocks.0.weight": (1,), "features.0.weight": (64, 3, 3, 3)},  # VGG
        {
            "layer1.0.conv1.weight": (64, 0, 1, 1),
            "layer1.0.conv2.weight": (64, 0, 3, 3),
            "layer1.0.bn1.running_mean": (1,),
        },
        {"layer1.0.conv1.weight": (64,), "conv1.weight": (64,), "layer1.0.bn1.running_mean": (64,)},
        {},
    ],
)
def test_nothing_is_claimed_without_evidence(state: dict[str, tuple[int, ...]]) -> None:
    content = Content(opened(put({}, state)))
    assert [reason for refusal in REFUSALS if (reason := refusal(content)) is not None] == []
