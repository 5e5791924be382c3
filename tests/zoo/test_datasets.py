"""A split's identity is its images and labels, not its layout; what is incomplete is refused with all that is wrong."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.dataset_files import FOLDERS, LIST, Describe, fill
from tests.odd_images import ODD_IMAGES, write_odd_images
from zoo import datasets
from zoo.config import validate
from zoo.datasets import DatasetConfig, dataset_config, dataset_root, decode, identity, manifest
from zoo.errors import ConfigError, DataError

IMAGES = {"cat/2.png": 0, "cat/10.png": 0, "dog/1.JPEG": 1, "dog/3.png": 1, "emu/0.png": 2}
ONE_KIND = "expected exactly one of class_folders, image_list, inaturalist_json, coco_json, class_lists"
NEEDS_IMAGES = "image_list, inaturalist_json and coco_json need images"
SETS = {
    "image_sets": [
        {"names": f"{year}/Main/train.txt", "images": f"{year}/JPEG/{{}}.jpg", "annotations": f"{year}/XML/{{}}.xml"}
        for year in ("2007", "2012")
    ]
}


def size_of(path: str) -> int:
    return 10 + list(IMAGES).index(path)


def as_class_folders(root: Path) -> None:
    for path in IMAGES:
        fill(root / "train" / path, size_of(path))


def as_list(root: Path, lines: list[str] | None = None) -> None:
    for path in IMAGES:
        fill(root / "images" / path, size_of(path))
    fill(root / "meta" / "train.txt")
    lines = [f"{path} {label}" for path, label in reversed(IMAGES.items())] if lines is None else lines
    (root / "meta" / "train.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    return str(caught.value)


def test_class_folders_and_a_list_file_are_the_same_dataset(describe: Describe) -> None:
    as_class_folders(describe(folder="one"))
    folders = manifest("pets", "train")
    as_list(describe(folder="two"))
    listed = manifest("pets", "train")
    assert folders.sha256 == listed.sha256 and np.array_equal(folders.labels, listed.labels)
    assert [Path(path).name for path in folders.paths] == ["0.png", "1.JPEG", "10.png", "2.png", "3.png"]
    assert [Path(path).name for path in listed.paths] == [Path(path).name for path in folders.paths]
    assert listed.labels.dtype == np.int64 and listed.labels.tolist() == [2, 1, 0, 0, 1] and len(listed) == 5
    assert all(split.path(index).is_file() for split in (folders, listed) for index in range(5))


def test_labels_number_the_sorted_class_names_as_torchvision_does(describe: Describe) -> None:
    root = describe()
    as_class_folders(root)
    from torchvision.datasets import ImageFolder

    theirs = {Path(path).name: label for path, label in ImageFolder(str(root / "train")).samples}
    ours = manifest("pets", "train")
    assert {Path(path).name: int(label) for path, label in zip(ours.paths, ours.labels, strict=True)} == theirs


def test_the_first_layout_that_is_present_is_read(describe: Describe) -> None:
    root = describe(LIST, FOLDERS)
    as_class_folders(root)
    assert manifest("pets", "train").paths[0] == "train/emu/0.png"
    as_list(root)
    manifest.cache_clear()
    assert manifest("pets", "train").paths[0] == "images/emu/0.png"


@pytest.mark.parametrize("change", ["label", "size", "name", "fewer"])
def test_another_label_size_name_or_number_is_another_dataset(describe: Describe, change: str) -> None:
    root = describe()
    as_list(root)
    before = manifest("pets", "train").sha256
    lines = (root / "meta" / "train.txt").read_text().splitlines()
    if change == "label":
        lines[0] = "emu/0.png 0"
    elif change == "size":
        fill(root / "images" / "emu" / "0.png", 99)
    elif change == "name":
        lines[0] = "emu/00.png 2"
        fill(root / "images" / "emu" / "00.png", size_of("emu/0.png"))
    else:
        del lines[0]
    (root / "meta" / "train.txt").write_text("\n".join(lines))
    manifest.cache_clear()
    assert manifest("pets", "train").sha256 != before


def test_hidden_and_foreign_files_are_no_images(describe: Describe) -> None:
    root = describe()
    as_class_folders(root)
    before = manifest("pets", "train").sha256
    for name in ("train/cat/.hidden.png", "train/cat/Thumbs.db", "train/.git/x.png", "train/readme.txt"):
        fill(root / name)
    manifest.cache_clear()
    assert manifest("pets", "train").sha256 == before


def test_paths_in_a_list_may_hold_blanks(describe: Describe) -> None:
    root = describe(num_classes=2)
    as_list(root, ["a cat/my cat 1.png 1", "", "dog/1.JPEG 0"])
    assert "no file images/a cat/my cat 1.png" in refused(lambda: manifest("pets", "train"))
    fill(root / "images" / "a cat" / "my cat 1.png")
    assert manifest("pets", "train").paths == ("images/dog/1.JPEG", "images/a cat/my cat 1.png")


def test_empty_class_folders_and_a_wrong_number_of_classes_are_listed_together(describe: Describe) -> None:
    root = describe()
    as_class_folders(root)
    (root / "train" / "fox").mkdir()
    assert refused(lambda: manifest("pets", "train")).splitlines() == [
        f"{root / 'train'} is not complete:",
        "  - expected 3 class folders, found 4: cat, dog, emu, fox …",
        "  - train/fox: expected images, found none (suffixes .bmp, .jpeg, .jpg, .png, .ppm, .tif, .tiff, .webp)",
    ]


def test_a_wrong_number_of_images_is_refused(describe: Describe) -> None:
    root = describe(num_images=1281167)
    as_class_folders(root)
    message = refused(lambda: manifest("pets", "train"))
    assert "'pets', train (class folders in train/): expected 1,281,167 images, found 5 under" in message
    assert "restore them, or describe the subset as a dataset of its own" in message


def test_every_unusable_line_of_a_list_is_named(describe: Describe) -> None:
    root = describe()
    as_list(root, ["cat/2.png 0", "cat/2.png 0", "cat/10.png 3", "cat/10.png x", "cat/10.png", "fox/1.png 1", "dog -1"])
    assert refused(lambda: manifest("pets", "train")).splitlines() == [
        f"{root / 'meta/train.txt'} is not usable:",
        "  - line 2: cat/2.png is listed twice",
        "  - line 3: expected 'path label' with a label in 0…2, found 'cat/10.png 3'",
        "  - line 4: expected 'path label' with a label in 0…2, found 'cat/10.png x'",
        "  - line 5: expected 'path label' with a label in 0…2, found 'cat/10.png'",
        "  - line 6: no file images/fox/1.png",
        "  - line 7: expected 'path label' with a label in 0…2, found 'dog -1'",
    ]


def test_many_unusable_lines_are_counted(describe: Describe) -> None:
    as_list(describe(), [f"gone/{number}.png 0" for number in range(1234)])
    lines = refused(lambda: manifest("pets", "train")).splitlines()
    assert len(lines) == 22 and lines[-1] == "  - … and 1,214 more"


@pytest.mark.parametrize("lines", [[], ["", "   "]])
def test_an_empty_list_is_refused(describe: Describe, lines: list[str]) -> None:
    as_list(describe(), lines)
    assert refused(lambda: manifest("pets", "train")).endswith("train.txt is not usable:\n  - the list is empty")


def test_a_list_that_is_not_utf8_is_refused(describe: Describe) -> None:
    root = describe()
    as_list(root)
    (root / "meta" / "train.txt").write_bytes("café/1.png 0\n".encode("latin-1"))
    assert "train.txt: not UTF-8 text" in refused(lambda: manifest("pets", "train"))


def test_a_root_without_any_layout_says_what_was_looked_for(describe: Describe) -> None:
    root = describe()
    (root / "train").mkdir()
    assert refused(lambda: manifest("pets", "train")).splitlines() == [
        f"dataset 'pets', train: found none of the layouts it may have under {root}:",
        "  - class folders in train/",
        "  - list meta/train.txt of images in images/",
    ]


def test_an_unknown_split_is_refused(describe: Describe) -> None:
    describe()
    for call in (manifest, identity):
        with pytest.raises(ConfigError, match=r"dataset 'pets' has no split 'test': expected one of \['train'\]"):
            call("pets", "test")


def test_an_unknown_dataset_is_refused_with_those_there_are(describe: Describe) -> None:
    describe()
    with pytest.raises(ConfigError, match="imagenets.yaml: no such file; files there: pets.yaml"):
        dataset_config("imagenets")


def test_a_dataset_under_another_name_than_its_files_is_refused(describe: Describe) -> None:
    describe(name="dogs")
    with pytest.raises(ConfigError, match="pets.yaml: name is 'dogs', expected the file's own 'pets'"):
        dataset_config("pets")


def test_a_place_that_is_not_known_says_what_to_write(describe: Describe, tmp_path: Path) -> None:
    describe()
    (tmp_path / "data.yaml").write_text("dogs: /data/dogs\n")
    message = refused(lambda: dataset_root(dataset_config("pets")))
    assert f"expected a line 'pets: /path/to/it' in {tmp_path / 'data.yaml'}" in message
    assert message.endswith("found no such line.")
    (tmp_path / "data.yaml").unlink()
    assert refused(lambda: dataset_root(dataset_config("pets"))).endswith("found no such file.")


def test_a_place_that_does_not_exist_is_named(describe: Describe) -> None:
    root = describe()
    root.rmdir()
    assert refused(lambda: dataset_root(dataset_config("pets"))) == (
        f"dataset 'pets': expected its folder at {root}, found none."
    )


def test_a_dataset_of_the_projects_own_says_how_it_is_made(describe: Describe, tmp_path: Path) -> None:
    describe(root=str(tmp_path / "made"))
    (tmp_path / "data.yaml").unlink()
    assert "Run ./run_all.sh or python -m mini" in refused(lambda: dataset_root(dataset_config("pets")))


def test_the_file_of_places_comes_before_the_configs_own(describe: Describe, tmp_path: Path) -> None:
    root = describe(root=str(tmp_path / "made"))
    assert dataset_root(dataset_config("pets")) == root


@pytest.mark.parametrize("content", ["- pets\n", "pets\n"])
def test_a_malformed_file_of_places_is_refused(describe: Describe, tmp_path: Path, content: str) -> None:
    describe()
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(ConfigError, match="data.yaml:1: expected lines 'dataset: /path'"):
        dataset_root(dataset_config("pets"))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, ONE_KIND),
        ({**FOLDERS, **LIST}, ONE_KIND),
        ({"image_list": "a.txt"}, NEEDS_IMAGES),
        ({"class_lists": "{}.txt"}, NEEDS_IMAGES),
        ({"class_lists": "{}.txt", "images": "b"}, "images: expected {} once"),
        ({**LIST, "names": "a.txt"}, "names and annotations belong to class_lists"),
        ({"class_lists": "{}.txt", "images": "{}.jpg", "names": "a.txt"}, "class_lists are made from names and ann"),
        ({**FOLDERS, "images": "b"}, NEEDS_IMAGES),
        (
            {**FOLDERS, "image_sets": tuple(SETS["image_sets"])},
            ONE_KIND,
        ),
    ],
)
def test_a_layout_is_of_one_kind(layout: dict[str, Any], message: str) -> None:
    config = {"name": "a", "title": "a", "root": None, "num_classes": 2, "substitute_for": None}
    config |= {"splits": {"train": {"num_images": None, "layouts": (layout,)}}}
    with pytest.raises(ConfigError, match=f"splits.train.layouts.0: {message}"):
        validate(config, DatasetConfig, where="test")


def as_image_sets(root: Path) -> None:
    for year, names in (("2007", ("000007", "000012")), ("2012", ("2012_000003",))):
        for name in names:
            fill(root / year / "JPEG" / f"{name}.jpg", 10 + int(name[-2:]))
            fill(root / year / "XML" / f"{name}.xml", 5)
        fill(root / year / "Main" / "train.txt")
        (root / year / "Main" / "train.txt").write_text("\n".join(reversed(names)) + "\n")


def test_image_sets_are_one_split_with_an_annotation_an_image(describe: Describe) -> None:
    root = describe(SETS)
    as_image_sets(root)
    found = manifest("pets", "train")
    assert [Path(path).name for path in found.paths] == ["000007.jpg", "000012.jpg", "2012_000003.jpg"]
    assert [Path(path).name for path in found.annotations] == ["000007.xml", "000012.xml", "2012_000003.xml"]
    assert all(found.path(i).is_file() and found.annotation(i).is_file() for i in range(3))
    assert len(found) == 3 and found.labels.shape == (0,)
    assert identity("pets", "train").num_images == 3


def test_another_annotation_is_another_dataset(describe: Describe) -> None:
    """The annotations are the labels: their bytes count, not only their size."""
    root = describe(SETS)
    as_image_sets(root)
    before = manifest("pets", "train").sha256
    (root / "2007" / "XML" / "000012.xml").write_bytes(b"12345")
    manifest.cache_clear()
    assert manifest("pets", "train").sha256 != before


def test_an_image_set_must_be_whole(describe: Describe) -> None:
    root = describe(SETS)
    assert "image sets 2007/Main/train.txt + 2012/Main/train.txt" in refused(lambda: manifest("pets", "train"))
    as_image_sets(root)
    (root / "2007" / "XML" / "000007.xml").unlink()
    (root / "2007" / "Main" / "train.txt").write_text("000012\n\n000007\n000012\n000099\n")
    text = refused(lambda: manifest("pets", "train"))
    assert "2007/Main/train.txt is not usable" in text and "line 4: 000012 is listed twice" in text
    assert "line 3: no file 2007/XML/000007.xml" in text and "line 5: no file 2007/JPEG/000099.jpg" in text
    (root / "2007" / "Main" / "train.txt").write_text("")
    assert "the list is empty" in refused(lambda: manifest("pets", "train"))


def test_class_names_are_as_many_as_the_classes(describe: Describe) -> None:
    describe(classes=["cat", "dog", "cat"])
    with pytest.raises(ConfigError, match="classes: expected 3 different names, found 2"):
        dataset_config("pets")
    describe(classes=["cat", "dog", "emu"])
    assert dataset_config("pets").classes == ("cat", "dog", "emu")


def test_a_known_identity_needs_no_listing(describe: Describe, monkeypatch: pytest.MonkeyPatch) -> None:
    as_class_folders(describe())
    first = identity("pets", "train")
    whole = manifest("pets", "train")
    assert (first.sha256, first.num_images, first.num_classes) == (whole.sha256, 5, 3)
    monkeypatch.setattr(datasets, "manifest", lambda *_: pytest.fail("listed again"))
    assert identity("pets", "train") == first
    assert identity("pets", "train").as_dict()["dataset"] == "pets"


def _changed(folder: Path) -> None:
    """A clock's tick apart: folders changed within one tick of each other have one time."""
    later = time.time_ns() + 10_000_000
    os.utime(folder, ns=(later, later))


