"""detectron2 as a child process: what it must have loaded, what it measures, and what it survives.

Nothing of it is imported here, as its imports warn and patch. Where its own functions are asked, a child asks them.
"""

import json
import pickle
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from converters.to_detectron2 import Layout, arrays, prepared
from engines.contract import Job, write_job
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
from zoo.files import CONFIGS, sha256_file
from zoo.native import laid_over, resolved
from zoo.transforms import IMAGENET_PIXELS

pytestmark = pytest.mark.slow  # children that import detectron2

CLASSES = ["dark", "light"]
ITERATIONS = 8
COUNTER = ".num_batches_tracked"

# The backbone's names as detectron2's own models have them, and batches as its own grouping forms them.
LIBRARY = """
import json, sys
from engines import detectron2 as engine
from detectron2.config import CfgNode, get_cfg
names = {}
for path in sys.argv[1:]:
    cfg = get_cfg()
    cfg.merge_from_file(path)
    cfg.MODEL.DEVICE, cfg.MODEL.RESNETS.DEPTH = "cpu", 50
    state = engine.build_model(cfg).state_dict()
    names[path.split("/")[-1]] = [name for name in state if name.startswith(engine.BACKBONE)]
    ours = get_cfg()
    from pathlib import Path
    from zoo.native import resolved
    ours.merge_from_other_cfg(CfgNode(resolved(Path(path))))
    ours.MODEL.DEVICE, ours.MODEL.RESNETS.DEPTH = "cpu", 50
    assert ours == cfg, "our merged file is not what detectron2 reads"
from itertools import islice
from detectron2.data.common import AspectRatioGroupedDataset
wide = [index % 3 > 0 for index in range(11)]
ours = islice(engine.grouped(engine.shuffled(11, 0, 1, 2, 0), wide, 4), 400)
stream = ({"width": 1 + wide[index], "height": 1, "at": (at, index)} for at, index in engine.shuffled(11, 0, 1, 2, 0))
theirs = islice(AspectRatioGroupedDataset(stream, 4), 100)
assert list(ours) == [image["at"] for batch in theirs for image in batch]
print(json.dumps(names))
"""


def native(name: str, **changes: Any) -> dict[str, Any]:
    return laid_over(resolved(CONFIGS / "engines" / "detectron2" / name), changes)


def small_config() -> dict[str, Any]:
    """The mini configuration, smaller."""
    return native(
        "mini_faster_rcnn_c4.yaml",
        MODEL={"ROI_HEADS": {"NUM_CLASSES": 2, "BATCH_SIZE_PER_IMAGE": 8}, "RPN": {"POST_NMS_TOPK_TEST": 5}},
        INPUT={"MIN_SIZE_TRAIN": [40, 48], "MIN_SIZE_TEST": 48},
        SOLVER={"IMS_PER_BATCH": 2, "MAX_ITER": ITERATIONS, "STEPS": [4], "CHECKPOINT_PERIOD": 2, "BASE_LR": 0.001},
        TEST={"PRECISE_BN": {"ENABLED": True, "NUM_ITER": 3}},
    )


