"""How may the images and labels of a split lie on disk, and how is each layout read?

`Layout` names the files; `read` lists them as entries (path, label, size), from folder listings, list files and file
sizes, never from pixels. What is incomplete or contradicts itself is one DataError that names the first 20 problems.
"""

import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, model_validator

from zoo import cityscapes
from zoo.config import Strict
from zoo.errors import DataError, several
from zoo.files import sha256_file

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp", ".tif", ".tiff"))
KINDS = ("class_folders", "image_list", "inaturalist_json", "coco_json", "class_lists", "image_sets", "cityscapes")
VOC_LABELS = {"1": 1, "-1": 0, "0": -1}  # what a line of a class list says → present, absent, difficult (§2.6)
MOST_NAMED = 20  # problems in one message

PathPattern = Annotated[str, Field(pattern=r"^[^{}]*\{\}[^{}]*$")]  # a path with {} where the name goes


class ImageSet(Strict):
    """A text file of image names, one a line, and where a name's picture and annotation lie (Pascal VOC).

    rest: the set is every annotation of its folder that no other set of the dataset names; its file can be made from
    that (`python -m zoo datasets prepare`).
    """

    names: str
    images: PathPattern
    annotations: PathPattern
    rest: bool = False


class Layout(Strict):
    """One way a split may lie on disk. Exactly one of the first seven.

    class_folders: a folder with one sub-folder a class; labels number the sorted names (torchvision ImageFolder).
    image_list: a text file of "relative/path label" lines, split on the last blank (mmselfsup); `images` is the folder
    the paths start from.
    inaturalist_json: iNaturalist's file of images (id, file_name) and annotations (image_id, category_id), joined by
    id; category ids are the labels. `images` as above.
    coco_json: one file of images, annotations and categories (COCO's instances); every image has this file as its
    annotation, and what it says of the objects is for zoo.coco to read. `images` as above.
    class_lists: a file for each of the dataset's classes, {} its name, of "image 1", "image -1" or "image 0" lines
    (Pascal VOC classification); `images` says with {} where an image lies. `names` and `annotations` are what the
    files can be made from.
    image_sets: files of names, all of them together; every image has an annotation file.
    cityscapes: a split of Cityscapes by its name, below leftImg8bit/ and gtFine/ (zoo.cityscapes).
    """

    class_folders: str | None = None
    image_list: str | None = None
    inaturalist_json: str | None = None
    coco_json: str | None = None
    class_lists: PathPattern | None = None
    image_sets: Annotated[tuple[ImageSet, ...], Field(min_length=1)] | None = None
    cityscapes: str | None = None
    images: str | None = None
    names: str | None = None
    annotations: PathPattern | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "Layout":
        kinds = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"expected exactly one of {', '.join(KINDS[:-1])} and {KINDS[-1]}")
        (kind,) = kinds
        if (self.images is None) != (kind in ("class_folders", "image_sets", "cityscapes")):
            raise ValueError(
                "image_list, inaturalist_json and coco_json need images, the folder their paths start from, and "
                "class_lists needs images, with {} for an image's name (and only these have it)"
            )
        if kind == "class_lists" and (self.images or "").count("{}") != 1:
            raise ValueError("images: expected {} once, where an image's name goes")
        if kind != "class_lists" and (self.names or self.annotations):
            raise ValueError("names and annotations belong to class_lists")
        if (self.names is None) != (self.annotations is None):
            raise ValueError("class_lists are made from names and annotations: expected both or neither")
        return self

    @property
    def can_be_prepared(self) -> bool:
        """Whether its list files can be made from what else the dataset's archives hold."""
        return self.names is not None or any(part.rest for part in self.image_sets or ())

    def tops(self, classes: Sequence[str]) -> tuple[str, ...]:
        """The folders and files that tell whether the layout is there. classes: the dataset's names, if it has any."""
        if self.image_sets is not None:
            return tuple(part.names for part in self.image_sets)
        if self.cityscapes is not None:
            return cityscapes.folders(self.cityscapes)
        if self.class_lists is not None:
            return tuple(self.class_lists.format(name) for name in classes)
        listed = (self.class_folders, self.image_list, self.inaturalist_json, self.coco_json, self.images)
        return tuple(top for top in listed if top)

    def is_present(self, root: Path, classes: Sequence[str]) -> bool:
        """Whether `root` holds this layout, whole or in part: a missing class list is for `read` to name."""
        if self.class_folders is not None:
            return next(class_folders(root / self.class_folders), None) is not None
        if self.cityscapes is not None:
            return all((root / folder).is_dir() for folder in cityscapes.folders(self.cityscapes))
        list_files = [(root / top).is_file() for top in self.tops(classes) if top != self.images]
        if self.class_lists is not None:
            return any(list_files)
        return all(list_files) and (self.images is None or (root / self.images).is_dir())

    def __str__(self) -> str:
        if self.class_folders is not None:
            return f"class folders in {self.class_folders}/"
        if self.image_sets is not None:
            return "image sets " + " + ".join(part.names for part in self.image_sets)
        if self.cityscapes is not None:
            return "Cityscapes' " + " and ".join(f"{folder}/" for folder in cityscapes.folders(self.cityscapes))
        if self.class_lists is not None:
            return f"class lists {self.class_lists.format('<class>')}"
        return f"list {self.image_list or self.inaturalist_json or self.coco_json} of images in {self.images}/"


