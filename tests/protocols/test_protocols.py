"""What a benchmark would train is what docs/protocols.md says of the protocol, fact by fact (expected.yaml).

The engines build it in children of their own, by the functions that train (describe_detectron2.py, describe_mmseg.py),
and say what the built objects hold; a configuration that says one thing and builds another fails here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from converters import to_detectron2, to_mmseg
from engines.contract import Job, write_job
from evaluate import detection, segmentation
from evaluate.benchmarks import load_benchmark
from tests.protocols.drawn import LR_AT, draw_mask, draw_picture
from zoo import datasets
from zoo.backbone import Backbone
from zoo.cityscapes import COLOURS, LABELS
from zoo.config import read_yaml
from zoo.datasets import dataset_config
from zoo.files import CONFIGS, ROOT
from zoo.transforms import IMAGENET_PIXELS

ENGINES = {
    "voc0712_detection_zoo": "detectron2",
    "voc0712_detection_moco": "detectron2",
    "coco2017_instances_zoo": "detectron2",
    "coco2017_instances_moco": "detectron2",
    "coco2017_instances_c4_1x_moco": "detectron2",
    "coco2017_instances_c4_2x_moco": "detectron2",
    "voc12aug_segmentation_zoo": "mmseg",
    "cityscapes_segmentation_zoo": "mmseg",
}
ARCHS = ("resnet50", "resnet34", "resnet18")
SCHEDULES = {  # protocol of COCO → iterations, and after which the rate is divided by 10
    "coco2017_instances_zoo": (12 * 7330, (8 * 7330, 11 * 7330)),
    "coco2017_instances_moco": (90000, (60000, 80000)),
    "coco2017_instances_c4_1x_moco": (90000, (60000, 80000)),
    "coco2017_instances_c4_2x_moco": (180000, (120000, 160000)),
}
PICTURES = 20  # of a drawn training split; the last has no boxes
EXPECTED: dict[tuple[str, str, str], dict[str, Any]] = {
    (protocol, arch, fact): entry
    for block in read_yaml(Path(__file__).with_name("expected.yaml"))
    for protocol in block["protocols"]
    for arch in block["archs"]
    for fact, entry in block["facts"].items()
}
BUILT = [key for key in EXPECTED if key[1] != "settings"]
SETTINGS = [key for key in EXPECTED if key[1] == "settings"]


@pytest.fixture(scope="module")
def backbones() -> dict[str, dict[str, torch.Tensor]]:
    """Random weights whose batch norms are no fresh ones."""
    states = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for arch in ARCHS:
            model = Backbone(arch)
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.uniform_(module.weight, 0.5, 1)
                    nn.init.normal_(module.bias, std=0.1)
            states[arch] = model.state_dict()
    return states


def hand_over(folder: Path, protocol: str, weights: Any, *, trained: bool) -> None:
    """The job that the benchmark would hand to its engine, with drawn pictures; without any, the model alone."""
    config = load_benchmark(protocol)
    classes = dataset_config(config.dataset).classes
    assert classes is not None
    lists = {}
    for split, count in (("train", PICTURES), ("test", 5)) if trained else ():
        listed = []
        for index in range(count):
            path = folder / f"{split}{index}.png"
            draw_picture(path, 80, 60)
            if ENGINES[protocol] == "detectron2":
                boxes = [] if index == PICTURES - 1 else [{"category_id": 0, "bbox": [10.0, 10.0, 50.0, 50.0]}]
                if protocol in SCHEDULES:
                    boxes = [box | {"segmentation": [[10.0, 10.0, 50.0, 10.0, 50.0, 50.0]]} for box in boxes]
                image = {"file_name": str(path), "image_id": index, "height": 60, "width": 80, "annotations": boxes}
            else:
                draw_mask(folder / f"{split}{index}_mask.png", np.arange(60 * 80).reshape(60, 80) % len(classes))
                image = {"img_path": str(path), "seg_map_path": str(folder / f"{split}{index}_mask.png")}
            listed.append(image)
        lists[split] = str(folder / f"{split}.json")
        Path(lists[split]).write_text(json.dumps(listed))
    job = Job(
        **vars(weights),
        task="measure",
        config=config.settings.engine_config,
        device="cpu",
        seed=0,
        workers=0,
        classes=list(classes),
        **lists,
    )
    write_job(folder, job)


def child(*arguments: str) -> Any:
    """The last line that a Python prints, as JSON; it finds no GPU."""
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])


def described(engine: str, folder: Path, backbones: dict[str, dict[str, torch.Tensor]]) -> dict[str, Any]:
    """ "PROTOCOL-ARCH" → fact → what is built; what training needs for ResNet-50 only."""
    jobs = []
    for arch in ARCHS:
        home = folder / arch
        home.mkdir()
        weights: dict[str, Any] = {}  # by layout
        if engine == "detectron2":
            for layout in ("c4", "fpn"):
                weights[layout] = to_detectron2.prepared(home / layout, backbones[arch], arch, IMAGENET_PIXELS, layout)
        else:
            weights["c4"] = to_mmseg.prepared(home, backbones[arch], arch, IMAGENET_PIXELS)
        for protocol in (name for name in ENGINES if ENGINES[name] == engine):
            if protocol in SCHEDULES and arch != "resnet50":
                continue  # the same models as VOC's, but for what is said of ResNet-50's
            jobs.append(folder / f"{protocol}-{arch}")
            layout = getattr(load_benchmark(protocol).settings, "layout", "c4")
            hand_over(jobs[-1], protocol, weights[layout], trained=arch == "resnet50")
    return child("-m", f"tests.protocols.describe_{engine}", *map(str, jobs))


@pytest.fixture(scope="module")
def detectron2(tmp_path_factory: pytest.TempPathFactory, backbones: dict[str, Any]) -> dict[str, Any]:
    return described("detectron2", tmp_path_factory.mktemp("detectron2"), backbones)


@pytest.fixture(scope="module")
def mmseg(tmp_path_factory: pytest.TempPathFactory, backbones: dict[str, Any]) -> dict[str, Any]:
    return described("mmseg", tmp_path_factory.mktemp("mmseg"), backbones)


def plain(value: Any) -> Any:
    """YAML's tuples as lists, numbers as approximate ones."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return pytest.approx(value, rel=1e-6) if isinstance(value, float) else value


