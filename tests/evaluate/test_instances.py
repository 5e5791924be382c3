"""From an engine's detections and masks to a record: perfect ones score 100, and what cannot be measured is refused.

The engine's child process is played by a function here; tests/engines runs the real one.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask

from engines import launch
from engines.contract import read_job
from evaluate.cells import resolve
from evaluate.instances import Settings, annotations, held_out, refuse_no_masks, training_images
from evaluate.run import run_cell
from zoo import benchmark, datasets
from zoo.benchmark import benchmark_layout
from zoo.checkpoint import CARD_NAME
from zoo.datasets import manifest
from zoo.distributed import World
from zoo.errors import ConfigError, DataError
from zoo.files import ROOT
from zoo.record import read_arrays, read_record

CLASSES = ["cat", "dog", "emu"]  # no emu in the test images
WIDTH, HEIGHT = 40, 32
ME = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
# image id → (category id, box, crowd)
TRAIN: dict[int, list[Any]] = {
    3: [(5, (1, 1, 10, 12), 0), (9, (5, 6, 20, 20), 1)],
    4: [(9, (2, 3, 20, 20), 1)],  # a crowd only
    6: [],
    8: [(7, (4, 4, 9, 0), 0), (7, (4, 4, 0.5, 9), 0)],  # no height; less than a pixel wide
}
TEST: dict[int, list[Any]] = {
    1: [(5, (1, 1, 10, 12), 0), (5, (15, 10, 20, 20), 0)],
    2: [(7, (5, 5, 16, 16), 0), (7, (21, 4, 18, 20), 1)],
    11: [],
    30: [(5, (3, 3, 27, 27), 0)],
}


def corners(box: tuple[float, ...]) -> list[float]:
    x, y, width, height = map(float, box)
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def write_annotations(path: Path, images: dict[int, list[Any]], outline: Any = None) -> None:
    annotations = [
        {
            "image_id": image,
            "category_id": category,
            "bbox": list(box),
            "area": box[2] * box[3],
            "iscrowd": crowd,
            "segmentation": run_lengths(box) if crowd or outline else [corners(box)],
        }
        for image, objects in images.items()
        for category, box, crowd in objects
    ]
    content = {
        "images": [{"id": n, "file_name": f"{n:012d}.jpg", "width": WIDTH, "height": HEIGHT} for n in images],
        "annotations": [each | {"id": number} for number, each in enumerate(annotations, start=1)],
        "categories": [{"id": number, "name": name} for number, name in zip((5, 7, 9), CLASSES, strict=True)],
    }
    path.write_text(json.dumps(content))


def run_lengths(box: tuple[float, ...]) -> dict[str, Any]:
    """Uncompressed, as COCO's crowds are."""
    x, y, width, height = map(int, box)
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[y : y + height, x : x + width] = True
    changes = np.flatnonzero(np.diff(inside.ravel(order="F"), prepend=False))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(changes, prepend=0, append=inside.size).tolist()}


