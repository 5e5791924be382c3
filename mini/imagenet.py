"""How does the small world look as ImageNet, in both forms that benchmark code reads?

    imagenet/train/<wnid>/<wnid>_<n>.JPEG          class folders, as ILSVRC2012_img_train.tar unpacks
    imagenet/val/ILSVRC2012_val_00000001.JPEG      flat, as ILSVRC2012_img_val.tar unpacks (mmselfsup reads this)
    imagenet/val_folders/<wnid>/ILSVRC2012_val_….  the same files sorted into class folders (torchvision reads this)
    imagenet/meta/train.txt, meta/val.txt          "path label", the path relative to train/ or val/ (mmselfsup)
    imagenet/meta/classes.txt                      "wnid name", in the order of the labels

Lists are in the string order of their paths (so `_10` precedes `_2`), which for train is torchvision's order too.
The wnids n00000000 .. n00000009 exist nowhere else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from PIL import Image

from mini.files import link
from mini.material import CLASS_NAMES, Material, deal_scans, generator
from mini.scene import SceneStyle, draw_scene

STYLE: Final = SceneStyle(width=48, height=48, digit_size=(0.4, 0.85))
JPEG_QUALITY: Final = 90
WNIDS: Final = tuple(f"n{label:08d}" for label in range(len(CLASS_NAMES)))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One image to draw."""

    index: int
    label: int
    scan: int
    path: str  # relative to train/ or val/


def write(
    folder: Path,
    material: Material,
    *,
    seed: int,
    counts: Mapping[str, int],
    each: Callable[[Callable[[Sequence[Entry]], None], Sequence[Entry]], None],
) -> None:
    """Write the dataset into the new folder `folder`; `each(task, entries)` runs a task over all entries in pieces."""
    (folder / "meta").mkdir(parents=True)
    classes = "".join(f"{wnid} {name}\n" for wnid, name in zip(WNIDS, CLASS_NAMES, strict=True))
    (folder / "meta" / "classes.txt").write_text(classes)
    for wnid in WNIDS:
        (folder / "train" / wnid).mkdir(parents=True)
        (folder / "val_folders" / wnid).mkdir(parents=True)
    (folder / "val").mkdir()
    for split in ("train", "val"):
        entries = plan(material, seed=seed, split=split, count=counts[split])
        each(partial(_draw, folder / split, material, seed, split), entries)
        lines = sorted(f"{entry.path} {entry.label}\n" for entry in entries)
        (folder / "meta" / f"{split}.txt").write_text("".join(lines))
    for entry in entries:
        link(folder / "val" / entry.path, folder / "val_folders" / WNIDS[entry.label] / entry.path)


def plan(material: Material, *, seed: int, split: str, count: int) -> list[Entry]:
    """What each image of a split will show: classes balanced to within one, a class's scans all used equally often."""
    scans = deal_scans(material.labels, seed=seed)[split]
    entries: list[Entry] = []
    for start in range(0, count, len(WNIDS)):
        turn = start // len(WNIDS)
        # Every ten consecutive images show all ten classes, shuffled: the numbering must not betray the label.
        order = generator(seed, "imagenet", f"{split} labels", turn).permutation(len(WNIDS))
        for index, label in zip(range(start, count), map(int, order), strict=False):
            scan = int(scans[label][turn % len(scans[label])])
            entries.append(Entry(index=index, label=label, scan=scan, path=_path(split, index, label, turn)))
    return entries


def _path(split: str, index: int, label: int, turn: int) -> str:
    if split == "train":
        return f"{WNIDS[label]}/{WNIDS[label]}_{turn + 1}.JPEG"
    return f"ILSVRC2012_val_{index + 1:08d}.JPEG"


def _draw(folder: Path, material: Material, seed: int, split: str, entries: Sequence[Entry]) -> None:
    for entry in entries:
        rng = generator(seed, "imagenet", split, entry.index)
        scene = draw_scene(material, STYLE, [entry.scan], rng)
        Image.fromarray(scene.image).save(folder / entry.path, "JPEG", quality=JPEG_QUALITY)
