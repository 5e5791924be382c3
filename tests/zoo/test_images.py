"""A file that was cut off is named, whatever its header says; one with other bytes behind its end is not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zoo import images
from zoo.errors import DataError
from zoo.images import check_whole, opened


def drawn(path: Path, **options: Any) -> bytes:
    """A noisy picture saved at `path`; its bytes."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(path, **options)
    return path.read_bytes()


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        check_whole(path)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", ["baseline.jpg", "progressive.jpg", "a.png"])
def test_a_file_without_its_end_is_cut_off(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = drawn(path, progressive=name == "progressive.jpg")
    check_whole(path)
    for length in (len(content) // 2, len(content) - 30, len(content) - 1):
        path.write_bytes(content[:length])
        with opened(path) as image:
            assert image.size == (50, 40)  # its header is there
        assert refusal(path) == "the image is cut off (the file has no end of image); restore the file."
    path.write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))  # a download that had reserved its space
    assert refusal(path).startswith("the image is cut off (") and refusal(path).endswith("); restore the file.")


def test_a_thumbnail_s_end_is_not_the_picture_s(tmp_path: Path) -> None:
    small = drawn(tmp_path / "small.jpg")
    path = tmp_path / "a.jpg"
    content = drawn(path, exif=b"Exif\0\0" + small)
    check_whole(path)
    path.write_bytes(content[:-200])
    said = refusal(path)
    assert said.startswith("the image is cut off (image file is truncated (") and said.endswith("); restore the file.")


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_other_bytes_behind_the_end_are_let_pass(tmp_path: Path, name: str) -> None:
    content = drawn(tmp_path / name)
    (tmp_path / name).write_bytes(content + b"\xff\xdaother bytes\0")
    check_whole(tmp_path / name)


def test_a_whole_file_is_not_decoded_and_other_formats_are_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jpg", "a.png", "a.bmp", "a.webp"):
        drawn(tmp_path / name)
    for name, content in {
        "cut.bmp": (tmp_path / "a.bmp").read_bytes()[:-9],
        "text.jpg": b"x",
        "empty.jpg": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(images, "Image", None)
    for path in tmp_path.iterdir():
        check_whole(path)
    assert refusal(tmp_path / "gone.jpg") == "the image cannot be read (No such file or directory); restore the file."
