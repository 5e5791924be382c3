"""How does the small world look as Cityscapes?

    cityscapes/leftImg8bit/train/<city>/<city>_000000_000001_leftImg8bit.png
    cityscapes/gtFine/train/<city>/<city>_000000_000001_gtFine_labelIds.png        the dataset's ids
                                                       …_gtFine_labelTrainIds.png   the benchmark's 19 classes, 255 void
                                                       …_gtFine_instanceIds.png     16 bits: 1000 · id + n, or the id
                                                       …_gtFine_color.png           RGBA
                                                       …_gtFine_polygons.json       in painting order

Every digit is one of ten classes, above the horizon is sky, below it road, and the two rows between are unlabeled. As
in the release, the ground truth of test is there but empty. The polygons tell labels exactly, but no instances: a digit
with a hole or in pieces is several polygons. Ids, trainIds, colours and which classes have instances are from the
table of Cityscapes (cityscapesScripts, helpers/labels.py).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mini.material import Material, choose_scans, deal_scans, generator
from mini.outline import outlines
from mini.scene import Scene, SceneStyle, draw_scene

STYLE: Final = SceneStyle(width=128, height=64, digit_size=(0.3, 0.6), contrast=0.2, saturation=0.3)
MOST_DIGITS: Final = 5
HORIZON: Final = (0.35, 0.6)  # share of the height above it
SKY_TINT, ROAD_TINT = (0, 12, 36), (-24, -24, -24)  # added to the picture
UNCLEAR_ROWS: Final = 2
CITIES: Final = {"train": ("ziffernburg", "zahlenheim"), "val": ("musterstadt",), "test": ("beispielhausen",)}
POOLS: Final = {"train": "train", "val": "val", "test": "val"}  # the scans of deal_scans that a split shows


@dataclass(frozen=True, kw_only=True)
class Label:
    """A row of the Cityscapes table."""

    name: str
    id: int
    train_id: int
    instances: bool
    colour: tuple[int, int, int]


UNLABELED: Final = Label(name="unlabeled", id=0, train_id=255, instances=False, colour=(0, 0, 0))
ROAD: Final = Label(name="road", id=7, train_id=0, instances=False, colour=(128, 64, 128))
SKY: Final = Label(name="sky", id=23, train_id=10, instances=False, colour=(70, 130, 180))
DIGITS: Final = (  # by digit
    Label(name="traffic light", id=19, train_id=6, instances=False, colour=(250, 170, 30)),
    Label(name="traffic sign", id=20, train_id=7, instances=False, colour=(220, 220, 0)),
    Label(name="person", id=24, train_id=11, instances=True, colour=(220, 20, 60)),
    Label(name="rider", id=25, train_id=12, instances=True, colour=(255, 0, 0)),
    Label(name="car", id=26, train_id=13, instances=True, colour=(0, 0, 142)),
    Label(name="truck", id=27, train_id=14, instances=True, colour=(0, 0, 70)),
    Label(name="bus", id=28, train_id=15, instances=True, colour=(0, 60, 100)),
    Label(name="train", id=31, train_id=16, instances=True, colour=(0, 80, 100)),
    Label(name="motorcycle", id=32, train_id=17, instances=True, colour=(0, 0, 230)),
    Label(name="bicycle", id=33, train_id=18, instances=True, colour=(119, 11, 32)),
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One image to draw."""

    split: str
    index: int
    city: str
    scans: tuple[int, ...]

    @property
    def stem(self) -> str:
        """Its files' path below leftImg8bit/ or gtFine/, up to what tells them apart."""
        return f"{self.split}/{self.city}/{self.city}_000000_{self.index + 1:06d}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Street:
    """A scene with a horizon."""

    scene: Scene  # with the picture tinted
    regions: tuple[tuple[Label, NDArray[np.bool_]], ...]  # (H, W) each, in painting order; none overlaps


def write(
    folder: Path,
    material: Material,
    *,
    seed: int,
    counts: Mapping[str, int],
    each: Callable[[Callable[[Sequence[Entry]], None], Sequence[Entry]], None],
) -> None:
    """Write the dataset into the new folder `folder`; `each(task, entries)` runs a task over all entries in pieces."""
    for split, count in counts.items():
        for city in CITIES[split]:
            for kind in ("leftImg8bit", "gtFine"):
                (folder / kind / split / city).mkdir(parents=True)
        each(partial(_draw, folder, material, seed), plan(material, seed=seed, split=split, count=count))


