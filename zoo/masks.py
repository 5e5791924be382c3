"""Is a file the label map of its image: as many pixels, one byte each, and no number but the classes' and 255?"""

from pathlib import Path

import numpy as np
from PIL import Image

from zoo.cityscapes import TRAIN_IDS, kind_of
from zoo.errors import DataError
from zoo.images import UNREADABLE, check_whole, opened

IGNORED = 255  # the label of pixels that count for nothing
MODES = ("L", "P")  # 8-bit greys and palettes, whose pixels are numbers


def header_problem(path: Path, image: Path) -> str | None:
    """What the two files' headers and ends tell against `path` as the label map of `image`; None if nothing.

    Pixels are read only of a file that may be cut off (zoo.images).
    """
    try:
        with opened(image) as picture:
            size = picture.size
        with opened(path) as mask:
            if problem := _mode_problem(path, mask) or size_problem(path, mask.size, size):
                return problem
        check_whole(image)
        check_whole(path)
        return None
    except DataError as error:
        return str(error)


def size_problem(path: Path, found: tuple[int, int], image: tuple[int, int]) -> str | None:
    """What is wrong with a label map of this size (width, height) for an image of that one."""
    if found == image:
        return None
    return (
        f"{path}: a mask of {found[0]} x {found[1]} pixels, but its picture has {image[0]} x {image[1]}; "
        "restore the one that is wrong."
    )


def read_mask(path: Path, num_classes: int) -> np.ndarray:
    """(H, W) uint8: 0 … num_classes - 1, and 255. Cityscapes' labelIds come as trainIds (zoo.cityscapes).

    Raises DataError naming the file when it is missing, no image, not one byte a pixel, or has other numbers.
    """
    with opened(path) as mask:
        if problem := _mode_problem(path, mask):
            raise DataError(problem)
        try:
            labels, counts = np.array(mask), mask.histogram()
        except UNREADABLE as error:
            raise DataError(f"{path}: the mask cannot be decoded ({error}); replace the file.") from error
    ids = kind_of(path) == "labelIds"
    allowed = TRAIN_IDS.keys() if ids else {*range(num_classes), IGNORED}
    odd = [label for label, count in enumerate(counts) if count and label not in allowed]
    if odd:
        expected = f"0…{len(TRAIN_IDS) - 2 if ids else num_classes - 1} and {IGNORED}"
        raise DataError(f"{path}: expected labels {expected}, found {', '.join(map(str, odd[:5]))}; restore the file.")
    return _LOOKUP[labels] if ids else labels


def _mode_problem(path: Path, mask: Image.Image) -> str | None:
    if mask.mode in MODES:
        return None
    found = "colours" if len(mask.getbands()) > 1 else f"pixels of PIL's mode '{mask.mode}'"
    return f"{path}: expected a mask of one byte a pixel (grey or palette), found {found}; restore the file."


_LOOKUP = np.full(256, IGNORED, np.uint8)
_LOOKUP[list(TRAIN_IDS)] = list(TRAIN_IDS.values())
