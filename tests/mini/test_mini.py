"""The small world is the same everywhere, whole or absent, and its first part is laid out as ImageNet is."""

import errno
import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

import mini.world
from mini.imagenet import STYLE, WNIDS, plan
from mini.material import CLASS_NAMES, Material, generator, load_material
from mini.scene import draw_scene
from mini.voc import SPLITS
from mini.world import FULL_COUNTS, README, STAMP, WRITERS, build, read_stamp
from zoo.errors import DataError

COUNTS = {"imagenet": {"train": 40, "val": 25}}
ALL_COUNTS = {
    "imagenet": {"train": 10, "val": 10},
    "places205": {"train": 10, "val": 10},
    "inaturalist2018": {"train": 10, "val": 10},
    "VOCdevkit": {split: 10 for split in SPLITS},
    "coco": {"train2017": 10, "val2017": 10},
    "cityscapes": {"train": 10, "val": 10, "test": 1},
}
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world, for reading only."""
    root = tmp_path_factory.mktemp("world") / "mini"
    build(root, counts=COUNTS)
    return root


@pytest.fixture(scope="module")
def material() -> Material:
    return load_material()


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def read_list(path: Path) -> dict[str, int]:
    pairs = (line.rsplit(" ", 1) for line in path.read_text().splitlines())
    return {name: int(label) for name, label in pairs}


def test_two_workers_write_the_same_bytes_as_one(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mini.crew.PIECE", 7)  # so that both get work
    build(tmp_path / "mini", counts=COUNTS, workers=2)
    assert contents(tmp_path / "mini") == contents(world)


def test_an_image_does_not_depend_on_how_many_others_there_are(world: Path, tmp_path: Path) -> None:
    build(tmp_path / "mini", counts={"imagenet": {"train": 10, "val": 10}})
    more, fewer = contents(world), contents(tmp_path / "mini")
    images = [name for name in fewer if name.endswith(".JPEG")]
    assert len(images) == 10 + 10 + 10
    assert all(fewer[name] == more[name] for name in images)


def test_datasets_depend_neither_on_workers_nor_on_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mini.crew.PIECE", 7)
    build(tmp_path / "two", counts=ALL_COUNTS, workers=2)
    together = contents(tmp_path / "two")
    for dataset, splits in ALL_COUNTS.items():
        build(tmp_path / "alone", counts={dataset: splits}, force=True)
        alone = {name: data for name, data in contents(tmp_path / "alone").items() if name.startswith(dataset)}
        assert alone and alone == {name: data for name, data in together.items() if name.startswith(dataset)}


def test_every_dataset_is_in_the_full_world() -> None:
    assert list(FULL_COUNTS) == list(WRITERS) == list(ALL_COUNTS)
    assert all(set(ALL_COUNTS[dataset]) == set(splits) for dataset, splits in FULL_COUNTS.items())


def test_imagenet_is_drawn_as_ever(material: Material) -> None:
    """A new dataset changes no other's images. On failure: raise GENERATOR_VERSION, measure anew."""
    digest = hashlib.sha256()
    for split in ("train", "val"):
        for entry in plan(material, seed=0, split=split, count=20):
            scene = draw_scene(material, STYLE, [entry.scan], generator(0, "imagenet", split, entry.index))
            digest.update(f"{entry.path} {entry.label}\n".encode() + scene.image.tobytes())
    assert digest.hexdigest() == "902a3a27a47d779a9d268de5a6f2bde06464bd3ff16e4d1b754f3cfedaa59453"


def test_another_seed_draws_other_images(world: Path, tmp_path: Path) -> None:
    build(tmp_path / "mini", seed=1, counts=COUNTS)
    name = f"imagenet/train/{WNIDS[0]}/{WNIDS[0]}_1.JPEG"
    assert (tmp_path / "mini" / name).read_bytes() != (world / name).read_bytes()


@pytest.mark.parametrize("split", ["train", "val"])
def test_classes_are_balanced_to_within_one(material: Material, split: str) -> None:
    sizes = Counter(entry.label for entry in plan(material, seed=0, split=split, count=1_234))
    assert set(sizes) == set(range(10))
    assert max(sizes.values()) - min(sizes.values()) <= 1


def test_train_and_val_share_no_scan_and_together_use_every_scan(material: Material) -> None:
    train = {entry.scan for entry in plan(material, seed=0, split="train", count=12_000)}
    val = {entry.scan for entry in plan(material, seed=0, split="val", count=2_000)}
    assert not train & val
    assert len(train) + len(val) == 1_797


def test_an_image_is_labelled_with_its_scans_digit(material: Material) -> None:
    assert all(entry.label == material.labels[entry.scan] for entry in plan(material, seed=0, split="val", count=100))


def test_the_lists_name_exactly_the_files_of_their_split(world: Path) -> None:
    imagenet = world / "imagenet"
    for split in ("train", "val"):
        listed = read_list(imagenet / "meta" / f"{split}.txt")
        files = {path.relative_to(imagenet / split).as_posix() for path in (imagenet / split).rglob("*.JPEG")}
        assert set(listed) == files
        assert len(listed) == COUNTS["imagenet"][split]


def test_val_is_flat_and_named_like_the_archive(world: Path) -> None:
    names = sorted(path.name for path in (world / "imagenet" / "val").iterdir())
    assert names == [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 26)]


def test_torchvision_reads_train_in_the_order_and_with_the_labels_of_the_list(world: Path) -> None:
    folder = world / "imagenet" / "train"
    samples = [(Path(path).relative_to(folder).as_posix(), label) for path, label in ImageFolder(folder).samples]
    assert samples == list(read_list(world / "imagenet" / "meta" / "train.txt").items())