@pytest.fixture
def coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A COCO folder of eight images, its configurations, and records and caches in tmp_path."""
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    splits = {}
    for split, images in (("train", TRAIN), ("val", TEST)):
        (tmp_path / "coco" / split).mkdir()
        for number in images:
            Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "coco" / split / f"{number:012d}.jpg")
        write_annotations(tmp_path / "coco" / "annotations" / f"{split}.json", images)
        layout = {"coco_json": f"annotations/{split}.json", "images": split}
        splits[f"{split}2017"] = {"num_images": None, "layouts": [layout]}
    configs = tmp_path / "configs"
    shutil.copytree(ROOT / "configs", configs)
    dataset = {"name": "coco", "title": "COCO", "root": None, "num_classes": 3, "classes": CLASSES}
    text = yaml.safe_dump(dataset | {"substitute_for": None, "splits": splits})
    (configs / "datasets" / "coco.yaml").write_text(text)
    for variant in ("zoo", "moco"):
        config = yaml.safe_load((configs / "benchmarks" / f"coco2017_instances_{variant}.yaml").read_text())
        (configs / "benchmarks" / f"coco_{variant}.yaml").write_text(yaml.safe_dump(config | {"dataset": "coco"}))
    (tmp_path / "data.yaml").write_text(f"coco: {tmp_path / 'coco'}\n")
    for name, value in {"ZOO_DATA": "data.yaml", "ZOO_CACHE": "cache", "ZOO_RUNS": "runs"}.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    for module in (datasets, benchmark):
        monkeypatch.setattr(module, "CONFIGS", configs)
    manifest.cache_clear()
    yield tmp_path
    manifest.cache_clear()


def perfect() -> dict[str, np.ndarray]:
    """Every object that is no crowd."""
    rows = [
        (index, (5, 7, 9).index(category), box)
        for index, objects in enumerate(TEST.values())
        for category, box, crowd in objects
        if not crowd
    ]
    boxes = np.array([box for *_, box in rows], np.float32)
    compress: Any = mask.frPyObjects
    masks = [compress([corners(box)], HEIGHT, WIDTH)[0]["counts"] for *_, box in rows]
    return {
        "image": np.array([image for image, *_ in rows]),
        "label": np.array([label for _, label, _ in rows]),
        "score": np.full(len(rows), 0.9, np.float32),
        "box": np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
        "mask_counts": np.frombuffer(b"".join(masks), np.uint8),
        "mask_offsets": np.cumsum([0, *map(len, masks)]),
    }


def test_perfect_detections_score_100_and_are_kept(
    coco: Path, tiny_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: dict[str, Any] = {}

    def measure(name: str, folder: Path, *, procs: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        job = read_job(folder)
        handed.update(name=name, train=json.loads(Path(job.train).read_text()), fresh=job.fresh)
        (folder / "log.jsonl").write_text(json.dumps({"iteration": 0, "total_loss": 1.0, "lr": 0.1}) + "\n")
        answer = {
            "engine": {"detectron2": "0.6"},
            "proofs": {},
            "steps": 1,
            "batch": 16,
            "lr": 0.02,
            "resumed_at": 0,
            "num_scored": len(TEST),
        }
        return answer, perfect()

    monkeypatch.setattr(launch, "measure", measure)
    cell = resolve("coco_zoo", tiny_files / "checkpoint" / CARD_NAME, seed=0, overrides=())
    path = run_cell(cell, coco / "runs" / "single" / "records", num_workers=0, me=ME, procs=1)
    record = read_record(path)
    names = ("ap", "ap50", "ap75", "mask_ap", "mask_ap50", "mask_ap75")
    assert record.metrics == pytest.approx(dict.fromkeys(names, 100.0))
    assert record.details["absent_classes"] == ["emu"] and record.details["ap_by_class"]["emu"] is None
    assert handed["name"] == "detectron2" and handed["fresh"] == ["backbone.fpn_"]
    assert [Path(image["file_name"]).name for image in handed["train"]] == ["000000000003.jpg", "000000000008.jpg"]
    kept = read_arrays(path.parent, record)
    for name, values in perfect().items():
        assert (kept[f"sample/detection_{name}"] == values).all(), name
    assert kept["replicates/mask_ap"].shape == (1000,) and np.isfinite(kept["replicates/mask_ap"]).all()


def test_a_rate_is_judged_by_box_ap_on_held_out_images(coco: Path) -> None:
    settings = Settings.model_validate(benchmark_layout("coco_zoo").settings)
    split = manifest("coco", "val2017")
    read = annotations(split, tuple(CLASSES))
    found = perfect()
    parts = held_out(split, read, 3, settings, np.arange(4))
    assert parts.fit == [] and parts.score(found) == pytest.approx(100.0)
    parts = held_out(split, read, 3, settings, np.array([0, 2]))
    assert [image["image_id"] for image in parts.fit] == [1, 3] and [i["image_id"] for i in parts.test] == [0, 1]
    with pytest.raises(DataError, match="val2017, held-out part: expected objects to be found, found 1 images with"):
        held_out(split, read, 3, settings, np.array([2]))


def test_a_picture_of_another_size_is_named(coco: Path) -> None:
    Image.new("RGB", (HEIGHT, WIDTH)).save(coco / "coco" / "val" / f"{11:012d}.jpg")
    split = manifest("coco", "val2017")
    with pytest.raises(DataError, match=r"1 of 4 images of coco val2017 cannot be used:\n.*expected 40 x 32 pixels"):
        annotations(split, tuple(CLASSES))


def test_the_two_protocols_train_on_other_tiny_objects(coco: Path) -> None:
    """Crowds never, and no image without a single object; mmdet's objects are at least a pixel wide and high."""
    listed = {}
    for variant in ("zoo", "moco"):
        settings = Settings.model_validate(benchmark_layout(f"coco_{variant}").settings)
        split = manifest("coco", "train2017")
        images = training_images(split, annotations(split, tuple(CLASSES)), settings)
        listed[variant] = [[(each["category_id"], each["bbox"]) for each in image["annotations"]] for image in images]
    assert listed["zoo"] == [[(0, [1, 1, 11, 13])], []]
    assert listed["moco"] == [[(0, [1, 1, 11, 13])], [(1, [4, 4, 4.5, 13])]]


