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

from mini import coco, voc
from mini.material import CLASS_NAMES, Material, load_material
from mini.world import build

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
