"""How does the small world look as ImageNet, in both forms that benchmark code reads?

    imagenet/train/<wnid>/<wnid>_<n>.JPEG          class folders, as ILSVRC2012_img_train.tar unpacks
    imagenet/val/ILSVRC2012_val_00000001.JPEG      flat, as ILSVRC2012_img_val.tar unpacks (mmselfsup reads this)
    imagenet/val_folders/<wnid>/ILSVRC2012_val_….  the same files sorted into class folders (torchvision reads this)
    imagenet/meta/train.txt, meta/val.txt          "path label", the path relative to train/ or val/ (mmselfsup)
    imagenet/meta/classes.txt                      "wnid name", in the order of the labels

Lists are in the string order of their paths (so `_10` precedes `_2`), which for train is torchvision's order too.
The wnids n00000000 .. n00000009 exist nowhere else.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from mini import digit
from mini.digit import Each, Entry
from mini.files import link
from mini.material import CLASS_NAMES, Material
from mini.scene import SceneStyle

STYLE: Final = SceneStyle(width=48, height=48, digit_size=(0.4, 0.85))
WNIDS: Final = tuple(f"n{label:08d}" for label in range(len(CLASS_NAMES)))


def write(folder: Path, material: Material, *, seed: int, counts: Mapping[str, int], each: Each) -> None:
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
        each(partial(digit.draw, folder / split, material, STYLE, seed, "imagenet", split), entries)
        lines = sorted(f"{entry.path} {entry.label}\n" for entry in entries)
        (folder / "meta" / f"{split}.txt").write_text("".join(lines))
    for entry in entries:
        link(folder / "val" / entry.path, folder / "val_folders" / WNIDS[entry.label] / entry.path)


def plan(material: Material, *, seed: int, split: str, count: int) -> list[Entry]:
    """What each image of a split will show; paths are relative to train/ or val/."""

    def path(index: int, label: int, turn: int) -> str:
        if split == "train":
            return f"{WNIDS[label]}/{WNIDS[label]}_{turn + 1}.JPEG"
        return f"ILSVRC2012_val_{index + 1:08d}.JPEG"

    return digit.plan(material, seed=seed, dataset="imagenet", split=split, count=count, path=path)
