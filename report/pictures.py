"""What did the detector or segmentor see? Predictions beside the truth, as one picture.

Drawn from a record alone: its detections, with their masks if it has some, or the first label maps, and the images it
names. Numbers say how good a model is; a look says whether something is wrong with it.
"""

import colorsys
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from zoo.cityscapes import COLOURS, kind_of
from zoo.coco import CocoImage, Segmentation, image_at, read_instances
from zoo.datasets import Manifest, dataset_config, decode, manifest
from zoo.errors import DataError, RecordError
from zoo.files import write_atomic
from zoo.masks import read_mask
from zoo.record import ResultRecord, read_arrays, read_record
from zoo.voc import read_annotation

PICTURES = 8
WIDTH = 240  # of each picture
BEST = 5  # detections drawn on an image
COLUMNS = 2  # of images, each with its truth and its prediction

Colour = tuple[int, int, int]


def draw(path: Path, out: Path) -> None:
    """Write the picture of the record at `path`.

    Raises RecordError when its benchmark has nothing to draw, DataError when its images are not the ones at hand.
    """
    stream = io.BytesIO()
    _sheet(_pairs(path, PICTURES), columns=COLUMNS).save(stream, "PNG")
    write_atomic(out, stream.getvalue())


def sample(path: Path, *, count: int = 3) -> bytes:
    """A small JPEG of `count` images, one below the other. Raises as `draw`."""
    stream = io.BytesIO()
    _sheet(_pairs(path, count), columns=1).save(stream, "JPEG", quality=75, optimize=True)
    return stream.getvalue()


def _pairs(path: Path, count: int) -> list[tuple[Image.Image, Image.Image]]:
    """(truth, prediction) of `count` images of the record at `path`."""
    record = read_record(path)
    arrays = read_arrays(path.parent, record)
    images = _images(record)
    classes = dataset_config(images.dataset).classes or ()
    if "sample/detection_mask_offsets" in arrays:
        truth = read_instances(images.annotation(0), classes)
        chosen = _spread(len(images), count)
        pairs = [_instances(images, index, image_at(truth, images.paths[index]), arrays, classes) for index in chosen]
    elif "sample/detection_box" in arrays:
        pairs = [_boxes(images, index, arrays, classes) for index in _spread(len(images), count)]
    else:
        chosen = sorted(int(name.removeprefix("sample/map_")) for name in arrays if name.startswith("sample/map_"))
        pairs = [_maps(images, index, arrays[f"sample/map_{index}"], len(classes)) for index in chosen[:count]]
    if not pairs:
        raise RecordError(f"{path}: {record.benchmark_config} has no boxes and no label maps to draw.")
    return pairs


def _images(record: ResultRecord) -> Manifest:
    tested = record.datasets["test"]
    found = manifest(tested.dataset, tested.split)
    if found.sha256 != tested.sha256:
        raise DataError(
            f"dataset '{tested.dataset}', {tested.split}: expected {tested.sha256[:8]}, on which the record was "
            f"measured, found {found.sha256[:8]}."
        )
    return found


def _spread(images: int, count: int) -> list[int]:
    return sorted({round(place) for place in np.linspace(0, images - 1, min(count, images))})


def _boxes(
    images: Manifest, index: int, arrays: dict[str, np.ndarray], classes: tuple[str, ...]
) -> tuple[Image.Image, Image.Image]:
    """The image with its objects (difficult ones thin), and with its best-scored detections."""
    image = decode(images.path(index))
    truth, found = _scaled(image), _scaled(image)
    scale = truth.width / image.width
    for each in read_annotation(images.annotation(index), classes).objects:
        _box(
            truth,
            [scale * (value - 1) for value in each.box],
            colour(each.label),
            classes[each.label],
            width=1 if each.difficult else 2,
        )
    scores = arrays["sample/detection_score"]
    for row in _best(arrays, index):
        label = int(arrays["sample/detection_label"][row])
        box = [scale * (float(value) - 1) for value in arrays["sample/detection_box"][row]]  # VOC's corners are 1-based
        _box(found, box, colour(label), f"{classes[label]} {scores[row]:.2f}", width=2)
    return truth, found


def _best(arrays: dict[str, np.ndarray], index: int) -> list[int]:
    """The rows of an image's best-scored detections, the best last, so that it is drawn on top."""
    mine = np.flatnonzero(arrays["sample/detection_image"] == index)
    order = np.argsort(-arrays["sample/detection_score"][mine], kind="stable")
    return mine[order][:BEST][::-1].tolist()


