"""The odd files are what `tests/odd_images.py` says they are, as plain Pillow sees them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.odd_images import ODD_IMAGES, ORIENTATION, ROTATE_90, write_odd_images

MODES = {
    "grey.jpg": "L",
    "cmyk.jpg": "CMYK",
    "exif_rotated.jpg": "RGB",
    "sixteen_bit.png": "I;16",
    "one_wide.jpg": "RGB",
    "one_high.jpg": "RGB",
    "palette_transparent.png": "P",
    "alpha.png": "RGBA",
    "png_named_jpeg.JPEG": "RGB",
}
READABLE = [name for name, expected in ODD_IMAGES.items() if expected.size is not None]
REFUSED = [name for name, expected in ODD_IMAGES.items() if expected.size is None]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_odd_images(tmp_path_factory.mktemp("odd"))


@pytest.mark.parametrize("name", READABLE)
def test_a_readable_odd_file_has_the_mode_and_size_it_is_listed_with(paths: dict[str, Path], name: str) -> None:
    with Image.open(paths[name]) as image:
        image.load()
        assert (image.mode, image.size) == (MODES[name], ODD_IMAGES[name].size)


@pytest.mark.parametrize("name", [name for name in READABLE if ODD_IMAGES[name].pixels and name != "sixteen_bit.png"])
def test_pillow_shows_the_expected_pixels(paths: dict[str, Path], name: str) -> None:
    expected = ODD_IMAGES[name]
    assert expected.pixels is not None
    with Image.open(paths[name]) as image:
        assert _difference(image.convert("RGB"), expected.pixels()) < expected.tolerance


def test_pillow_alone_shows_a_sixteen_bit_file_as_white(paths: dict[str, Path]) -> None:
    """The trap a loader has to avoid; if Pillow ever mends it, its special case can go."""
    with Image.open(paths["sixteen_bit.png"]) as image:
        assert np.asarray(image.convert("RGB")).mean() > 250


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_odd_file_is_refused_by_pillow(paths: dict[str, Path], name: str) -> None:
    with pytest.raises((OSError, Image.DecompressionBombError)), Image.open(paths[name]) as image:
        image.load()


def test_the_rotated_file_carries_its_orientation(paths: dict[str, Path]) -> None:
    with Image.open(paths["exif_rotated.jpg"]) as image:
        assert image.getexif()[ORIENTATION] == ROTATE_90


def _difference(image: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(image, dtype=np.float64) - np.asarray(other, dtype=np.float64)).mean())
