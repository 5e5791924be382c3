"""mmsegmentation as a child process: what it must have loaded, what it measures, and what it survives.

Nothing of it is imported here, as its imports warn. Where its own functions are asked, a child asks them.
"""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from converters.to_mmseg import prepared
from engines.contract import Job, Weights, write_job
from engines.launch import measure
from tests.engines.children import (
    backbone,
    check_proofs,
    check_ranks,
    logged,
    program,
    runs,
    stopped_twice,
    stored,
    watched,
)
from zoo.backbone import COUNTER, Backbone
from zoo.cityscapes import LABELS
from zoo.files import CONFIGS, sha256_file
from zoo.native import resolved
from zoo.transforms import IMAGENET_PIXELS

pytestmark = pytest.mark.slow  # children that import mmseg

CLASSES = ["background", "left", "right"]
ITERATIONS = 8
IDS = np.resize(np.arange(34, dtype=np.uint8), (64, 128))

LIBRARY = """
import json
import numpy as np, torch
from sklearn.metrics import confusion_matrix
from engines import mmseg
names = {}
for depth in (18, 34, 50):
    built = mmseg.MODELS.build({"type": "ResNet", "depth": depth})
    names[f"resnet{depth}"] = {name: list(tensor.shape) for name, tensor in built.state_dict().items()}
draw = np.random.default_rng(0)
labels, predicted = draw.integers(0, 5, (4, 37, 23)), draw.integers(0, 4, (4, 37, 23))  # one class never predicted
labels[draw.random(labels.shape) < 0.2] = 255
areas = [mmseg.IoUMetric.intersect_and_union(torch.from_numpy(p), torch.from_numpy(t), 5, 255)
         for p, t in zip(predicted, labels)]
intersect, union, of_prediction, of_label = (sum(column).numpy() for column in zip(*areas))
known = labels != 255
matrix = confusion_matrix(labels[known], predicted[known], labels=range(5))
assert (intersect == matrix.diagonal()).all(), (intersect, matrix)
assert (of_prediction == matrix.sum(0)).all() and (of_label == matrix.sum(1)).all()
assert (union == matrix.sum(0) + matrix.sum(1) - matrix.diagonal()).all()
"""

SLIDING = """
import sys
from pathlib import Path
from mmseg.utils import register_all_modules
register_all_modules(init_default_scope=True)
from zoo.files import CONFIGS
from zoo.native import resolved
config = mmseg._tuples(resolved(CONFIGS / "engines/mmseg/mini_cityscapes_fcn_d8.yaml"))
config["model"]["backbone"] |= {"depth": 18, "norm_cfg": {"type": "BN"}}
for head, width in (("decode_head", 512), ("auxiliary_head", 256)):
    config["model"][head] |= {"in_channels": width, "channels": 16, "norm_cfg": {"type": "BN"}}
torch.manual_seed(0)
model = mmseg.MODELS.build(mmseg.ConfigDict(config["model"])).eval()
folder = Path(sys.argv[1])
data = dict(config["test_dataloader"]["dataset"], type="ListedImages", ann_file=str(folder / "list.json"),
            test_mode=True, metainfo={"classes": range(19)})
data["pipeline"] = [dict(s, type="LoadLabels", num_classes=19) if s["type"] == "LoadAnnotations" else s
                    for s in data["pipeline"]]
sample = mmseg.DATASETS.build(data)[0]
with torch.no_grad():
    (found,) = model.test_step({"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]})
    pixels = model.data_preprocessor({"inputs": [sample["inputs"]]})["inputs"]
    assert pixels.shape[2:] == (65, 129)  # the picture's 64 x 128 by the scale (129, 65)
    total, windows = torch.zeros(1, 19, 65, 129), torch.zeros(65, 129)
    for top in (0, 16):  # every 33 pixels, the last one moved back to end with the picture
        for left in (0, 33, 66, 80):
            window = pixels[:, :, top : top + 49, left : left + 49]
            logits = torch.nn.functional.interpolate(
                model.decode_head(model.backbone(window)), (49, 49), mode="bilinear", align_corners=True)
            total[:, :, top : top + 49, left : left + 49] += logits
            windows[top : top + 49, left : left + 49] += 1
    expected = torch.nn.functional.interpolate(total / windows, (64, 128), mode="bilinear", align_corners=True)[0]
    whole = model.whole_inference(pixels, [{"img_shape": (65, 129), "ori_shape": (64, 128)}])
assert windows.min() == 1 and windows.max() == 6  # 3 x 2
difference = (found.seg_logits.data - expected).abs().max().item()
assert (found.pred_sem_seg.data[0] == expected.argmax(0)).float().mean() > 0.999
print(json.dumps({"names": names, "difference": difference, "from_whole": (whole - total / windows).abs().max().item(),
                  "labels": found.gt_sem_seg.data[0].tolist()}))
"""


