"""Pascal VOC's annotation files: the size of an image and the boxes of its objects (the VOC devkit's XML).

A box's corners are 1-based and inclusive: 1 <= xmin < xmax <= width, and the same of y. One pixel beyond is let pass as
an annotator's rounding: the devkit's own evaluation does not look, and the whole of VOC was not here to be counted.
"""

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import DataError, several
from zoo.images import UNREADABLE, check_whole, opened

ORIENTATION = 0x0112  # the EXIF tag; 5 and above: lying on its side, as detectron2 turns it when it reads the image
Box = tuple[float, float, float, float]
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocObject:
    """One object. box: xmin, ymin, xmax, ymax in pixels exactly as in the file: 1-based, inclusive."""

    label: int
    box: Box
    difficult: bool


@dataclass(frozen=True)
class VocAnnotation:
    """An image's width and height in pixels, and its objects in the file's order."""

    width: int
    height: int
    objects: tuple[VocObject, ...]


def read_annotation(path: Path, classes: Sequence[str]) -> VocAnnotation:
    """One annotation file. classes: the names in label order.

    A missing `difficult` means no; coordinates may have decimals (some of VOC 2012's do); a part's own box (a head, a
    hand) is not an object's. Raises DataError naming the file and all its problems.
    """
    try:
        root = ET.parse(path).getroot()
    except OSError as error:
        raise DataError(f"{path}: the annotation cannot be read ({error.strerror}); restore it.") from error
    except (ET.ParseError, LookupError, ValueError) as error:  # the last two: an encoding that expat does not know
        raise DataError(f"{path}: expected a Pascal VOC annotation, found no XML ({error}); restore it.") from error
    problems: list[str] = []
    width, height = (_side(root, name, problems) for name in ("width", "height"))
    elements = root.findall("object")
    _refuse_unknown(elements, classes, problems)
    objects: list[VocObject] = []
    for number, element in enumerate(elements, start=1):
        found: list[str] = []
        box = _box(element, width, height, found)
        difficult = _difficult(element, found)
        problems += [f"object {number}: {problem}" for problem in found]
        if box is not None and _name(element) in classes:
            objects.append(VocObject(classes.index(_name(element)), box, difficult))
    if problems or width is None or height is None:
        raise DataError(several(f"{path} is no usable Pascal VOC annotation; correct or restore it:", problems))
    return VocAnnotation(width, height, tuple(objects))


def check_picture(path: Path, *, width: int, height: int) -> None:
    """Raise DataError unless the image at `path` is whole, and has the size in pixels that its annotation says.

    Pixels are read only of a PNG, and of a file that may be cut off (zoo.images).
    """
    with opened(path) as image:
        check_whole(path)  # first: PIL looks for a PNG's EXIF behind its pixels
        try:
            turned = image.getexif().get(ORIENTATION, 1) >= 5
        except UNREADABLE as error:
            raise DataError(f"{path}: the image cannot be read ({error}); replace the file.") from error
        found = image.size[::-1] if turned else image.size
    if found != (width, height):
        raise DataError(
            f"{path}: expected {width} x {height} pixels as its annotation says, found "
            f"{found[0]} x {found[1]}; restore the one that is wrong."
        )


def _side(root: ET.Element, name: str, problems: list[str]) -> int | None:
    text = root.findtext(f"size/{name}")
    side = _number(text)
    if side is None or side < 1 or side != int(side):
        problems.append(f"size/{name}: expected a number of pixels, found {_found(text)}")
        return None
    return int(side)


def _refuse_unknown(elements: Sequence[ET.Element], classes: Sequence[str], problems: list[str]) -> None:
    unknown = sorted({_name(element) for element in elements} - set(classes))
    if unknown:
        problems.append(f"unknown class {', '.join(map(repr, unknown))}: expected one of {', '.join(classes)}")


def _name(element: ET.Element) -> str:
    return (element.findtext("name") or "").strip()


def _box(element: ET.Element, width: int | None, height: int | None, problems: list[str]) -> Box | None:
    texts = [element.findtext(f"bndbox/{corner}") for corner in CORNERS]
    numbers = [number for number in map(_number, texts) if number is not None]
    if len(numbers) != len(CORNERS):
        found = [f"{corner} {_found(text)}" for corner, text in zip(CORNERS, texts, strict=True)]
        problems.append(f"expected a bndbox of four numbers, found {', '.join(found)}")
        return None
    xmin, ymin, xmax, ymax = numbers
    for axis, low, high, side in (("x", xmin, xmax, width), ("y", ymin, ymax, height)):
        if high <= low:
            problems.append(f"expected {axis}min < {axis}max, found {low:g} and {high:g}")
        elif side is not None and (low < 0 or high > side + 1):
            problems.append(f"expected {axis} within 1…{side}, found {low:g}…{high:g}")
    return xmin, ymin, xmax, ymax


def _difficult(element: ET.Element, problems: list[str]) -> bool:
    text = element.findtext("difficult", default="0").strip()
    if text not in ("0", "1"):
        problems.append(f"difficult: expected 0 or 1, found {_found(text)}")
    return text == "1"


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _found(text: str | None) -> str:
    return "none" if text is None else f"'{text}'"