def check(key: tuple[str, str, str], found: dict[str, Any]) -> None:
    protocol, arch, fact = key
    entry = EXPECTED[key]
    where = f"{protocol}, {arch}, {fact}: protocols {entry['row']}"
    assert fact in found, f"{where}: nothing built says so"
    if "built" in entry:
        assert entry["because"] and plain(entry["built"]) != plain(entry["value"]), where
    assert found[fact] == plain(entry.get("built", entry["value"])), where


@pytest.mark.slow
@pytest.mark.parametrize("key", BUILT, ids="-".join)
def test_built(key: tuple[str, str, str], request: pytest.FixtureRequest) -> None:
    protocol, arch, _ = key
    check(key, request.getfixturevalue(ENGINES[protocol])[f"{protocol}-{arch}"])


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ENGINES)
def test_every_built_fact_is_expected(protocol: str, request: pytest.FixtureRequest) -> None:
    """A fact that is described but compared with nothing would be a test that cannot fail."""
    silent = {"lr_at"}  # by test_detection_rate, test_instances_rate and test_segmentation_rate
    silent |= {"head_loss", "auxiliary_concatenates_input", "auxiliary_dropout"}  # as is the sheet
    silent |= {"images_without_boxes_are_trained"}  # detectron2's column, where no image is without
    built = request.getfixturevalue(ENGINES[protocol])[f"{protocol}-resnet50"]
    assert not set(built) - silent - {fact for name, _, fact in EXPECTED if name == protocol}