class Entry(NamedTuple):
    """One image of a split."""

    path: str  # relative to the dataset's root
    label: int | str  # str: the SHA-256 of the annotation file, or the row of labels as text
    size: int  # bytes
    annotation: str | None = None  # relative to the dataset's root
    row: tuple[int, ...] | None = None  # a label a class: 1 present, 0 absent, -1 difficult


Entries = tuple[list[Entry], list[str]]  # and the folders and files, relative to the root, that say if it has changed


def read(root: Path, layout: Layout, *, num_classes: int, classes: Sequence[str]) -> Entries:
    """Every image of a layout, in the order found. Raises DataError with what is wrong, the first 20 problems named."""
    if layout.class_folders is not None:
        return _read_class_folders(root, layout.class_folders, num_classes)
    if layout.image_sets is not None:
        return _read_image_sets(root, layout.image_sets)
    if layout.cityscapes is not None:
        return _read_cityscapes(root, layout.cityscapes)
    assert layout.images is not None
    if layout.class_lists is not None:
        return _read_class_lists(root, layout.class_lists, layout.images, classes)
    if layout.inaturalist_json is not None:
        return _read_inaturalist(root, layout.inaturalist_json, layout.images, num_classes)
    if layout.coco_json is not None:
        return _read_coco(root, layout.coco_json, layout.images)
    assert layout.image_list is not None
    return _read_list(root, layout.image_list, layout.images, num_classes)


