"""Which images a benchmark reads: on-disk layouts, manifests, and the decoding of one image.

A *manifest* is a split's list of (path, label) and its identity: a SHA-256 over the sorted (file name, label, size)
lines; where the label is a file of its own (boxes, masks), that file's hash stands for it, and where an image may show
several classes, its row of labels does. It does not depend on the layout, so ImageNet as class folders and ImageNet as
list files are the same dataset and give the same numbers; a substitute never passes for the original (DESIGN §1).
Samples are in identity order, which makes a sample's index, and with it every random draw, independent of the layout
too.

`configs/datasets/NAME.yaml` says which layouts a dataset may have; `data.yaml` (or ZOO_DATA) says where it lies.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import Field, model_validator

from zoo.class_names import ClassNamesFrom, read_class_names
from zoo.config import Strict, load, read_yaml
from zoo.errors import ConfigError, DataError, NoDataError, several
from zoo.files import CONFIGS, ROOT, canonical_json, remembered, stat_signature
from zoo.layouts import Entry, Layout, class_folders, read


class SplitConfig(Strict):
    """The layouts tried in order, and how many images there must be (null: any number)."""

    num_images: Annotated[int, Field(gt=0)] | None
    layouts: Annotated[tuple[Layout, ...], Field(min_length=1)]


class DatasetConfig(Strict):
    """configs/datasets/NAME.yaml."""

    name: str
    title: str
    root: str | None  # only for datasets the project makes itself; others are named in data.yaml
    num_classes: Annotated[int, Field(gt=1)]
    classes: tuple[str, ...] | None = None  # the names, in label order, where annotations or file names say names
    class_names_from: ClassNamesFrom | None = None  # where else the names are; by default class folders' own names
    substitute_for: str | None  # the published dataset this one stands in for: never shares a table with it
    splits: dict[str, SplitConfig]

    @model_validator(mode="after")
    def _names_all_classes(self) -> "DatasetConfig":
        if self.classes is not None and len(set(self.classes)) != self.num_classes:
            raise ValueError(f"classes: expected {self.num_classes} different names, found {len(set(self.classes))}")
        if self.classes is not None and self.class_names_from is not None:
            raise ValueError("expected classes or class_names_from, found both")
        if self.classes is None and any(one.class_lists for split in self.splits.values() for one in split.layouts):
            raise ValueError("class_lists need classes: the names that stand for {} in their files' names")
        return self


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The images of one split, in identity order, and who they are."""

    dataset: str
    split: str
    root: Path
    paths: tuple[str, ...]  # relative to root
    # One of three, told by ndim and length: (N,) int64, the class of each image; (N, C) int8 where an image may show
    # several classes (VOC07 classification): 1 present, 0 absent, -1 difficult, to be ignored (protocols §2.6);
    # (0,) int64 where every image has an annotation file instead.
    labels: np.ndarray
    annotations: tuple[str, ...]  # relative to root, one an image; () where images have labels
    sha256: str
    folders: tuple[str, ...]  # every folder or list file whose change means that the manifest must be read again

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        return self.root / self.paths[index]

    def annotation(self, index: int) -> Path:
        return self.root / self.annotations[index]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What planning needs of a manifest, and what a record keeps."""

    dataset: str
    split: str
    sha256: str
    num_images: int
    num_classes: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "split": self.split,
            "sha256": self.sha256,
            "num_images": self.num_images,
            "num_classes": self.num_classes,
        }


def dataset_config(name: str) -> DatasetConfig:
    """The description of dataset `name`. Raises ConfigError when there is none."""
    config = load(CONFIGS / "datasets" / f"{name}.yaml", DatasetConfig)
    if config.name != name:
        raise ConfigError(f"configs/datasets/{name}.yaml: name is '{config.name}', expected the file's own '{name}'")
    return config


def dataset_names() -> tuple[str, ...]:
    """Every described dataset."""
    return tuple(sorted(path.stem for path in (CONFIGS / "datasets").glob("*.yaml")))


def data_file() -> Path:
    """The file that says where this machine's datasets are: $ZOO_DATA, else data.yaml in the repository."""
    return Path(os.environ.get("ZOO_DATA") or ROOT / "data.yaml")


def dataset_place(config: DatasetConfig) -> Path | None:
    """Where a dataset is said to be: data.yaml first, then the config's own root; None if neither says.

    Raises ConfigError when data.yaml is no mapping.
    """
    places = read_yaml(data_file()) if data_file().exists() else {}
    if not isinstance(places, dict):
        raise ConfigError(f"{data_file()}:1: expected lines 'dataset: /path', found {type(places).__name__}")
    place = places.get(config.name, config.root)
    return (ROOT / place).resolve() if isinstance(place, str) else None


def dataset_root(config: DatasetConfig) -> Path:
    """The folder of a dataset (`dataset_place`). Raises DataError saying what to write or make.

    NoDataError where no place is known: another thing than a place where the data is not, which is a mistake.
    """
    root = dataset_place(config)
    if root is None:
        raise NoDataError(
            f"dataset '{config.name}' has no place: expected a line '{config.name}: /path/to/it' in {data_file()} "
            f"(or the file that ZOO_DATA names), found {'no such line' if data_file().exists() else 'no such file'}."
        )
    if not root.is_dir():
        own = config.root is not None and root == (ROOT / config.root).resolve()
        make = " Run ./run_all.sh or python -m mini to make it." if own else ""
        raise DataError(f"dataset '{config.name}': expected its folder at {root}, found none.{make}")
    return root


