"""Views: drawn by the rule, applied as torchvision applies them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from torchvision import transforms

from pretrain.views import Jitter, ViewParameters, apply, apply_jitter, draw, read_views
from zoo.datasets import manifest
from zoo.recipe import Views
from zoo.transforms import sample_rng

VIEWS = Views(
    crop=24,
    area=(0.2, 1.0),
    interpolation="bilinear",
    jitter=(0.4, 0.4, 0.4, 0.1),
    jitter_probability=0.8,
    grayscale_probability=0.2,
    blur_sigma=(0.1, 2.0),
    blur_probability=0.5,
    flip_probability=0.5,
    photometric="pil",
)
NO_JITTER = ViewParameters(box=(3, 2, 20, 16), jitter=None, grayscale=False, blur_radius=None, flip=False)


@pytest.fixture
def image() -> Image.Image:
    blots = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(blots).resize((48, 40), Image.Resampling.BICUBIC)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_jitter_is_torchvisions_given_the_same_factors(
    image: Image.Image, order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    jitter = Jitter(order=order, brightness=1.3, contrast=0.7, saturation=1.2, hue=-0.07)
    theirs = transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
    drawn = (list(order), jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    monkeypatch.setattr(theirs, "get_params", lambda *strengths: drawn)
    assert np.array_equal(pixels(apply_jitter(image, jitter)), pixels(theirs(image)))


def test_the_crop_is_torchvisions_given_the_same_box(image: Image.Image) -> None:
    left, top, width, height = NO_JITTER.box
    theirs = transforms.functional.resized_crop(image, top, left, height, width, [24, 24])  # type: ignore[arg-type]
    assert np.array_equal(pixels(apply(image, NO_JITTER, VIEWS)), pixels(theirs))  # type: ignore[arg-type]


def test_steps_follow_the_order_crop_jitter_grey_blur_flip(image: Image.Image) -> None:
    jitter = Jitter(order=(1, 0, 3, 2), brightness=0.8, contrast=1.2, saturation=1.4, hue=0.1)
    drawn = ViewParameters(box=NO_JITTER.box, jitter=jitter, grayscale=True, blur_radius=1.5, flip=True)
    by_hand = apply_jitter(apply(image, NO_JITTER, VIEWS), jitter)
    by_hand = by_hand.convert("L").convert("RGB").filter(ImageFilter.GaussianBlur(1.5))
    assert np.array_equal(pixels(apply(image, drawn, VIEWS)), pixels(by_hand)[:, ::-1])


def test_draws_have_the_configured_probabilities_and_ranges() -> None:
    drawn = [draw((48, 40), VIEWS, sample_rng(0, 0, index)) for index in range(4000)]
    jitters = [view.jitter for view in drawn if view.jitter is not None]
    radii = [view.blur_radius for view in drawn if view.blur_radius is not None]
    assert len(jitters) / 4000 == pytest.approx(0.8, abs=0.025)
    assert sum(view.grayscale for view in drawn) / 4000 == pytest.approx(0.2, abs=0.025)
    assert len(radii) / 4000 == pytest.approx(0.5, abs=0.03)
    assert sum(view.flip for view in drawn) / 4000 == pytest.approx(0.5, abs=0.03)
    for values, low, high in [
        (radii, 0.1, 2.0),
        ([jitter.brightness for jitter in jitters], 0.6, 1.4),
        ([jitter.contrast for jitter in jitters], 0.6, 1.4),
        ([jitter.saturation for jitter in jitters], 0.6, 1.4),
        ([jitter.hue for jitter in jitters], -0.1, 0.1),
    ]:
        numbers = np.array(values, dtype=float)
        assert low <= numbers.min() < low + 0.02 and high - 0.02 < numbers.max() <= high
        assert numbers.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low) + 0.01)
    assert len({jitter.order for jitter in jitters}) == 24


def test_a_step_switched_off_leaves_the_other_draws_as_they_were() -> None:
    off = VIEWS.model_copy(update={"jitter_probability": 0.0, "blur_probability": 0.0})
    for index in range(50):
        with_all = draw((48, 40), VIEWS, sample_rng(0, 0, index))
        without = draw((48, 40), off, sample_rng(0, 0, index))
        assert without.jitter is None and without.blur_radius is None
        assert (without.box, without.grayscale, without.flip) == (with_all.box, with_all.grayscale, with_all.flip)


def test_strength_zero_switches_an_operation_off() -> None:
    views = VIEWS.model_copy(update={"jitter": (0.4, 0.0, 0.4, 0.0), "jitter_probability": 1.0})
    jitter = draw((48, 40), views, sample_rng(0, 0, 0)).jitter
    assert jitter is not None and jitter.contrast is None and jitter.hue is None and jitter.brightness is not None


def test_a_view_depends_on_seed_epoch_index_and_view_only(tiny: object) -> None:
    images = manifest("tiny", "train")
    first, second = read_views(images, VIEWS, 0, 2, (3, 7))
    again, _ = read_views(images, VIEWS, 0, 2, (3, 7))
    alone = read_views(images, VIEWS, 0, 1, (3, 7))
    assert first.shape == (24, 24, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again) and np.array_equal(first, alone[0])
    others = [second, read_views(images, VIEWS, 0, 1, (4, 7))[0], read_views(images, VIEWS, 1, 1, (3, 7))[0]]
    assert not any(np.array_equal(first, other) for other in others)


def test_an_unreadable_image_is_named(tiny: object, tmp_path: Path) -> None:
    images = manifest("tiny", "train")
    gone = type(images)(**{**vars(images), "root": tmp_path})
    with pytest.raises(Exception, match="class0/0_000.png: the image has vanished"):
        read_views(gone, VIEWS, 0, 2, (0, 0))
