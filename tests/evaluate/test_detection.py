"""From an engine's detections to a record: perfect ones score 100, none score 0, and only what is needed is kept.

The engine's child process is played by a function here; tests/engines runs the real one.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from engines import launch
from engines.contract import read_job
from evaluate import queue
from evaluate.__main__ import app
from evaluate.cells import resolve
from evaluate.detection import Settings, annotations, checked, ground_truth, held_out, scored, training_images
from evaluate.engine import history, measure, tidy
from evaluate.lr_sweep import HeldOut
from evaluate.run import run_cell
from evaluate.suite import make_plan
from evaluate.voc_ap import Detections
from zoo import benchmark, datasets
from zoo.benchmark import benchmark_layout
from zoo.checkpoint import CARD_NAME
from zoo.datasets import manifest
from zoo.distributed import World
from zoo.errors import CheckpointError, ConfigError, DataError, ZooError
from zoo.files import ROOT
from zoo.record import read_arrays, read_record

CLASSES = ["cat", "dog", "emu"]  # no emu anywhere in the test set
# image → (class, box, difficult)
TRAIN = {
    "t1": [("cat", (1, 1, 10, 12), 0), ("dog", (5, 6, 30, 28), 1)],
    "t2": [("emu", (2, 3, 20, 20), 1)],
    "t3": [],
}
TEST = {
    "v1": [("cat", (1, 1, 10, 12), 0), ("cat", (15, 10, 40, 30), 0)],
    "v2": [("dog", (5, 5, 20, 20), 0), ("dog", (21, 21, 40, 30), 1)],
    "v3": [],
    "v4": [("cat", (3, 3, 30, 30), 0)],
}
ME = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
Engine = Callable[[dict[str, np.ndarray]], None]


def annotation(objects: list[Any]) -> str:
    parts = ["<annotation><size><width>40</width><height>32</height><depth>3</depth></size>"]
    for name, box, difficult in objects:
        corners = "".join(f"<{c}>{v}</{c}>" for c, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        parts.append(
            f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"
        )
    return "".join([*parts, "</annotation>"])


@pytest.fixture
def devkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Pascal VOC folder of seven images, its configurations, and records and caches in tmp_path."""
    for split, images in (("train", TRAIN), ("test", TEST)):
        for name, objects in images.items():
            for folder in ("JPEGImages", "Annotations"):
                (tmp_path / "voc" / folder).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 32)).save(tmp_path / "voc" / "JPEGImages" / f"{name}.jpg")
            (tmp_path / "voc" / "Annotations" / f"{name}.xml").write_text(annotation(objects))
        (tmp_path / "voc" / f"{split}.txt").write_text("\n".join(images))
    places = {"images": "JPEGImages/{}.jpg", "annotations": "Annotations/{}.xml"}
    splits = {
        split: {"num_images": None, "layouts": [{"image_sets": [{"names": f"{split}.txt"} | places]}]}
        for split in ("train", "test")
    }
    configs = tmp_path / "configs"
    shutil.copytree(ROOT / "configs", configs)
    dataset = {"name": "voc", "title": "VOC", "root": None, "num_classes": 3, "classes": CLASSES}
    (configs / "datasets" / "voc.yaml").write_text(yaml.safe_dump(dataset | {"substitute_for": None, "splits": splits}))
    for variant in ("zoo", "moco"):
        config = yaml.safe_load((configs / "benchmarks" / f"voc0712_detection_{variant}.yaml").read_text())
        config["dataset"] = "voc"
        config["settings"] |= {"train_split": "train", "test_split": "test"}
        config["tables"][0]["columns"] = {"AP50": "ap50"}
        (configs / "benchmarks" / f"voc_{variant}.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "data.yaml").write_text(f"voc: {tmp_path / 'voc'}\n")
    for name, value in {"ZOO_DATA": "data.yaml", "ZOO_CACHE": "cache", "ZOO_RUNS": "runs"}.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    for module in (datasets, benchmark):
        monkeypatch.setattr(module, "CONFIGS", configs)
    manifest.cache_clear()
    yield tmp_path
    manifest.cache_clear()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Stand in for the child: it finds what the test says, and leaves the files that the real one leaves."""

    def finds(detections: dict[str, np.ndarray], num_scored: int = len(TEST)) -> None:
        def measure(name: str, folder: Path, *, procs: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
            job = read_job(folder)
            assert name == "detectron2" and job.classes == CLASSES and Path(job.weights).is_file()
            rows = [{"iteration": step, "total_loss": 1.0 / (step + 1), "lr": 0.1} for step in range(0, 450)]
            (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            for leftover in ("model_final.pth", "events.out.1", "last_checkpoint"):
                (folder / leftover).write_text("x")
            answer = {
                "engine": {"detectron2": "0.6"},
                "proofs": {"tensors": 100},
                "steps": 450,
                "batch": 16,
                "lr": 0.02,
                "resumed_at": 0,
            }
            return answer | {"num_scored": num_scored}, detections

        monkeypatch.setattr(launch, "measure", measure)

    return finds


def perfect() -> dict[str, np.ndarray]:
    """Every object that is not difficult, where `_zoo`'s 0-based boxes have it."""
    rows = [
        (image, CLASSES.index(name), 0.9, *(v - 1 for v in box))
        for image, objects in enumerate(TEST.values())
        for name, box, difficult in objects
        if not difficult
    ]
    table = np.array(rows, dtype=np.float64)
    return {
        "image": table[:, 0].astype(np.int64),
        "label": table[:, 1].astype(np.int64),
        "score": table[:, 2].astype(np.float32),
        "box": table[:, 3:].astype(np.float32),
    }


def measured(devkit: Path, checkpoint: Path, name: str = "voc_zoo", overrides: tuple[str, ...] = ()) -> Any:
    cell = resolve(name, checkpoint / CARD_NAME, seed=0, overrides=overrides)
    path = run_cell(cell, devkit / "runs" / "single" / "records", num_workers=0, me=ME, procs=1)
    return read_record(path), path


def test_perfect_detections_score_100(devkit: Path, tiny_files: Path, engine: Engine) -> None:
    engine(perfect())
    record, path = measured(devkit, tiny_files / "checkpoint")
    assert record.metrics == dict.fromkeys(("ap", "ap50", "ap75", "ap50_devkit", "ap50_mmdet"), 100.0)
    assert record.confidence["ap50"][1] == 100.0 and record.num_scored == 4 and not record.deterministic
    assert record.details["absent_classes"] == ["emu"]  # not in the mean, and not NaN
    assert record.details["ap50_by_class"] == {"cat": 100.0, "dog": 100.0, "emu": None}
    assert record.details["resumed_at"] == 0
    assert record.details["proofs"] == {"tensors": 100} and record.details["overlay"]["INPUT"] == {"FORMAT": "RGB"}
    assert record.settings["engine_config"]["SOLVER"]["WEIGHT_DECAY_NORM"] == 0.0001
    kept = read_arrays(path.parent, record)
    assert (kept["sample/detection_box"][0] == TEST["v1"][0][1]).all()  # in VOC's own coordinates
    assert kept["replicates/ap"].shape == (1000,) and np.isfinite(kept["replicates/ap"]).all()


def test_a_smaller_batch_is_trained_recorded_and_marked(devkit: Path, tiny_files: Path, engine: Engine) -> None:
    engine(perfect())
    records = devkit / "runs" / "single" / "records"
    arguments = ["run", "--checkpoint", str(tiny_files / "checkpoint"), "--benchmark", "voc_zoo", "--workers", "0"]
    ended = CliRunner().invoke(app, [*arguments, "--global-batch", "4"], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    (path,) = records.glob("*.json")
    record = read_record(path)
    handed = read_job(path.parent.parent / "work" / record.cell_id).config["SOLVER"]
    assert (handed["IMS_PER_BATCH"], handed["BASE_LR"], handed["MAX_ITER"]) == (4, 0.005, 96000)
    assert record.modified == ("settings.global_batch=4",)  # so in no standard column
    assert record.settings["engine_config"]["SOLVER"]["IMS_PER_BATCH"] == 16  # the protocol's, as configured
    assert record.details["scaled"]["factor"] == 4 and record.details["notes"][0].startswith("a global batch of 4 ")


def test_a_rate_is_chosen_on_held_out_training_images(
    devkit: Path, tiny_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The highest of three rates finds the held-out objects; the test images are seen by the last model alone."""
    seen: list[tuple[float, list[str], list[str]]] = []
    pictures: dict[str, Any] = {**TRAIN, **TEST, **dict.fromkeys(("t2", "t3"), [("dog", (5, 6, 30, 28), 0)])}

    def measure(name: str, folder: Path, *, procs: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        job = read_job(folder)
        train, test = (json.loads(Path(path).read_text()) for path in (job.train, job.test))
        trained, tested = ([Path(image["file_name"]).stem for image in images] for images in (train, test))
        seen.append((job.config["SOLVER"]["BASE_LR"], trained, tested))
        assert [image["image_id"] for image in test] == list(range(len(test)))
        (folder / "log.jsonl").write_text("")
        rows: list[Any] = [(number, *each) for number, stem in enumerate(tested) for each in pictures[stem]]
        shift = 1 if job.config["SOLVER"]["BASE_LR"] > 0.02 else 20  # at lower rates everything is misplaced
        found = {
            "image": np.array([row[0] for row in rows]),
            "label": np.array([CLASSES.index(row[1]) for row in rows]),
            "score": np.full(len(rows), 0.9, np.float32),
            "box": np.array([row[2] for row in rows], np.float32) - shift,
        }
        return {
            "engine": {},
            "proofs": {},
            "steps": 1,
            "batch": 16,
            "lr": 0.02,
            "resumed_at": 0,
            "num_scored": len(test),
        }, found

    monkeypatch.setattr(launch, "measure", measure)
    sweep = "settings.lr_sweep={factors: [0.3, 1.0, 3.0], held_out: 0.7, iterations: 1.0}"
    for stem in ("t2", "t3"):
        (devkit / "voc" / "Annotations" / f"{stem}.xml").write_text(annotation(pictures[stem]))
    record, _ = measured(devkit, tiny_files / "checkpoint", overrides=(sweep,))
    held = seen[0][2]
    assert len(held) == 2 and [rate for rate, *_ in seen] == [0.006, 0.02, 0.06, 0.06]
    assert all(part[1:] == seen[0][1:] for part in seen[:3]) and set(held).isdisjoint(seen[0][1])
    assert seen[3][1:] == (["t1", "t2", "t3"], list(TEST))
    found = record.details["lr_sweep"]
    assert found["factor"] == 3.0 and found["held_out"] == 2 and found["fit"] == 1
    assert record.labels == {"learning_rate": "0.06"} and "chosen by AP50 on 70 %" in record.selection
    assert record.details["notes"] == [
        "the chosen learning rate 0.06 is at the edge of the grid (0.006, 0.02, 0.06): a better one may lie beyond."
    ]


def test_a_sweep_that_has_nothing_to_divide_or_to_train_on_is_refused(devkit: Path) -> None:
    sweep = {"factors": (0.3, 1.0), "held_out": 0.5, "iterations": 1.0}
    settings = Settings.model_validate({**benchmark_layout("voc_zoo").settings, "lr_sweep": sweep})
    manifests = {"train": manifest("voc", "train")}
    job: Any = SimpleNamespace(card=SimpleNamespace(arch="resnet18"), settings=settings, manifests=manifests, procs=1)
    handed: dict[str, Any] = {"prepare": print, "classes": CLASSES, "train": [], "test": []}
    with pytest.raises(ConfigError, match="settings.lr_sweep: detectron2 has no learning rate chosen in this benchm"):
        measure("detectron2", job, **handed)
    nothing = HeldOut(fit=[], test=[{}], score=lambda found: 0.0, metric="AP50")
    with pytest.raises(DataError, match="voc train: without the held-out part no image is left to train on"):
        measure("detectron2", job, **handed, held_out=lambda rows: nothing)


def test_held_out_images_without_an_object_are_refused(devkit: Path) -> None:
    settings = Settings.model_validate(benchmark_layout("voc_zoo").settings)
    train = manifest("voc", "train")
    read = annotations(train, tuple(CLASSES))
    with pytest.raises(DataError, match=r"among the 2 held-out images, found none; raise settings.lr_sweep.held_out"):
        held_out(train, read, 3, settings, np.array([1, 2]))


def test_overrides_of_layout_and_execution_modify_no_result(devkit: Path, tiny_files: Path, engine: Engine) -> None:
    engine(perfect())
    layout = "tables=[{id: other, title: Other, metric: AP, decimals: 0, columns: {AP: ap}}]"
    record, _ = measured(devkit, tiny_files / "checkpoint", overrides=(layout, "execution={}", "settings.points=every"))
    assert record.modified == ("settings.points=every",) and record.labels == {}


def test_no_detection_at_all_scores_0(devkit: Path, tiny_files: Path, engine: Engine) -> None:
    engine({name: values[:0] for name, values in perfect().items()})
    record, _ = measured(devkit, tiny_files / "checkpoint")
    assert set(record.metrics.values()) == {0.0}


@pytest.mark.parametrize("name", ["voc_zoo", "voc_moco"])
def test_ap50_is_scored_by_both_rules(devkit: Path, name: str) -> None:
    """Exactly half of v4's box is found: right by mmdet's rule, wrong by the devkit's."""
    boxes = perfect() | {"box": perfect()["box"] + 1}
    boxes["box"][3] = (3, 3, 30, 16)
    settings = Settings.model_validate(benchmark_layout(name).settings)
    test = manifest("voc", "test")
    truth = ground_truth(annotations(test, tuple(CLASSES)))
    metrics, replicates, by_class = scored(Detections(**boxes), truth, test, 3, settings)
    assert metrics["ap50_mmdet"] == 100.0 and metrics["ap50_devkit"] < 100.0
    assert metrics["ap50"] == metrics["ap50_mmdet" if name == "voc_zoo" else "ap50_devkit"] == np.nanmean(by_class)
    assert replicates.keys() == metrics.keys() and {values.shape for values in replicates.values()} == {(1000,)}


def test_detections_of_the_wrong_class_score_0(devkit: Path) -> None:
    settings = Settings.model_validate(benchmark_layout("voc_zoo").settings)
    test, found = manifest("voc", "test"), perfect()
    wrong = Detections(**found | {"label": 1 - found["label"], "box": found["box"] + 1})
    metrics, _, _ = scored(wrong, ground_truth(annotations(test, tuple(CLASSES))), test, 3, settings)
    assert set(metrics.values()) == {0.0}


def test_a_measured_cell_keeps_its_logs_only(devkit: Path, tiny_files: Path, engine: Engine) -> None:
    engine(perfect())
    record, path = measured(devkit, tiny_files / "checkpoint")
    folder = path.parent.parent / "work" / record.cell_id
    assert sorted(each.name for each in folder.iterdir()) == ["events.out.1", "job.json", "log.jsonl"]
    points = record.details["history"]
    assert len(points) <= 201 and (points[0]["iteration"], points[-1]["iteration"]) == (0, 449)
    tidy(folder / "absent")


def test_what_a_kill_left_of_a_measured_cell_is_removed(
    devkit: Path, tiny_files: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine(perfect())
    record, path = measured(devkit, tiny_files / "checkpoint")
    folder = path.parent.parent / "work" / record.cell_id
    (folder / "model_final.pth").write_text("x")
    suite = devkit / "suite.yaml"
    suite.write_text(
        f"name: single\ncheckpoints: [{{card: {tiny_files / 'checkpoint'}}}]\nbenchmarks: [voc_zoo]\nseeds: [0]\n"
    )
    built: list[list[str]] = []
    page = lambda command, **options: built.append(command) or subprocess.CompletedProcess(command, 0)  # noqa: E731
    monkeypatch.setattr(queue.subprocess, "run", page)
    assert queue.run_suite(suite, num_workers=0, num_processes=1) == 0
    assert len(built) == 1 and not (folder / "model_final.pth").exists() and (folder / "log.jsonl").exists()


def test_a_missing_image_is_a_bug_and_no_record(devkit: Path, tiny_files: Path, engine: Any) -> None:
    engine(perfect(), num_scored=3)
    with pytest.raises(ZooError, match="detectron2 scored 3 images, expected 4"):
        measured(devkit, tiny_files / "checkpoint")
    assert not list((devkit / "runs").rglob("records/*.json"))


def test_pixels_alone_cannot_be_fine_tuned(devkit: Path, tiny_files: Path, engine: Engine) -> None:
    from converters.canonical import write_checkpoint
    from zoo.transforms import IMAGENET_PIXELS

    write_checkpoint(
        devkit / "raw",
        {},
        name="raw pixels",
        family="raw pixels",
        arch="raw_pixels",
        pixels=IMAGENET_PIXELS,
        source_format="canonical",
        lineage=(),
    )
    with pytest.raises(CheckpointError, match="raw pixels: detectron2 needs a ResNet's weights"):
        measured(devkit, devkit / "raw")


def test_whatever_is_wrong_with_the_data_is_named_at_once_before_any_training(devkit: Path, tiny_files: Path) -> None:
    """Both splits: XML that is torn, an unknown class, a box outside its image, an image of another size."""
    (devkit / "voc" / "Annotations" / "t1.xml").write_text("<annotation>")
    (devkit / "voc" / "Annotations" / "t3.xml").write_text(annotation([("yak", (1, 1, 4, 4), 0)]))
    (devkit / "voc" / "Annotations" / "v1.xml").write_text(annotation([("cat", (1, 1, 42, 32), 0)]))
    Image.new("RGB", (32, 40)).save(devkit / "voc" / "JPEGImages" / "v2.jpg")
    with pytest.raises(DataError) as caught:
        measured(devkit, tiny_files / "checkpoint")
    text = str(caught.value)
    for part in (
        "2 of 3 annotations of voc train cannot be used",
        "t1.xml: expected a Pascal VOC annotation, found no XML",
        "unknown class 'yak': expected one of cat, dog, emu",
        "2 of 4 annotations of voc test cannot be used",
        "object 1: expected x within 1…40, found 1…42",
        "v2.jpg: expected 40 x 32 pixels as its annotation says, found 32 x 40",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("Annotations/v3.xml", r"test.txt is not usable:\n.*line 3: no file Annotations/v3.xml"),
        ("JPEGImages/t2.jpg", r"train.txt is not usable:\n.*line 2: no file JPEGImages/t2.jpg"),
    ],
)
def test_an_image_without_its_annotation_or_the_reverse_is_named(devkit: Path, lost: str, said: str) -> None:
    (devkit / "voc" / lost).unlink()
    with pytest.raises(DataError, match=said):
        [manifest("voc", split) for split in ("train", "test")]


def test_an_empty_test_set_is_refused(devkit: Path) -> None:
    (devkit / "voc" / "test.txt").write_text("\n")
    with pytest.raises(DataError, match=r"test.txt is not usable:\n.*the list is empty"):
        manifest("voc", "test")


@pytest.mark.parametrize(("variant", "trains"), [("zoo", False), ("moco", True)])
def test_a_split_without_any_object_that_counts_is_refused(devkit: Path, variant: str, trains: bool) -> None:
    """Difficult objects alone can be trained on where they are boxes, and never scored."""
    for name in (*TRAIN, *TEST):
        (devkit / "voc" / "Annotations" / f"{name}.xml").write_text(annotation([("cat", (1, 1, 10, 12), 1)]))
    settings = Settings.model_validate(benchmark_layout(f"voc_{variant}").settings)
    with pytest.raises(DataError) as caught:
        checked(manifest("voc", "train"), manifest("voc", "test"), tuple(CLASSES), settings)
    none = "expected at least one object that is not difficult in its {} images, found none; restore the annotations."
    expected = [] if trains else [f"voc train: {none.format(3)}"]
    assert str(caught.value).splitlines() == [*expected, f"voc test: {none.format(4)}"]


def test_a_plan_says_that_the_engine_is_missing(devkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any pre-training, not after it."""
    suite = devkit / "suite.yaml"
    suite.write_text("name: a\ncheckpoints: [{random: resnet18}]\nbenchmarks: [voc_zoo, voc_moco]\nseeds: [0]\n")
    assert make_plan(suite).configs.keys() == {"voc_zoo", "voc_moco"}
    monkeypatch.setenv("ZOO_DETECTION_PYTHON", "no-such-python")
    with pytest.raises(ZooError, match="ZOO_DETECTION_PYTHON: expected a Python interpreter"):
        make_plan(suite)


def test_torchrun_is_not_needed_and_said_so(devkit: Path, tiny_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = ["run", "--checkpoint", str(tiny_files / "checkpoint"), "--benchmark", "voc_zoo"]
    ended = CliRunner().invoke(app, arguments)
    assert "voc_zoo: detectron2 starts its own processes; run without torchrun, with --procs N" in str(ended.exception)


def test_the_two_protocols_hand_over_other_boxes(devkit: Path) -> None:
    """D20 and the corners: mmdet drops difficult boxes and lowers all corners, detectron2 neither."""
    listed = {}
    for variant in ("zoo", "moco"):
        settings = Settings.model_validate(benchmark_layout(f"voc_{variant}").settings)
        split = manifest("voc", "train")
        listed[variant] = training_images(split, annotations(split, tuple(CLASSES)), settings)
    assert [[box["bbox"] for box in image["annotations"]] for image in listed["zoo"]] == [[[0, 0, 9, 11]], []]
    assert [[box["bbox"] for box in image["annotations"]] for image in listed["moco"]] == [
        [[0, 0, 10, 12], [4, 5, 30, 28]],
        [[1, 2, 20, 20]],
    ]
    assert [Path(image["file_name"]).name for image in listed["zoo"]] == ["t1.jpg", "t2.jpg"]  # t3 has no object


def test_the_ground_truth_keeps_difficult_boxes(devkit: Path) -> None:
    truth = ground_truth(annotations(manifest("voc", "test"), tuple(CLASSES)))
    assert truth.image.tolist() == [0, 0, 1, 1, 3] and truth.difficult.tolist() == [False, False, False, True, False]
    assert truth.box.shape == (5, 4)
    assert ground_truth([]).box.shape == (0, 4)


def test_a_history_is_thinned_to_its_last_point(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"iteration": i, "loss": 1.0, "lr": 0.1}) + "\n" for i in range(5)))
    assert [point["iteration"] for point in history(path)] == [0, 1, 2, 3, 4]
    path.write_text("".join(json.dumps({"iteration": i, "loss": 1.0, "lr": 0.1}) + "\n" for i in range(402)))
    assert [point["iteration"] for point in history(path)][-2:] == [399, 401]