def class_folders(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The sub-folders of `folder` sorted by name, hidden ones left out; none where there is no such folder."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        yield from sorted((e for e in entries if e.is_dir() and not e.name.startswith(".")), key=lambda e: e.name)


def _read_class_folders(root: Path, folder: str, num_classes: int) -> Entries:
    """Every image of a folder of class folders. Empty class folders and a wrong number of classes are errors."""
    classes = [entry.name for entry in class_folders(root / folder)]
    problems = [f"{folder}: {problem}" for name in classes if (problem := unreadable(name))]
    if len(classes) != num_classes:
        shown = ", ".join(map(printable, classes[:5]))
        problems.append(f"expected {num_classes} class folders, found {len(classes)}: {shown} …")
    found: list[Entry] = []
    for label, class_name in enumerate(classes):
        before = len(found)
        with os.scandir(root / folder / class_name) as entries:
            for entry in entries:
                if entry.name.startswith(".") or Path(entry.name).suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                if problem := unreadable(entry.name):
                    problems.append(f"{folder}/{printable(class_name)}: {problem}")
                found.append(Entry(f"{folder}/{class_name}/{entry.name}", label, entry.stat().st_size))
        if len(found) == before:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            problems.append(f"{folder}/{printable(class_name)}: expected images, found none (suffixes {suffixes})")
    refuse(f"{root / folder} is not complete:", problems)
    return found, [folder, *(f"{folder}/{class_name}" for class_name in classes)]


def _read_list(root: Path, list_file: str, images: str, num_classes: int) -> Entries:
    """Every line of a "path label" list. Missing files, bad labels and duplicates are errors."""
    found: list[Entry] = []
    problems: list[str] = []
    seen: set[str] = set()
    for number, line in numbered_lines(root / list_file):
        path, _, label = line.rstrip().rpartition(" ")
        if not path or not label.isdecimal() or int(label) >= num_classes:
            problems.append(f"line {number}: expected 'path label' with a label in 0…{num_classes - 1}, found '{line}'")
        elif path in seen:
            problems.append(f"line {number}: {path} is listed twice")
        else:
            seen.add(path)
            path = joined(images, path)
            size = size_of(root / path)
            if size is None:
                problems.append(f"line {number}: no file {path}")
            else:
                found.append(Entry(path, int(label), size))
    if not found and not problems:
        problems.append("the list is empty")
    refuse(f"{root / list_file} is not usable:", problems)
    return found, [list_file, *_folders(found)]


def _read_inaturalist(root: Path, json_file: str, images: str, num_classes: int) -> Entries:
    """Every image of an iNaturalist file, joined with its annotation by id: time grows with their number only."""
    content = read_json(root / json_file)
    if not isinstance(content, dict) or any(not isinstance(content.get(k), list) for k in ("images", "annotations")):
        raise DataError(
            f"{root / json_file}: expected a JSON mapping with the lists 'images' and 'annotations', found "
            f"{_kind(content)}; restore the file."
        )
    problems: list[str] = []
    files = _files_by_id(content["images"], problems)
    labels = _labels_by_id(content["annotations"], files, num_classes, problems)
    found: list[Entry] = []
    for image, file_name in files.items():
        path = joined(images, file_name)
        if image not in labels:
            problems.append(f"image id {image} ({file_name}): no annotation")
        elif (size := size_of(root / path)) is None:
            problems.append(f"image id {image}: no file {path}")
        else:
            found.append(Entry(path, labels[image], size))
    if not files and not problems:
        problems.append("the list 'images' is empty")
    refuse(f"{root / json_file} is not usable:", problems)
    return found, [json_file, *_folders(found)]


def _read_coco(root: Path, json_file: str, images: str) -> Entries:
    """Every image of COCO's file. A missing picture, an id or a file named twice and an empty list are errors."""
    content = read_json(root / json_file)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(
            f"{root / json_file}: expected a JSON mapping with the list 'images', found {_kind(content)}; restore the "
            "file."
        )
    problems: list[str] = []
    annotations = sha256_file(root / json_file)
    found: list[Entry] = []
    for image, file_name in _files_by_id(content["images"], problems).items():
        path = joined(images, file_name)
        size = size_of(root / path)
        if size is None:
            problems.append(f"image id {image}: no file {path}")
        else:
            found.append(Entry(path, annotations, size, json_file))
    if not content["images"]:
        problems.append("the list 'images' is empty")
    refuse(f"{root / json_file} is not usable:", problems)
    return found, [json_file, *_folders(found)]


def _files_by_id(images: Sequence[Any], problems: list[str]) -> dict[int, str]:
    files: dict[int, str] = {}
    owners: dict[str, int] = {}
    for number, image in enumerate(images, start=1):
        key, name = (image.get("id"), image.get("file_name")) if isinstance(image, dict) else (None, None)
        if type(key) is not int or not isinstance(name, str) or not name:
            problems.append(
                f"image {number} of the list: expected an integer id and a file_name, found {_short(image)}"
            )
        elif problem := unreadable(name):
            problems.append(f"image id {key}: {problem}")
        elif key in files:
            problems.append(f"image id {key}: {files[key]} and {name} both have it")
        elif name in owners:
            problems.append(f"image id {key}: {name} is image id {owners[name]}'s file too")
        else:
            files[key] = name
            owners[name] = key
    return files


def _labels_by_id(
    annotations: Sequence[Any], files: dict[int, str], num_classes: int, problems: list[str]
) -> dict[int, int]:
    labels: dict[int, int] = {}
    for annotation in annotations:
        content = annotation if isinstance(annotation, dict) else {}
        image, category = content.get("image_id"), content.get("category_id")
        if type(image) is not int or image not in files:
            problems.append(f"annotation {_short(annotation)}: image_id {image!r} is no image's id")
        elif image in labels:
            problems.append(f"image id {image} ({files[image]}): more than one annotation")
        else:
            labels[image] = category if type(category) is int else -1
            if not 0 <= labels[image] < num_classes:
                problems.append(
                    f"image id {image} ({files[image]}): expected a category_id in 0…{num_classes - 1}, "
                    f"found {category!r}"
                )
    return labels


def _read_class_lists(root: Path, pattern: str, images: str, classes: Sequence[str]) -> Entries:
    """Every image of the class lists, which must all name the same ones, with its row of labels."""
    problems: list[str] = []
    columns: dict[str, dict[str, int]] = {}
    for name in classes:
        list_file = pattern.format(name)
        if not (root / list_file).is_file():
            problems.append(f"no file {list_file}: expected a list for each of the {len(classes)} classes")
            continue
        columns[name] = _read_class_list(root, list_file, problems)
        if 1 not in columns[name].values():
            problems.append(f"{list_file}: no image shows class '{name}': expected a line 'image 1', found none")
    _refuse_different_images(pattern, columns, problems)
    found: list[Entry] = []
    for image in sorted(set().union(*columns.values())):
        path = joined(".", images.format(image))
        size = size_of(root / path)
        if size is None:
            problems.append(f"image {image}: no file {path}")
        elif all(image in column for column in columns.values()):
            row = tuple(column[image] for column in columns.values())
            found.append(Entry(path, " ".join(map(str, row)), size, row=row))
    refuse(f"{root / pattern.format('<class>')} are not usable:", problems)
    return found, [*(pattern.format(name) for name in classes), *_folders(found)]


def _read_class_list(root: Path, list_file: str, problems: list[str]) -> dict[str, int]:
    column: dict[str, int] = {}
    for number, line in numbered_lines(root / list_file):
        image, *values = line.split()
        if len(values) != 1 or values[0] not in VOC_LABELS:
            expected = "expected 'image 1' (there), 'image -1' (not there) or 'image 0' (difficult)"
            problems.append(f"{list_file}, line {number}: {expected}, found '{line}'")
        elif image in column:
            problems.append(f"{list_file}, line {number}: {image} is listed twice")
        else:
            column[image] = VOC_LABELS[values[0]]
    return column


def _refuse_different_images(pattern: str, columns: dict[str, dict[str, int]], problems: list[str]) -> None:
    """Add a problem for every class list that names other images than the first."""
    names = list(columns)
    for name in names[1:]:
        for more, fewer in ((names[0], name), (name, names[0])):
            images = sorted(columns[more].keys() - columns[fewer].keys())
            if images:
                shown = ", ".join(images[:3]) + (f" and {len(images) - 3:,} more" if len(images) > 3 else "")
                problems.append(f"{pattern.format(fewer)}: {shown} not listed, but in {pattern.format(more)}")


def _read_image_sets(root: Path, parts: Sequence[ImageSet]) -> Entries:
    """Every name of the files together. A missing picture or annotation and a name listed twice are errors."""
    found: list[Entry] = []
    watched: set[str] = set()
    seen: set[str] = set()
    for part in parts:
        problems: list[str] = []
        before = len(found)
        for number, line in numbered_lines(root / part.names):
            name = line.strip()
            image, annotation = (joined(".", p.format(name)) for p in (part.images, part.annotations))
            if image in seen:
                problems.append(f"line {number}: {name} is listed twice")
                continue
            seen.add(image)
            sizes = [size_of(root / path) for path in (image, annotation)]
            missing = [path for path, size in zip((image, annotation), sizes, strict=True) if size is None]
            problems += [f"line {number}: no file {path}" for path in missing]
            if sizes[0] is not None and not missing:
                found.append(Entry(image, sha256_file(root / annotation), sizes[0], annotation))
        if len(found) == before and not problems:
            problems.append("the list is empty")
        refuse(f"{root / part.names} is not usable:", problems)
        watched |= {part.names, os.path.dirname(part.images), os.path.dirname(part.annotations)}
    return found, sorted(watched)


def _read_cityscapes(root: Path, split: str) -> Entries:
    """Every image of a split of Cityscapes with its label map, which must be of one kind for all of them."""
    listing = cityscapes.list_split(root, split)
    problems = list(listing.problems)
    found: list[Entry] = []
    for image, labels in listing.pairs:
        size = size_of(root / image)
        if problem := unreadable(image):
            problems.append(problem)
        elif size is None or size_of(root / labels) is None:
            problems.append(f"{image if size is None else labels}: a link to nothing, or no file; restore it")
        else:
            found.append(Entry(image, sha256_file(root / labels), size, labels))
    refuse(f"{root}: Cityscapes' split '{split}' is not usable:", problems)
    return found, listing.folders


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of every line that is not blank. Raises DataError when it is not UTF-8 text."""
    lines = _decoded(path).splitlines()
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def read_json(path: Path) -> Any:
    """A JSON file's data. Raises DataError naming the file, and the line where it breaks off."""
    try:
        return json.loads(_decoded(path))
    except ValueError as error:
        raise DataError(f"{path}: expected JSON, found something else ({error}); restore the file.") from error


def _decoded(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); save it as UTF-8.") from error


def joined(folder: str, path: str) -> str:
    """`path` below `folder`, in its shortest form; a leading slash (Places365's lists) means the folder itself."""
    return os.path.normpath(f"{folder}/{path}")


def size_of(path: Path) -> int | None:
    """A file's size in bytes; None if there is no such file."""
    try:
        status = path.stat()
        return status.st_size if stat.S_ISREG(status.st_mode) else None
    except (OSError, ValueError):  # ValueError: a name that cannot be one, as with a NUL
        return None


def unreadable(name: str) -> str | None:
    """What is wrong with a name found on disk that cannot stand in a list or a manifest; None if nothing is."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return f"{printable(name)}: the name is not UTF-8; rename it"
    return f"{printable(name)}: the name holds a tab or a line's end; rename it" if _breaks_lines(name) else None


def printable(name: str) -> str:
    """A name as it is, or its bytes where a terminal could not show it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return repr(os.fsencode(name))
    return repr(name) if _breaks_lines(name) else name


def _breaks_lines(name: str) -> bool:
    return "\t" in name or "\n" in name or "\r" in name


def refuse(title: str, problems: Sequence[str]) -> None:
    """Raise DataError if there are problems: the title, the first 20, and how many more there are."""
    if problems:
        more = [f"… and {len(problems) - MOST_NAMED:,} more"] if len(problems) > MOST_NAMED else []
        raise DataError(several(title, [*problems[:MOST_NAMED], *more]))


def _folders(entries: Sequence[Entry]) -> list[str]:
    return sorted({os.path.dirname(entry.path) for entry in entries})


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return f"a mapping with {', '.join(map(repr, list(value)[:5])) or 'nothing'}"
    return f"a {type(value).__name__}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