def test_an_added_file_is_noticed(describe: Describe) -> None:
    root = describe()
    as_class_folders(root)
    first = identity("pets", "train")
    fill(root / "train" / "cat" / "99.png")
    _changed(root / "train" / "cat")
    manifest.cache_clear()
    assert identity("pets", "train").num_images == 6 and identity("pets", "train").sha256 != first.sha256


def test_an_edited_list_is_noticed(describe: Describe) -> None:
    root = describe()
    as_list(root)
    identity("pets", "train")
    as_list(root, ["cat/2.png 0"])
    manifest.cache_clear()
    assert identity("pets", "train").num_images == 1


def test_a_renamed_class_folder_is_noticed_and_then_known(describe: Describe, monkeypatch: pytest.MonkeyPatch) -> None:
    root = describe()
    as_class_folders(root)
    first = identity("pets", "train")
    (root / "train" / "emu").rename(root / "train" / "ant")
    _changed(root / "train")
    manifest.cache_clear()
    second = identity("pets", "train")
    assert second.sha256 != first.sha256  # ant is class 0 now
    monkeypatch.setattr(datasets, "manifest", lambda *_: pytest.fail("listed again"))
    assert identity("pets", "train") == second


def test_a_layout_that_appears_before_the_known_one_is_noticed(describe: Describe) -> None:
    root = describe(LIST, FOLDERS)
    as_class_folders(root)
    identity("pets", "train")
    as_list(root, ["cat/2.png 0"])
    manifest.cache_clear()
    assert identity("pets", "train").num_images == 1


