"""What did the detector or segmentor see? Predictions beside the truth, as one picture.

Drawn from a record alone: its detections, or the first label maps, and the images it names. Numbers say how good a
model is; a look says whether something is wrong with it.
"""

import colorsys
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from zoo.datasets import Manifest, dataset_config, decode, manifest
from zoo.errors import DataError, RecordError
from zoo.files import write_atomic
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
    if "sample/detection_box" in arrays:
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
    mine = np.flatnonzero(arrays["sample/detection_image"] == index)
    scores = arrays["sample/detection_score"]
    for row in mine[np.argsort(-scores[mine], kind="stable")][:BEST][::-1]:
        label = int(arrays["sample/detection_label"][row])
        box = [scale * (float(value) - 1) for value in arrays["sample/detection_box"][row]]  # VOC's corners are 1-based
        _box(found, box, colour(label), f"{classes[label]} {scores[row]:.2f}", width=2)
    return truth, found


def _box(image: Image.Image, box: list[float], line: Colour, text: str, *, width: int) -> None:
    drawing = ImageDraw.Draw(image)
    x0, y0, x1, y1 = box
    drawing.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=line, width=width)
    drawing.text((x0 + 2, y0 + 1), text, fill=line)


def _maps(images: Manifest, index: int, predicted: np.ndarray, classes: int) -> tuple[Image.Image, Image.Image]:
    """The image under its label map, and under the predicted one."""
    with Image.open(images.annotation(index)) as stored:
        labels = np.asarray(stored)
    picture = np.asarray(decode(images.path(index)), np.float32)
    palette = np.array([(0, 0, 0), *(colour(label) for label in range(1, classes))], np.float32)

    def under(label_map: np.ndarray) -> Image.Image:
        known = label_map < classes
        paint = np.where(known[..., None], palette[np.minimum(label_map, classes - 1)], 255)
        share = np.where(known & (label_map == 0), 0.3, 0.6)[..., None]
        return _scaled(Image.fromarray((picture * (1 - share) + paint * share).astype(np.uint8)))

    return under(labels), under(predicted)


def colour(label: int) -> Colour:
    """A class's colour: hues a golden angle apart, so that neighbours differ."""
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
