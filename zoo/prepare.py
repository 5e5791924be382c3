"""Which list files does a dataset want that its archives do not hold, and what is in them?

    image_list      made from class folders or iNaturalist's JSON, where the split may have that layout too
    class_lists     made from the boxes' annotations (VOC07): an object that is not difficult → 1, difficult ones only
                    → 0, none → -1
    image_sets      a set marked `rest`: every annotation of its folder that no other set of the dataset names
                    (SegmentationClassAug without train and val)

Nothing is downloaded, no existing file is changed unless asked, and a list is written only when it names as many images
as the dataset's description expects.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zoo.datasets import DatasetConfig, SplitConfig
from zoo.errors import DataError, several
from zoo.files import write_atomic
from zoo.layouts import ImageSet, Layout, joined, numbered_lines, read, refuse, size_of, unreadable
from zoo.voc import read_annotation

Done = Literal["written", "same", "replaced", "differs", "unknown"]
ARCHIVE = "it is part of the dataset's archives"


@dataclass(frozen=True, kw_only=True)
class ListFile:
    """A list file that a layout wants. lines: what it should hold; None where there is nothing to make it from."""

    path: str  # relative to the dataset's folder
    lines: tuple[str, ...] | None
    missing: str | None = None  # with lines None: what it would have been made from


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one list file.

    written: it was missing; same: there already, with these lines; differs: there already with other lines, kept;
    replaced: as differs, but asked to (force); unknown: there already, and there is nothing to compare it with.
    """

    path: str
    done: Done
    num_lines: int


def prepare_lists(config: DatasetConfig, root: Path, *, force: bool = False) -> tuple[list[Outcome], list[str]]:
    """Make the list files of every split; (what became of each, what stands in the way of the others).

    One split's problems, an unwritable folder among them, do not keep another's lists from being written.
    """
    outcomes: dict[str, Outcome] = {}
    problems: list[str] = []
    for split, expected in config.splits.items():
        for layout in expected.layouts:
            try:
                for one in _wanted(config, root, layout, expected):
                    if one.lines is None and not (root / one.path).exists():
                        problems.append(f"{split}: no file {one.path}, and nothing to make it from: {one.missing}")
                    elif one.path not in outcomes:
                        outcomes[one.path] = _settle(root, one, force=force)
            except DataError as error:
                problems.append(indented(f"{split}: {error}"))
    return list(outcomes.values()), list(dict.fromkeys(problems))


def _settle(root: Path, one: ListFile, *, force: bool) -> Outcome:
    path = root / one.path
    there = [line for _, line in numbered_lines(path)] if path.exists() else None
    if one.lines is None:
        return Outcome(path=one.path, done="unknown", num_lines=len(there or ()))
    done: Done = "written"
    if there is not None:
        same = sorted(map(_spaced, there)) == sorted(map(_spaced, one.lines))  # in whatever order
        done = "same" if same else "replaced" if force else "differs"
    if done in ("written", "replaced"):
        try:
            write_atomic(path, "".join(f"{line}\n" for line in one.lines))
        except OSError as error:
            raise DataError(
                f"{path}: cannot be written ({error.strerror or error}); make its folder writable."
            ) from error
    return Outcome(path=one.path, done=done, num_lines=len(one.lines))


def _spaced(line: str) -> str:
    return " ".join(line.split())  # VOC's own class lists align their numbers


def _wanted(config: DatasetConfig, root: Path, layout: Layout, split: SplitConfig) -> Iterator[ListFile]:
    """The list files of one layout. Raises DataError when what they are made from is not whole."""
    if layout.image_list is not None:
        yield _image_list(config, root, layout, split)
    elif layout.class_lists is not None and layout.names is not None:
        yield from _class_lists(config, root, layout, split)
    for part in layout.image_sets or ():
        yield (
            _rest(config, root, part, layout, split)
            if part.rest
            else ListFile(path=part.names, lines=None, missing=ARCHIVE)
        )


def _image_list(config: DatasetConfig, root: Path, layout: Layout, split: SplitConfig) -> ListFile:
    assert layout.image_list is not None and layout.images is not None
    sources = [one for one in split.layouts if one.class_folders is not None or one.inaturalist_json is not None]
    source = next((one for one in sources if one.is_present(root, ())), None)
    if source is None:
        missing = " or ".join(f"expected {one}" for one in sources) or ARCHIVE
        return ListFile(path=layout.image_list, lines=None, missing=missing)
    entries, _ = read(root, source, num_classes=config.num_classes, classes=())
    _check_number(len(entries), split, str(source))
    lines = sorted(f"{os.path.relpath(entry.path, layout.images)} {entry.label}" for entry in entries)
    return ListFile(path=layout.image_list, lines=tuple(lines))


