"""From a decoded image to the pixels a backbone sees: named presets, and the random draws behind augmentation.

Every random draw for a sample is a function of (seed, epoch, sample index, view) alone, so results depend on neither
workers nor ranks (DESIGN §5). Pixels stay uint8 until they reach the device; `Pixels` (mean, std) belongs to the
checkpoint's card and is applied there.

Geometry follows torchvision's Resize, CenterCrop and RandomResizedCrop on PIL images to the pixel (a test holds them
together); it is written out here because theirs draws from the global generator, and planning must not import torch.
"""

import math
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from zoo.config import Strict

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
Interpolation = Literal["bilinear", "bicubic"]


class TestTransform(Strict):
    """Deterministic: shorter side to `resize`, then a centre crop; "256/224" in the protocol sheet (§2)."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    resize: Annotated[int, Field(gt=0)]
    crop: Annotated[int, Field(gt=0)]
    interpolation: Interpolation


class TrainTransform(Strict):
    """RandomResizedCrop and horizontal flip: the linear probe's training transform (§2.1)."""

    crop: Annotated[int, Field(gt=0)]
    area: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]
    flip_probability: Annotated[float, Field(ge=0, le=1)]
    interpolation: Interpolation


class Pixels(Strict):
    """How a checkpoint wants its input: RGB in [0, 1], minus mean, over std, per channel."""

    mean: tuple[float, float, float]
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    order: Literal["rgb"]


IMAGENET_PIXELS = Pixels(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), order="rgb")


def sample_rng(seed: int, epoch: int, index: int, view: int = 0) -> np.random.Generator:
    """The generator of one view of one sample in one epoch."""
    return np.random.default_rng((seed, epoch, index, view))


def epoch_order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """The order of the samples in one epoch, (N,) int64: a permutation that depends on (seed, epoch) only."""
    # five numbers, where sample_rng has four: the two families of streams never meet
    return np.random.default_rng((seed, epoch, 0, 0, 1)).permutation(num_samples)


def apply_test(image: Image.Image, transform: TestTransform) -> np.ndarray:
    """(crop, crop, 3) uint8."""
    image = resize_shorter(image, transform.resize, transform.interpolation)
    return np.asarray(center_crop(image, transform.crop))


def apply_train(image: Image.Image, transform: TrainTransform, rng: np.random.Generator) -> np.ndarray:
    """(crop, crop, 3) uint8, by random draws from `rng`."""
    image = random_resized_crop(image, transform.crop, transform.area, transform.interpolation, rng)
    if rng.random() < transform.flip_probability:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def resize_shorter(image: Image.Image, size: int, interpolation: Interpolation) -> Image.Image:
    """The shorter side becomes `size`, the longer one keeps the ratio (rounded down, as torchvision)."""
    width, height = image.size
    if width <= height:
        target = (size, int(size * height / width))
    else:
        target = (int(size * width / height), size)
    return image if target == image.size else image.resize(target, _FILTERS[interpolation])


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The central (size, size) window; a smaller image is padded with black first, as torchvision."""
    width, height = image.size
    if width < size or height < size:
        padded = Image.new("RGB", (max(width, size), max(height, size)))
        padded.paste(image, ((max(size - width, 0)) // 2, (max(size - height, 0)) // 2))
        image = padded
        width, height = image.size
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def random_resized_crop(
    image: Image.Image, size: int, area: tuple[float, float], interpolation: Interpolation, rng: np.random.Generator
) -> Image.Image:
    """A window of a random share of the area and aspect ratio 3/4 … 4/3, resized to (size, size)."""
    return resized_crop(image, draw_crop_box(image.size, area, rng), size, interpolation)


def resized_crop(
    image: Image.Image, box: tuple[int, int, int, int], size: int, interpolation: Interpolation
) -> Image.Image:
    """The window `box`, (left, top, width, height), resized to (size, size)."""
    left, top, width, height = box
    window = image.crop((left, top, left + width, top + height))
    return window if window.size == (size, size) else window.resize((size, size), _FILTERS[interpolation])


def draw_crop_box(
    image_size: tuple[int, int], area: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(left, top, width, height) by RandomResizedCrop's rule: ten tries, then the largest central window allowed."""
    full_width, full_height = image_size
    low, high = math.log(3 / 4), math.log(4 / 3)
    for _ in range(10):
        target = full_width * full_height * rng.uniform(*area)
        ratio = math.exp(rng.uniform(low, high))
        width, height = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < width <= full_width and 0 < height <= full_height:
            left = int(rng.integers(0, full_width - width + 1))
            top = int(rng.integers(0, full_height - height + 1))
            return left, top, width, height
    ratio = full_width / full_height
    if ratio < 3 / 4:
        width, height = full_width, round(full_width / (3 / 4))
    elif ratio > 4 / 3:
        width, height = round(full_height * (4 / 3)), full_height
    else:
        width, height = full_width, full_height
    return (full_width - width) // 2, (full_height - height) // 2, width, height
