"""What are a dataset's classes called, in label order? For showing predictions; no number depends on it."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from zoo.config import Strict
from zoo.errors import DataError
from zoo.layouts import numbered_lines, read_json, refuse

Files = Annotated[tuple[str, ...], Field(min_length=1)]


class ClassNamesFrom(Strict):
    """Where the names are. Exactly one of the four; paths are relative to the dataset's folder.

    id_name_list: lines "n01440764 tench" in label order; the name is what follows the first blank.
    name_index_list: lines "/a/abbey 0" in any order (Places205, Places365); the name is what follows "/a/".
    categories_json: the first of these files that is there: iNaturalist's categories, or a file with them under
    `categories`; their ids are the labels.
    torchvision: the weights whose list of categories it is.
    """

    id_name_list: str | None = None
    name_index_list: str | None = None
    categories_json: Files | None = None
    torchvision: Literal["ResNet50_Weights.IMAGENET1K_V1"] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "ClassNamesFrom":
        fields = list(type(self).model_fields)
        if sum(getattr(self, field) is not None for field in fields) != 1:
            raise ValueError(f"expected exactly one of {', '.join(fields[:-1])} and {fields[-1]}")
        return self


def read_class_names(root: Path, source: ClassNamesFrom, num_classes: int) -> tuple[str, ...]:
    """`num_classes` names in label order. Raises DataError when the file is missing or names other labels."""
    if source.id_name_list is not None:
        path = _first_file(root, (source.id_name_list,))
        return _in_order(path, _id_name_lines(path), num_classes)
    if source.name_index_list is not None:
        path = _first_file(root, (source.name_index_list,))
        return _in_order(path, _name_index_lines(path), num_classes)
    if source.categories_json is not None:
        path = _first_file(root, source.categories_json)
        return _in_order(path, _categories(path), num_classes)
    from torchvision.models import ResNet50_Weights  # loads torch: only for those who ask

    names = tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
    if len(names) != num_classes:
        raise DataError(f"torchvision's ImageNet categories: expected {num_classes} names, found {len(names)}.")
    return names


Labelled = list[tuple[int, str]]


def _id_name_lines(path: Path) -> Labelled:
    found: Labelled = []
    problems: list[str] = []
    for label, (number, line) in enumerate(numbered_lines(path)):
        _, _, name = line.strip().partition(" ")
        if not name:
            problems.append(f"line {number}: expected 'id name', found '{line}'")
        found.append((label, name.strip()))
    refuse(f"{path} is not usable:", problems)
    return found


def _name_index_lines(path: Path) -> Labelled:
    found: Labelled = []
    problems: list[str] = []
    for number, line in numbered_lines(path):
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdecimal():
            problems.append(f"line {number}: expected '/letter/name index', found '{line}'")
        else:
            found.append((int(label), re.sub(r"^/?\w/", "", name)))
    refuse(f"{path} is not usable:", problems)
    return found


def _categories(path: Path) -> Labelled:
    content = read_json(path)
    categories = content.get("categories") if isinstance(content, dict) else content
    if not isinstance(categories, list):
        raise DataError(f"{path}: expected a list of categories, or one under 'categories', found none; restore it.")
    found: Labelled = []
    problems: list[str] = []
    for number, category in enumerate(categories, start=1):
        label, name = (category.get("id"), category.get("name")) if isinstance(category, dict) else (None, None)
        if type(label) is not int or not isinstance(name, str) or not name:
            problems.append(f"category {number} of the list: expected an integer id and a name")
        else:
            found.append((label, name))
    refuse(f"{path} is not usable:", problems)
    return found


def _in_order(path: Path, labelled: Labelled, num_classes: int) -> tuple[str, ...]:
    labels = sorted(label for label, _ in labelled)
    if labels != list(range(num_classes)):
        odd = sorted(label for label, times in Counter(labels).items() if times > 1 or not 0 <= label < num_classes)
        odd += sorted(set(range(num_classes)) - set(labels))
        shown = ", ".join(map(str, odd[:5])) + (" …" if len(odd) > 5 else "")
        raise DataError(
            f"{path}: expected one name for each label in 0…{num_classes - 1}, found {len(labels)} names; look at "
            f"label {shown}."
        )
    return tuple(name for _, name in sorted(labelled))


def _first_file(root: Path, names: Sequence[str]) -> Path:
    path = next((root / name for name in names if (root / name).is_file()), None)
    if path is None:
        raise DataError(
            f"{root}: expected the class names in {' or '.join(names)}, found no such file; it is part of the "
            "dataset's archives."
        )
    return path
