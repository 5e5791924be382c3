"""What the canonical network says about one picture: the yardstick an engine's backbone is held to.

The engine's child process reads the picture its own way and compares (engines.contract.check_stages). So wrong channel
order, mean, std, stride placement, stem or key is seen before anything is trained.
"""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from zoo.backbone import Backbone
from zoo.files import write_atomic
from zoo.resnet import BasicBlock, Bottleneck
from zoo.transforms import Pixels

HEIGHT, WIDTH = 64, 96  # divisible by 32, so that no engine pads; not square, so that swapped axes are seen
STAGES = ("feature2", "feature3", "feature4", "feature5")


def picture() -> np.ndarray:
    """(64, 96, 3) uint8 RGB: smooth coloured noise, the three channels unlike."""
    coarse = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def write_probe(folder: Path, state: dict[str, Tensor], arch: str, pixels: Pixels, *, dilated: bool) -> Path:
    """Write `folder`/probe.png and probe.npz: normalised pixels (1, 3, H, W) fp64, every stage in fp32 and fp64.

    dilated: the stages of a network whose last two stages keep stride 8 (protocols §2.10).
    """
    image = picture()
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    write_atomic(folder / "probe.png", stream.getvalue())
    mean, std = np.array(pixels.mean), np.array(pixels.std)
    normalised = ((image / 255 - mean) / std).transpose(2, 0, 1)[None]
    values: dict[str, np.ndarray] = {"pixels": normalised}
    model = Backbone(arch)
    own = model.state_dict()
    own.update(state)
    model.load_state_dict(own)
    if dilated:
        dilate(model)
    model.eval()
    for precision, dtype in (("fp32", torch.float32), ("fp64", torch.float64)):
        with torch.no_grad():
            stages = model.to(dtype).stages(torch.from_numpy(normalised).to(dtype))
        values |= {f"{precision}/{name}": stages[name].double().numpy() for name in STAGES}
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **values)
    write_atomic(folder / "probe.npz", stream.getvalue())
    return folder / "probe.npz"


def dilate(model: Backbone) -> None:
    """Strides 1, 2, 1, 1 and dilations 1, 1, 2, 4, in place; the first block of a stage has half its dilation (§2.10).

    In a Bottleneck the 3x3 convolution carries stride and dilation, in a BasicBlock the first of the two does.
    """
    for stage, dilation in ((model.layer3, 2), (model.layer4, 4)):
        for number, block in enumerate(stage):
            assert isinstance(block, BasicBlock | Bottleneck)
            spatial = block.conv2 if isinstance(block, Bottleneck) else block.conv1
            reach = dilation // 2 if number == 0 else dilation
            spatial.stride, spatial.dilation, spatial.padding = (1, 1), (reach, reach), (reach, reach)
            if block.downsample is not None:
                (shortcut,) = (part for part in block.downsample.children() if isinstance(part, nn.Conv2d))
                shortcut.stride = (1, 1)