def test_both_forms_of_val_hold_the_same_files_and_labels(world: Path) -> None:
    samples = ImageFolder(world / "imagenet" / "val_folders").samples
    assert {Path(path).name: label for path, label in samples} == read_list(world / "imagenet" / "meta" / "val.txt")
    for path, _ in samples:
        assert Path(path).read_bytes() == (world / "imagenet" / "val" / Path(path).name).read_bytes()


def test_the_classes_file_names_the_folders_in_label_order(world: Path) -> None:
    lines = (world / "imagenet" / "meta" / "classes.txt").read_text().splitlines()
    assert [line.split(" ", 1) for line in lines] == [list(pair) for pair in zip(WNIDS, CLASS_NAMES, strict=True)]
    assert ImageFolder(world / "imagenet" / "train").classes == list(WNIDS)


def test_images_are_rgb_jpegs_of_48_pixels(world: Path) -> None:
    for path in (world / "imagenet" / "val").iterdir():
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (48, 48))


def test_a_second_call_does_nothing(tmp_path: Path) -> None:
    root = tmp_path / "mini"
    assert build(root, counts=COUNTS)
    before = (root / STAMP).stat().st_mtime_ns
    assert not build(root, counts=COUNTS)
    assert (root / STAMP).stat().st_mtime_ns == before


def test_force_builds_anew(tmp_path: Path) -> None:
    assert build(tmp_path / "mini", counts=COUNTS)
    assert build(tmp_path / "mini", counts=COUNTS, force=True)


@pytest.mark.parametrize("damage", ["deleted", "truncated", "stranger", "unstamped", "spoilt stamp", "other version"])
def test_a_damaged_world_is_rebuilt(world: Path, tmp_path: Path, damage: str) -> None:
    root = tmp_path / "mini"
    build(root, counts=COUNTS)
    image = root / "imagenet" / "val" / "ILSVRC2012_val_00000003.JPEG"
    stamp = root / STAMP
    match damage:
        case "deleted":
            image.unlink()
        case "truncated":
            image.write_bytes(image.read_bytes()[:100])
        case "stranger":
            image.with_name("another.JPEG").write_bytes(image.read_bytes())
        case "unstamped":
            stamp.unlink()
        case "spoilt stamp":
            stamp.write_text("{")
        case "other version":
            stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"version": -1}))
    assert build(root, counts=COUNTS)
    assert contents(root) == contents(world)


def test_what_a_killed_build_left_behind_is_cleared(world: Path, tmp_path: Path) -> None:
    (tmp_path / ".mini.building" / "imagenet" / "train").mkdir(parents=True)
    (tmp_path / ".mini.outdated").mkdir()
    (tmp_path / ".mini.lock").touch()
    assert build(tmp_path / "mini", counts=COUNTS)
    assert [path.name for path in tmp_path.iterdir()] == ["mini"]
    assert contents(tmp_path / "mini") == contents(world)


def test_a_full_disk_gives_one_message_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(DataError, match=r"cannot build .*No space left on device.*Expected .*--root"):
        build(tmp_path / "mini", counts=COUNTS)
    assert not list(tmp_path.iterdir())


def test_a_failed_rebuild_keeps_the_old_world(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    root = tmp_path / "mini"
    build(root, counts=COUNTS)
    monkeypatch.setattr(mini.world, "write_atomic", fail)
    with pytest.raises(DataError):
        build(root, counts=COUNTS, seed=1)
    assert contents(root) == contents(world)
    assert [path.name for path in tmp_path.iterdir()] == ["mini"]


def test_a_folder_that_is_not_a_small_world_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("years of work")
    with pytest.raises(DataError, match="expected a small world, an empty folder or nothing, found 1 other"):
        build(tmp_path, counts=COUNTS, force=True)
    assert (tmp_path / "precious.txt").read_text() == "years of work"


def test_an_empty_folder_and_a_link_to_one_are_filled(world: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "mini").symlink_to(tmp_path / "scratch")
    assert build(tmp_path / "mini", counts=COUNTS)
    assert (tmp_path / "mini").is_symlink()
    assert contents(tmp_path / "scratch") == contents(world)


def test_too_few_images_for_the_classes_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="imagenet/val: expected at least one image a class"):
        build(tmp_path / "mini", counts={"imagenet": {"train": 40, "val": 9}})


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"coco": {"train2017": 10}}, "coco: expected the splits train2017, val2017, found train2017"),
        ({"coco": {"train2017": 10, "val2017": 9}}, "coco/val2017: expected at least one image a class"),
        ({"cityscapes": {"train": 10, "val": 10, "test": 0}}, "cityscapes/test: expected at least one image, found 0"),
    ],
)
def test_other_splits_and_missing_images_are_value_errors(
    tmp_path: Path, counts: dict[str, dict[str, int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(tmp_path / "mini", counts=counts)
    assert not list(tmp_path.iterdir())


def test_the_stamp_tells_recipe_counts_and_hash(world: Path) -> None:
    stamp = read_stamp(world)
    assert stamp is not None
    assert (stamp["seed"], stamp["counts"]) == (0, COUNTS)
    assert stamp["files"] == 40 + 2 * 25 + 3 + len([README])
    assert len(stamp["sha256"]) == 64


def test_the_command_ends_with_code_2_and_one_message_when_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "mini", "--root", str(tmp_path / "file" / "mini")]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("mini: cannot build the small world in")
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1