def draw_images(folder: Path, count: int) -> list[dict[str, str]]:
    """64x48 pictures whose halves are classes 1 and 2, with a band of background and a frame of 255."""
    folder.mkdir()
    draw = np.random.default_rng(count)
    listed = []
    for index in range(count):
        labels = np.zeros((48, 64), np.uint8)
        labels[8:, :32], labels[8:, 32:], labels[:, -2:] = 1, 2, 255
        picture = np.stack([labels % 255 * 100] * 3, -1) + draw.integers(0, 50, (48, 64, 3))
        paths = folder / f"{index}.png", folder / f"{index}_labels.png"
        Image.fromarray(picture.astype(np.uint8)).save(paths[0])
        mask = Image.fromarray(labels, mode=None)
        mask.putpalette(list(range(256)) * 3)  # colours that no reader may take for labels
        mask.save(paths[1])
        listed.append({"img_path": str(paths[0]), "seg_map_path": str(paths[1])})
    return listed


def small_config(of: str = "mini_fcn_d8") -> dict[str, Any]:
    """A mini configuration, smaller."""
    config = resolved(CONFIGS / f"engines/mmseg/{of}.yaml")
    config["model"]["data_preprocessor"]["size"] = [32, 32]
    for head in ("decode_head", "auxiliary_head"):
        config["model"][head]["num_classes"] = len(CLASSES)
    train = config["train_dataloader"]["dataset"]["pipeline"]
    train[2]["scale"], train[3]["crop_size"] = [64, 48], [32, 32]
    config["test_dataloader"]["dataset"]["pipeline"][1]["scale"] = [64, 48]
    config["train_cfg"]["max_iters"] = config["param_scheduler"][0]["end"] = ITERATIONS
    config["default_hooks"]["checkpoint"]["interval"] = 2
    return config


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A training of ResNet-18 on 8 images, tested on 5."""
    folder = tmp_path_factory.mktemp("mmseg")
    for role, count in (("train", 8), ("test", 5)):
        (folder / f"{role}.json").write_text(json.dumps(draw_images(folder / role, count)))
    weights = prepared(folder, backbone("resnet18"), "resnet18", IMAGENET_PIXELS)
    return Job(
        **vars(weights),
        task="measure",
        config=small_config(),
        device="cpu",
        seed=0,
        workers=0,
        classes=CLASSES,
        train=str(folder / "train.json"),
        test=str(folder / "test.json"),
    )


def check_areas(measurement: dict[str, Any], found: dict[str, np.ndarray]) -> None:
    """Every test image is there, whole, and each pixel but the 96 of label 255 is counted once."""
    assert measurement["num_scored"] == 5
    areas = {"intersect", "union", "predicted", "labelled"}
    assert all(found[name].shape == (5, 3) and found[name].dtype == np.int64 for name in areas)
    maps = {name: values for name, values in found.items() if name not in areas}
    assert maps and all(name.startswith("map_") and values.shape == (48, 64) for name, values in maps.items())
    for name, values in maps.items():
        known = values[:, :-2]  # the frame of 255
        assert (np.bincount(known.ravel(), minlength=3) == found["predicted"][int(name[4:])]).all()
    assert (found["labelled"] == [8 * 62, 40 * 32, 40 * 30]).all()
    assert (found["predicted"].sum(1) == 48 * 62).all()
    assert (found["union"] == found["predicted"] + found["labelled"] - found["intersect"]).all()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a child that imports mmseg says of it, and of a picture with every one of Cityscapes' ids."""
    folder = tmp_path_factory.mktemp("library")
    image, labels = folder / "a_leftImg8bit.png", folder / "a_gtFine_labelIds.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 128, 3), np.uint8)).save(image)
    Image.fromarray(IDS).save(labels)
    (folder / "list.json").write_text(json.dumps([{"img_path": str(image), "seg_map_path": str(labels)}]))
    return program(LIBRARY + SLIDING, str(folder))


