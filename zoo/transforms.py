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
from PIL import Image, ImageEnhance
from pydantic import Field, model_validator

from zoo.config import Strict

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
Interpolation = Literal["bilinear", "bicubic"]
Strength = Annotated[float, Field(ge=0)]


class TestTransform(Strict):
    """Deterministic: shorter side to `resize`, then (crop, crop) pixels.

    centre_crop: the central window; "256/224" in the protocol sheet (§2). squash: the whole picture, its aspect ratio
    given up (VOC07 SVM, §2.6); with `resize` null at once, as VISSL does (§2.7).
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    resize: Annotated[int, Field(gt=0)] | None
    crop: Annotated[int, Field(gt=0)]
    interpolation: Interpolation
    fit: Literal["centre_crop", "squash"]

    @model_validator(mode="after")
    def _resized(self) -> "TestTransform":
        if self.resize is None and self.fit == "centre_crop":
            raise ValueError("resize: expected a number of pixels, found null, which only goes with fit: squash")
        return self


class RandomResizedCrop(Strict):
    """A window of a random share of the area and aspect ratio 3/4 … 4/3, resized to (size, size)."""

    name: Literal["random_resized"]
    size: Annotated[int, Field(gt=0)]
    area: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]


class RandomCrop(Strict):
    """Shorter side to `resize`, the central (resize, resize) window, and of it a random (size, size) one (§2.3)."""

    name: Literal["random"]
    resize: Annotated[int, Field(gt=0)]
    size: Annotated[int, Field(gt=0)]

    @model_validator(mode="after")
    def _fits(self) -> "RandomCrop":
        if self.size > self.resize:
            raise ValueError(f"size: expected at most resize ({self.resize}), found {self.size}")
        return self


class TrainTransform(Strict):
    """Augmentation of a linear probe's training images, in the order applied (§2.1 to §2.4).

    jitter: strengths of brightness, contrast and saturation, always on, in random order (torchvision's ColorJitter).
    lighting: standard deviation of the noise along ImageNet's principal colours (AlexNet's PCA lighting). 0: off.
    """

    crop: Annotated[RandomResizedCrop | RandomCrop, Field(discriminator="name")]
    interpolation: Interpolation
    flip_probability: Annotated[float, Field(ge=0, le=1)]
    jitter: tuple[Strength, Strength, Strength]
    lighting: Annotated[float, Field(ge=0)]


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
    if transform.resize is not None:
        image = resize_shorter(image, transform.resize, transform.interpolation)
    if transform.fit == "squash":
        size = (transform.crop, transform.crop)
        return np.asarray(image if image.size == size else image.resize(size, _FILTERS[transform.interpolation]))
    return np.asarray(center_crop(image, transform.crop))


def apply_train(image: Image.Image, transform: TrainTransform, rng: np.random.Generator) -> np.ndarray:
    """(crop, crop, 3) uint8, by random draws from `rng`: crop, flip and jitter. Lighting comes after (`lighting`)."""
    crop = transform.crop
    if crop.name == "random_resized":
        image = random_resized_crop(image, crop.size, crop.area, transform.interpolation, rng)
    else:
        image = center_crop(resize_shorter(image, crop.resize, transform.interpolation), crop.resize)
        left, top = (int(rng.integers(0, crop.resize - crop.size + 1)) for _ in range(2))
        image = image.crop((left, top, left + crop.size, top + crop.size))
    if rng.random() < transform.flip_probability:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if any(transform.jitter):
        image = _jitter(image, transform.jitter, rng)
    return np.asarray(image)


_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)  # Color: saturation


def _jitter(image: Image.Image, strengths: tuple[float, float, float], rng: np.random.Generator) -> Image.Image:
    """Factors from [max(0, 1 - s), 1 + s], in random order; all drawn, so that switching one off moves no other."""
    factors = [rng.uniform(max(0.0, 1.0 - strength), 1.0 + strength) for strength in strengths]
    for operation in rng.permutation(3):
        if strengths[operation] > 0:
            image = _ENHANCERS[operation](image).enhance(factors[operation])
    return image


# the principal components of ImageNet's RGB values in [0, 1] and their standard deviations (Krizhevsky et al. 2012;
# eigenvalues as in §2.2), as in every public implementation of that augmentation
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def lighting_shift(std: float, rng: np.random.Generator) -> np.ndarray:
    """(3,) float32, what PCA lighting adds to every pixel's red, green and blue in [0, 1]."""
    return (_EIGENVECTORS @ (rng.normal(0.0, std, 3) * _EIGENVALUES)).astype(np.float32)


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
