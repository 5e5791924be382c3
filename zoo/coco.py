"""COCO's annotation files: the size of each image, and the box, outline and class of each of its objects.

What a file cannot mean is refused: all problems in one message, before anything is trained. Two of train2017's 860,001
boxes (2017-09-02's file) have height 0 and area 0. They are part of the published data, so a box without width or
height is read, counted and said, not refused; `CocoObject.is_degenerate` marks it. In training detectron2 drops it
(boxes of at most 1e-5 pixels, after resizing), and mmdet every object whose box is less than a pixel wide or high or
whose area is 0. In testing COCO's own code keeps it as an object that may be missed.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import DataError
from zoo.layouts import read_json, refuse

log = logging.getLogger(__name__)
Segmentation = list[list[float]] | dict[str, Any]  # polygons [x, y, x, y …], or run lengths {size, counts}
LISTS = ("images", "annotations", "categories")
ROUNDING = 1.0  # pixels by which a box may leave its image
FEWEST = 6  # numbers of a polygon: three corners


@dataclass(frozen=True, slots=True)
class CocoObject:
    """One object. box: x, y, width, height in pixels, from the image's upper left corner, as in the file."""

    label: int  # contiguous from 0, in the order of the file's category ids
    box: tuple[float, float, float, float]
    area: float  # pixels, as in the file: of the outline, not of the box
    crowd: bool  # a group outlined as one, never to be found one by one
    segmentation: Segmentation

    @property
    def is_degenerate(self) -> bool:
        return self.box[2] == 0 or self.box[3] == 0


@dataclass(frozen=True)
class CocoImage:
    """An image's width and height in pixels, and its objects in the file's order."""

    width: int
    height: int
    objects: tuple[CocoObject, ...]


def read_instances(path: Path, classes: Sequence[str]) -> dict[str, CocoImage]:
    """Every image of one annotation file, by its file name. classes: the names in label order.

    The categories, sorted by id, must be the classes in their order; ids may have gaps. Boxes without width or height
    are counted in a warning. Raises DataError naming the file and the first 20 of all its problems.
    """
    content = read_json(path)
    problems: list[str] = []
    lists = [_listed(content, name, problems) for name in LISTS]
    refuse(f"{path} is no usable COCO annotation file; restore it:", problems)
    images, annotations, categories = lists
    labels = _labels(categories, classes, problems)
    sizes = _sizes(images, problems)
    objects: dict[int, list[CocoObject]] = {image: [] for image in sizes}
    seen: set[int] = set()
    for number, annotation in enumerate(annotations, start=1):
        key = annotation.get("id") if isinstance(annotation, dict) else None
        if type(key) is not int:
            problems.append(f"annotation {number} of the list: expected a mapping with an integer id, found {key!r}")
            continue
        if key in seen:
            problems.append(f"annotation id {key}: more than one annotation has it")
        seen.add(key)
        image = annotation.get("image_id")
        if type(image) is not int or image not in sizes:
            problems.append(f"annotation id {key}: image_id {image!r} is not listed in 'images'")
            continue
        found: list[str] = []
        one = _object(annotation, sizes[image], labels, found)
        problems += [f"annotation id {key} (image id {image}): {problem}" for problem in found]
        if one is not None:
            objects[image].append(one)
    refuse(f"{path} is no usable COCO annotation file; correct or restore it:", problems)
    degenerate = sum(each.is_degenerate for mine in objects.values() for each in mine)
    if degenerate:
        log.warning("%s: %s boxes have no width or no height; none is trained on", path, f"{degenerate:,}")
    return {name: CocoImage(width, height, tuple(objects[key])) for key, (name, width, height) in sizes.items()}


def image_at(by_name: Mapping[str, CocoImage], path: str) -> CocoImage:
    """The image whose file name is the longest end of `path`, which begins with the folder of the images.

    Raises DataError when the annotation file has none.
    """
    parts = path.split("/")
    for name in ("/".join(parts[at:]) for at in range(len(parts))):
        if name in by_name:
            return by_name[name]
    raise DataError(f"{path}: the annotation file lists no such image any more; restore it.")


def _listed(content: Any, name: str, problems: list[str]) -> list[Any]:
    found = content.get(name) if isinstance(content, dict) else None
    if not isinstance(found, list):
        problems.append(f"'{name}': expected a list, found {'none' if found is None else type(found).__name__}")
        return []
    if not found and name != "annotations":
        problems.append(f"the list '{name}' is empty")
    return found


def _labels(categories: Sequence[Any], classes: Sequence[str], problems: list[str]) -> dict[int, int]:
    """Category id → label. The file's names must be the dataset's."""
    names: dict[int, str] = {}
    for number, category in enumerate(categories, start=1):
        key, name = (category.get("id"), category.get("name")) if isinstance(category, dict) else (None, None)
        if type(key) is not int or not isinstance(name, str):
            problems.append(f"category {number} of the list: expected an integer id and a name")
        elif key in names:
            problems.append(f"category id {key}: {names[key]} and {name} both have it")
        else:
            names[key] = name
    for label, ((key, name), expected) in enumerate(zip(sorted(names.items()), classes, strict=False)):
        if name != expected:
            problems.append(f"category id {key}: expected '{expected}' as label {label}, found '{name}'")
    if len(names) != len(classes):
        problems.append(f"'categories': expected the dataset's {len(classes)} classes, found {len(names)}")
    return {key: label for label, key in enumerate(sorted(names))}