def plan(material: Material, *, seed: int, split: str, count: int) -> list[Entry]:
    """What each image of a split will show; its cities take turns."""
    scans = deal_scans(material.labels, seed=seed)[POOLS[split]]
    return [
        Entry(
            split=split,
            index=index,
            city=CITIES[split][index % len(CITIES[split])],
            scans=choose_scans(scans, seed=seed, dataset="cityscapes", split=split, index=index, most=MOST_DIGITS),
        )
        for index in range(count)
    ]


def compose(material: Material, entry: Entry, *, seed: int) -> Street:
    """What an entry's image shows, and what of it is what."""
    rng = generator(seed, "cityscapes", entry.split, entry.index)
    scene = draw_scene(material, STYLE, entry.scans, rng)
    horizon = round(rng.uniform(*HORIZON) * STYLE.height)
    rows = np.arange(STYLE.height)[:, None, None]
    # Over the digits too: they keep their distance from the ground.
    image = np.clip(scene.image + np.where(rows < horizon, SKY_TINT, ROAD_TINT), 0, 255).astype(np.uint8)
    free = ~np.any([thing.mask for thing in scene.objects], axis=0)
    regions = (
        (SKY, free & (rows[:, :, 0] < horizon - UNCLEAR_ROWS // 2)),
        (ROAD, free & (rows[:, :, 0] >= horizon + UNCLEAR_ROWS // 2)),
        *((DIGITS[thing.label], thing.mask) for thing in scene.objects),
    )
    return Street(scene=Scene(image=image, objects=scene.objects), regions=regions)


def ground_truth(street: Street) -> dict[str, NDArray[Any]]:
    """The four label images by the names of their files: (H, W), and (H, W, 4) for the colours."""
    shape = street.scene.image.shape[:2]
    images = {
        "labelIds": np.full(shape, UNLABELED.id, dtype=np.uint8),
        "labelTrainIds": np.full(shape, UNLABELED.train_id, dtype=np.uint8),
        "instanceIds": np.full(shape, UNLABELED.id, dtype=np.uint16),
        "color": np.full((*shape, 4), (*UNLABELED.colour, 255), dtype=np.uint8),
    }
    seen: dict[str, int] = {}
    for label, region in street.regions:
        number = seen.get(label.name, 0)
        seen[label.name] = number + 1
        images["labelIds"][region] = label.id
        images["labelTrainIds"][region] = label.train_id
        images["instanceIds"][region] = 1000 * label.id + number if label.instances else label.id
        images["color"][region] = (*label.colour, 255)
    return images


def _draw(folder: Path, material: Material, seed: int, entries: Sequence[Entry]) -> None:
    for entry in entries:
        street = compose(material, entry, seed=seed)
        Image.fromarray(street.scene.image).save(folder / "leftImg8bit" / f"{entry.stem}_leftImg8bit.png", "PNG")
        if entry.split == "test":
            street = Street(scene=street.scene, regions=())
        for kind, labels in ground_truth(street).items():
            Image.fromarray(labels).save(folder / "gtFine" / f"{entry.stem}_gtFine_{kind}.png", "PNG")
        polygons = json.dumps(_polygons(street)) + "\n"
        (folder / "gtFine" / f"{entry.stem}_gtFine_polygons.json").write_text(polygons)


def _polygons(street: Street) -> dict[str, Any]:
    height, width, _ = street.scene.image.shape
    return {
        "imgHeight": height,
        "imgWidth": width,
        "objects": [
            {"label": label.name, "polygon": _closed(outline)}
            for label, region in street.regions
            for outline in outlines(region)
        ],
    }


def _closed(outline: NDArray[np.int32]) -> list[list[int]]:
    """At least three corners, as readers expect: a dot or a line says its last one again."""
    corners = [[int(x), int(y)] for x, y in outline]
    return corners + [corners[-1]] * (3 - len(corners))
