"""Datasets are found by what they are made of, written to data.yaml beside what it holds, and never guessed at."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.dataset_files import FOLDERS, LIST, Describe, fill, write_lines
from zoo import find
from zoo.__main__ import app
from zoo.config import validate
from zoo.datasets import DatasetConfig, data_file, dataset_config
from zoo.errors import ConfigError, DataError, ZooError
from zoo.find import misfit, search, update

VOC_SETS = {"VOC2007/ImageSets/Main": ("trainval", "test"), "VOC2012/ImageSets/Main": ("trainval",)}
MASKS = "VOC2012/ImageSets/Segmentation"


def described(name: str = "pets", **changes: Any) -> DatasetConfig:
    """Three classes in class folders or a list; `changes` of the description."""
    splits = {"train": {"num_images": None, "layouts": (FOLDERS, LIST)}}
    data = {"name": name, "title": name, "root": None, "num_classes": 3, "substitute_for": None, "splits": splits}
    return validate(data | changes, DatasetConfig, where="the test's dataset")


def with_layout(*layouts: dict[str, Any], num_images: int | None = None, **changes: Any) -> DatasetConfig:
    return described(splits={"train": {"num_images": num_images, "layouts": layouts}}, **changes)


def real(name: str, **counts: int) -> DatasetConfig:
    """A committed description that expects fewer images."""
    config = dataset_config(name)
    splits = {split: one.model_copy(update={"num_images": counts[split]}) for split, one in config.splits.items()}
    return config.model_copy(update={"splits": splits})


def as_class_folders(root: Path, classes: str = "abc", images: int = 1) -> None:
    for name in classes:
        for number in range(images):
            fill(root / "train" / name / f"{number}.png")


def as_devkit(root: Path) -> None:
    """A VOCdevkit as its archives unpack: no class lists needed from SBD, and no aug.txt."""
    for folder, sets in VOC_SETS.items():
        year = root / folder.split("/")[0]
        for name in sets:
            write_lines(root / folder / f"{name}.txt", f"{name}1", f"{name}2")
            for image in (f"{name}1", f"{name}2"):
                fill(year / "JPEGImages" / f"{image}.jpg")
                fill(year / "Annotations" / f"{image}.xml")
    for name in ("train", "val"):
        write_lines(root / MASKS / f"{name}.txt", f"{name}1")
        fill(root / "VOC2012" / "JPEGImages" / f"{name}1.jpg")
        fill(root / "VOC2012" / "SegmentationClass" / f"{name}1.png")
    fill(root / "VOC2012" / "SegmentationClassAug" / "more.png")


def test_one_devkit_holds_several_datasets_and_those_described_with_other_counts_are_not_it(tmp_path: Path) -> None:
    root = tmp_path / "data" / "vision" / "VOCdevkit"
    as_devkit(root)
    configs = [
        real("voc07", trainval=2, test=2),
        real("voc0712", trainval0712=4, test2007=2),
        real("voc12aug", trainaug=9, val=1),
        dataset_config("voc_sample"),
        dataset_config("voc_sample_masks"),
        dataset_config("imagenet"),
    ]
    found = search(tmp_path, configs)
    places = {name: [(one.root, one.prepare) for one in places] for name, places in found.places.items()}
    assert places == {"voc07": [(root, True)], "voc0712": [(root, False)], "voc12aug": [(root, True)]}
    assert found.incomplete == {} and found.num_folders == 4  # and nothing below the devkit


def test_a_part_of_a_dataset_is_named_with_what_is_missing(tmp_path: Path) -> None:
    as_devkit(tmp_path)
    (tmp_path / "VOC2012" / "ImageSets" / "Main" / "trainval.txt").unlink()
    found = search(tmp_path, [real("voc0712", trainval0712=4, test2007=2)])
    missing = "trainval0712: no VOC2012/ImageSets/Main/trainval.txt"
    assert found.places == {} and found.incomplete == {"voc0712": {tmp_path: missing}}


JSON = {"inaturalist_json": "a.json", "images": "."}
SETS = {"image_sets": ({"names": "s/t.txt", "images": "JPEG/{}.jpg", "annotations": "XML/{}.xml"},)}
CLASS_LISTS = {"class_lists": "Main/{}.txt", "images": "JPEG/{}.jpg"}
MADE = {**CLASS_LISTS, "names": "names.txt", "annotations": "XML/{}.xml"}
CLASSES: dict[str, Any] = {"classes": ("cat", "dog", "emu")}


@pytest.mark.parametrize(
    ("layout", "files", "problem"),
    [
        (FOLDERS, {"train/a/1.png": ""}, "train: 1 class folders, expected 3"),
        (FOLDERS, {f"train/{c}/{c}.png": "" for c in "abc"}, "train: 3 images, expected 2"),
        (LIST, {"meta/train.txt": "a 0"}, "no images"),
        (LIST, {"meta/train.txt": "a 0\nb 1", "images/a": ""}, "meta/train.txt: labels up to 1, expected up to 2"),
        (LIST, {"meta/train.txt": "a 0\nb 3", "images/a": ""}, "meta/train.txt: labels up to 3, expected up to 2"),
        (LIST, {"meta/train.txt": "a 2", "images/a": ""}, "meta/train.txt: 1 images, expected 2"),
        (LIST, {"meta/train.txt": "a 2\nb 0", "images/b": ""}, "no file images/a"),
        (LIST, {"meta/train.txt": "a,2", "images/a": ""}, "expected lines 'path label', found 'a,2'"),
        (JSON, {"a.json": "{"}, "expected JSON, found something else"),
        (JSON, {"a.json": "[]"}, "a.json: no list of images"),
        (JSON, {"a.json": json.dumps({"images": [{}]})}, "a.json: 1 images, expected 2"),
        (JSON, {"a.json": json.dumps({"images": [{"file_name": "b.jpg"}] * 2})}, "no file b.jpg"),
        (SETS, {"JPEG/a.jpg": ""}, "no s/t.txt"),
        (SETS, {"s/t.txt": "a\nb\nc", "JPEG/a.jpg": "", "XML/a.xml": ""}, "s/t.txt: 3 images, expected 2"),
        (SETS, {"s/t.txt": "a\nb", "JPEG/a.jpg": ""}, "no file XML/a.xml"),
        (CLASS_LISTS, {"Main/cat.txt": "a 1\nb 1"}, "no Main/dog.txt, Main/emu.txt"),
        (MADE, {"Main/cat.txt": "a 1\nb 1"}, "no names.txt, XML"),
        (MADE, {"names.txt": "a", "XML/a.xml": ""}, "names.txt: 1 images, expected 2"),
        (MADE, {"names.txt": "a\nb", "XML/a.xml": ""}, "no file JPEG/a.jpg"),
        (CLASS_LISTS, {f"Main/{c}.txt": "" for c in CLASSES["classes"]}, "Main/cat.txt: 0 images, expected 2"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, layout: dict[str, Any], files: dict[str, str], problem: str) -> None:
    for path, text in files.items():
        fill(tmp_path / path)
        (tmp_path / path).write_text(text)
    config = with_layout(layout, **(CLASSES if "class_lists" in layout else {}))
    (read,) = config.splits["train"].layouts
    assert problem in (misfit(tmp_path, read, config, 2) or "nothing")


@pytest.mark.parametrize(
    ("layout", "files"),
    [
        (FOLDERS, {f"train/{c}/{c}.png": "" for c in "abc"}),
        (LIST, {"meta/train.txt": "/a 0\nb 1\nc 2", "images/a": ""}),
        (JSON, {"a.json": json.dumps({"images": [{"file_name": "b.jpg"}] * 3}), "b.jpg": ""}),
        (SETS, {"s/t.txt": "a\nb\nc", "JPEG/a.jpg": "", "XML/a.xml": ""}),
        (CLASS_LISTS, {"JPEG/a.jpg": "", **{f"Main/{c}.txt": "a 1\nb 1\nc -1" for c in CLASSES["classes"]}}),
        (MADE, {"names.txt": "a\nb\nc", "JPEG/a.jpg": "", "XML/a.xml": ""}),
    ],
)
def test_what_fits_is_found_in_any_layout(tmp_path: Path, layout: dict[str, Any], files: dict[str, str]) -> None:
    for path, text in files.items():
        fill(tmp_path / "there" / path)
        (tmp_path / "there" / path).write_text(text)
    config = with_layout(layout, num_images=3, **(CLASSES if "class_lists" in layout else {}))
    (place,) = search(tmp_path, [config]).places["pets"]
    assert place.root == tmp_path / "there" and place.prepare == ("names.txt" in files)


def test_links_are_followed_once_and_the_same_images_are_one_place(tmp_path: Path) -> None:
    as_class_folders(tmp_path / "real" / "pets")
    (tmp_path / "look" / "deeper").mkdir(parents=True)
    (tmp_path / "look" / "loop").symlink_to(tmp_path)
    (tmp_path / "look" / "deeper" / "pets").symlink_to(tmp_path / "real" / "pets")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train").symlink_to(tmp_path / "real" / "pets" / "train")  # another folder, the same images
    found = search(tmp_path, [described()])
    assert [one.root for one in found.places["pets"]] == [tmp_path / "other"]
    assert search(tmp_path / "look", [described()]).places["pets"][0].root == tmp_path / "look" / "deeper" / "pets"


def test_the_walk_is_bounded_and_says_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_class_folders(tmp_path / "a" / "b" / "c")
    as_class_folders(tmp_path / ".hidden" / "c")
    assert search(tmp_path, [described()], depth=2).places == {}
    assert search(tmp_path, [described()], depth=3).places["pets"][0].root == tmp_path / "a" / "b" / "c"
    assert search(tmp_path, [described()], seconds=-1).stopped_at == tmp_path
    monkeypatch.setattr(find, "MOST_FOLDERS", 2)
    for name in "xyz":
        (tmp_path / "a" / name).mkdir()
    assert search(tmp_path, [described()]).num_folders == 2  # the first, however many it holds, and a
    refuse = PermissionError(13, "Permission denied")

    def listing(folder: Path) -> tuple[set[str], list[str]]:
        if folder.name == "a":
            raise refuse
        return {"a"}, ["a"]

    monkeypatch.setattr(find, "_listing", listing)
    assert search(tmp_path, [described()]).unread == [tmp_path / "a"]


def test_no_folder_to_look_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone: expected a folder to look for datasets in, found none"):
        search(tmp_path / "gone", [])


def test_lines_are_added_and_those_there_stay_to_the_byte(tmp_path: Path) -> None:
    for name in ("pets", "toys"):
        as_class_folders(tmp_path / "data" / name)
    configs = [described("pets"), with_layout(FOLDERS, name="toys", num_images=3)]
    (tmp_path / "data" / "toys" / "train" / "a" / "2.png").touch()  # too many for the toys
    target = tmp_path / "data.yaml"
    target.write_text("# mine\nimagenet: /data/imagenet   # the fast disk")
    change = update(target, search(tmp_path / "data" / "pets", configs))
    text = f"# mine\nimagenet: /data/imagenet   # the fast disk\npets: {tmp_path}/data/pets\n"
    assert change.after == text + f"toys: {tmp_path}/data/pets\n"  # one folder may be two datasets
    assert f"+pets: {tmp_path}/data/pets" in change.diff.splitlines()
    change.write()
    again = update(target, search(tmp_path / "data", configs))
    assert again.diff == "" and again.kept == {name: f"{tmp_path}/data/pets" for name in ("pets", "toys")}


@pytest.mark.parametrize("text", ["{imagenet: /data/imagenet}\n", "a: |\n  one\n  two: 3\n ", "--- {}\n...\n"])
def test_a_file_that_takes_no_lines_is_left_alone(tmp_path: Path, text: str) -> None:
    as_class_folders(tmp_path / "pets")
    target = tmp_path / "data.yaml"
    target.write_text(text)
    try:
        after = update(target, search(tmp_path, [described()])).after
    except ConfigError as error:
        assert f"lines cannot be added to it as it is written; add these by hand:\npets: {tmp_path}/pets" in str(error)
    else:
        assert after == f"{text}\npets: {tmp_path}/pets\n" and text.startswith("a: |")
    assert target.read_text() == text


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("- imagenet\n")
    with pytest.raises(ConfigError, match="data.yaml:1: expected lines 'dataset: /path', found tuple"):
        update(tmp_path / "data.yaml", find.Search())


def test_a_file_of_comments_is_an_empty_one_and_a_link_stays_one(tmp_path: Path) -> None:
    as_class_folders(tmp_path / "yes")
    (tmp_path / "real.yaml").write_text("# nothing yet\n")
    (tmp_path / "data.yaml").symlink_to("real.yaml")
    update(tmp_path / "data.yaml", search(tmp_path, [described()])).write()
    assert (tmp_path / "data.yaml").is_symlink()
    assert (tmp_path / "real.yaml").read_text() == f"# nothing yet\npets: {tmp_path}/yes\n"


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: str) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(find, "write_atomic", full)
    with pytest.raises(DataError, match=r"data.yaml: cannot be written \(Read-only file system\); .* ZOO_DATA"):
        update(tmp_path / "data.yaml", find.Search()).write()


def command(*words: str) -> tuple[str, str]:
    """(what `python -m zoo datasets find WORDS` prints, its error)."""
    result = CliRunner().invoke(app, ["datasets", "find", *words])
    assert result.exception is None or isinstance(result.exception, ZooError), result.output
    return result.stdout, str(result.exception or "")


@pytest.fixture
def shelf(describe: Describe, tmp_path: Path) -> Path:
    """A folder to search, with no data.yaml yet."""
    describe(class_names_from=None)
    data_file().unlink()
    return tmp_path / "shelf"


def test_the_command_shows_the_difference_and_writes_it_unless_dry(shelf: Path) -> None:
    as_class_folders(shelf / "pets")
    output, error = command(str(shelf), "--dry-run")
    assert f"pets: found {shelf}/pets\n" in output and f"+pets: {shelf}/pets\n" in output and error == ""
    assert output.endswith("nothing was written (--dry-run)\n") and not data_file().exists()
    command(str(shelf))
    assert data_file().read_text() == f"pets: {shelf}/pets\n"
    data_file().write_text("pets: /elsewhere\n")
    assert command(str(shelf))[0] == f"pets: {data_file()} has it at /elsewhere, kept; seen: {shelf}/pets\n"


def test_two_places_of_one_dataset_are_named_and_neither_is_written(shelf: Path) -> None:
    for name in ("one", "two"):
        as_class_folders(shelf / name)
    output, error = command(str(shelf))
    assert f"pets: {shelf}/one or {shelf}/two" in error and "in more than one place" in error
    assert output == "" and not data_file().exists()


def test_nothing_found_says_so_and_what_was_met(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shelf / "a").mkdir(parents=True)
    assert "no whole dataset in the 2 folders looked into, down to 5 below it" in command(str(shelf))[1]
    monkeypatch.setattr(
        "zoo.__main__.search",
        lambda *_, **__: find.Search(
            incomplete={"pets": {shelf: "val: no val"}}, unread=[shelf / "b"], stopped_at=shelf / "c"
        ),
    )
    assert command(str(shelf))[0].splitlines() == [
        f"pets: only a part of it in {shelf}: val: no val",
        f"1 folders could not be read, the first {shelf}/b",
        f"the time ran out at {shelf}/c: name a nearer folder, or give it more --seconds",
    ]


def test_lists_to_be_made_are_announced(describe: Describe, tmp_path: Path) -> None:
    root = describe(MADE, **CLASSES)
    data_file().unlink()
    write_lines(root / "names.txt", "a")
    fill(root / "JPEG" / "a.jpg")
    fill(root / "XML" / "a.xml")
    assert "its lists are still to be made: python -m zoo datasets prepare pets" in command(str(root))[0]
