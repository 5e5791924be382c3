"""Where below a folder do the described datasets lie, and what does data.yaml say once they are written into it?

A folder fits a dataset when every split has one of its layouts there, with the described classes and, as far as lists
and the smaller folders tell without reading for minutes, the described number of images; `datasets verify` counts all.
What fits in part is named with what is missing, and written by nobody. A dataset found in two places is ambiguous.
Datasets that the project makes itself (`root` in their description) have their place, and are not looked for.
"""

import difflib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from zoo import cityscapes
from zoo.config import dump_yaml, read_yaml
from zoo.datasets import DatasetConfig
from zoo.errors import ConfigError, DataError
from zoo.files import write_atomic
from zoo.layouts import (
    IMAGE_SUFFIXES,
    ImageSet,
    Layout,
    class_folders,
    joined,
    numbered_lines,
    read_json,
    size_of,
    unreadable,
)

DEPTH = 5  # folders below ROOT: /data/vision/pascal/VOCdevkit and some more
SECONDS = 120.0
MOST_FOLDERS = 500  # in one folder: with more, they are classes or shards, not places to look for datasets
COUNTED = 100_000  # images: class folders described with more are not counted here


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder where a dataset lies. data: what its layouts are made of, resolved; the same data twice is one place."""

    root: Path
    data: frozenset[Path]
    prepare: bool  # lists are missing that `datasets prepare` makes


@dataclass(kw_only=True)
class Search:
    """What a walk has met. incomplete: folder → what is missing there, of datasets of which some split fits."""

    places: dict[str, list[Place]] = field(default_factory=dict)
    incomplete: dict[str, dict[Path, str]] = field(default_factory=dict)
    num_folders: int = 0
    unread: list[Path] = field(default_factory=list)
    stopped_at: Path | None = None  # where the time ran out


def search(root: Path, configs: Sequence[DatasetConfig], *, depth: int = DEPTH, seconds: float = SECONDS) -> Search:
    """Look for datasets in `root` and the folders below, the nearest first.

    Links to folders are followed, each folder is visited once. Below a dataset its own folders are not searched.
    Raises DataError when `root` is no folder.
    """
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder to look for datasets in, found none.")
    found = Search()
    until = monotonic() + seconds
    wanted = [(config, _first_names_of_all(config)) for config in configs]
    visited: set[tuple[int, int]] = set()
    waiting = deque([(root.resolve(), 0)])
    while waiting:
        folder, level = waiting.popleft()
        if monotonic() > until:
            found.stopped_at = folder
            break
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            names, folders = _listing(folder)
        except OSError:
            found.unread.append(folder)
            continue
        found.num_folders += 1
        near = [config for config, first in wanted if first & names]
        taken = {top for config in near for top in _try(config, folder, names, found)}
        if level < depth and (level == 0 or len(folders) <= MOST_FOLDERS):
            waiting.extend((folder / name, level + 1) for name in folders if name not in taken)
    return found


def _listing(folder: Path) -> tuple[set[str], list[str]]:
    """(all names, the sub-folders' names in order), hidden ones and names that YAML cannot hold left out."""
    with os.scandir(folder) as entries:
        there = [entry for entry in entries if not entry.name.startswith(".") and unreadable(entry.name) is None]
        return {entry.name for entry in there}, sorted(entry.name for entry in there if entry.is_dir())


def _try(config: DatasetConfig, folder: Path, names: set[str], found: Search) -> list[str]:
    """Note the dataset if it is in this folder, whole or in part; the names in the folder that belong to it."""
    fitting: list[Layout] = []
    missing: list[str] = []
    for split, expected in config.splits.items():
        near = [layout for layout in expected.layouts if _first_names(layout, config) & names]
        problems = {layout: misfit(folder, layout, config, expected.num_images) for layout in near}
        good = next((layout for layout, problem in problems.items() if problem is None), None)
        if good is not None:
            fitting.append(good)
        else:
            tried = "; ".join(problem for problem in problems.values() if problem) or f"no {expected.layouts[0]}"
            missing.append(f"{split}: {tried}")
    if not fitting:
        return []
    if missing:
        found.incomplete.setdefault(config.name, {})[folder] = "; ".join(missing)
        return []
    data = frozenset(
        (folder / top).resolve() for layout in fitting for top in _data(layout, config) if (folder / top).exists()
    )
    prepare = any(not layout.is_present(folder, config.classes or ()) for layout in fitting)
    known = found.places.setdefault(config.name, [])
    if all(one.data != data for one in known):
        known.append(Place(root=folder, data=data, prepare=prepare))
    return [name for layout in fitting for name in _first_names(layout, config)]


def _data(layout: Layout, config: DatasetConfig) -> Iterator[str]:
    """The files and folders that a layout is made of."""
    yield from layout.tops(config.classes or ())
    for part in layout.image_sets or ():
        yield from (os.path.dirname(part.images), os.path.dirname(part.annotations))
    if layout.names is not None:
        yield layout.names


def _first_names(layout: Layout, config: DatasetConfig) -> set[str]:
    """What must be in a folder, at least one of it, for a layout to be worth a look."""
    return {top.split("/")[0] for top in _data(layout, config) if top.split("/")[0] not in ("", ".")}


def _first_names_of_all(config: DatasetConfig) -> set[str]:
    return {name for split in config.splits.values() for one in split.layouts for name in _first_names(one, config)}


def misfit(root: Path, layout: Layout, config: DatasetConfig, num_images: int | None) -> str | None:
    """What keeps a layout of a split from being in `root`; None if nothing that can be seen quickly does."""
    try:
        if layout.class_folders is not None:
            return _class_folders_misfit(root, layout.class_folders, config.num_classes, num_images)
        if layout.image_sets is not None:
            return _image_sets_misfit(root, layout.image_sets, num_images)
        if layout.cityscapes is not None:
            return _cityscapes_misfit(root, layout.cityscapes, num_images)
        assert layout.images is not None
        if layout.class_lists is not None:
            return _class_lists_misfit(root, layout, config, num_images)
        if layout.inaturalist_json is not None:
            return _inaturalist_misfit(root, layout.inaturalist_json, layout.images, num_images)
        if layout.coco_json is not None:
            return _coco_misfit(root, layout.coco_json, layout.images, num_images)
        assert layout.image_list is not None
        return _list_misfit(root, layout.image_list, layout.images, config.num_classes, num_images)
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: cannot be read ({error.strerror})"


def _count(where: str, found: int, expected: int | None) -> str | None:
    return None if expected in (None, found) else f"{where}: {found:,} images, expected {expected:,}"


def _no(root: Path, *files: str) -> str | None:
    missing = [path for path in files if not (root / path).exists()]
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return f"no {', '.join(missing[:3])}{more}" if missing else None


def _class_folders_misfit(root: Path, folder: str, num_classes: int, num_images: int | None) -> str | None:
    classes = [entry.path for entry in class_folders(root / folder)]
    if len(classes) != num_classes:
        return f"{folder}: {len(classes):,} class folders, expected {num_classes:,}"
    if num_images is None or num_images > COUNTED:
        return None
    names = (name for one in classes for name in os.listdir(one) if not name.startswith("."))
    found = sum(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in names)
    return _count(folder, found, num_images)


def _list_misfit(root: Path, path: str, images: str, num_classes: int, num_images: int | None) -> str | None:
    if problem := _no(root, path, images):
        return problem
    number, highest, first = 0, -1, ""
    for _, line in numbered_lines(root / path):
        name, _, label = line.rstrip().rpartition(" ")
        if not label.isdecimal():
            return f"{path}: expected lines 'path label', found '{line[:80]}'"
        number, highest, first = number + 1, max(highest, int(label)), first or name
    if highest != num_classes - 1:
        return f"{path}: labels up to {highest}, expected up to {num_classes - 1}"
    return _count(path, number, num_images) or _first_picture(root, joined(images, first))


def _inaturalist_misfit(root: Path, path: str, images: str, num_images: int | None) -> str | None:
    if problem := _no(root, path, images):
        return problem
    content = read_json(root / path)
    pictures = content.get("images") if isinstance(content, dict) else None
    if not isinstance(pictures, list) or not pictures or not isinstance(pictures[0], dict):
        return f"{path}: no list of images"
    if problem := _count(path, len(pictures), num_images):
        return problem
    return _first_picture(root, joined(images, str(pictures[0].get("file_name"))))


def _coco_misfit(root: Path, path: str, images: str, num_images: int | None) -> str | None:
    """By the number of pictures: COCO's file has 450 MB, most of it outlines."""
    if problem := _no(root, path, images):
        return problem
    found = sum(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in os.listdir(root / images))
    return _count(images, found, num_images)


def _class_lists_misfit(root: Path, layout: Layout, config: DatasetConfig, num_images: int | None) -> str | None:
    assert layout.images is not None
    lists = layout.tops(config.classes or ())
    missing = _no(root, *(path for path in lists if path != layout.images))
    source = lists[0]
    if missing:
        if layout.names is None or layout.annotations is None:
            return missing
        source = layout.names  # the lists can be made
        if problem := _no(root, layout.names, os.path.dirname(layout.annotations)):
            return problem
    names = [line.split()[0] for _, line in numbered_lines(root / source)]
    if problem := _count(source, len(names), num_images):
        return problem
    return _first_picture(root, layout.images.format(names[0])) if names else f"{source}: is empty"


def _image_sets_misfit(root: Path, parts: Sequence[ImageSet], num_images: int | None) -> str | None:
    number = 0
    for part in parts:
        if part.rest and not (root / part.names).exists():
            num_images = None  # the list can be made, and its lines are not counted before
            if problem := _no(root, os.path.dirname(part.images), os.path.dirname(part.annotations)):
                return problem
            continue
        if problem := _no(root, part.names):
            return problem
        names = [line.strip() for _, line in numbered_lines(root / part.names)]
        number += len(names)
        for pattern in (part.images, part.annotations) if names else ():
            if problem := _first_picture(root, pattern.format(names[0])):
                return problem
    return _count(" + ".join(part.names for part in parts), number, num_images)


def _cityscapes_misfit(root: Path, split: str, num_images: int | None) -> str | None:
    if problem := _no(root, *cityscapes.folders(split)):
        return problem
    listing = cityscapes.list_split(root, split)
    if listing.problems:
        more = f" (and {len(listing.problems) - 1:,} more)" if len(listing.problems) > 1 else ""
        return listing.problems[0] + more
    return _count(cityscapes.folders(split)[0], len(listing.pairs), num_images)


def _first_picture(root: Path, path: str) -> str | None:
    return None if size_of(root / path) is not None else f"no file {path}"


@dataclass(frozen=True, kw_only=True)
class Update:
    """What becomes of data.yaml: its text before and after, and what is not written, with the reason."""

    path: Path
    before: str
    after: str
    written: dict[str, Place]
    kept: dict[str, str]  # dataset → the place that data.yaml has for it, found elsewhere or not
    ambiguous: dict[str, list[Path]]

    @property
    def diff(self) -> str:
        """Unified; empty when nothing changes."""
        before, after = (text.splitlines(keepends=True) for text in (self.before, self.after))
        return "".join(difflib.unified_diff(before, after, str(self.path), str(self.path)))

    def write(self) -> None:
        """Write data.yaml, whole. Raises DataError when its folder cannot be written to."""
        try:
            write_atomic(self.path, self.after)
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be written ({error.strerror}); name another file in ZOO_DATA."
            ) from error