def _instances(
    images: Manifest, index: int, said: CocoImage, arrays: dict[str, np.ndarray], classes: tuple[str, ...]
) -> tuple[Image.Image, Image.Image]:
    """The image with its objects' outlines filled and boxed (crowds thin), and with its best-scored detections."""
    image = decode(images.path(index))
    things: list[tuple[int, list[float], Segmentation, str, int]] = []
    for each in said.objects:
        x, y, width, height = each.box
        box = [x, y, x + width, y + height]
        things.append((each.label, box, each.segmentation, classes[each.label], 1 if each.crowd else 2))
    counts, offsets = arrays["sample/detection_mask_counts"], arrays["sample/detection_mask_offsets"]
    found: list[tuple[int, list[float], Segmentation, str, int]] = []
    for row in _best(arrays, index):
        label, score = int(arrays["sample/detection_label"][row]), arrays["sample/detection_score"][row]
        outline = {"size": [said.height, said.width], "counts": counts[offsets[row] : offsets[row + 1]].tobytes()}
        box = arrays["sample/detection_box"][row].tolist()
        found.append((label, box, outline, f"{classes[label]} {score:.2f}", 2))
    return _filled(image, things), _filled(image, found)


def _filled(image: Image.Image, things: list[tuple[int, list[float], Segmentation, str, int]]) -> Image.Image:
    """`image`, scaled, with (label, corners, outline, text, line width) laid over it, one after the other."""
    painted = np.asarray(image, np.float32).copy()
    for label, _, outline, _, _ in things:
        inside = _pixels(outline, image.height, image.width)
        painted[inside] = (painted[inside] + colour(label)) / 2
    sheet = _scaled(Image.fromarray(painted.astype(np.uint8)))
    scale = sheet.width / image.width
    for label, box, _, text, width in things:
        _box(sheet, [scale * value for value in box], colour(label), text, width=width)
    return sheet


def _pixels(outline: Segmentation, height: int, width: int) -> np.ndarray:
    """(height, width) bool: what lies inside polygons or run lengths."""
    from pycocotools import mask

    compress: Any = mask.frPyObjects  # its types know one of the three things it takes
    packed: Any = outline
    if isinstance(outline, list):
        packed = mask.merge(compress(outline, height, width))
    elif isinstance(outline["counts"], list):
        packed = compress(outline, height, width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its compiled decoder meets a numpy newer than itself
        return np.asarray(mask.decode(packed)).astype(bool)


def _box(image: Image.Image, box: list[float], line: Colour, text: str, *, width: int) -> None:
    drawing = ImageDraw.Draw(image)
    x0, y0, x1, y1 = box
    drawing.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=line, width=width)
    drawing.text((x0 + 2, y0 + 1), text, fill=line)


def _maps(images: Manifest, index: int, predicted: np.ndarray, classes: int) -> tuple[Image.Image, Image.Image]:
    """The image under its label map, and under the predicted one."""
    labels = read_mask(images.annotation(index), classes)
    picture = np.asarray(decode(images.path(index)), np.float32)
    palette = _palette(images.annotation(index), classes)
    background = not palette[0].any()  # else class 0 is a thing like others: Cityscapes' road

    def under(label_map: np.ndarray) -> Image.Image:
        known = label_map < classes
        paint = np.where(known[..., None], palette[np.minimum(label_map, classes - 1)], 255)
        share = np.where(known & (label_map == 0) & background, 0.3, 0.6)[..., None]
        return _scaled(Image.fromarray((picture * (1 - share) + paint * share).astype(np.uint8)))

    return under(labels), under(predicted)


def _palette(path: Path, classes: int) -> np.ndarray:
    """(classes, 3): the dataset's own colours, Cityscapes' or those in the label map's file; else `colour`'s."""
    if kind_of(path) is not None:
        return np.array(COLOURS, np.float32)
    with Image.open(path) as mask:
        stored = np.array(mask.getpalette() or (), np.float32).reshape(-1, 3)[:classes]
    if len(stored) == classes and len(np.unique(stored, axis=0)) == classes:
        return stored
    return np.array([(0, 0, 0), *(colour(label) for label in range(1, classes))], np.float32)


def colour(label: int) -> Colour:
    """The colour of a class without one of its own: hues a golden angle apart, so that neighbours differ."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618 % 1, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _scaled(image: Image.Image) -> Image.Image:
    return image.resize((WIDTH, round(image.height * WIDTH / image.width)))


def _sheet(pairs: list[tuple[Image.Image, Image.Image]], *, columns: int) -> Image.Image:
    """Truth left, prediction right, `columns` such pairs side by side."""
    rows = [pairs[start : start + columns] for start in range(0, len(pairs), columns)]
    heights = [max(picture.height for pair in row for picture in pair) + 6 for row in rows]
    sheet = Image.new("RGB", (columns * (2 * WIDTH + 14), sum(heights)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, (truth, prediction) in enumerate(row):
            left = column * (2 * WIDTH + 14)
            sheet.paste(truth, (left, top))
            sheet.paste(prediction, (left + WIDTH + 2, top))
        top += height
    return sheet
