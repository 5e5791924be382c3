"""What the describing children and their tests both know: the drawn pictures' colour, and where rates are read."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOUR = (200, 120, 40)  # red, green, blue
LR_AT = {
    "detectron2": (0, 50, 99, 100, 17999, 18000, 21999, 22000, 23999),
    "detectron2_coco": (0, 50, 999, 1000, 58639, 58640, 60000, 80000, 80629, 80630, 87959, 89999, 120000, 160000),
    "mmseg": (0, 1, 10000, 19999, 39999),
}


def draw_picture(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), COLOUR, np.uint8)).save(path)


def draw_mask(path: Path, labels: np.ndarray) -> None:
    """A palette picture, its colours no labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(labels.astype(np.uint8)).convert("P")
    mask.putdata(labels.ravel().tolist())
    mask.putpalette([255 - value // 3 for value in range(768)])
    mask.save(path)


def order(channels: list[float]) -> str:
    """In which order a picture of COLOUR has arrived, from its channels' values."""
    known = dict(zip("RGB", COLOUR, strict=True))
    return "".join(min(known, key=lambda name: abs(known[name] - value)) for value in channels)