def draw_images(folder: Path, count: int) -> list[dict[str, Any]]:
    """Pictures with one dark and one light square; every fourth without any."""
    folder.mkdir()
    draw = np.random.default_rng(count)
    listed = []
    for index in range(count):
        width, height = ((64, 48), (48, 64))[index % 2]
        picture = draw.integers(100, 150, (height, width, 3))
        picture[8:24, 8:24], picture[28:40, 28:40] = 20, 230
        path = folder / f"{index}.png"
        Image.fromarray(picture.astype(np.uint8)).save(path)
        boxes = [{"category_id": 0, "bbox": [8, 8, 24, 24]}, {"category_id": 1, "bbox": [28, 28, 40, 40]}]
        size = {"file_name": str(path), "image_id": index, "height": height, "width": width}
        listed.append(size | {"annotations": [] if index % 4 == 3 else boxes})
    return listed


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A training of ResNet-18 on 8 images, tested on 5."""
    folder = tmp_path_factory.mktemp("detectron2")
    for role, count in (("train", 8), ("test", 5)):
        (folder / f"{role}.json").write_text(json.dumps(draw_images(folder / role, count)))
    weights = prepared(folder, backbone("resnet18"), "resnet18", IMAGENET_PIXELS, "c4")
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


def check_detections(measurement: dict[str, Any], found: dict[str, np.ndarray]) -> None:
    assert measurement["num_scored"] == 5
    assert set(found) == {"image", "label", "score", "box"}
    assert found["box"].shape == (len(found["score"]), 4) and found["box"].dtype == np.float32
    assert (np.diff(found["image"]) >= 0).all() and set(found["image"]) <= set(range(5))
    assert set(found["label"]) <= {0, 1}


def test_weights_arrive_whole_in_c4_and_in_a_pyramid(tmp_path: Path) -> None:
    """ResNet-50: 265 of 265 tensors, the names written by detectron2's own models. Every stage is the same."""
    zoo, moco = (f"voc0712_faster_rcnn_r50_c4_24k_{variant}.yaml" for variant in ("zoo", "moco"))
    places: dict[str, tuple[str, Layout, str, int]] = {
        "c4": ("resnet50", "c4", zoo, 265),
        "fpn": ("resnet50", "fpn", "base_rcnn_fpn.yaml", 265),
        "basic_blocks": ("resnet34", "c4", moco, 180),
    }
    names = program(LIBRARY, *(str(CONFIGS / "engines" / "detectron2" / name) for name in (zoo, "base_rcnn_fpn.yaml")))
    for place, (arch, layout, file, _) in places.items():
        weights = prepared(tmp_path / place, backbone(arch), arch, IMAGENET_PIXELS, layout)
        job = Job(**vars(weights), task="check", config=native(file), device="cpu", seed=0, workers=0)
        write_job(tmp_path / place, job)
        if arch == "resnet50":
            theirs = [name for name in names[file] if not name.endswith(COUNTER)]
            assert set(weights.tensors) == {name for name in theirs if not name.startswith(tuple(weights.fresh))}
    assert runs("detectron2", [tmp_path / place for place in places]) == dict.fromkeys(places, (0, ""))
    for place, (*_, tensors) in places.items():
        check_proofs(json.loads((tmp_path / place / "measurement.json").read_text())["proofs"], tensors)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, job: Job) -> Path:
    """The job's folder after a training in one go.

    It began in what a kill left between opening the file of the last checkpoint's name and writing it.
    """
    folder = tmp_path_factory.mktemp("straight")
    write_job(folder, job)
    (folder / "last_checkpoint").write_text("")
    (folder / "model_0000001.pth").write_bytes(b"torn")
    measure("detectron2", folder)
    return folder


def test_trains_and_measures(straight: Path) -> None:
    measurement = json.loads((straight / "measurement.json").read_text())
    with np.load(straight / "arrays.npz") as found:
        check_detections(measurement, dict(found))
    check_proofs(measurement["proofs"], 100)
    assert (measurement["steps"], measurement["resumed_at"]) == (ITERATIONS, 0)
    assert measurement["engine"]["detectron2"] == "0.6"
    lines = logged(straight)
    assert lines[-1]["iteration"] == ITERATIONS - 1 and {"total_loss", "lr"} <= set(lines[0])
    assert len(list(straight.glob("events.*"))) == 1
    assert [path.name for path in straight.glob("*.pth")] == ["model_final.pth"]


def test_goes_on_after_a_kill_with_the_same_bits(tmp_path: Path, job: Job, straight: Path) -> None:
    """Killed, then asked to stop between two checkpoints, then finished with other loader processes."""
    write_job(tmp_path, job)
    assert stopped_twice("detectron2", tmp_path) == [-signal.SIGKILL, 130]
    assert not (tmp_path / "measurement.json").exists()
    (tmp_path / "model_0000011.pth").write_bytes(b"torn")  # as if the kill had come while it was written
    write_job(tmp_path, replace(job, workers=2))
    measurement, found = measure("detectron2", tmp_path)
    check_detections(measurement, found)
    assert measurement["steps"] == ITERATIONS and 2 < measurement["resumed_at"] < ITERATIONS
    iterations = [line["iteration"] for line in logged(tmp_path)]
    assert iterations == sorted(set(iterations)) and iterations[-1] == ITERATIONS - 1
    expected = stored(straight)
    assert stored(tmp_path) == expected and any("momentum_buffer" in place for place in expected)