def update(path: Path, found: Search) -> Update:
    """Add a line to data.yaml for every dataset found in one place and not named there; its own lines stay as they are.

    Raises ConfigError when data.yaml is no mapping, or one that lines cannot be added to.
    """
    path = path.resolve()  # a link stays one
    places = (read_yaml(path) if path.exists() else None) or {}
    if not isinstance(places, dict):
        raise ConfigError(f"{path}:1: expected lines 'dataset: /path', found {type(places).__name__}")
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    new = {name: one for name, one in sorted(found.places.items()) if name not in places}
    written = {name: one[0] for name, one in new.items() if len(one) == 1}
    lines = "".join(dump_yaml({name: str(place.root)}) for name, place in written.items())
    after = before + ("\n" if lines and before and not before.endswith("\n") else "") + lines
    _hold(path, after, {**places, **{name: str(place.root) for name, place in written.items()}}, lines)
    return Update(
        path=path,
        before=before,
        after=after,
        written=written,
        kept={name: str(places[name]) for name in sorted(found.places) if name in places},
        ambiguous={name: [place.root for place in one] for name, one in new.items() if len(one) > 1},
    )


def _hold(path: Path, text: str, expected: dict[str, object], lines: str) -> None:
    """Refuse a text that would not be read as what it should say: a file in flow style takes no further lines."""
    with TemporaryDirectory() as folder:
        candidate = Path(folder) / "data.yaml"
        candidate.write_text(text, encoding="utf-8")
        try:
            right = not lines or read_yaml(candidate) == expected
        except ConfigError:
            right = False
    if not right:
        raise ConfigError(f"{path}: lines cannot be added to it as it is written; add these by hand:\n{lines.rstrip()}")