@pytest.mark.slow
@pytest.mark.parametrize("step", LR_AT["detectron2"])
@pytest.mark.parametrize("protocol", ["voc0712_detection_zoo", "voc0712_detection_moco"])
def test_detection_rate(protocol: str, step: int, detectron2: dict[str, Any]) -> None:
    """Protocols 2.8, Schedule: linear warm-up of 100 its from x.001; divided by 10 at 18k and at 22k; lr .02."""
    rate = 0.02
    if step < 100:
        rate *= 0.001 + (1 - 0.001) * step / 100
    for milestone in (18000, 22000):
        if step >= milestone:
            rate /= 10
    assert detectron2[f"{protocol}-resnet50"]["lr_at"].get(str(step)) == pytest.approx(rate, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "steps"), [("voc12aug_segmentation_zoo", 20000), ("cityscapes_segmentation_zoo", 40000)]
)
def test_segmentation_rate(protocol: str, steps: int, mmseg: dict[str, Any]) -> None:
    """Protocols 2.10, Schedule: poly of power .9 to 1e-4, per iteration, over 20k its (Cityscapes: 40k); lr .01."""
    rates = {str(step): 1e-4 + (0.01 - 1e-4) * (1 - step / steps) ** 0.9 for step in LR_AT["mmseg"] if step < steps}
    assert mmseg[f"{protocol}-resnet50"]["lr_at"] == pytest.approx(rates, rel=1e-6)


@pytest.mark.parametrize("key", SETTINGS, ids="-".join)
def test_settings(key: tuple[str, str, str]) -> None:
    """What the project itself does with the data and the detections."""
    config = load_benchmark(key[0])
    table = config.tables[0]
    found = config.settings.model_dump() | {"columns": table.columns, "decimals": table.decimals}
    for role in ("train", "test"):
        split = dataset_config(config.dataset).splits[found[f"{role}_split"]]
        found[f"{role}_images"] = split.num_images
        found[f"{role}_lists"] = [top for layout in split.layouts for top in layout.tops(())]
    check(key, found)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", SCHEDULES)
def test_instances_rate(protocol: str, detectron2: dict[str, Any]) -> None:
    """Protocols 2.9, Schedule, Warm-up: linear over 1,000 its from x.001; divided by 10 at two milestones; lr .02."""
    iterations, milestones = SCHEDULES[protocol]
    found = detectron2[f"{protocol}-resnet50"]["lr_at"]
    for step in LR_AT["detectron2_coco"]:
        rate = 0.02 / 10 ** sum(step >= milestone for milestone in milestones)
        if step < 1000:
            rate *= 0.001 + (1 - 0.001) * step / 1000
        expected = None if step >= iterations else pytest.approx(rate, rel=1e-6)
        assert found.get(str(step)) == expected, step


# -- the images that training is given


VOC_LISTS = """
import json, sys
from engines import detectron2 as engine
from detectron2.data import DatasetCatalog, get_detection_dataset_dicts
from detectron2.data.datasets.pascal_voc import CLASS_NAMES, register_pascal_voc
from engines.contract import Job
root, ours = sys.argv[1:]
for year in (2007, 2012):
    register_pascal_voc(f"voc_{year}", f"{root}/VOC{year}", "trainval", year)
job = Job(weights="", weights_sha256="", overlay={}, tensors={}, fresh=[], probe="", task="measure", config={},
          device="cpu", seed=0, workers=0, classes=list(CLASS_NAMES))
engine._register("ours", ours, job)
theirs = get_detection_dataset_dicts(["voc_2007", "voc_2012"], filter_empty=True)
print(json.dumps([theirs, get_detection_dataset_dicts(["ours"], filter_empty=False), list(CLASS_NAMES)]))
"""

MASK_LISTS = """
import json, sys
from mmseg.utils import register_all_modules
register_all_modules(init_default_scope=True)
from engines import mmseg as engine
from mmseg.registry import DATASETS
root, lists = sys.argv[1:]
steps = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]
def own(images, number):
    of = [{"type": "LoadImageFromFile"}, {"type": "LoadLabels", "num_classes": number}]
    return {"type": "ListedImages", "metainfo": {"classes": range(number)}, "pipeline": of, "ignore_index": 255,
            "ann_file": f"{lists}/{images}.json"}
def voc(names, labels):
    return {"type": "PascalVOCDataset", "data_root": f"{root}/VOC2012", "pipeline": steps,
            "ann_file": f"ImageSets/Segmentation/{names}.txt",
            "data_prefix": {"img_path": "JPEGImages", "seg_map_path": labels}}
def pairs(dataset):
    read = [(dataset.get_data_info(index), dataset[index]) for index in range(len(dataset))]
    return sorted((i["img_path"], i["seg_map_path"], s["gt_seg_map"].tolist()) for i, s in read)
parts = [voc("train", "SegmentationClass"), voc("aug", "SegmentationClassAug")]
theirs = DATASETS.build({"type": "ConcatDataset", "datasets": parts})
classes = DATASETS.build(parts[0]).metainfo["classes"]
city = DATASETS.build({"type": "CityscapesDataset", "data_root": f"{root}/cityscapes", "pipeline": steps,
                       "data_prefix": {"img_path": "leftImg8bit/train", "seg_map_path": "gtFine/train"}})
print(json.dumps([
    [pairs(theirs), pairs(DATASETS.build(own("train", 21)))],
    [pairs(DATASETS.build(voc("val", "SegmentationClass"))), pairs(DATASETS.build(own("test", 21)))],
    [pairs(city), *(pairs(DATASETS.build(own(kind, 19))) for kind in ("labelTrainIds", "labelIds"))],
    [list(classes), list(city.metainfo["classes"]), city.metainfo["palette"]],
]))
"""