def test_outlines_arrive_as_pixels_of_the_stored_image_where_bitmaps_are_read(coco: Path) -> None:
    """As mmdet draws them, before it resizes; detectron2 would resize polygons as such (protocols §2.9, masks)."""
    split = manifest("coco", "train2017")
    read = annotations(split, tuple(CLASSES))
    zoo, moco = (Settings.model_validate(benchmark_layout(f"coco_{variant}").settings) for variant in ("zoo", "moco"))
    drawn = training_images(split, read, zoo)[0]["annotations"][0]["segmentation"]
    assert drawn["size"] == [HEIGHT, WIDTH]
    assert mask.toBbox(drawn | {"counts": drawn["counts"].encode()}).tolist() == [1, 1, 10, 12]
    assert training_images(split, read, moco)[0]["annotations"][0]["segmentation"] == [corners((1, 1, 10, 12))]


def test_images_may_lie_in_folders_of_their_folder(coco: Path) -> None:
    (coco / "coco" / "val" / "more").mkdir()
    split = manifest("coco", "val2017")
    file = split.annotation(0)
    content = json.loads(file.read_text())
    for image in content["images"][:2]:
        name = f"more/{image['file_name']}"
        (coco / "coco" / "val" / image["file_name"]).rename(coco / "coco" / "val" / name)
        image["file_name"] = name
    file.write_text(json.dumps(content))
    manifest.cache_clear()
    split = manifest("coco", "val2017")
    assert sum("more/" in path for path in split.paths) == 2
    read = {
        path.name: image for path, image in zip(map(Path, split.paths), annotations(split, tuple(CLASSES)), strict=True)
    }
    objects = {f"{key:012d}.jpg": len(each) for key, each in TEST.items()}
    assert {name: len(image.objects) for name, image in read.items()} == objects


def test_an_engine_that_would_not_outline_is_refused() -> None:
    refuse_no_masks({"MODEL": {"MASK_ON": True}, "INPUT": {"MASK_FORMAT": "bitmask"}})
    with pytest.raises(ConfigError, match="instance segmentation needs masks:") as caught:
        refuse_no_masks({"MODEL": {"MASK_ON": False}})
    assert "MODEL.MASK_ON: expected true, found False" in str(caught.value)
    assert "INPUT.MASK_FORMAT: expected polygon or bitmask, found None" in str(caught.value)


def test_run_lengths_are_trained_on_as_pixels_only(coco: Path) -> None:
    split = manifest("coco", "train2017")
    write_annotations(split.annotation(0), {**TRAIN, 8: []}, outline="run lengths")
    read = annotations(split, tuple(CLASSES))
    zoo, moco = (Settings.model_validate(benchmark_layout(f"coco_{variant}").settings) for variant in ("zoo", "moco"))
    outline = training_images(split, read, zoo)[0]["annotations"][0]["segmentation"]
    packed: Any = outline | {"counts": outline["counts"].encode()}
    assert mask.toBbox(packed).tolist() == [1, 1, 10, 12]
    with pytest.raises(DataError, match="expected polygons, as INPUT.MASK_FORMAT says, found run lengths at 1 objects"):
        training_images(split, read, moco)


@pytest.mark.parametrize(
    ("split", "images", "message"),
    [
        ("train", {**TRAIN, 3: [], 8: []}, "train2017: expected images with objects to train on, found none among 4"),
        ("val", {**TEST, 1: [], 2: TEST[2][1:], 30: []}, "val2017: expected objects to be found, found 4 images with"),
        ("val", {**TEST, 2: [(8, (1, 1, 2, 2), 0)]}, r"annotation id 3 \(image id 2\): category_id 8 is not listed"),
        ("val", {}, "the list 'images' is empty"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_training(
    coco: Path, tiny_files: Path, split: str, images: dict[int, list[Any]], message: str
) -> None:
    write_annotations(coco / "coco" / "annotations" / f"{split}.json", images)
    cell_of = lambda: resolve("coco_zoo", tiny_files / "checkpoint" / CARD_NAME, seed=0, overrides=())  # noqa: E731
    with pytest.raises(DataError, match=message):
        run_cell(cell_of(), coco / "runs" / "single" / "records", num_workers=0, me=ME, procs=1)
