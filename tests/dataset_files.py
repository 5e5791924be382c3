"""What tests of datasets share: files whose bytes do not matter, and how a test describes a dataset."""

from collections.abc import Callable, Mapping
from pathlib import Path

FOLDERS = {"class_folders": "train"}
LIST = {"image_list": "meta/train.txt", "images": "images"}
Describe = Callable[..., Path]  # the `describe` fixture of tests/zoo


def fill(path: Path, size: int = 10) -> None:
    """A file of some bytes: listing never looks inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))


def write_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def tree(root: Path) -> Mapping[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