def test_images_that_vanish_with_their_folder_are_noticed(describe: Describe) -> None:
    root = describe()
    as_list(root)
    identity("pets", "train")
    (root / "images" / "emu" / "0.png").unlink()
    (root / "images" / "emu").rmdir()
    manifest.cache_clear()
    assert "no file images/emu/0.png" in refused(lambda: identity("pets", "train"))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_odd_images(tmp_path_factory.mktemp("odd"))


@pytest.mark.parametrize("name", [name for name, expected in ODD_IMAGES.items() if expected.size is not None])
def test_an_odd_file_is_read_as_the_rgb_image_it_shows(odd: dict[str, Path], name: str) -> None:
    expected, image = ODD_IMAGES[name], decode(odd[name])
    assert (image.mode, image.size) == ("RGB", expected.size)
    if expected.pixels is not None:
        difference = np.asarray(image, dtype=np.float64) - np.asarray(expected.pixels(), dtype=np.float64)
        assert np.abs(difference).mean() < expected.tolerance


@pytest.mark.parametrize("name", [name for name, expected in ODD_IMAGES.items() if expected.size is None])
def test_a_broken_file_is_refused_by_name(odd: dict[str, Path], name: str) -> None:
    message = refused(lambda: decode(odd[name]))
    assert message.startswith(f"{odd[name]}: ") and message.endswith("replace the file.")


def test_a_sixteen_bit_file_is_scaled_exactly(tmp_path: Path) -> None:
    wide = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(wide).save(tmp_path / "a.png")
    found = np.asarray(decode(tmp_path / "a.png"))
    assert np.array_equal(found, np.repeat((wide // 256).astype(np.uint8)[..., None], 3, axis=2))


def test_a_vanished_file_is_named(tmp_path: Path) -> None:
    message = refused(lambda: decode(tmp_path / "gone.png"))
    assert "gone.png: the image has vanished since the dataset was listed" in message


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    assert "the image cannot be decoded" in refused(lambda: decode(tmp_path))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_damage_anywhere_gives_an_image_or_a_refusal(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for trial in range(60):
        spoilt = bytearray(whole[: int(rng.integers(1, len(whole)))] if trial % 3 == 0 else whole)
        for position in rng.integers(0, len(spoilt), 4):
            spoilt[position] = rng.integers(0, 256)
        path.write_bytes(spoilt)
        try:
            assert decode(path).mode == "RGB"
        except DataError as error:
            assert path.name in str(error)
