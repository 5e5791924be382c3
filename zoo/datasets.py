"""Which images a benchmark reads: on-disk layouts, manifests, and the decoding of one image.

A *manifest* is a split's list of (path, label) and its identity: a SHA-256 over the sorted (file name, label, size)
lines; where the label is a file of its own (boxes, masks), that file's hash stands for it. It does not depend on the
layout, so ImageNet as class folders and ImageNet as list files are the same dataset and give the same numbers; a
substitute never passes for the original (DESIGN §1). Samples are in identity order, which makes a sample's index, and
with it every random draw, independent of the layout too.

`configs/datasets/NAME.yaml` says which layouts a dataset may have; `data.yaml` (or ZOO_DATA) says where it lies.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import Field, model_validator

from zoo.config import Strict, load, read_yaml
from zoo.errors import ConfigError, DataError, several
from zoo.files import CONFIGS, ROOT, canonical_json, remembered, sha256_file, stat_signature

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp", ".tif", ".tiff"))


PathPattern = Annotated[str, Field(pattern=r"^[^{}]*\{\}[^{}]*$")]  # a path with {} where the name goes


class ImageSet(Strict):
    """A text file of image names, one a line, and where a name's picture and annotation lie (Pascal VOC)."""

    names: str
    images: PathPattern
    annotations: PathPattern