def _sizes(images: Sequence[Any], problems: list[str]) -> dict[int, tuple[str, int, int]]:
    """Image id → (file name, width, height)."""
    sizes: dict[int, tuple[str, int, int]] = {}
    names: set[str] = set()
    for number, image in enumerate(images, start=1):
        values = image if isinstance(image, dict) else {}
        key, name, width, height = (values.get(field) for field in ("id", "file_name", "width", "height"))
        if type(key) is not int or not isinstance(name, str) or not name:
            problems.append(f"image {number} of the list: expected an integer id and a file_name")
        elif key in sizes:
            problems.append(f"image id {key}: {sizes[key][0]} and {name} both have it")
        elif name in names:
            problems.append(f"image id {key}: {name} is listed twice")
        elif type(width) is not int or type(height) is not int or min(width, height) < 1:
            problems.append(f"image id {key}: expected width and height in pixels, found {width!r} and {height!r}")
        else:
            sizes[key] = (name, width, height)
            names.add(name)
    return sizes


def _object(
    annotation: Mapping[str, Any], image: tuple[str, int, int], labels: Mapping[int, int], problems: list[str]
) -> CocoObject | None:
    category, crowd, area = (annotation.get(field) for field in ("category_id", "iscrowd", "area"))
    segmentation: Any = annotation.get("segmentation")
    if type(category) is not int or category not in labels:
        problems.append(f"category_id {category!r} is not listed in 'categories'")
    if crowd not in (0, 1, None):
        problems.append(f"iscrowd: expected 0 or 1, found {crowd!r}")
    if annotation.get("ignore"):
        problems.append("ignore: expected 0 or none, as in COCO; no engine and no evaluation knows it")
    if area is None or not _is_number(area) or area < 0:
        problems.append(f"area: expected a number of pixels, found {area!r}")
    _, width, height = image
    box = _box(annotation.get("bbox"), width, height, problems)
    if isinstance(segmentation, list):
        _check_polygons(segmentation, problems)
    else:
        _check_run_lengths(segmentation, width, height, problems)
    if problems or box is None:
        return None
    return CocoObject(labels[annotation["category_id"]], box, float(annotation["area"]), bool(crowd), segmentation)


def _box(found: Any, width: int, height: int, problems: list[str]) -> tuple[float, float, float, float] | None:
    if not isinstance(found, list) or len(found) != 4 or not all(map(_is_number, found)):
        problems.append(f"bbox: expected four numbers, found {found!r}")
        return None
    x, y, w, h = found
    for side, length in (("width", w), ("height", h)):
        if length < 0:
            problems.append(f"bbox: expected a {side} of 0 or more, found {length:g}")
    for axis, low, length, end in (("x", x, w, width), ("y", y, h, height)):
        if low < -ROUNDING or low + length > end + ROUNDING:
            problems.append(f"bbox: expected {axis} within the image's 0…{end}, found {low:g}…{low + length:g}")
    return float(x), float(y), float(w), float(h)


def _check_polygons(polygons: list[Any], problems: list[str]) -> None:
    if not polygons:
        problems.append("segmentation: expected polygons or run lengths, found an empty list")
    for number, polygon in enumerate(polygons, start=1):
        if not isinstance(polygon, list) or len(polygon) < FEWEST or len(polygon) % 2:
            found = f"{len(polygon)} numbers" if isinstance(polygon, list) else f"{polygon!r}"
            problems.append(f"polygon {number}: expected an even count of at least {FEWEST} numbers, found {found}")
        elif not set(map(type, polygon)) <= {int, float} or not math.isfinite(sum(polygon)):
            problems.append(f"polygon {number}: expected finite numbers only")


def _check_run_lengths(found: Any, width: int, height: int, problems: list[str]) -> None:
    size, counts = (found.get("size"), found.get("counts")) if isinstance(found, dict) else (None, None)
    if size is None or not isinstance(counts, list | str):
        problems.append(f"segmentation: expected polygons or run lengths {{size, counts}}, found {_kind(found)}")
        return
    if size != [height, width]:
        problems.append(f"run lengths: expected size [{height}, {width}] as the image's, found {size}")
        return
    lengths = _decompressed(counts) if isinstance(counts, str) else counts
    if lengths is None or any(type(length) is not int or length < 0 for length in lengths):
        problems.append("run lengths: expected counts of 0 or more, found others")
    elif sum(lengths) != width * height:
        problems.append(f"run lengths: expected {width * height:,} pixels as the image has, found {sum(lengths):,}")


def _decompressed(text: str) -> list[int] | None:
    """The run lengths in COCO's compressed string; None if it is none.

    Each number is its 5-bit groups, lowest first, one a character (48 added; 32 set where more follow), signed; from
    the fourth number on it is the difference from the number two before.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    return None if shift else lengths


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _kind(value: Any) -> str:
    return "none" if value is None else f"a {type(value).__name__}"