# name → (class, xmin ymin xmax ymax, difficult) of each object
VOC = {
    "VOC2007": {
        "000005": [("chair", "263 211 324 339", 0), ("chair", "5 244 67 374", 1), ("dog", "1 1 500 375", 0)],
        "000007": [("car", "141 50 500 330", 1), ("person", "2 3 40 90", 1)],
        "000009": [("tvmonitor", "69 172 270 330", 0)],
    },
    "VOC2012": {
        "2008_000002": [("aeroplane", "34.5 11 448.25 293", 0)],
        "2008_000003": [],
        "2011_000001": [("person", "46 106 210 277", 0), ("horse", "45.70 1 46.9 2", 0)],
    },
}


@pytest.fixture
def devkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A VOCdevkit folder of VOC's boxes, and the project's dataset descriptions without their numbers of images."""
    root = tmp_path / "VOCdevkit"
    for part, pictures in VOC.items():
        for name, things in pictures.items():
            draw_picture(root / part / f"JPEGImages/{name}.jpg", 500, 375)
            objects = "".join(
                f"<object><name>{label}</name><difficult>{difficult}</difficult><bndbox>"
                + "".join(f"<{c}>{v}</{c}>" for c, v in zip(("xmin", "ymin", "xmax", "ymax"), box.split(), strict=True))
                + "</bndbox></object>"
                for label, box, difficult in things
            )
            annotation = root / part / f"Annotations/{name}.xml"
            annotation.parent.mkdir(exist_ok=True)
            size = "<size><width>500</width><height>375</height><depth>3</depth></size>"
            annotation.write_text(f"<annotation>{size}{objects}</annotation>")
        listed(root / part / "ImageSets/Main/trainval.txt", list(pictures))
    for name in ("voc0712", "voc12aug", "cityscapes"):
        text = (CONFIGS / f"datasets/{name}.yaml").read_text()
        lines = ["    num_images: null" if "num_images:" in line else line for line in text.splitlines()]
        (tmp_path / "configs/datasets").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"configs/datasets/{name}.yaml").write_text("\n".join(lines))
    (tmp_path / "data.yaml").write_text(f"voc0712: {root}\nvoc12aug: {root}\ncityscapes: {root / 'cityscapes'}\n")
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data.yaml"))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "CONFIGS", tmp_path / "configs")
    return root


def listed(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def training_images(protocol: str) -> list[dict[str, Any]]:
    config = load_benchmark(protocol)
    split = datasets.manifest.__wrapped__(config.dataset, config.settings.train_split)
    classes = dataset_config(config.dataset).classes
    assert classes is not None
    return detection.training_images(split, detection.annotations(split, classes), config.settings)


@pytest.mark.slow
def test_moco_trains_on_detectron2_s_own_list(tmp_path: Path, devkit: Path) -> None:
    """Same pictures, sizes, boxes and classes, difficult ones included, as detectron2's reader of VOC gives."""
    (tmp_path / "ours.json").write_text(json.dumps(training_images("voc0712_detection_moco")))
    theirs, ours, classes = child("-c", VOC_LISTS, str(devkit), str(tmp_path / "ours.json"))
    assert tuple(classes) == dataset_config("voc0712").classes
    for image in theirs + ours:
        del image["image_id"]  # theirs: the file's name; ours: the place in the manifest
    assert len(ours) == 5
    assert sorted(ours, key=lambda i: i["file_name"]) == sorted(theirs, key=lambda i: i["file_name"])


