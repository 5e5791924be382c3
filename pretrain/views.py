"""Which random view of an image does a step see?

SimSiam's augmentation (protocols §1.3, in that order): RandomResizedCrop, colour jitter, greyscale, Gaussian blur,
horizontal flip. Drawing and applying are apart: a view's parameters are a function of (seed, epoch, sample index, view)
alone (DESIGN §5), and applying them is what torchvision does to PIL images, PIL's own operations but for the hue; the
blur is PIL's with radius = σ, as the reference's. Given the same factors the result is torchvision's to the pixel, as a
test holds; importing torchvision itself would cost every process a second or two.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from zoo.datasets import Manifest, decode
from zoo.loading import Sample
from zoo.recipe import Views
from zoo.transforms import draw_crop_box, resized_crop, sample_rng


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """Colour jitter: the factor of each operation (None: switched off), and the order they come in."""

    order: tuple[int, ...]  # a permutation of 0 brightness, 1 contrast, 2 saturation, 3 hue
    brightness: float | None
    contrast: float | None
    saturation: float | None
    hue: float | None


@dataclass(frozen=True, kw_only=True)
class ViewParameters:
    """One view, fully drawn. `box` is (left, top, width, height) in the decoded image."""

    box: tuple[int, int, int, int]
    jitter: Jitter | None
    grayscale: bool
    blur_radius: float | None
    flip: bool


def draw(image_size: tuple[int, int], views: Views, rng: np.random.Generator) -> ViewParameters:
    """The parameters of one view of an image of (width, height).

    Everything is drawn whether it is used or not: switching a step off leaves the other steps' draws as they were.
    """
    box = draw_crop_box(image_size, views.area, rng)
    jittered, jitter = rng.random() < views.jitter_probability, _draw_jitter(views, rng)
    grayscale = bool(rng.random() < views.grayscale_probability)
    blurred, radius = rng.random() < views.blur_probability, float(rng.uniform(*views.blur_sigma))
    flip = bool(rng.random() < views.flip_probability)
    return ViewParameters(
        box=box,
        jitter=jitter if jittered else None,
        grayscale=grayscale,
        blur_radius=radius if blurred else None,
        flip=flip,
    )


def _draw_jitter(views: Views, rng: np.random.Generator) -> Jitter:
    """As torchvision's ColorJitter: factors from [max(0, 1 - s), 1 + s], hue from [-s, s], strength 0 means off."""
    strengths = views.jitter
    order = tuple(int(operation) for operation in rng.permutation(4))
    factors = [float(rng.uniform(max(0.0, 1.0 - strength), 1.0 + strength)) for strength in strengths[:3]]
    hue = float(rng.uniform(-strengths[3], strengths[3]))
    used = [value if strength > 0 else None for value, strength in zip([*factors, hue], strengths, strict=True)]
    return Jitter(order=order, brightness=used[0], contrast=used[1], saturation=used[2], hue=used[3])


def apply(image: Image.Image, parameters: ViewParameters, views: Views) -> Image.Image:
    """The view of `image` that `parameters` describe, (crop, crop) RGB."""
    image = resized_crop(image, parameters.box, views.crop, views.interpolation)
    if parameters.jitter is not None:
        image = apply_jitter(image, parameters.jitter)
    if parameters.grayscale:
        image = image.convert("L").convert("RGB")
    if parameters.blur_radius is not None:
        image = image.filter(ImageFilter.GaussianBlur(radius=parameters.blur_radius))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if parameters.flip else image


def apply_jitter(image: Image.Image, jitter: Jitter) -> Image.Image:
    """`image` after brightness, contrast, saturation and hue in the drawn order."""
    operations: tuple[tuple[Callable[[Image.Image, float], Image.Image], float | None], ...] = (
        (lambda picture, factor: ImageEnhance.Brightness(picture).enhance(factor), jitter.brightness),
        (lambda picture, factor: ImageEnhance.Contrast(picture).enhance(factor), jitter.contrast),
        (lambda picture, factor: ImageEnhance.Color(picture).enhance(factor), jitter.saturation),
        (shifted_hue, jitter.hue),
    )
    for number in jitter.order:
        operation, factor = operations[number]
        if factor is not None:
            image = operation(image, factor)
    return image


def shifted_hue(image: Image.Image, turns: float) -> Image.Image:
    """`image` with its hue turned on by `turns` of the circle, in PIL's 256 steps, towards zero."""
    hue, saturation, value = image.convert("HSV").split()
    steps = np.asarray(hue) + np.uint8(int(turns * 255) % 256)  # uint8: wraps around
    return Image.merge("HSV", (Image.fromarray(steps), saturation, value)).convert("RGB")


def read_views(manifest: Manifest, views: Views, seed: int, num_views: int, key: tuple[int, int]) -> Sample:
    """What a loader worker returns for the sample `key`, (epoch, index): one (crop, crop, 3) uint8 array a view.

    Raises DataError when the image cannot be read.
    """
    epoch, index = key
    image = decode(manifest.path(index))
    drawn = (draw(image.size, views, sample_rng(seed, epoch, index, view)) for view in range(num_views))
    return tuple(np.asarray(apply(image, parameters, views)) for parameters in drawn)
