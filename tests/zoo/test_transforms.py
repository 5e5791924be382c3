"""Geometry as torchvision's on PIL images, to the pixel; random draws that depend on their keys alone."""

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, RandomResizedCrop, Resize
from torchvision.transforms import functional as theirs

from zoo.transforms import (
    Interpolation,
    RandomCrop,
    TestTransform,
    TrainTransform,
    apply_test,
    apply_train,
    center_crop,
    draw_crop_box,
    epoch_order,
    lighting_shift,
    random_resized_crop,
    resize_shorter,
    resized_crop,
    sample_rng,
)
from zoo.transforms import RandomResizedCrop as OurRandomResizedCrop

SIZES = [(48, 48), (57, 33), (33, 57), (500, 375), (64, 63), (1, 9), (9, 1), (1, 1), (20, 47), (47, 20), (2, 300)]
MODES: dict[Interpolation, InterpolationMode] = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}
BILINEAR: Interpolation = "bilinear"
interpolations = pytest.mark.parametrize("interpolation", list(MODES))
sizes = pytest.mark.parametrize("size", SIZES, ids=str)


def drawn(size: tuple[int, int]) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def same(ours: Image.Image | np.ndarray, expected: Image.Image) -> bool:
    return np.array_equal(np.asarray(ours), np.asarray(expected))


@interpolations
@sizes
def test_resizing_is_torchvisions(size: tuple[int, int], interpolation: Interpolation) -> None:
    image = drawn(size)
    for target in (32, 48):
        assert same(resize_shorter(image, target, interpolation), Resize(target, MODES[interpolation])(image))


@pytest.mark.parametrize("crop", [1, 2, 31, 32, 48, 60])
@sizes
def test_the_central_crop_is_torchvisions_padding_included(size: tuple[int, int], crop: int) -> None:
    image = drawn(size)
    assert same(center_crop(image, crop), CenterCrop(crop)(image))


@interpolations
@sizes
def test_the_test_transform_is_torchvisions_resize_and_crop(
    size: tuple[int, int], interpolation: Interpolation
) -> None:
    image = drawn(size)
    for resize, crop in ((36, 32), (32, 32), (32, 40)):
        ours = apply_test(
            image, TestTransform(resize=resize, crop=crop, interpolation=interpolation, fit="centre_crop")
        )
        assert ours.shape == (crop, crop, 3) and ours.dtype == np.uint8
        assert same(ours, Compose([Resize(resize, MODES[interpolation]), CenterCrop(crop)])(image))


@interpolations
@pytest.mark.parametrize(
    "box", [(3, 5, 20, 11), (0, 0, 57, 33), (56, 32, 1, 1), (10, 0, 24, 24), (0, 7, 57, 1)], ids=str
)
def test_a_resized_window_is_torchvisions(box: tuple[int, int, int, int], interpolation: Interpolation) -> None:
    image, (left, top, width, height) = drawn((57, 33)), box
    expected: Any = theirs.resized_crop(cast(Any, image), top, left, height, width, [24, 24], MODES[interpolation])
    assert same(resized_crop(image, box, 24, interpolation), expected)


def test_a_random_crop_is_the_drawn_window_resized() -> None:
    image = drawn((57, 33))
    box = draw_crop_box(image.size, (0.2, 1.0), sample_rng(0, 0, 5))
    found = random_resized_crop(image, 24, (0.2, 1.0), BILINEAR, sample_rng(0, 0, 5))
    assert same(found, resized_crop(image, box, 24, BILINEAR))


def test_windows_lie_inside_and_have_shares_and_ratios_within_bounds() -> None:
    width, height = 500, 375
    boxes = np.array([draw_crop_box((width, height), (0.2, 1.0), sample_rng(0, 0, index)) for index in range(3000)])
    left, top, wide, high = boxes.T
    assert (boxes >= [0, 0, 1, 1]).all() and (left + wide <= width).all() and (top + high <= height).all()
    share, ratio = wide * high / (width * height), wide / high
    assert share.min() > 0.195 and share.max() <= 1.0
    assert ratio.min() > 0.74 and ratio.max() < 1.35
    assert (np.abs(boxes.mean(axis=0)[:2] / (np.array([width, height]) - boxes.mean(axis=0)[2:]) - 0.5) < 0.03).all()


