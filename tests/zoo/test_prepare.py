"""python -m zoo datasets: lists are made from what the archives hold, never over what is there, and say so."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.dataset_files import Describe, fill, tree, write_lines
from zoo.__main__ import app
from zoo.command import guarded
from zoo.datasets import dataset_config, manifest
from zoo.errors import ZooError
from zoo.files import CONFIGS

CLASSES = ["cat", "dog", "emu"]
VOC = {
    "class_lists": "Main/{}_trainval.txt",
    "images": "JPEG/{}.jpg",
    "names": "Main/trainval.txt",
    "annotations": "XML/{}.xml",
}
INATURALIST = [
    {"image_list": "meta/train.txt", "images": "."},
    {"inaturalist_json": "train2018.json", "images": "."},
]


def command(*words: str) -> tuple[str, str]:
    """(what `python -m zoo datasets WORDS` prints, its error)."""
    manifest.cache_clear()
    result = CliRunner().invoke(app, ["datasets", *words])
    if result.exception is not None:
        assert isinstance(result.exception, ZooError), result.output
        assert result.exception.exit_code == 2
    return result.stdout, str(result.exception or "")


def in_sets(part: str, folder: str, **more: Any) -> dict[str, Any]:
    """One of the parts of a VOC-like split."""
    return {"names": f"Sets/{part}.txt", "images": "JPEG/{}.jpg", "annotations": f"{folder}/{{}}.png", **more}


@pytest.fixture
def inaturalist(describe: Describe) -> Path:
    root = describe(*INATURALIST)
    pictures = {7: "a/2/x y.jpg", 3: "a/0/z.jpg"}
    for path in pictures.values():
        fill(root / path)
    content = {
        "images": [{"id": key, "file_name": path} for key, path in pictures.items()],
        "annotations": [{"image_id": 3, "category_id": 0}, {"image_id": 7, "category_id": 2}],
    }
    (root / "train2018.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def voc(describe: Describe) -> Path:
    """Three images: a cat and a difficult dog, nothing, two dogs of which one is difficult and an emu."""
    root = describe(VOC, classes=CLASSES)
    objects = {"12": [("cat", 0), ("dog", 1)], "07": [], "05": [("dog", 1), ("dog", 0), ("emu", 0)]}
    for name, things in objects.items():
        fill(root / "JPEG" / f"{name}.jpg")
        boxes = "".join(
            f"<object><name>{thing}</name><difficult>{hard}</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax>"
            "<ymax>5</ymax></bndbox></object>"
            for thing, hard in things
        )
        size = "<size><width>8</width><height>8</height></size>"
        write_lines(root / "XML" / f"{name}.xml", f"<annotation>{size}{boxes}</annotation>")
    write_lines(root / "Main" / "trainval.txt", "12", "07", "05")
    return root


@pytest.fixture
def masks(describe: Describe) -> Path:
    """train 1, 2; val 3; SegmentationClassAug has all of these and 4, 5."""
    splits: dict[str, Any] = {
        "trainaug": {"num_images": 4, "layouts": [{"image_sets": [in_sets("train", "Own")]}]},
        "val": {"num_images": 1, "layouts": [{"image_sets": [in_sets("val", "Own")]}]},
    }
    splits["trainaug"]["layouts"][0]["image_sets"].append(in_sets("aug", "Aug", rest=True))
    root = describe(splits=splits)
    for name in "12345":
        fill(root / "JPEG" / f"{name}.jpg")
        fill(root / "Aug" / f"{name}.png")
        fill(root / "Own" / f"{name}.png")
    write_lines(root / "Sets" / "train.txt", "1", "2")
    write_lines(root / "Sets" / "val.txt", "3")
    return root


def test_class_folders_give_the_list_of_the_same_dataset(describe: Describe) -> None:
    root = describe({"class_folders": "train"}, {"image_list": "meta/train.txt", "images": "train"}, num_images=3)
    for path in ("cat/a 1.png", "dog/2.png", "emu/3.png"):
        fill(root / "train" / path)
    before = manifest("pets", "train").sha256
    assert command("prepare", "pets") == ("meta/train.txt: written, 3 lines\n", "")
    assert (root / "meta" / "train.txt").read_text() == "cat/a 1.png 0\ndog/2.png 1\nemu/3.png 2\n"
    describe({"image_list": "meta/train.txt", "images": "train"})
    assert manifest("pets", "train").sha256 == before


def test_inaturalists_lists_are_joined_by_id(inaturalist: Path) -> None:
    before = manifest("pets", "train").sha256
    assert command("prepare", "pets") == ("meta/train.txt: written, 2 lines\n", "")
    assert (inaturalist / "meta" / "train.txt").read_text() == "a/0/z.jpg 0\na/2/x y.jpg 2\n"
    manifest.cache_clear()
    assert manifest("pets", "train").sha256 == before and "meta/train.txt" in manifest("pets", "train").folders


def test_a_list_that_is_there_is_compared_and_kept(inaturalist: Path) -> None:
    path = inaturalist / "meta" / "train.txt"
    write_lines(path, "a/2/x y.jpg 2", "a/0/z.jpg 0")  # another order
    before = path.read_bytes()
    assert command("prepare", "pets", "--force")[0] == "meta/train.txt: there already: the same 2 lines\n"
    assert path.read_bytes() == before
    write_lines(path, "a/2/x y.jpg 1", "a/0/z.jpg 0")
    before = path.read_bytes()
    different = (
        "meta/train.txt: there already and different from the 2 lines that belong here; kept (--force replaces it)\n"
    )
    assert command("prepare", "pets") == (different, "")
    assert path.read_bytes() == before
    assert command("prepare", "pets", "--force")[0] == "meta/train.txt: replaced, 2 lines now\n"
    assert path.read_text() == "a/0/z.jpg 0\na/2/x y.jpg 2\n"


def test_a_list_without_a_source_is_left_alone_or_missed(inaturalist: Path) -> None:
    (inaturalist / "train2018.json").unlink()
    output, error = command("prepare", "pets")
    assert output == "" and error.splitlines() == [
        "dataset 'pets': not every list file could be made:",
        "  - train: no file meta/train.txt, and nothing to make it from: expected list train2018.json of images in ./",
    ]
    write_lines(inaturalist / "meta" / "train.txt", "a/0/z.jpg 0")
    only = "meta/train.txt: there already, 1 lines; nothing here to compare it with\n"
    assert command("prepare", "pets", "--force") == (only, "")


def test_places205s_lists_come_with_its_archives(describe: Describe) -> None:
    describe({"image_list": "lists/train.csv", "images": "images256"})
    missing = "train: no file lists/train.csv, and nothing to make it from: it is part of the dataset's archives"
    assert missing in command("prepare", "pets")[1]


def test_what_is_made_from_a_part_is_not_written(describe: Describe) -> None:
    root = describe({"class_folders": "train"}, {"image_list": "meta/train.txt", "images": "train"}, num_images=1000)
    for name in CLASSES:
        fill(root / "train" / name / "1.png")
    before = tree(root)
    output, error = command("prepare", "pets")
    assert output == "" and tree(root) == before
    assert "train: class folders in train/: expected 1,000 images, found 3; nothing was written. Unpack" in error


def test_an_unusable_source_is_named(inaturalist: Path) -> None:
    (inaturalist / "a" / "0" / "z.jpg").unlink()
    assert command("prepare", "pets")[1].splitlines()[1:] == [
        f"  - train: {inaturalist / 'train2018.json'} is not usable:",
        "    - image id 3: no file a/0/z.jpg",
    ]


def test_class_lists_are_what_the_annotations_say(voc: Path) -> None:
    output, error = command("prepare", "pets")
    assert error == "" and output.splitlines() == [f"Main/{name}_trainval.txt: written, 3 lines" for name in CLASSES]
    assert (voc / "Main" / "cat_trainval.txt").read_text() == "05 -1\n07 -1\n12  1\n"
    assert (voc / "Main" / "dog_trainval.txt").read_text() == "05  1\n07 -1\n12  0\n"
    manifest.cache_clear()
    assert manifest("pets", "train").labels.tolist() == [[0, 1, 1], [0, 0, 0], [1, -1, 0]]
    write_lines(voc / "Main" / "emu_trainval.txt", "05 1", "07 -1", "12 -1")  # spaced otherwise
    assert "Main/emu_trainval.txt: there already: the same 3 lines" in command("prepare", "pets")[0]


def test_one_missing_class_list_is_made(voc: Path) -> None:
    command("prepare", "pets")
    (voc / "Main" / "dog_trainval.txt").unlink()
    assert [line.split(": ")[1] for line in command("prepare", "pets")[0].splitlines()] == [
        "there already",
        "written, 3 lines",
        "there already",
    ]


def test_class_lists_need_names_and_whole_annotations(voc: Path) -> None:
    (voc / "XML" / "07.xml").write_text("<annotation>")
    (voc / "XML" / "12.xml").unlink()
    error = command("prepare", "pets")[1]
    assert "Main/trainval.txt: its images' annotations are not usable:" in error
    assert "07.xml: expected a Pascal VOC annotation, found no XML" in error
    assert "12.xml: the annotation cannot be read (No such file or directory)" in error
    (voc / "Main" / "trainval.txt").unlink()
    error = command("prepare", "pets")[1]
    made_from = "and nothing to make it from: expected Main/trainval.txt"
    assert f"train: no file Main/dog_trainval.txt, {made_from}" in error and not list((voc / "Main").iterdir())


def test_aug_is_every_mask_that_no_other_list_names(masks: Path) -> None:
    assert command("prepare", "pets") == (
        "Sets/train.txt: there already, 2 lines; nothing here to compare it with\n"
        "Sets/aug.txt: written, 2 lines\n"
        "Sets/val.txt: there already, 1 lines; nothing here to compare it with\n",
        "",
    )
    assert (masks / "Sets" / "aug.txt").read_text() == "4\n5\n"
    assert "Sets/aug.txt: there already: the same 2 lines" in command("prepare", "pets")[0]
    assert len(manifest("pets", "trainaug")) == 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("Sets/val.txt", "no file Sets/aug.txt, and nothing to make it from: expected Sets/val.txt"),
        ("Aug/5.png", "Sets/train.txt + Sets/aug.txt: expected 4 images, found 3; nothing was written"),
        ("JPEG/4.jpg", "JPEG/4.jpg: no such file, but an annotation"),
    ],
)
def test_aug_is_not_made_from_less_than_all(masks: Path, spoil: str, message: str) -> None:
    (masks / spoil).unlink()
    assert message in command("prepare", "pets")[1] and not (masks / "Sets" / "aug.txt").exists()


@pytest.mark.parametrize(("text", "message"), [("1\n1\n", "- 1 is listed twice"), ("\n", "- the list is empty")])
def test_a_list_that_others_are_made_from_must_be_right(masks: Path, text: str, message: str) -> None:
    (masks / "Sets" / "train.txt").write_text(text)
    assert message in command("prepare", "pets")[1] and not (masks / "Sets" / "aug.txt").exists()


def test_another_root_may_be_named(inaturalist: Path, tmp_path: Path) -> None:
    inaturalist.rename(tmp_path / "elsewhere")
    assert command("prepare", "pets", "--root", str(tmp_path / "elsewhere"))[0] == "meta/train.txt: written, 2 lines\n"
    error = command("prepare", "pets", "--root", str(tmp_path / "gone"))[1]
    assert error == f"--root {tmp_path / 'gone'}: expected the dataset's folder, found none."


def test_a_folder_that_cannot_be_written_is_named(inaturalist: Path) -> None:
    (inaturalist / "meta").write_text("a file where a folder should be")
    error = command("prepare", "pets")[1]
    assert "meta/train.txt: cannot be written (" in error and "make its folder writable" in error


def test_a_dataset_without_lists_says_so(describe: Describe) -> None:
    describe({"class_folders": "train"})
    assert command("prepare", "pets") == ("pets: its layouts need no list files\n", "")


@pytest.mark.parametrize("action", ["prepare", "verify"])
def test_an_unknown_dataset_is_refused_with_all_there_are(action: str) -> None:
    known = ", ".join(sorted(path.stem for path in (CONFIGS / "datasets").glob("*.yaml")))
    assert command(action, "imagenets")[1] == f"no dataset 'imagenets': expected one of {known}."


@pytest.mark.parametrize("action", ["prepare", "verify"])
def test_a_dataset_without_a_place_says_the_line_to_write(describe: Describe, tmp_path: Path, action: str) -> None:
    describe()
    (tmp_path / "data.yaml").write_text("dogs: /data\n")
    assert f"expected a line 'pets: /path/to/it' in {tmp_path / 'data.yaml'}" in command(action, "pets")[1]


def test_verify_prints_counts_classes_and_hash(describe: Describe, voc: Path) -> None:
    command("prepare", "pets")
    sha256 = manifest("pets", "train").sha256
    assert command("verify", "pets")[0] == f"pets train: 3 images, 3 classes, 1 to 1 images each, sha256 {sha256}\n"
    root = describe(folder="folders")
    for name in CLASSES:
        fill(root / "train" / name / "1.png")
    output, error = command("verify", "pets")
    assert output.startswith("pets train: 3 images, 3 of 3 classes, sha256 ") and error == ""
    assert output.endswith("pets classes: 0 is cat, …, 2 is emu\n")


def test_verify_says_what_is_annotated(masks: Path) -> None:
    command("prepare", "pets")
    assert "pets val: 1 images, 3 classes, an annotation an image, sha256 " in command("verify", "pets")[0]


def test_verify_names_the_problems_of_every_split(masks: Path) -> None:
    (masks / "Own" / "3.png").unlink()
    (masks / "Own" / "1.png").unlink()
    command("prepare", "pets")
    assert [line for line in command("verify", "pets")[1].splitlines() if "class" not in line] == [
        "dataset 'pets' is not usable as it is:",
        f"  - trainaug: {masks / 'Sets/train.txt'} is not usable:",
        "    - line 1: no file Own/1.png",
        f"  - val: {masks / 'Sets/val.txt'} is not usable:",
        "    - line 1: no file Own/3.png",
    ]


def test_list_says_what_is_where(describe: Describe, tmp_path: Path) -> None:
    splits = {name: {"num_images": None, "layouts": [{"class_folders": name}]} for name in ("train", "val")}
    root = describe(splits=splits)
    assert command("list")[0] == f"pets  {root}: no images or lists of train, val\n"
    (root / "train" / "cat").mkdir(parents=True)
    assert command("list")[0] == f"pets  {root}: no images or lists of val\n"
    (root / "val" / "cat").mkdir(parents=True)
    assert command("list")[0] == f"pets  {root}: found train, val\n"
    (tmp_path / "data.yaml").write_text(f"pets: {tmp_path / 'gone'}\n")
    assert command("list")[0] == f"pets  {tmp_path / 'gone'}: no such folder\n"
    (tmp_path / "data.yaml").unlink()
    assert command("list")[0] == f"pets  no place: no line 'pets: /path/to/it' in {tmp_path / 'data.yaml'}\n"


def test_a_non_utf8_list_ends_the_command_with_code_2(
    describe: Describe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = describe()
    (root / "images").mkdir()
    (root / "meta").mkdir()
    (root / "meta" / "train.txt").write_bytes(b"caf\xe9.png 0\n")
    assert _ended(["datasets", "verify", "pets"], monkeypatch) == 2
    captured = capsys.readouterr()
    assert "meta/train.txt: not UTF-8 text" in captured.err and "Traceback" not in captured.err


def _ended(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """The exit code of `python -m zoo WORDS`, without its changes to this process."""
    monkeypatch.setattr(sys, "argv", ["zoo", *words])
    monkeypatch.setattr("zoo.command.logging.basicConfig", lambda **_: None)
    monkeypatch.setattr("zoo.interrupt.arm", lambda: None)
    with pytest.raises(SystemExit) as caught:
        guarded(app)
    return caught.value.code


def test_voc12augs_lists_are_made_as_described(tmp_path: Path) -> None:
    """The description's own layout, with fewer images: nothing but the count is wrong."""
    root = tmp_path / "VOCdevkit"
    for name in "1234":
        fill(root / "VOC2012" / "JPEGImages" / f"{name}.jpg")
        fill(root / "VOC2012" / "SegmentationClassAug" / f"{name}.png")
    write_lines(root / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt", "1")
    write_lines(root / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt", "2")
    assert dataset_config("voc12aug").splits["trainaug"].layouts[0].can_be_prepared
    assert "expected 10,582 images, found 3; nothing" in command("prepare", "voc12aug", "--root", str(root))[1]


def test_names_that_are_not_utf8_are_not_written_into_lists(masks: Path) -> None:
    (masks / "Aug" / "5.png").unlink()
    with open(os.fsencode(masks / "Aug") + b"/\xff.png", "wb"):
        pass
    assert r"b'\xff.png': the name is not UTF-8; rename it" in command("prepare", "pets")[1]