def test_zoo_trains_without_difficult_boxes(devkit: Path) -> None:
    """Protocols 2.8, mmdet: difficult objects are background, all four coordinates one less; D20."""
    names = dataset_config("voc0712").classes
    assert names is not None
    found = {Path(image["file_name"]).stem: image for image in training_images("voc0712_detection_zoo")}
    assert {name: [(names[b["category_id"]], *b["bbox"]) for b in found[name]["annotations"]] for name in found} == {
        "000005": [("chair", 262, 210, 323, 338), ("dog", 0, 0, 499, 374)],
        "000007": [],  # only difficult ones: stays
        "000009": [("tvmonitor", 68, 171, 269, 329)],
        "2008_000002": [("aeroplane", 33.5, 10, 447.25, 292)],
        "2011_000001": [("person", 45, 105, 209, 276), ("horse", 45.70 - 1, 0, 46.9 - 1, 1)],
    }


@pytest.mark.slow
def test_segmentation_lists_what_mmseg_s_own_reader_lists(tmp_path: Path, devkit: Path) -> None:
    """The same labels in each pixel by mmseg's own datasets and by ours.

    Both parts of VOC12aug and its val; Cityscapes from either kind of label map, where mmseg reads one only.
    """
    parts = {
        "train": ("SegmentationClass", ["2007_000032", "2007_000039"]),
        "aug": ("SegmentationClassAug", ["2008_000002", "2008_000015", "2011_003276"]),
        "val": ("SegmentationClass", ["2007_000033", "2007_000042"]),
    }
    labels = np.append(np.arange(21), [255, 255, 0]).reshape(4, 6)  # every id, and what is ignored
    for part, (folder, names) in parts.items():
        listed(devkit / f"VOC2012/ImageSets/Segmentation/{part}.txt", names)
        for shift, name in enumerate(names):
            draw_picture(devkit / f"VOC2012/JPEGImages/{name}.jpg", 6, 4)
            draw_mask(devkit / f"VOC2012/{folder}/{name}.png", np.roll(labels, shift))
    settings = load_benchmark("voc12aug_segmentation_zoo").settings
    for role, split in (("train", settings.train_split), ("test", settings.test_split)):
        images = segmentation.images(datasets.manifest.__wrapped__("voc12aug", split))
        (tmp_path / f"{role}.json").write_text(json.dumps(images))
    table = np.array([(label.id, label.train_id) for label in LABELS] + [(255, 255)]).T.reshape(2, 5, 7)
    for name in ("aachen/aachen_000000_000019", "ulm/ulm_000000_000019"):
        draw_picture(devkit / f"cityscapes/leftImg8bit/train/{name}_leftImg8bit.png", 7, 5)
        for kind, numbers in zip(("labelIds", "labelTrainIds"), table, strict=True):
            draw_mask(devkit / f"cityscapes/gtFine/train/{name}_gtFine_{kind}.png", numbers)
    images = json.dumps(segmentation.images(datasets.manifest.__wrapped__("cityscapes", "train")))
    for kind in ("labelTrainIds", "labelIds"):
        (tmp_path / f"{kind}.json").write_text(images.replace("labelTrainIds", kind))
    train, test, city, (voc_classes, city_classes, palette) = child("-c", MASK_LISTS, str(devkit), str(tmp_path))
    assert tuple(voc_classes) == dataset_config("voc12aug").classes
    assert tuple(city_classes) == dataset_config("cityscapes").classes
    assert [tuple(colour) for colour in palette] == list(COLOURS)
    theirs, same, mapped = city
    assert len(theirs) == 2 and same == theirs and theirs[0][2] == table[1].tolist()
    assert [(image, labels) for image, _, labels in mapped] == [(image, labels) for image, _, labels in theirs]
    assert all(path.endswith("_gtFine_labelIds.png") for _, path, _ in mapped)
    for (theirs, ours), count in ((train, 5), (test, 2)):
        assert len(theirs) == count and ours == theirs
    assert train[0][0][2] == labels.tolist()
