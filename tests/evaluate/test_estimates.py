"""Are sizes of features exact, are recorded times preferred, and is it said where each estimate comes from?"""

import json
import os
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from converters.counts import operations
from evaluate import estimates
from evaluate.estimates import OPERATIONS, Row, duration, estimate, size, width
from evaluate.forward import pooled
from evaluate.job import LayerName, Pool
from evaluate.run import extract_features
from evaluate.suite import Plan, make_plan
from tests.evaluate.tiny_world import KNN, TRAIN, VAL, dumped
from zoo.backbone import build
from zoo.datasets import Identity
from zoo.distributed import World

POOLS: dict[LayerName, Pool | None] = {
    "feature1": Pool(kernel=10, stride=10, padding=4),
    "feature2": Pool(kernel=4, stride=3, padding=0),
    "feature3": Pool(kernel=3, stride=2, padding=1),
    "feature4": Pool(kernel=2, stride=1, padding=0),
    "feature5": Pool(kernel=2, stride=1, padding=0),
    "avgpool": None,
}


@pytest.mark.parametrize(("arch", "crop"), [("resnet18", 75), ("resnet50", 224), ("resnet50", 75)])
def test_widths_are_those_that_the_network_gives(arch: str, crop: int) -> None:
    with torch.device("meta"):
        maps = build(arch).stages(torch.zeros(1, 3, crop, crop))
    for layer, pool in POOLS.items():
        assert width(arch, layer, pool, crop) == pooled(maps[layer], pool).shape[1]
    assert width("raw_pixels", "avgpool", None, crop) == 3 * crop * crop


def test_operations_are_those_of_the_published_tables() -> None:
    for arch, count in OPERATIONS.items():
        assert arch == "raw_pixels" or count == pytest.approx(operations(arch, pooled=False), rel=1e-3)


def planned(tiny: Path, folder: Path, **changes: Any) -> Plan:
    suite = {"name": "tiny", "checkpoints": [{"card": str(tiny / "checkpoint")}], "seeds": [0]}
    path = folder / "suite.yaml"
    path.write_text(dumped(suite | {"benchmarks": ["tiny_knn", "tiny_linear"]} | changes))
    return make_plan(path)


def test_features_take_the_disk_that_was_estimated_and_none_when_they_are_there(tiny: Path, tmp_path: Path) -> None:
    plan = planned(tiny, tmp_path)
    # avgpool of both splits for kNN; the linear probe finds its own of the test images there, and adds feature3
    expected = 4 * ((TRAIN + VAL) * 512 + VAL * width("resnet18", "feature3", Pool(kernel=2, stride=1, padding=1), 24))
    found = estimate(plan)
    assert found.disk_bytes == expected and [row.note for row in found.rows] == ["features to extract"] * 2
    me = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    extract_features([one.cell for one in plan.cells() if one.cell], num_workers=0, me=me)
    files = list((tmp_path / "cache" / "features").glob("*/features.npy"))
    assert sum(path.stat().st_size - 128 for path in files) == expected  # 128: an .npy file's header
    assert estimate(plan).disk_bytes == 0 and estimate(plan).rows[0].note == ""


