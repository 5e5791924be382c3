"""Broken files, changed bytes and a loader's speed: what listing a dataset does not see."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.dataset_files import FOLDERS, Describe, write_lines
from zoo import verify
from zoo.__main__ import app
from zoo.datasets import data_file, dataset_config, manifest
from zoo.errors import DataError, ZooError
from zoo.files import cache_dir
from zoo.verify import broken, check_bytes, sample, throughput

BOX = "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object>"


def picture(path: Path, value: int = 0, size: tuple[int, int] = (10, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


@pytest.fixture
def pets(describe: Describe) -> Path:
    """Three classes of two pictures each."""
    root = describe(FOLDERS)
    for number, name in enumerate("abcdef"):
        picture(root / "train" / "cde"[number // 2] / f"{name}.png", number)
    return root


def annotated(root: Path, annotations: str, content: dict[str, Any]) -> list[str]:
    """What is broken about images that each have an annotation file, relative to the dataset's folder."""
    for name, value in content.items():
        picture(root / "JPEG" / f"{name}.png")
        path = root / annotations.format(name)
        path.parent.mkdir(exist_ok=True)
        if isinstance(value, str):
            path.write_text(value)
        else:
            value.save(path)
    write_lines(root / "names.txt", *content)
    found = manifest("pets", "train")
    return [one.replace(f"{root}/", "") for one in broken(found, dataset_config("pets"), range(len(found)))]


def sets(annotations: str) -> dict[str, Any]:
    return {"image_sets": [{"names": "names.txt", "images": "JPEG/{}.png", "annotations": annotations}]}


