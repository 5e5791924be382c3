"""detectron2 and mmsegmentation read the small world as they read the real datasets.

In a child process each: their imports warn, and the compatibility patches are global.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_length_masks

from converters.to_detectron2 import prepared
from engines.contract import Job, write_job
from evaluate import instances
from evaluate.benchmarks import load_benchmark
from evaluate.engine import pictures
from mini import coco, voc
from mini.material import CLASS_NAMES, Material, load_material
from mini.world import build
from tests.engines.children import backbone
from zoo.datasets import Manifest
from zoo.native import laid_over
from zoo.transforms import IMAGENET_PIXELS

REPOSITORY = Path(__file__).resolve().parents[2]
COUNTS = {
    "VOCdevkit": {split: 10 for split in voc.SPLITS},
    "coco": {"train2017": 10, "val2017": 10},
    "cityscapes": {"train": 10, "val": 10, "test": 1},
}

pytestmark = pytest.mark.slow  # some seconds each: the imports


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world, for reading only."""
    root = tmp_path_factory.mktemp("world") / "mini"
    build(root, counts=COUNTS)
    return root


@pytest.fixture(scope="module")
def material() -> Material:
    return load_material()


def run_in_child(code: str, world: Path) -> Any:
    """The JSON in the last line that the code prints; no GPU and no network are looked for. Its argv[1] is `world`."""
    child = subprocess.run(
        [sys.executable, "-c", code, str(world)],
        cwd=REPOSITORY,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


def test_detectron2_reads_the_boxes_that_are_drawn(world: Path, material: Material) -> None:
    found = run_in_child(
        """
import json, sys
from engines.compatibility import prepare_detectron2
prepare_detectron2()
from detectron2.data.datasets.coco import load_coco_json
from detectron2.data.datasets.pascal_voc import load_voc_instances
from mini.material import CLASS_NAMES
root = sys.argv[1]
voc = load_voc_instances(f"{root}/VOCdevkit/VOC2007", "trainval", CLASS_NAMES)
folder = f"{root}/coco/val2017"
coco = load_coco_json(f"{root}/coco/annotations/instances_val2017.json", folder, "small_coco")
print(json.dumps([
    {str(image["image_id"]): [[a["category_id"], a["bbox"], a.get("iscrowd")] for a in image["annotations"]]
    for image in images} for images in (voc, coco)
]))
""",
        world,
    )
    in_voc: dict[str, list[list[Any]]] = {}
    for split in ("train2007", "val2007"):
        for entry in voc.plan(material, seed=0, split=split, count=10):
            scene, _ = voc.compose(material, entry, seed=0)
            in_voc[entry.name] = [[thing.label, list(thing.box), None] for thing in scene.objects]
    assert found[0] == in_voc
    assert len(found[1]) == 10
    for entry in coco.plan(material, seed=0, split="val2017", count=10):
        boxes = found[1][str(entry.number)]
        alone = [thing for thing in coco.compose(material, entry, seed=0).objects if thing.label != entry.crowd]
        expected = [[t.label, [t.box[0], t.box[1], t.box[2] - t.box[0], t.box[3] - t.box[1]], 0] for t in alone]
        assert [box for box in boxes if not box[2]] == expected
        assert [box[0] for box in boxes if box[2]] == ([] if entry.crowd is None else [entry.crowd])


def test_a_mask_rcnn_is_trained_and_tested_on_coco(world: Path, tmp_path: Path) -> None:
    """What it is given is detectron2's own list; one object's outline is given as run lengths."""
    split = {part: _split(world / "coco", part) for part in ("train2017", "val2017")}
    read = {part: instances.annotations(each, CLASS_NAMES) for part, each in split.items()}
    config = load_benchmark("mini_coco_instances").settings
    native = laid_over(
        config.engine_config,
        {
            "MODEL": {"ROI_HEADS": {"SCORE_THRESH_TEST": 0.0}, "RPN": {"POST_NMS_TOPK_TEST": 8}},
            "INPUT": {"MIN_SIZE_TRAIN": [48], "MIN_SIZE_TEST": 48},
            "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 2, "STEPS": [1], "BASE_LR": 0.001},
            "TEST": {"DETECTIONS_PER_IMAGE": 5},
        },
    )
    train = instances.training_images(split["train2017"], read["train2017"], config)
    polygons = laid_over(config.engine_config, {"INPUT": {"MASK_FORMAT": "polygon"}})
    given = instances.training_images(
        split["train2017"], read["train2017"], config.model_copy(update={"engine_config": polygons})
    )
    crowd = next(each for image in read["train2017"] for each in image.objects if each.crowd)
    for role, listed in (("train", train), ("test", pictures(split["val2017"], read["val2017"]))):
        (tmp_path / f"{role}.json").write_text(json.dumps(listed))
    weights = prepared(tmp_path, backbone("resnet18"), "resnet18", IMAGENET_PIXELS, "fpn")
    files: dict[str, Any] = {role: str(tmp_path / f"{role}.json") for role in ("train", "test")}
    job: dict[str, Any] = {
        "task": "measure",
        "config": native,
        "device": "cpu",
        "seed": 0,
        "workers": 0,
        "classes": list(CLASS_NAMES),
    }
    write_job(tmp_path, Job(**vars(weights), **job, **files))
    theirs = run_in_child(
        """
import json, sys
from pathlib import Path
from engines import detectron2 as engine
from engines.contract import read_job
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.datasets.coco import load_coco_json
from detectron2.structures import BoxMode
root, folder = sys.argv[1].split("|")
listed = load_coco_json(f"{root}/coco/annotations/instances_train2017.json", f"{root}/coco/train2017", "small_coco")
listed = filter_images_with_only_crowd_annotations(listed)
for image in listed:
    image["annotations"] = [
        {
            "category_id": each["category_id"], "segmentation": each["segmentation"],
            "bbox": BoxMode.convert(each["bbox"], each["bbox_mode"], BoxMode.XYXY_ABS),
        }
        for each in image["annotations"] if not each["iscrowd"]
    ]
    del image["image_id"]
engine.run(Path(folder), read_job(Path(folder)))
print(json.dumps(listed))
""",
        Path(f"{world}|{tmp_path}"),
    )
    assert crowd and [{k: v for k, v in image.items() if k != "image_id"} for image in given] == theirs
    assert "loss_mask" in json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    with np.load(tmp_path / "arrays.npz", allow_pickle=False) as stored:
        found = instances.detections_of(dict(stored))
    assert len(found.mask_offsets) == len(found.score) + 1 > 10 and found.mask_offsets[-1] == len(found.mask_counts)
    for row, index in enumerate(found.image):
        image = read["val2017"][index]
        packed: Any = {"size": [image.height, image.width], "counts": found.mask(row)}
        x, y, width, height = run_length_masks.toBbox(packed)
        low, high = found.box[row][:2], found.box[row][2:]
        assert width == 0 or ((low - 1 <= (x, y)).all() and ((x + width, y + height) <= high + 1).all())
    metrics, replicates, _ = instances.scored(found, read["val2017"], split["val2017"], len(CLASS_NAMES))
    assert len(metrics) == 6 and all(np.isfinite(values).all() for values in replicates.values())


def _split(root: Path, part: str) -> Manifest:
    """A manifest of the small world's COCO, which has fewer images here than `mini_coco`."""
    names = tuple(sorted(path.name for path in (root / part).iterdir()))
    return Manifest(
        dataset="mini_coco",
        split=part,
        root=root,
        paths=tuple(f"{part}/{name}" for name in names),
        labels=np.empty(0, np.int64),
        annotations=(f"annotations/instances_{part}.json",) * len(names),
        sha256="ab" * 32,
        folders=(),
    )


def test_mmsegmentation_reads_the_masks(world: Path) -> None:
    found = run_in_child(
        """
import json, sys
from engines.compatibility import prepare_mmseg
prepare_mmseg()
import numpy as np
from mmseg.datasets import CityscapesDataset, PascalVOCDataset
from mmseg.utils import register_all_modules
from mini.material import CLASS_NAMES
from mini.voc import colour_map
root = sys.argv[1]
register_all_modules()  # or mmcv's LoadAnnotations, which wants boxes, would be meant

class DigitsDataset(PascalVOCDataset):  # metainfo= could only choose among VOC's own class names
    METAINFO = dict(classes=("background", *CLASS_NAMES), palette=colour_map()[:11].tolist())

pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")]
voc = {
    name: DigitsDataset(
        data_root=f"{root}/VOCdevkit/VOC2012", ann_file=f"ImageSets/Segmentation/{name}.txt",
        data_prefix=dict(img_path="JPEGImages", seg_map_path=folder), pipeline=pipeline,
    )
    for name, folder in dict(train="SegmentationClass", val="SegmentationClass", aug="SegmentationClassAug").items()
}
cityscapes = {
    name: CityscapesDataset(
        data_root=f"{root}/cityscapes", pipeline=pipeline,
        data_prefix=dict(img_path=f"leftImg8bit/{name}", seg_map_path=f"gtFine/{name}"),
    )
    for name in ("train", "val")
}
answer = {}
for name, dataset in [*voc.items(), *cityscapes.items()]:
    for sample in (dataset[index] for index in range(len(dataset))):
        values, counts = np.unique(sample["gt_seg_map"], return_counts=True)
        assert sample["img"].shape[:2] == sample["gt_seg_map"].shape
        answer[sample["seg_map_path"]] = dict(zip(values.tolist(), counts.tolist()))
print(json.dumps(answer))
""",
        world,
    )
    folder = world / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    listed = [name for split in ("train", "val", "aug") for name in (folder / f"{split}.txt").read_text().split()]
    assert len(found) == len(listed) + 20
    classes: set[int] = set()
    for path, pixels in found.items():
        with Image.open(path) as image:
            values, counts = np.unique(np.asarray(image), return_counts=True)
        assert {int(value): count for value, count in pixels.items()} == dict(zip(values, counts, strict=True))
        classes |= set(map(int, pixels)) if "VOC2012" in path else set()
    assert classes == {*range(len(CLASS_NAMES) + 1), voc.IGNORE}
