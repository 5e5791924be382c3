"""What does one scene look like, and where exactly is each digit in it?

`draw_scene` is pure: material, style, scans and a random generator give the picture together with the boxes and masks
of what is in it, so one drawing serves classification (one digit), detection and segmentation (several). A scene is a
softened crop of a photograph, blurred and of low contrast, with digits painted on it in one shade each, lighter or
darker than the ground. Arithmetic is integer (Pillow) or element-wise float64, so the bytes do not depend on threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from mini.material import Material

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels; x1 and y1 are one past the last pixel

PLACEMENT_TRIES: Final = 20
MASK_THRESHOLD: Final = 0.4  # a pixel belongs to a digit when the ink covers at least this much of it


@dataclass(frozen=True, kw_only=True)
class SceneStyle:
    """How scenes of one dataset look. Lengths are shares of the shorter side, shades are in [0, 1]."""

    width: int
    height: int
    digit_size: tuple[float, float]  # smallest and largest side of a digit's square
    contrast: float = 0.15  # range of the background's shades: above .3 the photographs drown the digits
    ink: tuple[float, float] = (0.2, 0.4)  # how far a digit's shade is from the background's mean
    blur: float = 1.0  # radius in pixels
    saturation: float = 0.0  # 0 grey .. 1 as colourful as the photographs


@dataclass(frozen=True, kw_only=True, eq=False)
class SceneObject:
    """One digit as far as it is visible: later digits may cover earlier ones."""

    label: int
    scan: int
    box: Box  # the mask's bounds
    mask: NDArray[np.bool_]  # (H, W)
    covered: float  # the share of what was painted that later digits hide


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A picture and the digits in it, in painting order; a digit that is wholly covered is left out."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    objects: tuple[SceneObject, ...]


def draw_scene(material: Material, style: SceneStyle, scans: Sequence[int], rng: np.random.Generator) -> Scene:
    """Paint the digits with these scan indices, in this order, at random places over a random background."""
    level = rng.uniform(0.3, 0.7)
    canvas = level + style.contrast * _background(material, style, rng)  # (H, W, 3)
    cells: list[Box] = []
    masks: list[NDArray[np.bool_]] = []
    painted: list[int] = []  # pixels
    for scan in scans:
        cells.append(_place(style, cells, rng))
        mask = _paint(canvas, material.scans[scan], cells[-1], _ink(level, style, rng))
        painted.append(int(mask.sum()))
        masks = [*(earlier & ~mask for earlier in masks), mask]
    objects = tuple(
        SceneObject(
            label=int(material.labels[scan]),
            scan=scan,
            box=bounds(mask),
            mask=mask,
            covered=1 - int(mask.sum()) / pixels,
        )
        for scan, mask, pixels in zip(scans, masks, painted, strict=True)
        if mask.any()
    )
    return Scene(image=np.rint(255 * canvas.clip(0, 1)).astype(np.uint8), objects=objects)


def bounds(mask: NDArray[np.bool_]) -> Box:
    """The smallest box around a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _background(material: Material, style: SceneStyle, rng: np.random.Generator) -> NDArray[np.float64]:
    """(H, W, 3): a blurred photograph crop with shades in [-.5, .5]."""
    photograph = material.photographs[rng.integers(len(material.photographs))]
    largest = min(3.0, photograph.height / style.height, photograph.width / style.width)
    step = rng.uniform(min(1.0, largest), largest)  # photograph pixels per scene pixel
    width, height = int(step * style.width), int(step * style.height)
    left = int(rng.integers(photograph.width - width + 1))
    top = int(rng.integers(photograph.height - height + 1))
    crop = photograph.resize(
        (style.width, style.height), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
    )
    soft = ImageEnhance.Color(crop.filter(ImageFilter.GaussianBlur(style.blur))).enhance(style.saturation)
    return np.asarray(soft, dtype=np.float64) / 255 - 0.5


def _ink(level: float, style: SceneStyle, rng: np.random.Generator) -> NDArray[np.float64]:
    """(3,): one shade, lighter or darker than the background by a visible amount, tinted if the style is."""
    away = rng.uniform(*style.ink) * (1 if rng.random() < 0.5 else -1)
    tint = rng.uniform(-0.5, 0.5, size=3)
    return level + away + style.saturation * (tint - tint.mean())


def _place(style: SceneStyle, taken: Sequence[Box], rng: np.random.Generator) -> Box:
    """A square cell inside the scene, the one of a few random ones that overlaps earlier cells least."""
    side = max(8, round(rng.uniform(*style.digit_size) * min(style.width, style.height)))
    best, least = (0, 0, side, side), float("inf")
    for _ in range(PLACEMENT_TRIES):
        left = int(rng.integers(style.width - side + 1))
        top = int(rng.integers(style.height - side + 1))
        cell = (left, top, left + side, top + side)
        overlap = sum(_shared_area(cell, other) for other in taken)
        if overlap < least:
            best, least = cell, overlap
        if least == 0:
            break
    return best


def _shared_area(a: Box, b: Box) -> int:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height)


def _paint(
    canvas: NDArray[np.float64], scan: NDArray[np.uint8], cell: Box, ink: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Draw the scan, enlarged to its cell, onto the canvas; returns the mask (H, W) of what it covers."""
    left, top, right, bottom = cell
    enlarged = Image.fromarray(scan).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    coverage = np.asarray(enlarged, dtype=np.float64) / 255
    region = canvas[top:bottom, left:right]
    region += coverage[:, :, None] * (ink - region)
    mask = np.zeros(canvas.shape[:2], dtype=np.bool_)
    mask[top:bottom, left:right] = coverage >= MASK_THRESHOLD
    return mask