def class_names(name: str) -> tuple[str, ...]:
    """What the classes of dataset `name` are called, in label order: num_classes names, not always different ones.

    From the config's `classes`, else from what its `class_names_from` names, else the names of its class folders.
    Raises DataError when a file is missing or wrong, or when the splits have other class folders than one another.
    """
    config = dataset_config(name)
    if config.classes is not None:
        return config.classes
    source = config.class_names_from
    if source is not None:
        return read_class_names(Path() if source.torchvision else dataset_root(config), source, config.num_classes)
    root = dataset_root(config)
    layouts = [one for split in config.splits.values() for one in split.layouts if one.class_folders is not None]
    listed = {str(one): tuple(e.name for e in class_folders(root / (one.class_folders or ""))) for one in layouts}
    found = {where: names for where, names in listed.items() if names}
    if not found:
        raise DataError(f"dataset '{name}': expected class folders to take the classes' names from, found none: {root}")
    problems = [
        f"{where}: {len(names)} names, the first {', '.join(names[:3])}"
        for where, names in found.items()
        if len(names) != config.num_classes or len(set(found.values())) > 1
    ]
    if problems:
        title = f"dataset '{name}' under {root}: expected {config.num_classes} class folders, the same for all splits:"
        raise DataError(several(title, problems))
    return next(iter(found.values()))


@cache
def manifest(name: str, split: str) -> Manifest:
    """List one split of a dataset, in full. Raises DataError with every problem found.

    Reads folder listings and file sizes, never pixels; kept for the process's life.
    """
    config = dataset_config(name)
    expected = _split_config(config, split)
    root = dataset_root(config)
    layout = _present_layout(root, expected.layouts, config=config, split=split)
    entries, folders = read(root, layout, num_classes=config.num_classes, classes=config.classes or ())
    if expected.num_images is not None and len(entries) != expected.num_images:
        raise DataError(
            f"dataset '{name}', {split} ({layout}): expected {expected.num_images:,} images, found {len(entries):,} "
            f"under {root}. Files are missing or foreign; restore them, or describe the subset as a dataset of its own."
        )
    entries.sort(key=lambda entry: (entry.path.rsplit("/", 1)[-1], entry.label, entry.path))
    lines = "".join(f"{entry.path.rsplit('/', 1)[-1]}\t{entry.label}\t{entry.size}\n" for entry in entries)
    return Manifest(
        dataset=name,
        split=split,
        root=root,
        paths=tuple(entry.path for entry in entries),
        labels=_labels(entries),
        annotations=tuple(entry.annotation for entry in entries if entry.annotation is not None),
        sha256=hashlib.sha256(lines.encode()).hexdigest(),
        folders=tuple(sorted(folders)),
    )


def identity(name: str, split: str) -> Identity:
    """Who a split is, without listing it while its folders are unchanged (the ledger; DESIGN §1).

    A file replaced under its own name does not change its folder; `manifest` lists anew, and is what running uses.
    """
    config = dataset_config(name)
    layouts = _split_config(config, split).layouts
    root = dataset_root(config)
    asked = canonical_json({"root": str(root), "split": split, "config": config.model_dump(mode="json")})
    tops = [root / top for layout in layouts for top in layout.tops(config.classes or ())]
    asked += "".join(stat_signature(top) for top in tops if top.exists())  # another layout, class or list: ask anew

    def known_folders() -> list[str]:
        return list(manifest(name, split).folders)

    # two steps: which folders to look at (remembered by what was asked), then what they hold (by their signatures)
    folders = remembered("dataset-folders", asked, known_folders)
    try:
        signature = asked + "".join(stat_signature(root / folder) for folder in folders)
    except FileNotFoundError:
        signature = asked + "changed"

    def read() -> dict[str, Any]:
        whole = manifest(name, split)
        return {"sha256": whole.sha256, "num_images": len(whole)}

    if signature.endswith("changed"):
        return Identity(dataset=name, split=split, num_classes=config.num_classes, **read())
    return Identity(dataset=name, split=split, num_classes=config.num_classes, **remembered("dataset", signature, read))


def _split_config(config: DatasetConfig, split: str) -> SplitConfig:
    if split not in config.splits:
        raise ConfigError(f"dataset '{config.name}' has no split '{split}': expected one of {sorted(config.splits)}")
    return config.splits[split]


def _present_layout(root: Path, layouts: Sequence[Layout], *, config: DatasetConfig, split: str) -> Layout:
    for layout in layouts:
        if layout.is_present(root, config.classes or ()):
            return layout
    title = f"dataset '{config.name}', {split}: found none of the layouts it may have under {root}:"
    tried = [str(layout) for layout in layouts]
    if any(layout.can_be_prepared for layout in layouts):
        tried.append(
            f"if only the list files are missing, this makes them: python -m zoo datasets prepare {config.name}"
        )
    raise DataError(several(title, tried))


def _labels(entries: Sequence[Entry]) -> np.ndarray:
    rows = [entry.row for entry in entries if entry.row is not None]
    if rows:
        return np.array(rows, dtype=np.int8)
    return np.array([entry.label for entry in entries if isinstance(entry.label, int)], dtype=np.int64)


def decode(path: Path) -> Image.Image:
    """Read one image as RGB, as the reference code does: PIL, EXIF orientation not applied, palette and CMYK converted.

    16-bit greys are scaled to 8 bits (PIL alone would clip them to white). Raises DataError naming the file when it is
    missing, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16") or image.mode == "I":
                wide = np.asarray(image, dtype=np.int64)
                return Image.fromarray((wide.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
            if image.mode == "P" and "transparency" in image.info:
                return image.convert("RGBA").convert("RGB")
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"{path}: the image has vanished since the dataset was listed; restore it.") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: expected an image, found something PIL cannot identify; replace the file.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: the image cannot be decoded ({error}); replace the file.") from error


DECODER = "pil-rgb-1"  # part of every feature's identity; raise the number when `decode` changes what it returns