def test_names_and_areas_are_the_library_s(library: dict[str, Any]) -> None:
    """mmseg's own ResNets have the canonical tensors; its areas are those of scikit-learn's confusion matrix."""
    names = library["names"]
    assert [len(names[arch]) for arch in ("resnet18", "resnet34", "resnet50")] == [120, 216, 318]
    assert sum(not name.endswith(COUNTER) for name in names["resnet50"]) == 265
    for arch, shapes in names.items():
        assert shapes == {name: list(tensor.shape) for name, tensor in Backbone(arch).state_dict().items()}


def test_a_sliding_test_averages_the_logits_of_its_windows(library: dict[str, Any]) -> None:
    """Written out by hand for Cityscapes' small form: eight windows, overlapping. Its labelIds arrive as trainIds."""
    assert library["difference"] < 1e-5 < 0.01 < library["from_whole"]
    assert library["labels"] == np.array([label.train_id for label in LABELS])[IDS].tolist()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, job: Job) -> Path:
    """The job's folder after a training in one go."""
    folder = tmp_path_factory.mktemp("straight")
    write_job(folder, job)
    measure("mmseg", folder)
    return folder


def test_trains_and_measures(straight: Path) -> None:
    measurement = json.loads((straight / "measurement.json").read_text())
    with np.load(straight / "arrays.npz") as found:
        check_areas(measurement, dict(found))
    check_proofs(measurement["proofs"], 120)
    assert (measurement["steps"], measurement["resumed_at"]) == (ITERATIONS, 0)
    assert set(measurement["engine"]) == {"mmseg", "mmcv", "mmengine", "torch"}
    lines = logged(straight)
    assert [line["iteration"] for line in lines] == list(range(ITERATIONS))
    assert {"loss", "lr", "time", "decode.loss_ce", "aux.loss_ce"} <= set(lines[0])
    rate = [1e-4 + (0.01 - 1e-4) * (1 - step / (ITERATIONS - 1)) ** 0.9 for step in range(ITERATIONS)]
    assert [line["lr"] for line in lines] == pytest.approx(rate)
    assert len(list(straight.glob("events.*"))) == 1
    assert [path.name for path in straight.rglob("*.pth")] == [f"iter_{ITERATIONS}.pth"]
    torch.load(straight / f"iter_{ITERATIONS}.pth", weights_only=True)  # with nothing allowed but tensors
    assert not [path for path in straight.iterdir() if path.is_dir()]


def test_goes_on_after_a_kill_with_the_same_bits(tmp_path: Path, job: Job, straight: Path) -> None:
    """Killed, then asked to stop between two checkpoints, then finished with other loader processes."""
    write_job(tmp_path, job)
    assert stopped_twice("mmseg", tmp_path) == [-signal.SIGKILL, 130]
    assert not (tmp_path / "measurement.json").exists()
    (whole,) = tmp_path.glob("iter_*.pth")
    torn = tmp_path / "iter_9.pth"  # as if the kill had come while it was written
    torn.write_bytes(whole.read_bytes()[:-1000])
    write_job(tmp_path, replace(job, workers=2))
    measurement, found = measure("mmseg", tmp_path)
    check_areas(measurement, found)
    assert measurement["steps"] == ITERATIONS and 2 < measurement["resumed_at"] < ITERATIONS
    assert [line["loss"] for line in logged(tmp_path)] == [line["loss"] for line in logged(straight)]
    expected = stored(straight)
    assert stored(tmp_path) == expected and any("momentum_buffer" in place for place in expected)