def test_every_broken_image_of_a_sample_is_named(pets: Path) -> None:
    (pets / "train" / "c" / "a.png").write_bytes(b"no image")
    whole = (pets / "train" / "d" / "c.png").read_bytes()
    (pets / "train" / "d" / "c.png").write_bytes(whole[: len(whole) // 2])
    found = manifest("pets", "train")
    problems = broken(found, dataset_config("pets"), sample(found))
    assert [line.partition(": ")[0] for line in problems] == [f"{pets}/train/c/a.png", f"{pets}/train/d/c.png"]


def test_a_sample_is_drawn_from_the_whole_split_and_always_the_same(pets: Path) -> None:
    found = manifest("pets", "train")
    assert sample(found) == list(range(6)) and sample(found, 3) == sample(found, 3) and len(set(sample(found, 3))) == 3


def test_boxes_are_read_too(describe: Describe) -> None:
    root = describe(sets("XML/{}.xml"), classes=["ant", "bee", "cat"])
    size = "<size><width>10</width><height>{}</height></size>"
    good = f"<annotation>{size.format(8)}{BOX}</annotation>"
    problems = annotated(root, "XML/{}.xml", {"a": good, "b": "<", "c": good.replace(">8<", ">9<")})
    assert problems[0].startswith("XML/b.xml: expected a Pascal VOC annotation, found no XML")
    assert problems[1:] == [
        "XML/c.xml: written for 10 x 9 pixels, but its picture has 10 x 8; restore the one that is wrong."
    ]


def test_masks_are_class_numbers_of_their_pictures_size(describe: Describe) -> None:
    root = describe(sets("Masks/{}.png"))

    def mask(*values: int, height: int = 8) -> Image.Image:
        return Image.fromarray(np.resize(np.array(values, dtype=np.uint8), (height, 10)))

    palette = mask(0, 1, 2, 255).convert("P")
    masks = {"a": palette, "b": mask(0, 1, 3), "c": mask(0, height=9), "d": mask(0).convert("RGB")}
    assert annotated(root, "Masks/{}.png", masks) == [
        "Masks/b.png: expected labels 0…2 and 255, found 3; restore the file.",
        "Masks/c.png: a mask of 10 x 9 pixels, but its picture has 10 x 8; restore the one that is wrong.",
        "Masks/d.png: expected a mask of one byte a pixel (grey or palette), found colours; restore the file.",
    ]


def test_bytes_are_recorded_once_and_every_difference_is_named(pets: Path) -> None:
    found = manifest("pets", "train")
    first = check_bytes(found, workers=2)
    assert first.recorded and first.num_files == 6 and first.problems == ()
    assert first.ledger == cache_dir() / "checksums" / "pets-train.sha256"
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", first.ledger], cwd=pets, check=True)
    again = check_bytes(found, workers=2)
    assert not again.recorded and again.problems == ()
    path = pets / "train" / "c" / "a.png"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # one bit, the size as it was: the manifest is the same
    path.write_bytes(data)
    (pets / "train" / "e" / "f.png").unlink()
    assert check_bytes(found, workers=1).problems == (
        "train/e/f.png: cannot be read (No such file or directory); restore it",
        "train/c/a.png: its bytes have changed since they were recorded",
    )
    picture(pets / "train" / "e" / "g.png")
    manifest.cache_clear()
    assert check_bytes(manifest("pets", "train"), workers=1).problems[1:] == (
        "train/e/f.png: was recorded, is not part of the split any more",
        "train/e/g.png: was no part of the split when it was recorded",
    )


def test_nothing_is_recorded_of_a_split_that_cannot_be_read(pets: Path) -> None:
    found = manifest("pets", "train")
    (pets / "train" / "c" / "a.png").unlink()
    read = check_bytes(found, workers=1)
    assert len(read.problems) == 1 and not read.recorded and not read.ledger.exists()


def test_a_list_of_hashes_that_is_none_is_refused(pets: Path) -> None:
    write_lines(cache_dir() / "checksums" / "pets-train.sha256", "abc  train/c/a.png")
    with pytest.raises(DataError, match="pets-train.sha256, line 1: expected 'sha256  path', found 'abc  train"):
        check_bytes(manifest("pets", "train"), workers=1)


def test_only_the_first_problems_are_named() -> None:
    assert verify.named(["a"] * 20) == ["a"] * 20 and verify.named(["a"] * 1022)[20:] == ["… and 1,002 more"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_speed_is_measured_on_images_as_they_are_used(pets: Path, workers: int) -> None:
    assert throughput(manifest("pets", "train"), workers=workers) > 1
    (pets / "train" / "c" / "a.png").write_bytes(b"no image")
    if not workers:
        with pytest.raises(DataError, match="a.png: expected an image"):
            throughput(manifest("pets", "train"), workers=workers)


def command(*words: str) -> tuple[str, str]:
    """(what `python -m zoo datasets verify WORDS` prints, its error)."""
    manifest.cache_clear()
    result = CliRunner().invoke(app, ["datasets", "verify", *words])
    assert result.exception is None or isinstance(result.exception, ZooError), result.output
    return result.stdout, str(result.exception or "")


def test_the_command_looks_at_every_dataset_with_a_place_and_at_its_bytes(pets: Path) -> None:
    output, error = command("--checksum", "--workers", "1")
    ledger = cache_dir() / "checksums" / "pets-train.sha256"
    assert f"pets train: 6 files, recorded, to be compared with later: {ledger}\n" in output and error == ""
    assert f"pets train: 6 files, the same as recorded: {ledger}\n" in command("pets", "--checksum")[0]
    path = pets / "train" / "c" / "a.png"
    path.write_bytes(bytes(path.stat().st_size))
    assert command("pets")[1] == ""  # sizes do not tell
    assert command("pets", "--checksum")[1].splitlines() == [
        "dataset 'pets' is not usable as it is:",
        "  - train: 1 of 6 files are wrong",
        "  train/c/a.png: its bytes have changed since they were recorded",
        f"  restore these files; if the change is meant, remove {ledger} and run --checksum again",
    ]


def test_the_command_refuses_unknown_names_and_a_machine_without_data(pets: Path) -> None:
    assert command("pets", "cats")[1] == "no dataset 'cats': expected one of pets."
    data_file().unlink()
    assert command()[1] == f"no dataset has a place: python -m zoo datasets find ROOT writes them to {data_file()}."