class Layout(Strict):
    """One way a split may lie on disk. Exactly one of the three.

    class_folders: a folder with one sub-folder a class; labels number the sorted names (torchvision ImageFolder).
    image_list: a text file of "relative/path label" lines, split on the last blank (mmselfsup); `images` is the folder
    the paths start from.
    image_sets: files of names, all of them together; every image has an annotation file.
    """

    class_folders: str | None = None
    image_list: str | None = None
    images: str | None = None
    image_sets: Annotated[tuple[ImageSet, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "Layout":
        if sum(kind is not None for kind in (self.class_folders, self.image_list, self.image_sets)) != 1:
            raise ValueError("expected exactly one of class_folders, image_list and image_sets")
        if (self.images is None) != (self.image_list is None):
            raise ValueError("image_list needs images, the folder its paths start from (and only image_list does)")
        return self

    def tops(self) -> tuple[str, ...]:
        """What must be there for the layout to be this one: its folder, or its list files."""
        if self.image_sets is not None:
            return tuple(part.names for part in self.image_sets)
        return (self.class_folders or self.image_list or "",)

    def __str__(self) -> str:
        if self.image_sets is not None:
            return "image sets " + " + ".join(part.names for part in self.image_sets)
        return (
            f"class folders in {self.class_folders}/" if self.class_folders is not None else f"list {self.image_list}"
        )


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
    classes: tuple[str, ...] | None = None  # the names, in label order, where annotations say names
    substitute_for: str | None  # the published dataset this one stands in for: never shares a table with it
    splits: dict[str, SplitConfig]

    @model_validator(mode="after")
    def _names_all_classes(self) -> "DatasetConfig":
        if self.classes is not None and len(set(self.classes)) != self.num_classes:
            raise ValueError(f"classes: expected {self.num_classes} different names, found {len(set(self.classes))}")
        return self


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The images of one split, in identity order, and who they are."""

    dataset: str
    split: str
    root: Path
    paths: tuple[str, ...]  # relative to root
    labels: np.ndarray  # (N,) int64; (0,) where every image has an annotation file instead
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


def dataset_root(config: DatasetConfig) -> Path:
    """The folder of a dataset: data.yaml first, then the config's own root. Raises DataError saying what to write."""
    data_file = Path(os.environ.get("ZOO_DATA") or ROOT / "data.yaml")
    places = read_yaml(data_file) if data_file.exists() else {}
    if not isinstance(places, dict):
        raise ConfigError(f"{data_file}:1: expected lines 'dataset: /path', found {type(places).__name__}")
    place = places.get(config.name, config.root)
    if not isinstance(place, str):
        raise DataError(
            f"dataset '{config.name}' has no place: expected a line '{config.name}: /path/to/it' in {data_file} "
            f"(or the file that ZOO_DATA names), found {'no such line' if data_file.exists() else 'no such file'}."
        )
    root = (ROOT / place).resolve()
    if not root.is_dir():
        make = " Run ./run_all.sh or python -m mini to make it." if config.root == place else ""
        raise DataError(f"dataset '{config.name}': expected its folder at {root}, found none.{make}")
    return root


@cache
def manifest(name: str, split: str) -> Manifest:
    """List one split of a dataset, in full. Raises DataError with every problem found.

    Reads folder listings and file sizes, never pixels; kept for the process's life.
    """
    config = dataset_config(name)
    expected = _split_config(config, split)
    root = dataset_root(config)
    layout = _present_layout(root, expected.layouts, name=name, split=split)
    if layout.class_folders is not None:
        entries, folders = _read_class_folders(root, layout.class_folders, name=name, num_classes=config.num_classes)
    elif layout.image_sets is not None:
        entries, folders = _read_image_sets(root, layout.image_sets)
    else:
        assert layout.image_list is not None and layout.images is not None
        entries, folders = _read_list(root, layout.image_list, layout.images, num_classes=config.num_classes)
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
        labels=np.array([entry.label for entry in entries if isinstance(entry.label, int)], dtype=np.int64),
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
    tops = [root / top for layout in layouts for top in layout.tops()]
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


def _present_layout(root: Path, layouts: Sequence[Layout], *, name: str, split: str) -> Layout:
    for layout in layouts:
        if layout.image_list is not None and (root / layout.image_list).is_file():
            return layout
        if layout.class_folders is not None and next(_class_folders(root / layout.class_folders), None):
            return layout
        if layout.image_sets is not None and all((root / part.names).is_file() for part in layout.image_sets):
            return layout
    tried = [str(layout) for layout in layouts]
    raise DataError(several(f"dataset '{name}', {split}: found none of the layouts it may have under {root}:", tried))


def _class_folders(folder: Path) -> Iterator[os.DirEntry[str]]:
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        yield from sorted((e for e in entries if e.is_dir() and not e.name.startswith(".")), key=lambda e: e.name)


class _Entry(NamedTuple):
    path: str  # relative to the dataset's root
    label: int | str  # str: the SHA-256 of the annotation file
    size: int  # bytes
    annotation: str | None = None  # relative to the dataset's root


_Entries = tuple[list[_Entry], list[str]]  # and the folders and files to watch


def _read_class_folders(root: Path, folder: str, *, name: str, num_classes: int) -> _Entries:
    """Every image of a folder of class folders. Empty class folders and a wrong number of classes are errors."""
    classes = [entry.name for entry in _class_folders(root / folder)]
    problems: list[str] = []
    if len(classes) != num_classes:
        problems.append(f"expected {num_classes} class folders, found {len(classes)}: {', '.join(classes[:5])} …")
    found: list[_Entry] = []
    for label, class_name in enumerate(classes):
        before = len(found)
        with os.scandir(root / folder / class_name) as entries:
            for entry in entries:
                if entry.name.startswith(".") or Path(entry.name).suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                found.append(_Entry(f"{folder}/{class_name}/{entry.name}", label, entry.stat().st_size))
        if len(found) == before:
            problems.append(f"{folder}/{class_name}: expected images, found none (suffixes {_suffixes()})")
    if problems:
        raise DataError(several(f"dataset '{name}' under {root} is not complete:", problems[:20]))
    return found, [folder, *(f"{folder}/{class_name}" for class_name in classes)]


def _read_list(root: Path, list_file: str, images: str, *, num_classes: int) -> _Entries:
    """Every line of a "path label" list. Missing files, bad labels and duplicates are errors, first 20 named."""
    found: list[_Entry] = []
    problems: list[str] = []
    seen: set[str] = set()
    for number, line in enumerate(_lines(root / list_file), start=1):
        if not line.strip():
            continue
        path, _, label = line.rstrip().rpartition(" ")
        if not path or not label.isdecimal() or int(label) >= num_classes:
            problems.append(f"line {number}: expected 'path label' with a label in 0…{num_classes - 1}, found '{line}'")
        elif path in seen:
            problems.append(f"line {number}: {path} is listed twice")
        else:
            seen.add(path)
            try:
                size = (root / images / path).stat().st_size
            except OSError:
                problems.append(f"line {number}: no file {images}/{path}")
                continue
            found.append(_Entry(os.path.normpath(f"{images}/{path}"), int(label), size))
    if not found and not problems:
        problems.append("the list is empty")
    _refuse(root / list_file, problems)
    return found, [list_file, *sorted({os.path.dirname(entry.path) for entry in found})]


def _read_image_sets(root: Path, parts: Sequence[ImageSet]) -> _Entries:
    """Every name of the files together. A missing picture or annotation and a name listed twice are errors."""
    found: list[_Entry] = []
    watched: set[str] = set()
    seen: set[str] = set()
    for part in parts:
        problems: list[str] = []
        before = len(found)
        for number, line in enumerate(_lines(root / part.names), start=1):
            name = line.strip()
            if not name:
                continue
            image, annotation = (os.path.normpath(p.format(name)) for p in (part.images, part.annotations))
            if image in seen:
                problems.append(f"line {number}: {name} is listed twice")
                continue
            seen.add(image)
            missing = [path for path in (image, annotation) if not (root / path).is_file()]
            problems += [f"line {number}: no file {path}" for path in missing]
            if not missing:
                size = (root / image).stat().st_size
                found.append(_Entry(image, sha256_file(root / annotation), size, annotation))
        if len(found) == before and not problems:
            problems.append("the list is empty")
        _refuse(root / part.names, problems)
        watched |= {part.names, os.path.dirname(part.images), os.path.dirname(part.annotations)}
    return found, sorted(watched)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); save the list as UTF-8.") from error


def _refuse(list_file: Path, problems: list[str]) -> None:
    if problems:
        more = [f"… and {len(problems) - 20:,} more"] if len(problems) > 20 else []
        raise DataError(several(f"{list_file} is not usable:", [*problems[:20], *more]))


def _suffixes() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))


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
