"""How are the classification datasets of the small world drawn? An image shows one digit; the layouts are theirs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from mini.material import CLASS_NAMES, Material, deal_scans, generator
from mini.scene import SceneStyle, draw_scene

JPEG_QUALITY: Final = 90


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One image to draw."""

    index: int
    label: int  # the digit
    scan: int
    path: str  # relative to the folder that a dataset's images are in


Each = Callable[[Callable[[Sequence[Entry]], None], Sequence[Entry]], None]  # mini.crew's, for these entries


def plan(
    material: Material,
    *,
    seed: int,
    dataset: str,
    split: str,
    count: int,
    path: Callable[[int, int, int], str],
) -> list[Entry]:
    """What each image of a split will show: classes balanced to within one, a class's scans all used equally often.

    path(index, digit, turn) names an image; every ten images are a turn, and turn t shows the t-th of each digit.
    """
    scans = deal_scans(material.labels, seed=seed)[split]
    entries: list[Entry] = []
    for start in range(0, count, len(CLASS_NAMES)):
        turn = start // len(CLASS_NAMES)
        # Every ten consecutive images show all ten classes, shuffled: the numbering must not betray the label.
        order = generator(seed, dataset, f"{split} labels", turn).permutation(len(CLASS_NAMES))
        for index, label in zip(range(start, count), map(int, order), strict=False):
            scan = int(scans[label][turn % len(scans[label])])
            entries.append(Entry(index=index, label=label, scan=scan, path=path(index, label, turn)))
    return entries


def draw(
    folder: Path, material: Material, style: SceneStyle, seed: int, dataset: str, split: str, entries: Sequence[Entry]
) -> None:
    """Draw entries of a split into the folder that their paths start from."""
    for entry in entries:
        scene = draw_scene(material, style, [entry.scan], generator(seed, dataset, split, entry.index))
        Image.fromarray(scene.image).save(folder / entry.path, "JPEG", quality=JPEG_QUALITY)


def hashed_name(seed: int, dataset: str, split: str, index: int) -> str:
    """32 hexadecimal digits: image names of datasets that were collected on the web say nothing."""
    return generator(seed, dataset, f"{split} names", index).bytes(16).hex()
