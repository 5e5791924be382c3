"""Can the views of a whole batch be coloured and blurred on the device? Yes, and they are the reference's pixels.

`views.photometric: device` divides the work of pretrain/views.py. A loader worker decodes, crops, resizes and flips;
the device does colour jitter, greyscale and blur for a batch at a time. A view's parameters are those that
`pretrain.views.draw` draws and travel beside its pixels, one row a view. What equals the reference (docs/speed.md):

- Decoding, to the bit: simplejpeg has the same libjpeg-turbo as Pillow, without Pillow's copies; a JPEG that it
  refuses, and every other format, is Pillow's.
- Resizing is torch's antialiased filter on 8 bits, as Pillow's but for a last bit: at most 2 of 255 levels.
- Flipping comes before, not after. It commutes with all that follows, as that looks at one pixel, at the mean of all,
  or at a window symmetric about its centre.
- Jitter and greyscale, to the bit: whole numbers in float32 (doubles where Pillow has them), rounded and clipped where
  Pillow's 8 bits are.
- Blur: Pillow runs a box filter three times along each axis and rounds after each; here the three are one product with
  a matrix, rounded once an axis: at most 2 levels.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pretrain.views import ViewParameters, draw
from zoo.datasets import Manifest, decode
from zoo.loading import Sample
from zoo.recipe import Views
from zoo.transforms import sample_rng

PASSES = 3  # of the box filter: Pillow's approximation of a Gaussian
OFF = np.float32(np.nan)  # in a row: this operation is switched off
BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAYSCALE, RADIUS, ORDER = range(7)  # columns; the order takes four


def read_crops(manifest: Manifest, views: Views, seed: int, num_views: int, key: tuple[int, int]) -> Sample:
    """What a loader worker returns for the sample `key`, (epoch, index), instead of `pretrain.views.read_views`.

    `num_views` arrays (crop, crop, 3) uint8, cropped, resized and flipped, then as many rows, (10,) float32.
    Raises DataError when the image cannot be read.
    """
    epoch, index = key
    image = _decode(manifest.path(index))  # (3, H, W)
    height, width = image.shape[1:]
    drawn = [draw((width, height), views, sample_rng(seed, epoch, index, view)) for view in range(num_views)]
    crops = (_cropped(image, parameters, views).permute(1, 2, 0).numpy() for parameters in drawn)
    return (*crops, *map(as_row, drawn))


def _decode(path: Path) -> Tensor:
    """(3, H, W) uint8 RGB, the channels of a pixel beside each other in memory; the values of `zoo.datasets.decode`."""
    try:
        content = path.read_bytes()
    except OSError:
        content = b""  # `decode` below says what is wrong
    if content.startswith(b"\xff\xd8"):
        try:
            if simplejpeg.decode_jpeg_header(content)[2] in ("YCbCr", "Gray", "RGB"):  # Pillow converts CMYK otherwise
                return torch.from_numpy(simplejpeg.decode_jpeg(content)).permute(2, 0, 1)
        except ValueError:
            pass  # damaged
    return torch.from_numpy(np.array(decode(path))).permute(2, 0, 1)


def _cropped(image: Tensor, parameters: ViewParameters, views: Views) -> Tensor:
    """(3, crop, crop) uint8 of (3, H, W)."""
    left, top, width, height = parameters.box
    window = image[None, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
    size = (views.crop, views.crop)
    if (height, width) != size:
        window = interpolate(window, size, mode=views.interpolation, antialias=True)
    return (window.flip(3) if parameters.flip else window)[0]


def as_row(parameters: ViewParameters) -> np.ndarray:
    """(10,) float32: the photometric part of a view's parameters. NaN stands for an operation that is off."""
    jitter, radius = parameters.jitter, parameters.blur_radius
    order: Sequence[int] = jitter.order if jitter else range(4)
    factors = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) if jitter else (None,) * 4
    values = [*factors, 1.0 if parameters.grayscale else None, radius]
    return np.array([*(OFF if value is None else value for value in values), *order], dtype=np.float32)


