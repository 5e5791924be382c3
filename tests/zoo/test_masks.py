"""A label map is what mmsegmentation would read, or refused by a message that names the file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.cityscapes import LABELS
from zoo.errors import DataError
from zoo.masks import header_problem, read_mask


def saved(path: Path, *values: int, mode: str = "L", height: int = 8) -> Path:
    """A mask 10 pixels wide of these values."""
    Image.fromarray(np.resize(np.array(values, np.uint8), (height, 10))).convert(mode).save(path)
    return path


def refusal(path: Path, classes: int = 3) -> str:
    with pytest.raises(DataError) as caught:
        read_mask(path, classes)
    return str(caught.value).removeprefix(f"{path}: ")


def test_greys_and_palettes_are_numbers(tmp_path: Path) -> None:
    expected = np.resize([0, 1, 2, 255], (8, 10))
    grey = saved(tmp_path / "grey.png", 0, 1, 2, 255)
    palette = Image.open(grey)
    palette.putpalette([255 - value // 3 for value in range(768)])
    palette.save(tmp_path / "palette.png")
    for name in ("grey", "palette"):
        found = read_mask(tmp_path / f"{name}.png", 3)
        assert found.dtype == np.uint8 and np.array_equal(found, expected)


def test_release_s_ids_become_train_ids(tmp_path: Path) -> None:
    ids = [label.id for label in LABELS] + [255]
    found = read_mask(saved(tmp_path / "a_gtFine_labelIds.png", *ids), 19)
    assert np.array_equal(found, np.resize([label.train_id for label in LABELS] + [255], (8, 10)))
    path = saved(tmp_path / "b_gtFine_labelIds.png", 7, 34, 200)
    assert refusal(path, 19) == "expected labels 0…33 and 255, found 34, 200; restore the file."
    path = saved(tmp_path / "b_gtFine_labelTrainIds.png", 18, 19)
    assert refusal(path, 19) == "expected labels 0…18 and 255, found 19; restore the file."


def test_what_is_no_label_map_is_named(tmp_path: Path) -> None:
    assert refusal(saved(tmp_path / "a.png", 0, 3, 254)) == (
        "expected labels 0…2 and 255, found 3, 254; restore the file."
    )
    assert refusal(saved(tmp_path / "b.png", 1, mode="RGB")) == (
        "expected a mask of one byte a pixel (grey or palette), found colours; restore the file."
    )
    assert "found pixels of PIL's mode 'I;16'; restore" in refusal(saved(tmp_path / "c.png", 1, mode="I;16"))
    assert "found pixels of PIL's mode '1'; restore" in refusal(saved(tmp_path / "d.png", 0, 255, mode="1"))
    broken = saved(tmp_path / "e.png", *np.random.default_rng(0).integers(0, 3, 80))
    broken.write_bytes(broken.read_bytes()[:-40])
    assert refusal(broken).startswith("the mask cannot be decoded (")
    (tmp_path / "f.png").write_bytes(b"no picture")
    assert refusal(tmp_path / "f.png") == "expected an image, found something PIL cannot identify; replace the file."
    assert refusal(tmp_path / "g.png") == "the file has vanished since the dataset was listed; restore it."


def test_headers_are_compared_without_pixels(tmp_path: Path) -> None:
    image = saved(tmp_path / "image.jpg", 90, mode="RGB")
    good = saved(tmp_path / "good.png", 7)
    assert header_problem(good, image) is None
    high = saved(tmp_path / "high.png", 0, height=9)
    assert header_problem(high, image) == (
        f"{high}: a mask of 10 x 9 pixels, but its picture has 10 x 8; restore the one that is wrong."
    )
    assert header_problem(image, image) == (
        f"{image}: expected a mask of one byte a pixel (grey or palette), found colours; restore the file."
    )
    (tmp_path / "text.jpg").write_text("no picture")
    assert header_problem(good, tmp_path / "text.jpg") == (
        f"{tmp_path / 'text.jpg'}: expected an image, found something PIL cannot identify; replace the file."
    )


def test_a_picture_or_a_mask_that_is_cut_off_is_named(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 3, 80)
    image, mask = saved(tmp_path / "image.jpg", *values, mode="RGB"), saved(tmp_path / "mask.png", *values)
    for path in (mask, image):
        path.write_bytes(path.read_bytes()[:-2])
        assert header_problem(mask, image) == (
            f"{path}: the image is cut off (the file has no end of image); restore the file."
        )
