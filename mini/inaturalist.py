"""How does the small world look as iNaturalist 2018?

    inaturalist2018/train_val2018/Even/0/<32 hexadecimal digits>.jpg   a folder a category (its id), by supercategory
    inaturalist2018/train2018.json, val2018.json                       info, images, categories, annotations, licenses

As in the release, an image's category is said by the annotation with its image_id. Annotations are in another order
than images, and image ids have gaps: who joins by place instead of by id gets most labels wrong.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from mini import digit
from mini.digit import Each, Entry, hashed_name
from mini.material import CLASS_NAMES, Material, generator
from mini.scene import SceneStyle

STYLE: Final = SceneStyle(width=48, height=48, digit_size=(0.5, 0.95), contrast=0.15, ink=(0.2, 0.35), saturation=1.0)
IMAGES: Final = "train_val2018"
SUPERCATEGORIES: Final = ("Even", "Odd")
FIRST_IDS: Final = {"train": 1, "val": 2}  # ids go on in steps of 3, so train and val share none
RIGHTS: Final = "TransferZoo small world"


def write(folder: Path, material: Material, *, seed: int, counts: Mapping[str, int], each: Each) -> None:
    """Write the dataset into the new folder `folder`; `each(task, entries)` runs a task over all entries in pieces."""
    for category in range(len(CLASS_NAMES)):
        (folder / IMAGES / _folder(category)).mkdir(parents=True)
    for split in ("train", "val"):
        entries = plan(material, seed=seed, split=split, count=counts[split])
        each(partial(digit.draw, folder, material, STYLE, seed, "inaturalist2018", split), entries)
        (folder / f"{split}2018.json").write_text(json.dumps(_content(entries, seed=seed, split=split)) + "\n")


def plan(material: Material, *, seed: int, split: str, count: int) -> list[Entry]:
    """What each image of a split will show; paths are relative to the dataset's folder."""

    def path(index: int, label: int, turn: int) -> str:
        return f"{IMAGES}/{_folder(label)}/{hashed_name(seed, 'inaturalist2018', split, index)}.jpg"

    return digit.plan(material, seed=seed, dataset="inaturalist2018", split=split, count=count, path=path)


def _folder(category: int) -> str:
    return f"{SUPERCATEGORIES[category % 2]}/{category}"


def _content(entries: Sequence[Entry], *, seed: int, split: str) -> dict[str, Any]:
    ids = [3 * entry.index + FIRST_IDS[split] for entry in entries]
    order = generator(seed, "inaturalist2018", f"{split} annotations", 0).permutation(len(entries))
    return {
        "info": {
            "year": 2018,
            "version": "1.0",
            "description": "TransferZoo small world in the layout of iNaturalist 2018",
            "contributor": RIGHTS,
            "url": "",
            "date_created": "2018-01-01",
        },
        "images": [
            {
                "id": one,
                "file_name": entry.path,
                "width": STYLE.width,
                "height": STYLE.height,
                "license": 0,
                "rights_holder": RIGHTS,
            }
            for one, entry in zip(ids, entries, strict=True)
        ],
        "categories": [
            {"id": category, "name": name, "supercategory": SUPERCATEGORIES[category % 2]}
            for category, name in enumerate(CLASS_NAMES)
        ],
        "annotations": [
            {"id": ids[place], "image_id": ids[place], "category_id": entries[place].label} for place in map(int, order)
        ],
        "licenses": [{"id": 0, "name": "as README.txt says", "url": ""}],
    }
