"""A scene shows what its boxes and masks say."""

import numpy as np
import pytest

from mini.material import Material, generator, load_material
from mini.scene import Scene, SceneStyle, bounds, draw_scene

STYLE = SceneStyle(width=160, height=96, digit_size=(0.3, 0.6), saturation=1.0)


@pytest.fixture(scope="module")
def material() -> Material:
    return load_material()


def scene_of(material: Material, scans: list[int], *, style: SceneStyle = STYLE, index: int = 0) -> Scene:
    return draw_scene(material, style, scans, generator(0, "test", "train", index))


def test_a_scene_is_a_function_of_its_generator(material: Material) -> None:
    first, again, other = (scene_of(material, [3, 5], index=index) for index in (0, 0, 1))
    assert np.array_equal(first.image, again.image)
    assert not np.array_equal(first.image, other.image)


def test_every_object_has_its_scans_label_and_a_tight_box(material: Material) -> None:
    for index in range(20):
        scene = scene_of(material, [10, 20, 30, 40], index=index)
        assert scene.image.shape == (96, 160, 3)
        for thing in scene.objects:
            x0, y0, x1, y1 = thing.box
            assert thing.label == material.labels[thing.scan]
            assert thing.mask[y0:y1, x0:x1].sum() == thing.mask.sum() > 0
            assert bounds(thing.mask) == thing.box


def test_masks_do_not_overlap_even_when_digits_must(material: Material) -> None:
    crowded = SceneStyle(width=48, height=48, digit_size=(0.8, 1.0))
    for index in range(20):
        scene = scene_of(material, [1, 2, 3], style=crowded, index=index)
        assert sum(thing.mask.astype(int) for thing in scene.objects).max() == 1  # pyright: ignore[reportAttributeAccessIssue]


def test_covered_is_the_share_that_later_digits_hide(material: Material) -> None:
    crowded = SceneStyle(width=48, height=48, digit_size=(0.8, 1.0))
    for index in range(20):
        alone, both = (scene_of(material, scans, style=crowded, index=index) for scans in ([1], [1, 2]))
        first, second = both.objects
        assert alone.objects[0].covered == second.covered == 0
        assert first.covered == 1 - first.mask.sum() / alone.objects[0].mask.sum()
        assert (first.covered > 0) == bool((alone.objects[0].mask & second.mask).any())


def test_few_digits_in_a_wide_scene_are_kept_apart(material: Material) -> None:
    for index in range(20):
        first, second = (thing.box for thing in scene_of(material, [1, 2], index=index).objects)
        assert min(first[2], second[2]) <= max(first[0], second[0]) or min(first[3], second[3]) <= max(
            first[1], second[1]
        )


def test_a_digit_stands_out_from_its_ground(material: Material) -> None:
    grey = SceneStyle(width=48, height=48, digit_size=(0.4, 0.85))
    for index in range(50):
        scene = scene_of(material, [index], style=grey, index=index)
        shades = scene.image[:, :, 0].astype(float)
        mask = scene.objects[0].mask
        assert abs(shades[mask].mean() - shades[~mask].mean()) > 25


def test_saturation_zero_is_grey_and_one_is_not(material: Material) -> None:
    grey = scene_of(material, [7], style=SceneStyle(width=48, height=48, digit_size=(0.5, 0.5))).image
    colourful = scene_of(material, [7]).image
    assert np.ptp(grey, axis=2).max() == 0
    assert np.ptp(colourful, axis=2).mean() > 5


def test_a_scene_larger_than_the_photographs_is_possible(material: Material) -> None:
    huge = SceneStyle(width=1024, height=512, digit_size=(0.1, 0.4))
    assert scene_of(material, [1, 2, 3], style=huge).image.shape == (512, 1024, 3)
