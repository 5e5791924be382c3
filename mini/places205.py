"""How does the small world look as Places205?

    places205/data/vision/torralba/deeplearning/images256/z/zero/gsun_<32 hexadecimal digits>.jpg
    places205/trainvalsplit_places205/train_places205.csv, val_places205.csv   "z/zero/gsun_….jpg 9"
    places205/trainvalsplit_places205/categoryIndex_places205.csv              "/z/zero 9", in the order of the labels

As in Places205, train and val are told apart by the lists only, their images lie in the same folders, and labels number
the classes in alphabetical order (so zero is 9). More colour and contrast than the small world's ImageNet.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from mini import digit
from mini.digit import Each, Entry, hashed_name
from mini.material import CLASS_NAMES, Material
from mini.scene import SceneStyle

STYLE: Final = SceneStyle(width=48, height=48, digit_size=(0.45, 0.85), contrast=0.25, ink=(0.3, 0.5), saturation=0.6)
IMAGES: Final = "data/vision/torralba/deeplearning/images256"
LISTS: Final = "trainvalsplit_places205"
FOLDERS: Final = tuple(f"{name[0]}/{name}" for name in CLASS_NAMES)  # by digit
BY_LABEL: Final = tuple(sorted(FOLDERS))


def write(folder: Path, material: Material, *, seed: int, counts: Mapping[str, int], each: Each) -> None:
    """Write the dataset into the new folder `folder`; `each(task, entries)` runs a task over all entries in pieces."""
    for place in FOLDERS:
        (folder / IMAGES / place).mkdir(parents=True)
    (folder / LISTS).mkdir()
    index = "".join(f"/{place} {label}\n" for label, place in enumerate(BY_LABEL))
    (folder / LISTS / "categoryIndex_places205.csv").write_text(index)
    for split in ("train", "val"):
        entries = plan(material, seed=seed, split=split, count=counts[split])
        each(partial(digit.draw, folder / IMAGES, material, STYLE, seed, "places205", split), entries)
        lines = sorted(f"{entry.path} {BY_LABEL.index(FOLDERS[entry.label])}\n" for entry in entries)
        (folder / LISTS / f"{split}_places205.csv").write_text("".join(lines))


def plan(material: Material, *, seed: int, split: str, count: int) -> list[Entry]:
    """What each image of a split will show; paths are relative to images256/."""

    def path(index: int, label: int, turn: int) -> str:
        return f"{FOLDERS[label]}/gsun_{hashed_name(seed, 'places205', split, index)}.jpg"

    return digit.plan(material, seed=seed, dataset="places205", split=split, count=count, path=path)