def _class_lists(config: DatasetConfig, root: Path, layout: Layout, split: SplitConfig) -> Iterator[ListFile]:
    assert layout.class_lists is not None and layout.names is not None and layout.annotations is not None
    assert config.classes is not None, "DatasetConfig holds that class_lists come with classes"
    files = [layout.class_lists.format(name) for name in config.classes]
    sources = [root / layout.names, (root / layout.annotations).parent]
    missing = [str(path.relative_to(root)) for path in sources if not path.exists()]
    if missing:
        yield from (ListFile(path=path, lines=None, missing=f"expected {' and '.join(missing)}") for path in files)
        return
    names = _names(root, layout.names)
    _check_number(len(names), split, layout.names)
    rows: list[list[int]] = []
    problems: list[str] = []
    for name in names:
        try:
            rows.append(_present(root / layout.annotations.format(name), config.classes))
        except DataError as error:
            problems.append(str(error))
    refuse(f"{root / layout.names}: its images' annotations are not usable:", problems)
    for column, path in enumerate(files):
        lines = (f"{name} {row[column]:2d}" for name, row in zip(names, rows, strict=True))
        yield ListFile(path=path, lines=tuple(lines))


def _present(annotation: Path, classes: tuple[str, ...]) -> list[int]:
    """1, 0 or -1 for each class, as VOC's class lists say it."""
    row = [-1] * len(classes)
    for thing in read_annotation(annotation, classes).objects:
        row[thing.label] = max(row[thing.label], int(not thing.difficult))
    return row


def _rest(config: DatasetConfig, root: Path, rest: ImageSet, layout: Layout, split: SplitConfig) -> ListFile:
    others = [
        part
        for one in config.splits.values()
        for other in one.layouts
        for part in other.image_sets or ()
        if part.names != rest.names
    ]
    folder, pattern = os.path.split(rest.annotations)
    missing = [path for path in (*(part.names for part in others), folder) if not (root / path).exists()]
    if missing:
        return ListFile(path=rest.names, lines=None, missing=f"expected {' and '.join(dict.fromkeys(missing))}")
    taken = {name for part in others for name in _names(root, part.names)}
    start, end = pattern.split("{}")
    found = [name for name in os.listdir(root / folder) if name.startswith(start) and name.endswith(end)]
    problems = [problem for name in found if (problem := unreadable(name))]
    names = sorted({name[len(start) : len(name) - len(end)] for name in found} - taken)
    pictures = (joined(".", rest.images.format(name)) for name in names)
    problems += [
        f"{picture}: no such file, but an annotation" for picture in pictures if size_of(root / picture) is None
    ]
    refuse(f"{root / folder} is not usable:", problems)
    listed = [part for part in layout.image_sets or () if part.names != rest.names]
    _check_number(len(names) + sum(len(_names(root, part.names)) for part in listed), split, str(layout))
    return ListFile(path=rest.names, lines=tuple(names))


def _names(root: Path, path: str) -> list[str]:
    """The names of a list in sorted order. Raises DataError when it names one twice or none."""
    names = sorted(line.strip() for _, line in numbered_lines(root / path))
    problems = [f"{name} is listed twice" for name, after in zip(names, names[1:], strict=False) if name == after]
    refuse(f"{root / path} is not usable:", problems if names else ["the list is empty"])
    return names


def _check_number(found: int, split: SplitConfig, where: str) -> None:
    if split.num_images is not None and found != split.num_images:
        raise DataError(
            f"{where}: expected {split.num_images:,} images, found {found:,}; nothing was written. Unpack the archives "
            "in full, or describe the subset as a dataset of its own."
        )


def summary(outcomes: list[Outcome]) -> list[str]:
    """A line for each list file, for people."""
    words = {
        "written": "written, {} lines",
        "replaced": "replaced, {} lines now",
        "same": "there already: the same {} lines",
        "differs": "there already and different from the {} lines that belong here; kept (--force replaces it)",
        "unknown": "there already, {} lines; nothing here to compare it with",
    }
    return [f"{one.path}: {words[one.done].format(f'{one.num_lines:,}')}" for one in outcomes]


def incomplete(name: str, problems: list[str]) -> DataError:
    """The error for lists that could not be made."""
    return DataError(several(f"dataset '{name}': not every list file could be made:", problems))


def indented(message: str) -> str:
    """A message that may have lines of its own, as one item of another's list."""
    return message.replace("\n", "\n  ")