def test_two_processes_hold_the_same_weights(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process tested images 1 and 3; the first one's weights, tested alone, give the same areas.

    That second run also shows that a finished training is only tested. Trained and tested as on Cityscapes, sliding.
    """
    job = replace(job, config=small_config("mini_cityscapes_fcn_d8"))
    job.config["model"]["test_cfg"] |= {"crop_size": [32, 32], "stride": [21, 21]}
    write_job(tmp_path, job)
    with monkeypatch.context() as patched:
        watched("mmseg", tmp_path, patched)
        measurement, found = measure("mmseg", tmp_path, procs=2)
    check_areas(measurement, found)
    check_proofs(measurement["proofs"], 120)
    check_ranks(tmp_path, measurement, batch=4, lr=0.01, first=0.01)
    write_job(tmp_path, job)
    alone, found_alone = measure("mmseg", tmp_path)
    assert alone["resumed_at"] == ITERATIONS and alone["proofs"] == measurement["proofs"]
    assert {name for name in found if name.startswith("map_")} == {"map_0", "map_2", "map_4"}  # the first one's share
    for name, values in found.items():
        assert np.array_equal(values, found_alone[name]), name
    assert len(logged(tmp_path)) == ITERATIONS


def wrong_labels(folder: Path) -> Path:
    """A list of images whose label maps hold a number that is no class: what the look at a sample may have missed."""
    listed = draw_images(folder / "wrong", 4)
    for image in listed:
        Image.new("L", (64, 48), 20).save(image["seg_map_path"])
    (folder / "wrong.json").write_text(json.dumps(listed))
    return folder / "wrong.json"


def cut_off(folder: Path, name: str) -> str:
    """A list of images, one of which has lost its second half."""
    listed = draw_images(folder / name, 4)
    path = Path(listed[2]["img_path"])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (folder / f"{name}.json").write_text(json.dumps(listed))
    return str(folder / f"{name}.json")


def wrong_jobs(folder: Path, job: Job) -> dict[str, Job]:
    """By name, what must be refused before, or in, the first iterations."""

    def overlaid(change: Callable[[dict[str, Any]], None]) -> Job:
        overlay = json.loads(json.dumps(job.overlay))
        change(overlay["model"])
        return replace(job, overlay=overlay, task="check")

    def configured(change: Callable[[dict[str, Any]], None], task: str = "check") -> Job:
        config = json.loads(json.dumps(job.config))
        change(config)
        return replace(job, config=config, task=task)

    stored = torch.load(job.weights, weights_only=True)
    stored["state_dict"] = {name: t for name, t in stored["state_dict"].items() if not name.startswith("layer4.")}
    torch.save(stored, folder / "no_layer4.pth")
    edited = folder / "edited.pth"
    edited.write_bytes(Path(job.weights).read_bytes() + b" ")
    whole: Weights = job
    return {
        "bgr": overlaid(lambda model: model["data_preprocessor"].update(bgr_to_rgb=False)),
        "mean": overlaid(lambda model: model["data_preprocessor"].update(mean=[0.0, 0.0, 0.0])),
        "deep_stem": configured(lambda config: config["model"]["backbone"].update(type="ResNetV1c")),
        "avg_down": configured(lambda config: config["model"]["backbone"].update(deep_stem=True)),
        "dilation": configured(lambda config: config["model"]["backbone"].update(contract_dilation=False)),
        "typing_error": configured(lambda config: config["model"]["backbone"].update(dilation=[1, 1, 2, 4])),
        "unknown_part": configured(lambda config: config.update(val_cfg={})),
        "classes": configured(lambda config: config["model"]["decode_head"].update(num_classes=9), "measure"),
        "order": configured(lambda config: config["train_dataloader"]["sampler"].update(shuffle=False), "measure"),
        "option": configured(lambda config: config["train_dataloader"].update(drop_last=True), "measure"),
        "no_layer4": replace(
            job,
            task="check",
            weights=str(folder / "no_layer4.pth"),
            weights_sha256=sha256_file(folder / "no_layer4.pth"),
        ),
        "edited": replace(job, weights=str(edited), weights_sha256=whole.weights_sha256),
        "label": replace(job, workers=1, train=str(wrong_labels(folder))),
        "cut_off": replace(job, train=cut_off(folder, "cut_off")),
        "cut_off_for_a_loader": replace(job, workers=2, train=cut_off(folder, "cut_off_for_a_loader")),
        "cut_off_in_the_test": replace(job, workers=1, test=cut_off(folder, "cut_off_in_the_test")),
        "diverges": configured(lambda config: config["optim_wrapper"]["optimizer"].update(lr=1e12), "measure"),
    }


def test_weights_arrive_exactly(tmp_path: Path) -> None:
    """In the full protocol's model, with the overlay of each architecture."""
    config = resolved(CONFIGS / "engines/mmseg/voc12aug_fcn_r50_d8_512x512_20k_zoo.yaml")
    tensors = {"resnet18": 120, "resnet34": 216, "resnet50": 318}
    for arch in tensors:
        weights = prepared(tmp_path / arch, backbone(arch), arch, IMAGENET_PIXELS)
        write_job(tmp_path / arch, Job(**vars(weights), task="check", config=config, device="cpu", seed=0, workers=0))
    assert runs("mmseg", [tmp_path / arch for arch in tensors]) == dict.fromkeys(tensors, (0, ""))
    for arch, count in tensors.items():
        check_proofs(json.loads((tmp_path / arch / "measurement.json").read_text())["proofs"], count)


def test_refusals(tmp_path: Path, job: Job) -> None:
    jobs = wrong_jobs(tmp_path, job)
    for name, wrong in jobs.items():
        write_job(tmp_path / name, wrong)
    said = runs("mmseg", [tmp_path / name for name in jobs])
    expected = {
        "bgr": "normalised pixels differ by",
        "mean": "channel order, mean or std is not the checkpoint's",
        "deep_stem": "model.backbone.type: expected ResNet, found ResNetV1c",
        "avg_down": "backbone.conv1.weight: not in the built model",
        "dilation": "feature4 differs by",
        "typing_error": "unexpected keyword argument 'dilation'",
        "unknown_part": "unknown val_cfg; expected only",
        "classes": "model.decode_head.num_classes is 9, the data has 3",
        "order": "train_dataloader.sampler: expected a shuffled InfiniteSampler, found",
        "option": "train_dataloader: expected batch_size, sampler and dataset, found batch_size, sampler, dataset, ",
        "no_layer4": "backbone.layer4.0.bn1.bias: not the checkpoint's values",
        "edited": "expected sha256",
        "label": "_labels.png: expected labels 0…2 and 255, found 20; restore the file.",
        "diverges": "Lower optim_wrapper.optimizer.lr",
    }
    assert {name: code for name, (code, _) in said.items()} == dict.fromkeys(jobs, 2) | {"diverges": 4}
    for name, text in expected.items():
        assert text in said[name][1], said[name]
    assert "would stay random" in said["deep_stem"][1]
    assert "\n" not in said["label"][1] and "Traceback" not in said["label"][1]
    for name in ("cut_off", "cut_off_for_a_loader", "cut_off_in_the_test"):
        path = tmp_path / name / "2.png"
        assert said[name][1] == f"{path}: the image is cut off (the file has no end of image); restore the file."
