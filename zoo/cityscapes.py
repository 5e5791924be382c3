"""What do Cityscapes' label numbers mean, and which file labels which image?

    leftImg8bit/<split>/<city>/<name>_leftImg8bit.png
    gtFine/<split>/<city>/<name>_gtFine_labelIds.png        the release's numbers, 0 to 33
                         …_gtFine_labelTrainIds.png         the benchmark's, 0 to 18; 255 counts for nothing

The second kind is what the reference code trains on, and is not in the release: cityscapesScripts draws it from the
polygons. It is read where every image of a split has it; else the first kind is, through `TRAIN_IDS`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

VOID: Final = 255
IMAGE_ENDING: Final = "_leftImg8bit.png"
ENDINGS: Final = {  # of label maps by what a record calls them, the preferred kind first
    "labelTrainIds": "_gtFine_labelTrainIds.png",
    "labelIds": "_gtFine_labelIds.png",
}


class Label(NamedTuple):
    """A row of the dataset's table."""

    name: str
    id: int
    train_id: int
    colour: tuple[int, int, int]


LABELS: Final = tuple(  # mcordts/cityscapesScripts, cityscapesscripts/helpers/labels.py, without its last row: below
    Label(*row)
    for row in (
        ("unlabeled", 0, VOID, (0, 0, 0)),
        ("ego vehicle", 1, VOID, (0, 0, 0)),
        ("rectification border", 2, VOID, (0, 0, 0)),
        ("out of roi", 3, VOID, (0, 0, 0)),
        ("static", 4, VOID, (0, 0, 0)),
        ("dynamic", 5, VOID, (111, 74, 0)),
        ("ground", 6, VOID, (81, 0, 81)),
        ("road", 7, 0, (128, 64, 128)),
        ("sidewalk", 8, 1, (244, 35, 232)),
        ("parking", 9, VOID, (250, 170, 160)),
        ("rail track", 10, VOID, (230, 150, 140)),
        ("building", 11, 2, (70, 70, 70)),
        ("wall", 12, 3, (102, 102, 156)),
        ("fence", 13, 4, (190, 153, 153)),
        ("guard rail", 14, VOID, (180, 165, 180)),
        ("bridge", 15, VOID, (150, 100, 100)),
        ("tunnel", 16, VOID, (150, 120, 90)),
        ("pole", 17, 5, (153, 153, 153)),
        ("polegroup", 18, VOID, (153, 153, 153)),
        ("traffic light", 19, 6, (250, 170, 30)),
        ("traffic sign", 20, 7, (220, 220, 0)),
        ("vegetation", 21, 8, (107, 142, 35)),
        ("terrain", 22, 9, (152, 251, 152)),
        ("sky", 23, 10, (70, 130, 180)),
        ("person", 24, 11, (220, 20, 60)),
        ("rider", 25, 12, (255, 0, 0)),
        ("car", 26, 13, (0, 0, 142)),
        ("truck", 27, 14, (0, 0, 70)),
        ("bus", 28, 15, (0, 60, 100)),
        ("caravan", 29, VOID, (0, 0, 90)),
        ("trailer", 30, VOID, (0, 0, 110)),
        ("train", 31, 16, (0, 80, 100)),
        ("motorcycle", 32, 17, (0, 0, 230)),
        ("bicycle", 33, 18, (119, 11, 32)),
    )
)
# The table's last row, "license plate" with id and trainId -1, is 255 in a byte; cityscapesScripts does not draw it.
TRAIN_IDS: Final = {label.id: label.train_id for label in LABELS} | {VOID: VOID}
COLOURS: Final = tuple(  # by trainId
    label.colour for label in sorted(LABELS, key=lambda label: label.train_id) if label.train_id != VOID
)


def kind_of(path: str | Path) -> str | None:
    """What a record calls this kind of label map: labelTrainIds or labelIds; None where the name is neither's."""
    return next((kind for kind, ending in ENDINGS.items() if str(path).endswith(ending)), None)


@dataclass(kw_only=True)
class Listing:
    """A split's images, each with its label map, as paths relative to the root; what is wrong; folders looked at."""

    pairs: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def folders(split: str) -> tuple[str, str]:
    """Where a split's images and label maps are."""
    return f"leftImg8bit/{split}", f"gtFine/{split}"


def list_split(root: Path, split: str) -> Listing:
    """Every image of a split by city and name. An image without a label map, and the reverse, are problems."""
    found = Listing()
    pictures, maps = folders(split)
    images = _named(root, pictures, [IMAGE_ENDING], found)
    labels = _named(root, maps, list(ENDINGS.values()), found)
    kinds = {kind: [f"{maps}/{stem}{ending}" for stem in images] for kind, ending in ENDINGS.items()}
    present = {f"{maps}/{stem}{ending}" for stem, endings in labels.items() for ending in endings}
    chosen = next((kind for kind, paths in kinds.items() if present.issuperset(paths)), None)
    for stem in images:
        if stem not in labels:
            wanted = " or ".join(f"…{ending}" for ending in ENDINGS.values())
            found.problems.append(f"{pictures}/{stem}{IMAGE_ENDING}: no label map: expected {maps}/{stem}, {wanted}")
    if chosen is None and not found.problems:
        missing = {kind: [path for path in paths if path not in present] for kind, paths in kinds.items()}
        lacking = ", ".join(f"{len(paths):,} lack {kind} (first: {paths[0]})" for kind, paths in missing.items())
        found.problems.append(f"expected one kind of label map for all images: of {len(images):,} images {lacking}")
    found.problems += [
        f"{maps}/{stem}{endings[0]}: no image {pictures}/{stem}{IMAGE_ENDING}"
        for stem, endings in labels.items()
        if stem not in images
    ]
    if not images:
        found.problems.append(f"{pictures}: expected images <city>/<name>{IMAGE_ENDING}, found none")
    if chosen is not None:
        found.pairs = [
            (f"{pictures}/{stem}{IMAGE_ENDING}", path) for stem, path in zip(images, kinds[chosen], strict=True)
        ]
    return found


def _named(root: Path, folder: str, endings: Sequence[str], found: Listing) -> dict[str, list[str]]:
    """ "<city>/<name>" → the endings that it has in `folder`, in order."""
    named: dict[str, list[str]] = {}
    found.folders.append(folder)
    with os.scandir(root / folder) as entries:
        cities = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    for city in cities:
        found.folders.append(f"{folder}/{city}")
        for name in sorted(os.listdir(root / folder / city)):
            ending = next((one for one in endings if name.endswith(one)), None)
            if ending is not None and not name.startswith("."):
                named.setdefault(f"{city}/{name.removesuffix(ending)}", []).append(ending)
    return named