def write_record(folder: Path, name: str, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    here = {"platform": platform.platform(), "cores": os.cpu_count()}
    record = {"benchmark_config": "tiny_knn", "checkpoint": {"arch": "resnet18"}, "seconds": 36.0, "modified": []}
    (folder / f"{name}.json").write_text(json.dumps(record | {"environment": here} | changes))


def test_this_machines_records_go_before_what_is_stated(tiny: Path, tmp_path: Path) -> None:
    plan = planned(tiny, tmp_path)
    assert [row.basis for row in estimate(plan).rows] == ["stated", "stated"]
    other = tmp_path / "runs" / "another_suite" / "records"
    for number, seconds in enumerate((36.0, 72.0, 3600.0)):
        write_record(other, str(number), seconds=seconds)
    write_record(other, "modified", modified=["settings.k=[1]"], seconds=1e6)
    write_record(other, "elsewhere", environment={"platform": "Plan 9", "cores": 1}, seconds=1e6)
    write_record(other, "larger", checkpoint={"arch": "resnet50"}, seconds=1e6)
    (other / "broken.json").write_text("{")
    knn, linear = estimate(plan).rows
    assert (knn.hours, knn.basis) == (0.02, "recorded") and linear.basis == "stated"
    lines = list(estimate(plan).lines())
    assert "1 min recorded" in lines[1] and " ~" not in lines[1] and " ~" in lines[2] and " stated" in lines[2]


def test_what_the_suite_says_goes_before_what_is_stated(tiny: Path, tmp_path: Path) -> None:
    block = {"by_kind": {"make": {"hours": 3.0}, "linear": {"hours": 2.0, "memory_gb": 7.0}}}
    entries = [{"random": "resnet18"}, {"card": str(tiny / "checkpoint")}]
    plan = planned(tiny, tmp_path, resources=block, checkpoints=entries)
    found = estimate(plan)
    making, *_, linear = found.rows
    assert (making.hours, making.basis, making.what) == (3.0, "suite", "drawing")
    assert (linear.hours, linear.basis, linear.memory_gb) == (2.0, "suite", 7.0)
    assert found.elapsed == pytest.approx(found.hours)
    assert estimate(plan, jobs=4).elapsed == pytest.approx(3 + 2)  # one cell waits for the checkpoint
    assert "5.0 h with --jobs 4" in "\n".join(estimate(plan, jobs=4).lines())


def test_a_plan_says_of_every_task_how_far_it_is_and_what_it_waits_for(tiny: Path, tmp_path: Path) -> None:
    entries = [{"card": str(tiny / "checkpoint")}, {"random": "resnet18"}]
    plan = planned(tiny, tmp_path, checkpoints=entries, benchmarks=["tiny_knn", "tiny_linear", "imagenet_knn"])
    cells = [one.cell for one in plan.cells()]
    assert cells[0] and cells[1]
    write_record(plan.records, cells[0].id)
    failed = plan.folder / "failed"
    failed.mkdir()
    (failed / f"{cells[1].id}.json").write_text(json.dumps({"reason": "one\nValueError: two\n"}))
    (failed / f"{plan.sources[1].key}.json").write_text(json.dumps({"reason": "three"}))
    rows = estimate(plan).rows
    assert [(row.state, row.note) for row in rows] == [
        ("failed", "three"),
        ("done", ""),
        ("failed", "ValueError: two"),
        ("skipped", "no line 'imagenet: /path' in data.yaml"),
        ("waiting", "for its checkpoint, which failed"),
        ("waiting", "for its checkpoint, which failed"),
        ("skipped", "no line 'imagenet: /path' in data.yaml"),
    ]
    assert [row.hours is None for row in rows] == [False, True, False, True, False, False, True]
    text = "\n".join(estimate(plan).lines())
    assert "7 tasks: 2 failed, 1 done, 2 skipped, 2 waiting" in text
    assert "skipped: imagenet_knn: no line 'imagenet: /path' in data.yaml" in text

    (failed / f"{cells[1].id}.json").unlink()
    (failed / f"features-{plan.sources[0].key}-tiny.json").write_text(json.dumps({"reason": "four"}))
    assert estimate(plan).rows[2].note == "features to extract, which failed"


def test_a_full_disk_is_announced(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(tiny, tmp_path)
    assert "NOT ENOUGH" not in "\n".join(estimate(plan).lines())
    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda place: _Usage())
    assert "of 1 KB free: NOT ENOUGH; set ZOO_CACHE to a larger disk" in "\n".join(estimate(plan).lines())


class _Usage:
    free = 1000


def test_nothing_left_to_do_takes_no_time(tiny: Path, tmp_path: Path) -> None:
    plan = planned(tiny, tmp_path)
    for one in plan.cells():
        assert one.cell
        write_record(plan.records, one.cell.id)
    found = estimate(plan)
    assert (found.hours, found.elapsed, found.disk_bytes) == (0.0, 0.0, 0)
    assert list(found.lines())[-1] == "2 tasks: 2 done"


def test_a_full_pass_over_imagenet_is_what_the_recorded_rate_gives(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/speed.md: 15.8 images a second on two cores; GPU processes share the work."""
    entries = [{"random": "resnet50", "benchmarks": ["imagenet_knn"]}]
    images = {"train": 1_281_167, "val": 50_000}

    def fake(name: str, split: str) -> Identity:
        return Identity(dataset=name, split=split, sha256=split, num_images=images[split], num_classes=1000)

    monkeypatch.setattr("evaluate.cells.identity", fake)
    monkeypatch.setattr(estimates.os, "cpu_count", lambda: 2)
    (tmp_path / "path").mkdir()
    plan = planned(tiny, tmp_path, checkpoints=entries, benchmarks=["imagenet_knn"])
    row: Row = estimate(plan).rows[1]
    assert row.hours == pytest.approx(sum(images.values()) / 15.8 / 3600, rel=0.05)  # the search: a few per cent
    assert row.disk_bytes == sum(images.values()) * 2048 * 4 and row.memory_gb == pytest.approx(12.9, abs=0.1)
    monkeypatch.setattr(estimates, "num_gpus", lambda: 8)
    alone, together = (estimate(plan, procs=procs).rows[1].hours or 0.0 for procs in (1, 8))
    assert alone == pytest.approx(8 * together, rel=0.05) and together * 3600 < 300


def test_gpus_are_counted_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DEVICE", "cpu")
    assert estimates.num_gpus() == 0


def test_the_same_features_asked_for_twice_count_once(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = KNN | {"settings": KNN["settings"] | {"k": [2]}}
    path = tiny / "configs" / "benchmarks" / "tiny_twin.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(twin))))
    try:
        plan = planned(tiny, tmp_path, benchmarks=["tiny_knn", "tiny_twin"])
    finally:
        path.unlink()
    assert [row.disk_bytes for row in estimate(plan).rows] == [4 * 512 * (TRAIN + VAL), 0]


def test_durations_and_sizes_read_well() -> None:
    assert [duration(hours) for hours in (1 / 3600, 0.5, 1.25, 1234.5)] == ["1 s", "30 min", "1.2 h", "1,234 h"]
    assert [size(count) for count in (999, 1500, 2.5e6, 3e9, 4e15)] == [
        "999 B",
        "2 KB",
        "2.5 MB",
        "3.0 GB",
        "4,000.0 TB",
    ]