def test_windows_are_distributed_as_torchvisions() -> None:
    """Means of share and log ratio over many draws agree within four standard errors."""
    image, draws = drawn((60, 45)), 2000
    ours = np.array([draw_crop_box(image.size, (0.2, 1.0), sample_rng(1, 0, index))[2:] for index in range(draws)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn_there = [RandomResizedCrop.get_params(cast(Any, image), [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(draws)]
    expected = np.array([(width, height) for _, _, height, width in drawn_there])
    for measure in (lambda b: b[:, 0] * b[:, 1] / 2700, lambda b: np.log(b[:, 0] / b[:, 1])):
        one, other = measure(ours), measure(expected)
        assert abs(one.mean() - other.mean()) < 4 * math.hypot(one.std(), other.std()) / math.sqrt(draws)


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((1, 300), (0, 149, 1, 1)),
        ((300, 1), (149, 0, 1, 1)),
        ((30, 300), (0, 130, 30, 40)),
        ((300, 30), (130, 0, 40, 30)),
    ],
    ids=str,
)
def test_an_image_too_narrow_for_any_window_gives_the_largest_central_one(
    size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    assert draw_crop_box(size, (1.0, 1.0), sample_rng(0, 0, 0)) == box


def augmentation(
    *,
    area: tuple[float, float] = (0.2, 1.0),
    flip: float = 0.5,
    jitter: tuple[float, float, float] = (0.0, 0.0, 0.0),
    window: RandomCrop | None = None,
) -> TrainTransform:
    crop = window or OurRandomResizedCrop(name="random_resized", size=24, area=area)
    return TrainTransform(crop=crop, interpolation=BILINEAR, flip_probability=flip, jitter=jitter, lighting=0.0)


@interpolations
@sizes
def test_squashing_is_torchvisions_two_resizes(size: tuple[int, int], interpolation: Interpolation) -> None:
    image, mode = drawn(size), MODES[interpolation]
    twice = TestTransform(resize=36, crop=24, interpolation=interpolation, fit="squash")
    assert same(apply_test(image, twice), Compose([Resize(36, mode), Resize((24, 24), mode)])(image))
    once = TestTransform(resize=None, crop=24, interpolation=interpolation, fit="squash")
    assert same(apply_test(image, once), Resize((24, 24), mode)(image))


def test_only_squashing_goes_without_a_resize() -> None:
    with pytest.raises(ValidationError, match="which only goes with fit: squash"):
        TestTransform(resize=None, crop=24, interpolation=BILINEAR, fit="centre_crop")
    with pytest.raises(ValidationError, match=r"size: expected at most resize \(20\), found 24"):
        RandomCrop(name="random", resize=20, size=24)


def test_the_random_crop_is_a_window_of_the_central_square() -> None:
    """Places205, §2.3: short side 256, centre crop 256, random crop 224."""
    image = drawn((57, 33))
    central = np.asarray(Compose([Resize(32), CenterCrop(32)])(image))
    places = set()
    for index in range(200):
        window = augmentation(flip=0.0, window=RandomCrop(name="random", resize=32, size=29))
        found = apply_train(image, window, sample_rng(0, 0, index))
        fits = [
            (top, left)
            for top in range(4)
            for left in range(4)
            if np.array_equal(found, central[top : top + 29, left : left + 29])
        ]
        assert len(fits) == 1
        places |= set(fits)
    assert len(places) == 16  # every place, both ends included


def test_jitter_is_torchvisions_given_the_same_factors() -> None:
    image = drawn((24, 24))
    operations: tuple[Any, ...] = (theirs.adjust_brightness, theirs.adjust_contrast, theirs.adjust_saturation)
    for index in range(20):
        rng = sample_rng(0, 0, index)
        found = apply_train(image, augmentation(area=(1.0, 1.0), flip=0.0, jitter=(0.4, 0.3, 0.2)), rng)
        rng = sample_rng(0, 0, index)
        expected = random_resized_crop(image, 24, (1.0, 1.0), BILINEAR, rng)
        rng.random()  # the flip's draw
        factors = [rng.uniform(1 - strength, 1 + strength) for strength in (0.4, 0.3, 0.2)]
        for operation in rng.permutation(3):
            expected = operations[operation](expected, factors[operation])
        assert same(found, expected)


def test_lighting_is_noise_along_the_principal_colours() -> None:
    shifts = np.array([lighting_shift(0.1, sample_rng(0, 0, index)) for index in range(4000)])
    assert shifts.dtype == np.float32 and np.abs(shifts.mean(0)).max() < 0.002
    spread = np.linalg.eigvalsh(np.cov(shifts.T))[::-1] ** 0.5
    np.testing.assert_allclose(spread, 0.1 * np.array([0.2175, 0.0188, 0.0045]), rtol=0.05)  # §2.2's eigenvalues
    assert not lighting_shift(0.0, sample_rng(0, 0, 0)).any()


def test_flips_come_as_often_as_asked() -> None:
    image = drawn((24, 24))
    plain = np.asarray(image)

    def flipped(probability: float, index: int) -> bool:
        transform = augmentation(area=(1.0, 1.0), flip=probability)
        rng = sample_rng(0, 0, index)
        window = np.asarray(random_resized_crop(image, 24, (1.0, 1.0), BILINEAR, sample_rng(0, 0, index)))
        found = apply_train(image, transform, rng)
        assert same(found, Image.fromarray(window)) or same(found, Image.fromarray(window[:, ::-1]))
        return not np.array_equal(found, window)

    assert plain.shape == (24, 24, 3)
    assert not any(flipped(0.0, index) for index in range(50)) and all(flipped(1.0, index) for index in range(50))
    assert 0.4 < np.mean([flipped(0.5, index) for index in range(500)]) < 0.6


def test_a_train_view_is_a_function_of_its_keys() -> None:
    image = drawn((57, 33))
    transform = augmentation(jitter=(0.4, 0.4, 0.4))
    first = apply_train(image, transform, sample_rng(3, 1, 4))
    assert first.shape == (24, 24, 3) and first.dtype == np.uint8
    assert np.array_equal(apply_train(image, transform, sample_rng(3, 1, 4)), first)


def test_streams_of_different_samples_differ() -> None:
    keys = [(seed, epoch, index, view) for seed in (0, 1) for epoch in (0, 1) for index in (0, 1, 2) for view in (0, 1)]
    draws = {sample_rng(*key).random() for key in keys}
    assert len(draws) == len(keys)
    assert sample_rng(0, 1, 2).random() == sample_rng(0, 1, 2, 0).random()


def test_streams_of_neighbouring_samples_are_uncorrelated() -> None:
    draws = np.array([sample_rng(0, 0, index).random(2) for index in range(2000)])
    correlation = np.corrcoef([draws[:-1, 0], draws[1:, 0], draws[1:, 1]])
    assert np.abs(correlation - np.eye(3)).max() < 0.1 and abs(draws.mean() - 0.5) < 0.03


def test_an_epochs_order_is_a_permutation_of_seed_and_epoch_alone() -> None:
    orders = {(seed, epoch): epoch_order(seed, epoch, 50) for seed in (0, 1) for epoch in (0, 1)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 4
    assert np.array_equal(epoch_order(1, 0, 50), orders[(1, 0)])
