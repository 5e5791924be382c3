"""Views finished on the device are the reference's: parameters, decoding and colours to the bit, blur nearly."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from pretrain.photometric import _decode, apply_rows, as_row, read_crops
from pretrain.views import Jitter, ViewParameters, apply, apply_jitter, draw, read_views
from zoo.datasets import decode
from zoo.errors import DataError
from zoo.recipe import Views
from zoo.transforms import sample_rng

SIZE = 48
VIEWS = Views(
    crop=SIZE,
    area=(0.2, 1.0),
    interpolation="bilinear",
    jitter=(0.4, 0.4, 0.4, 0.1),
    jitter_probability=0.8,
    grayscale_probability=0.2,
    blur_sigma=(0.1, 2.0),
    blur_probability=0.5,
    flip_probability=0.5,
    photometric="device",
)
PLAIN = ViewParameters(box=(0, 0, SIZE, SIZE), jitter=None, grayscale=False, blur_radius=None, flip=False)


def blots(seed: int, width: int, height: int, *, detail: int = 6) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (detail, detail, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def on_device(images: list[Image.Image], drawn: list[ViewParameters]) -> np.ndarray:
    """(B, H, W, 3), as the training loop makes them: crops from a worker, flipped, and their rows."""
    crops = [np.asarray(image)[:, :: -1 if view.flip else 1] for image, view in zip(images, drawn, strict=True)]
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    rows = torch.from_numpy(np.stack([as_row(view) for view in drawn]))
    return apply_rows(pixels, rows).permute(0, 2, 3, 1).numpy()


def test_jitter_greyscale_and_flip_are_the_references_to_the_bit() -> None:
    drawn = [draw((SIZE, SIZE), VIEWS, sample_rng(0, 0, index)) for index in range(64)]
    drawn = [ViewParameters(**{**vars(view), "box": PLAIN.box, "blur_radius": None}) for view in drawn]
    images = [blots(seed, SIZE, SIZE, detail=SIZE if seed % 2 else 6) for seed in range(64)]
    expected = np.stack([np.asarray(apply(*each, VIEWS)) for each in zip(images, drawn, strict=True)])
    assert {view.grayscale for view in drawn} == {view.flip for view in drawn} == {True, False}
    assert len({view.jitter.order for view in drawn if view.jitter}) > 15
    assert np.array_equal(on_device(images, drawn), expected)


@pytest.mark.parametrize("hue", [-0.1, 0.0631])
def test_a_hue_is_the_references_for_every_kind_of_colour(hue: float) -> None:
    levels = np.r_[0:256:5].astype(np.uint8)  # 0, 5, … 255: 140,608 colours
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(len(levels), -1, 3)
    jitter = Jitter(order=(0, 1, 2, 3), brightness=None, contrast=None, saturation=None, hue=hue)
    view = ViewParameters(**{**vars(PLAIN), "jitter": jitter})
    image = Image.fromarray(colours)
    assert np.array_equal(on_device([image], [view])[0], np.asarray(apply_jitter(image, jitter)))


def test_blur_is_the_references_within_two_levels() -> None:
    radii = (0.1, 0.3, 0.5, 0.8, 1.1, 1.3, 1.6, 2.0)
    drawn = [ViewParameters(**{**vars(PLAIN), "blur_radius": radius}) for radius in radii]
    images = [blots(seed, SIZE, SIZE - 8, detail=SIZE) for seed in range(len(radii))]  # not square
    expected = np.stack([np.asarray(i.filter(ImageFilter.GaussianBlur(r))) for i, r in zip(images, radii, strict=True)])
    difference = on_device(images, drawn) - expected
    assert np.abs(difference).max() <= 2 and np.abs(difference).mean() < 0.7
    assert abs(difference.mean()) < 0.05  # none is systematic


def test_what_is_switched_off_changes_nothing() -> None:
    image = blots(0, SIZE, SIZE)
    assert np.array_equal(on_device([image], [PLAIN])[0], np.asarray(image))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    photograph = blots(1, 123, 90, detail=20)
    for number, subsampling in enumerate(("4:4:4", "4:2:0", "4:2:2")):
        photograph.save(folder / f"{number}.jpg", quality=90, subsampling=subsampling)
    photograph.save(folder / "3.jpg", progressive=True)
    photograph.convert("L").save(folder / "4.jpg")
    photograph.convert("CMYK").save(folder / "5.jpg")
    photograph.save(folder / "6.png")
    photograph.convert("P").save(folder / "7.gif")
    return folder


def reader(folder: Path) -> Any:
    paths = sorted(folder.iterdir())
    return SimpleNamespace(path=lambda index: paths[index])


def test_images_are_decoded_as_by_the_reference(files: Path) -> None:
    for path in files.iterdir():
        found = _decode(path)
        assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(decode(path))), path.name


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_samples_views_are_the_references(files: Path, interpolation: Any) -> None:
    views, images = VIEWS.model_copy(update={"interpolation": interpolation}), reader(files)
    for index in range(8):
        expected = read_views(images, views, 0, 2, (3, index))
        *crops, first_row, second_row = read_crops(images, views, 0, 2, (3, index))
        size = decode(images.path(index)).size
        for view, row in enumerate((first_row, second_row)):
            assert np.array_equal(row, as_row(draw(size, views, sample_rng(0, 3, index, view))), equal_nan=True)
        assert crops[0].shape == (SIZE, SIZE, 3) and crops[0].dtype == np.uint8
        pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
        found = apply_rows(pixels, torch.from_numpy(np.stack([first_row, second_row]))).permute(0, 2, 3, 1).numpy()
        difference = np.abs(found - np.stack(expected))
        assert difference.mean() < 1.3 and np.quantile(difference, 0.99) <= 4, index


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "0.jpg: the image cannot be decoded"),
        (lambda content: b"\xff\xd8 nothing", "0.jpg: expected an image, found something PIL cannot identify"),
        (None, "0.jpg: the image has vanished"),
    ],
)
def test_an_unreadable_image_is_named(files: Path, tmp_path: Path, damage: Any, message: str) -> None:
    path = tmp_path / "0.jpg"
    if damage is not None:
        path.write_bytes(damage((files / "0.jpg").read_bytes()))
    with pytest.raises(DataError, match=message):
        read_crops(SimpleNamespace(path=lambda index: path), VIEWS, 0, 2, (0, 0))  # type: ignore[arg-type]
