"""How does the small world look as COCO 2017?

    coco/annotations/instances_train2017.json, instances_val2017.json
    coco/train2017/000000000042.jpg, coco/val2017/…

As in COCO, the numbers of images and categories have gaps, polygons have corners between the pixels, and some images
have a crowd: one annotation (iscrowd 1, run lengths instead of polygons) for all digits of one class.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mini.material import CLASS_NAMES, Material, choose_scans, deal_scans, generator
from mini.outline import outlines
from mini.scene import Scene, SceneStyle, bounds, draw_scene

STYLE: Final = SceneStyle(width=128, height=96, digit_size=(0.3, 0.6), contrast=0.25, saturation=0.5)
CROWDED: Final = replace(STYLE, digit_size=(0.25, 0.4))
JPEG_QUALITY: Final = 90
PORTRAIT_SHARE: Final = 0.25
MOST_DIGITS: Final = 4
CROWD_EVERY, CROWD_PLACE, CROWD_DIGITS = 6, 3, 4
CATEGORY_IDS: Final = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89)  # by class; with gaps, as COCO's 80 categories end at 90
POOLS: Final = {"train2017": "train", "val2017": "val"}  # the scans of deal_scans that a split shows
NUMBER_STEP: Final = 97  # one image in so many numbers; train and val take turns, so they share none
FINER: Final = 4  # outlines are traced on a mask of so many times as many rows and columns
TOLERANCE: Final = 0.5  # pixels by which a polygon may miss the outline


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One image to draw."""

    split: str
    index: int
    number: int  # COCO's image id
    scans: tuple[int, ...]
    crowd: int | None  # the class whose digits are one crowd


def write(
    folder: Path,
    material: Material,
    *,
    seed: int,
    counts: Mapping[str, int],
    each: Callable[[Callable[[Sequence[Entry]], None], Sequence[Entry]], None],
) -> None:
    """Write the dataset into the new folder `folder`; `each(task, entries)` runs a task over all entries in pieces."""
    (folder / "annotations").mkdir(parents=True)
    for split, count in counts.items():
        (folder / split).mkdir()
        entries = plan(material, seed=seed, split=split, count=count)
        each(partial(_draw, folder, material, seed), entries)
        # All annotations are in one file, so they are made here: drawing the few scenes again is cheap.
        content = _instances([(entry, compose(material, entry, seed=seed)) for entry in entries])
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content) + "\n")


def plan(material: Material, *, seed: int, split: str, count: int) -> list[Entry]:
    """What each image of a split will show."""
    scans = deal_scans(material.labels, seed=seed)[POOLS[split]]
    entries: list[Entry] = []
    for index in range(count):
        chosen = choose_scans(scans, seed=seed, dataset="coco", split=split, index=index, most=MOST_DIGITS)
        rng = generator(seed, "coco", f"{split} plan", index)
        block = len(POOLS) * index + list(POOLS).index(split)
        number = NUMBER_STEP * block + int(rng.integers(1, NUMBER_STEP))
        crowd = None
        if index % CROWD_EVERY == CROWD_PLACE:
            crowd = int(material.labels[chosen[0]])
            chosen = (*map(int, rng.choice(scans[crowd], CROWD_DIGITS, replace=False)), *chosen[1:])
        entries.append(Entry(split=split, index=index, number=number, scans=chosen, crowd=crowd))
    return entries


def compose(material: Material, entry: Entry, *, seed: int) -> Scene:
    """What an entry's image shows."""
    rng = generator(seed, "coco", entry.split, entry.index)
    style = STYLE if entry.crowd is None else CROWDED
    if rng.random() < PORTRAIT_SHARE:
        style = replace(style, width=style.height, height=style.width)
    return draw_scene(material, style, entry.scans, rng)


def polygons(mask: NDArray[np.bool_]) -> list[list[float]]:
    """COCO's polygons, [x, y, x, y …], from a pixel's left and upper edge on: pixel 0 reaches from 0 to 1."""
    import cv2

    found: list[list[float]] = []
    # On the mask itself, outlines run through the middle of pixels, half a pixel inside what they enclose.
    for outline in outlines(np.kron(mask, np.ones((FINER, FINER), dtype=np.bool_))):
        simple = np.asarray(cv2.approxPolyDP(outline, FINER * TOLERANCE, closed=True))[:, 0]
        corners = simple if len(simple) >= 3 else outline
        found.append([float(value) for value in ((corners + 0.5) / FINER).ravel()])
    return found


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, list[int]]:
    """COCO's uncompressed RLE: down the columns, the lengths of the runs of 0, 1, 0, 1 …; the first may be empty."""
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    lengths = np.diff(changes, prepend=0, append=len(pixels)).tolist()
    return {"counts": [0, *lengths] if pixels[0] else lengths, "size": [*mask.shape]}


def _draw(folder: Path, material: Material, seed: int, entries: Sequence[Entry]) -> None:
    for entry in entries:
        image = Image.fromarray(compose(material, entry, seed=seed).image)
        image.save(folder / entry.split / _file_name(entry), "JPEG", quality=JPEG_QUALITY)


def _file_name(entry: Entry) -> str:
    return f"{entry.number:012d}.jpg"


def _instances(drawn: Sequence[tuple[Entry, Scene]]) -> dict[str, Any]:
    return {
        "info": {
            "description": "TransferZoo small world, in the layout of COCO 2017",
            "url": "",
            "version": "1.0",
            "year": 2017,
            "contributor": "",
            "date_created": "2017/09/01",
        },
        "licenses": [{"url": "https://creativecommons.org/licenses/by/4.0/", "id": 1, "name": "see README.txt"}],
        "images": [_image(entry, scene) for entry, scene in drawn],
        "annotations": [annotation for entry, scene in drawn for annotation in _annotations(entry, scene)],
        "categories": [
            {"supercategory": "digit", "id": number, "name": name}
            for number, name in zip(CATEGORY_IDS, CLASS_NAMES, strict=True)
        ],
    }


def _image(entry: Entry, scene: Scene) -> dict[str, Any]:
    height, width, _ = scene.image.shape
    return {
        "license": 1,
        "file_name": _file_name(entry),
        "coco_url": "",
        "height": height,
        "width": width,
        "date_captured": "2017-09-01 00:00:00",
        "flickr_url": "",
        "id": entry.number,
    }


def _annotations(entry: Entry, scene: Scene) -> list[dict[str, Any]]:
    """One an object, then the crowd's. Which objects are in the crowd is told by their class."""
    masks = [(thing.label, thing.mask, False) for thing in scene.objects if thing.label != entry.crowd]
    crowd = [thing.mask for thing in scene.objects if thing.label == entry.crowd]
    if entry.crowd is not None and crowd:
        masks.append((entry.crowd, np.any(crowd, axis=0), True))
    return [
        {
            "segmentation": run_lengths(mask) if is_crowd else polygons(mask),
            "area": float(mask.sum()),
            "iscrowd": int(is_crowd),
            "image_id": entry.number,
            "bbox": _box(mask),
            "category_id": CATEGORY_IDS[label],
            "id": 10 * entry.number + place,
        }
        for place, (label, mask, is_crowd) in enumerate(masks)
    ]


def _box(mask: NDArray[np.bool_]) -> list[float]:
    x0, y0, x1, y1 = bounds(mask)
    return [float(value) for value in (x0, y0, x1 - x0, y1 - y0)]
