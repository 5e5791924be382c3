"""Geometry as torchvision's on PIL images, to the pixel; random draws that depend on their keys alone."""

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, RandomResizedCrop, Resize
from torchvision.transforms import functional as theirs

from zoo.transforms import (
    Interpolation,
    TestTransform,
    TrainTransform,
    apply_test,
    apply_train,
    center_crop,
    draw_crop_box,
    epoch_order,
    random_resized_crop,
    resize_shorter,
    resized_crop,
    sample_rng,
)

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
        ours = apply_test(image, TestTransform(resize=resize, crop=crop, interpolation=interpolation))
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


def test_flips_come_as_often_as_asked() -> None:
    image = drawn((24, 24))
    plain = np.asarray(image)

    def flipped(probability: float, index: int) -> bool:
        transform = TrainTransform(crop=24, area=(1.0, 1.0), flip_probability=probability, interpolation=BILINEAR)
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
    transform = TrainTransform(crop=24, area=(0.2, 1.0), flip_probability=0.5, interpolation="bicubic")
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