def apply_rows(pixels: Tensor, rows: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 RGB and their rows, (B, 10) on the CPU → (B, 3, H, W) float32, whole numbers 0 … 255."""
    images = pixels.float()
    for position in range(4):
        for operation, adjust in enumerate(_ADJUST):
            chosen = (rows[:, ORDER + position] == operation) & ~rows[:, operation].isnan()
            _on_part(images, chosen, adjust, rows[:, operation])
    _on_part(images, ~rows[:, GRAYSCALE].isnan(), lambda part, _: _luma(part).expand(-1, 3, -1, -1), rows[:, GRAYSCALE])
    _on_part(images, ~rows[:, RADIUS].isnan(), _blur, rows[:, RADIUS])
    return images


def _on_part(images: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor], values: Tensor) -> None:
    """`change`, in place, the chosen images of a batch, given the value of each."""
    numbers = chosen.nonzero().squeeze(1)  # on the CPU: no wait for the device
    at_once = 1 if images.device.type == "cpu" else max(len(numbers), 1)  # one image's temporaries stay in the cache
    for part in numbers.split(at_once) if len(numbers) else ():
        where = part.to(images.device, non_blocking=True)
        images[where] = change(images[where], values[part].to(images.device, non_blocking=True))


def _luma(images: Tensor) -> Tensor:
    """(B, 3, H, W) → (B, 1, H, W): ITU-R 601, in 16-bit fixed point; sums below 2²⁴ are exact in float32."""
    red, green, blue = images.unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536).floor().unsqueeze(1)


def _blend(images: Tensor, others: Tensor | float, factors: Tensor) -> Tensor:
    """others + factor · (images - others), cut off to whole numbers and to 0 … 255. factors: (B,)."""
    return ((images - others).mul_(factors.view(-1, 1, 1, 1)).add_(others)).clamp_(0, 255).floor_()


def _brightness(images: Tensor, factors: Tensor) -> Tensor:
    return _blend(images, 0.0, factors)


def _contrast(images: Tensor, factors: Tensor) -> Tensor:
    mean = _luma(images).mean((1, 2, 3), keepdim=True, dtype=torch.float64)
    return _blend(images, (mean + 0.5).floor().float(), factors)


def _saturation(images: Tensor, factors: Tensor) -> Tensor:
    return _blend(images, _luma(images), factors)


def _hue(images: Tensor, factors: Tensor) -> Tensor:
    """To HSV in 8 bits, hue moved by trunc(255 · factor) modulo 256, and back."""
    hue, saturation, value = _hsv(images)
    moved = hue + (factors * 255).trunc_().view(-1, 1, 1)
    return _rgb(moved - (moved / 256).floor_().mul_(256), saturation, value)  # remainder_ takes ten times as long


_ADJUST = (_brightness, _contrast, _saturation, _hue)


def _hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 3, H, W) RGB → hue, saturation and value, each (B, H, W), whole numbers 0 … 255.

    With v the largest channel, and p and m the two others in turn, the hue in sixths of a turn is
    start + (v - p)/s - (v - m)/s, s the largest less the least. One of the two fractions is 1; the other is rounded to
    float32 first, as in Pillow, then the sum, once.
    """
    red, green, blue = images.unbind(1)
    value = torch.maximum(red, torch.maximum(green, blue))
    spread = value - torch.minimum(red, torch.minimum(green, blue))
    # masks of 0 and 1, for torch.where takes ten times as long; equal channels: red before green before blue
    is_red = (red == value).float()
    is_green = (green == value).float().mul_(1 - is_red)
    is_blue = 1 - is_red - is_green
    plus = (is_red * blue).addcmul_(is_green, red).addcmul_(is_blue, green)
    minus = (is_red * green).addcmul_(is_green, blue).addcmul_(is_blue, red)
    start = is_green.mul_(2).add_(is_blue, alpha=4)
    sign = (plus > minus).float().mul_(2).sub_(1)  # which of the two is the least, with the fraction 1
    between = (value - torch.maximum(plus, minus)).div_(spread.clamp(min=1))
    sixths = (start - sign).add_(between.mul_(sign))
    # in doubles where Pillow has them: in float32 a hue just below a whole number would be one level off
    turns = sixths.double().div_(6).add_(1).frac_().float()
    hue = turns.double().mul_(255).floor_().float().mul_(spread > 0)
    saturation = (spread / value.clamp(min=1)).double().mul_(255).floor_().float()
    return hue, saturation, value


def _rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """The way back, (B, H, W) each → (B, 3, H, W): v (1 - s w), where w rises from 0 to 1 and falls with the hue.

    In whole numbers below 2²⁴, 255 standing for 1: exact in float32.
    """
    shifts = torch.tensor([0, 2 * 255, 4 * 255], device=hue.device).view(3, 1, 1)
    sixths = (hue * 6).unsqueeze(1) - shifts  # (B, 3, H, W), -4 · 255 … 6 · 255
    weight = sixths.abs_().sub_(3 * 255).abs_().neg_().add_(2 * 255).clamp_(0, 255)
    scaled = weight.mul_(saturation.unsqueeze(1)).neg_().add_(255 * 255).mul_(value.unsqueeze(1))
    return scaled.add_(255 * 255 // 2).div_(255 * 255).floor_()


def _rounded(values: Tensor) -> Tensor:
    """To the nearest whole number, halves up, in place."""
    return values.add_(0.5).floor_()


def _blur(images: Tensor, radii: Tensor) -> Tensor:
    """Gaussian blur of standard deviation `radii`, (B,), as three extended box filters along each axis."""
    across = _blur_matrices(radii, images.shape[3]).unsqueeze(1)  # (B, 1, W, W)
    square = images.shape[2] == images.shape[3]
    down = across if square else _blur_matrices(radii, images.shape[2]).unsqueeze(1)  # (B, 1, H, H)
    blurred = _rounded(images @ across.mT).clamp_(0, 255)
    return _rounded(down @ blurred).clamp_(0, 255)


def _blur_matrices(radii: Tensor, size: int) -> Tensor:
    """(B, size, size): row i holds the weights of a line's pixels in the blurred pixel i. Beyond its ends they repeat.

    The box of half-width l + a (Gwosdek et al. 2011, "Theoretical foundations of Gaussian convolution by extended box
    filtering"): weight 1 for the 2l + 1 pixels around, a for one more on each side, so that three have the variance.
    """
    variance = radii.double().square() / PASSES
    inner = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    width = 2 * inner + 1
    excess = width * (inner * (inner + 1) - 3 * variance) / (6 * (variance - (inner + 1).square()))
    reach = math.ceil(float(inner.max())) + 1
    offsets = torch.arange(-reach, reach + 1, device=radii.device)
    distance = offsets.abs().double()
    weights = (inner[:, None] + 1 - distance).clamp(0, 1)  # 1 within l, 0 beyond; the extra pixel's weight is a
    weights = torch.where(distance == inner[:, None] + 1, excess[:, None], weights)
    weights = (weights / weights.sum(1, keepdim=True)).float()  # (B, 2 · reach + 1)
    pixels = torch.arange(size, device=radii.device)
    columns = (pixels[:, None] + offsets).clamp(0, size - 1).flatten()  # (size · (2 · reach + 1),)
    box = torch.zeros(len(radii), size, size, device=radii.device)
    box.view(len(radii), -1).index_add_(
        1, pixels.repeat_interleave(len(offsets)) * size + columns, weights.repeat(1, size)
    )
    return box @ box @ box