def test_two_processes_hold_the_same_weights(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process tested images 3 and 4; the first one's weights, tested alone, find the same.

    That second run also shows that a finished training is only tested.
    """
    write_job(tmp_path, job)
    with monkeypatch.context() as patched:
        watched("detectron2", tmp_path, patched)
        measurement, found = measure("detectron2", tmp_path, procs=2)
    check_detections(measurement, found)
    check_proofs(measurement["proofs"], 100)
    check_ranks(tmp_path, measurement, batch=2, lr=0.001, first=0.001 * 0.001)  # warm-up
    write_job(tmp_path, job)
    alone, found_alone = measure("detectron2", tmp_path)
    assert alone["resumed_at"] == ITERATIONS and alone["proofs"] == measurement["proofs"]
    for name, values in found.items():
        assert np.allclose(values, found_alone[name], atol=1e-4), name


def cut_off(folder: Path, name: str) -> str:
    """A list of images, one of which has lost its second half."""
    listed = draw_images(folder / name, 4)
    path = Path(listed[2]["file_name"])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (folder / f"{name}.json").write_text(json.dumps(listed))
    return str(folder / f"{name}.json")


def wrong_jobs(folder: Path, job: Job) -> dict[str, Job]:
    """By name, what must be refused before the first iteration, or in the first ones."""

    def overlaid(**changes: Any) -> Job:
        return replace(job, overlay=laid_over(job.overlay, changes), task="check")

    def configured(**changes: Any) -> Job:
        return replace(job, config=laid_over(job.config, changes))

    def filed(name: str, keep: Callable[[str], bool]) -> Job:
        content = {key: value for key, value in arrays(backbone("resnet18")).items() if keep(key)}
        path = folder / f"{name}.pkl"
        path.write_bytes(pickle.dumps({"model": content, "__author__": "x", "matching_heuristics": True}))
        return replace(job, task="check", weights=str(path), weights_sha256=sha256_file(path))

    edited = folder / "edited.pkl"
    edited.write_bytes(Path(job.weights).read_bytes() + b" ")
    r50 = prepared(folder / "r50", backbone("resnet50"), "resnet50", IMAGENET_PIXELS, "c4")
    strided = laid_over(r50.overlay, {"MODEL": {"RESNETS": {"STRIDE_IN_1X1": True}}})
    foreign = folder / "foreign.pkl"
    foreign.write_bytes(pickle.dumps({"model": Path("x"), "__author__": "x"}))
    return {
        "bgr": overlaid(INPUT={"FORMAT": "BGR"}),
        "mean": overlaid(MODEL={"PIXEL_MEAN": [103.53, 116.28, 123.675]}),
        "stride": replace(job, **vars(r50) | {"overlay": strided}, task="check"),
        "no_layer4": filed("no_layer4", lambda key: not key.startswith("res5.")),
        "no_stem": filed("no_stem", lambda key: not key.startswith("stem.")),
        "edited": replace(job, task="check", weights=str(edited)),
        "depth": overlaid(MODEL={"RESNETS": {"DEPTH": 34}}),
        "unknown_key": configured(SOLVER={"BASE_RATE": 1.0}),
        "classes": configured(MODEL={"ROI_HEADS": {"NUM_CLASSES": 9}}),
        "sampler": configured(DATALOADER={"SAMPLER_TRAIN": "RepeatFactorTrainingSampler"}),
        "foreign": replace(job, task="check", weights=str(foreign), weights_sha256=sha256_file(foreign)),
        "cut_off": replace(job, train=cut_off(folder, "cut_off")),
        "cut_off_for_a_loader": replace(job, workers=2, train=cut_off(folder, "cut_off_for_a_loader")),
        "cut_off_in_the_test": replace(job, workers=1, test=cut_off(folder, "cut_off_in_the_test")),
        "diverges": configured(SOLVER={"BASE_LR": 1e12, "WARMUP_ITERS": 0}),
    }


def test_refusals(tmp_path: Path, job: Job) -> None:
    jobs = wrong_jobs(tmp_path, job)
    for name, wrong in jobs.items():
        write_job(tmp_path / name, wrong)
    said = runs("detectron2", [tmp_path / name for name in jobs])
    expected = {
        "bgr": "channel order, mean or std is not the checkpoint's",
        "mean": "normalised pixels differ by",
        "stride": "STRIDE_IN_1X1: expected False, as torchvision's weights need. backbone.res3.0: stride in the 1x1",
        "no_layer4": "roi_heads.res5.0.conv1.norm.bias: not the checkpoint's values",
        "no_stem": "backbone.stem.conv1.norm.bias: not the checkpoint's values",
        "edited": "expected sha256",
        "depth": "part of the backbone, but not from the checkpoint",
        "unknown_key": "detectron2 does not know this configuration: ",
        "classes": "MODEL.ROI_HEADS.NUM_CLASSES is 9, the data has 2",
        "sampler": "DATALOADER.SAMPLER_TRAIN: expected TrainingSampler, found RepeatFactorTrainingSampler",
        "foreign": "is not allowed: expected numpy arrays",
        "diverges": "Lower SOLVER.BASE_LR",
    }
    for name, text in expected.items():
        assert text in said[name][1], said[name]
    assert {name: code for name, (code, _) in said.items()} == dict.fromkeys(jobs, 2) | {"diverges": 4}
    for name in ("cut_off", "cut_off_for_a_loader", "cut_off_in_the_test"):
        path = tmp_path / name / "2.png"
        assert said[name][1] == f"{path}: the image cannot be read (image file is truncated); restore the file."
