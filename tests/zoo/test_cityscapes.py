"""Cityscapes' table is its own, every image gets its label map, and one kind of map is read for all of a split."""

from pathlib import Path

import numpy as np
import pytest
import torchvision

from tests.dataset_files import Describe, fill
from tests.zoo.test_find import real
from zoo.cityscapes import COLOURS, LABELS, TRAIN_IDS, kind_of, list_split
from zoo.datasets import dataset_config, manifest
from zoo.errors import DataError
from zoo.find import search

NAMES = ("aachen/aachen_000000_000019", "aachen/aachen_000001_000019", "ulm/ulm_000000_000019")
KINDS = ("labelTrainIds", "labelIds")


def image(root: Path, name: str, split: str = "train") -> Path:
    return root / f"leftImg8bit/{split}/{name}_leftImg8bit.png"


def labels(root: Path, name: str, kind: str, split: str = "train") -> Path:
    return root / f"gtFine/{split}/{name}_gtFine_{kind}.png"


def release(root: Path, split: str = "train", kinds: tuple[str, ...] = KINDS) -> None:
    for number, name in enumerate(NAMES, start=1):
        fill(image(root, name, split), number)
        for kind in (*kinds, "instanceIds", "color"):
            fill(labels(root, name, kind, split), number + len(kind))


def refusal(root: Path) -> str:
    manifest.cache_clear()
    with pytest.raises(DataError) as caught:
        manifest("pets", "train")
    return str(caught.value).replace(f"{root}", "ROOT")


def test_the_table_is_the_dataset_s() -> None:
    """torchvision keeps a copy of cityscapesScripts' table; in label maps of bytes its last row's -1 is 255."""
    theirs = torchvision.datasets.Cityscapes.classes
    assert [(c.name, c.id, c.train_id, c.color) for c in theirs if c.id >= 0] == [tuple(label) for label in LABELS]
    assert [(c.id, c.train_id) for c in theirs if c.id < 0] == [(-1, -1)] and TRAIN_IDS[255] == 255
    by_train_id = sorted((c for c in theirs if 0 <= c.train_id < 255), key=lambda c: c.train_id)
    for name in ("cityscapes", "mini_cityscapes"):
        assert dataset_config(name).classes == tuple(c.name for c in by_train_id)
    assert tuple(c.color for c in by_train_id) == COLOURS


def test_train_ids_are_preferred_and_another_kind_is_another_identity(describe: Describe) -> None:
    root = describe({"cityscapes": "train"}, num_images=3)
    release(root)
    whole = manifest("pets", "train")
    assert whole.paths == tuple(str(image(Path(), name)) for name in NAMES)
    assert whole.annotations == tuple(str(labels(Path(), name, "labelTrainIds")) for name in NAMES)
    assert len(whole.labels) == 0 and kind_of(whole.annotation(0)) == "labelTrainIds"
    assert {"leftImg8bit/train/ulm", "gtFine/train/ulm"} < set(whole.folders)
    labels(root, NAMES[0], "labelTrainIds").unlink()  # half converted: the release's own, for all
    manifest.cache_clear()
    released = manifest("pets", "train")
    assert {kind_of(path) for path in released.annotations} == {"labelIds"}
    assert released.paths == whole.paths and released.sha256 != whole.sha256


def test_what_has_no_partner_is_named_all_at_once(describe: Describe) -> None:
    root = describe({"cityscapes": "train"})
    release(root)
    for kind in KINDS:
        labels(root, NAMES[0], kind).unlink()
    image(root, NAMES[2]).unlink()
    assert refusal(root) == (
        "ROOT: Cityscapes' split 'train' is not usable:\n"
        "  - leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png: no label map: expected "
        "gtFine/train/aachen/aachen_000000_000019, …_gtFine_labelTrainIds.png or …_gtFine_labelIds.png\n"
        "  - gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png: no image "
        "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png"
    )


def test_two_kinds_are_not_mixed(describe: Describe) -> None:
    root = describe({"cityscapes": "train"})
    release(root, kinds=("labelIds",))
    labels(root, NAMES[1], "labelIds").rename(labels(root, NAMES[1], "labelTrainIds"))
    assert refusal(root).splitlines()[1] == (
        "  - expected one kind of label map for all images: of 3 images 2 lack labelTrainIds (first: "
        "gtFine/train/aachen/aachen_000000_000019_gtFine_labelTrainIds.png), 1 lack labelIds (first: "
        "gtFine/train/aachen/aachen_000001_000019_gtFine_labelIds.png)"
    )


def test_an_empty_split_an_odd_name_and_a_broken_link(describe: Describe) -> None:
    root = describe({"cityscapes": "train"})
    for folder in ("leftImg8bit/train/ulm", "gtFine/train"):
        (root / folder).mkdir(parents=True)
    assert "leftImg8bit/train: expected images <city>/<name>_leftImg8bit.png, found none" in refusal(root)
    release(root)
    image(root, NAMES[0]).unlink()
    image(root, NAMES[0]).symlink_to(root / "nowhere")
    image(root, NAMES[1]).rename(image(root, "aachen/a\tb"))
    for kind in KINDS:
        labels(root, NAMES[1], kind).rename(labels(root, "aachen/a\tb", kind))
    said = refusal(root)
    assert f"  - {image(Path(), NAMES[0])}: a link to nothing, or no file; restore it" in said
    assert "the name holds a tab or a line's end; rename it" in said


def test_it_is_found_by_its_folders(tmp_path: Path) -> None:
    config = real("cityscapes", train=3, val=3)
    root = tmp_path / "vision" / "cs"
    release(root)
    assert search(tmp_path, [config]).incomplete["cityscapes"] == {root: "val: no leftImg8bit/val, gtFine/val"}
    release(root, "val")
    found = search(tmp_path, [config])
    assert [place.root for place in found.places["cityscapes"]] == [root] and not found.incomplete
    image(root, NAMES[0], "val").unlink()
    (problem,) = search(tmp_path, [config]).incomplete["cityscapes"].values()
    assert problem.endswith("no image leftImg8bit/val/aachen/aachen_000000_000019_leftImg8bit.png")
    for kind in KINDS:
        labels(root, NAMES[0], kind, "val").unlink()
    (problem,) = search(tmp_path, [config]).incomplete["cityscapes"].values()
    assert problem == "val: leftImg8bit/val: 2 images, expected 3"
    assert np.size(list_split(root, "val").pairs) == 4
