"""Whole commands: the same numbers for any number of processes, nothing lost to a kill, nothing computed twice."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.docs.guides import block
from tests.evaluate.tiny_world import CLASSES, KNN, TRAIN, VAL, Tree


def record_of(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    (path,) = folder.glob("*.json")
    with np.load(path.with_suffix(".npz")) as arrays:
        return json.loads(path.read_text()), dict(arrays)


@pytest.mark.slow
@pytest.mark.parametrize(("benchmark", "numbers"), [("tiny_knn", (1, 2, 4)), ("tiny_linear", (1, 4))])
def test_one_two_and_four_processes_give_the_same_record(
    tree: Tree, tiny_files: Path, tmp_path: Path, benchmark: str, numbers: tuple[int, ...]
) -> None:
    found = []
    for processes in numbers:
        records = tmp_path / f"records{processes}"
        arguments = ("--benchmark", benchmark, "--records", records, "--workers", "0", "--procs", str(processes))
        cache = str(tmp_path / f"cache{processes}")
        tree.run("evaluate", "run", "--checkpoint", tiny_files / "checkpoint", *arguments, env={"ZOO_CACHE": cache})
        found.append(record_of(records))
    for record, arrays in found[1:]:
        assert record["cell_id"] == found[0][0]["cell_id"]
        assert record["metrics"] == found[0][0]["metrics"] and record["num_scored"] == VAL
        assert record["details"].get("history") == found[0][0]["details"].get("history")
        for name, values in found[0][1].items():
            np.testing.assert_array_equal(arrays[name], values)


KILLER = '''
import os, signal, pathlib
calls = {}
def kill_once(name, at):
    """At the `at`-th call in a process, kill the whole process group, the first time only."""
    marker = pathlib.Path(os.environ["KILL_MARKERS"]) / name
    calls[name] = calls.get(name, 0) + 1
    if calls[name] == at and not marker.exists():
        marker.touch()
        os.killpg(0, signal.SIGKILL)
'''
KILL_POINTS = {  # name: file, the line it goes after, at which call
    "pretraining": ("pretrain/train.py", "        _judge(session, step, values)", 1),
    "extraction": ("evaluate/features.py", "            done[written] = 1", 3),
    "publication": ("evaluate/features.py", "        (partial / key).rename(feature_folder(key))", 1),
    "evaluation": ("evaluate/linear.py", "            _save(job, trainers, history, number + 1)", 2),
    "record": ("zoo/record.py", "    write_atomic(arrays_path, buffer.getvalue())", 1),
}


def arm(tree: Tree) -> None:
    (tree.folder / "killer.py").write_text(KILLER)
    extraction = tree.folder / "evaluate/features.py"
    text = extraction.read_text()
    assert "FLUSH_SECONDS = 5.0" in text
    extraction.write_text(text.replace("FLUSH_SECONDS = 5.0", "FLUSH_SECONDS = 0.0"))
    for name, (file, line, at) in KILL_POINTS.items():
        path = tree.folder / file
        found = re.search(rf"^( *){re.escape(line.strip())}.*$", path.read_text(), re.M)
        assert found, f"{file} has no line {line!r} any more"
        call = f"\n{found[1]}from killer import kill_once; kill_once({name!r}, {at})"
        text = path.read_text()
        # in front of the statement for a call that spans lines, behind it otherwise
        place = found.start() if found[0].rstrip().endswith("(") else found.end()
        path.write_text(text[:place] + (call.lstrip("\n") + "\n" if place == found.start() else call) + text[place:])


@pytest.mark.slow
def test_kill_9_anywhere_ends_in_the_same_page_after_a_rerun(tree: Tree, tmp_path: Path) -> None:
    suite = tree.folder / "configs/suites/tiny.yaml"
    content = yaml.safe_load(suite.read_text()) | {"checkpoints": [{"pretrain": "configs/pretrain/tiny.yaml"}]}
    suite.write_text(yaml.safe_dump(content))
    untouched = {"ZOO_RUNS": str(tmp_path / "runs0"), "ZOO_CACHE": str(tmp_path / "cache0")}
    tree.run("evaluate", "suite", suite, "--workers", "0", env=untouched)
    expected = (tmp_path / "runs0/tiny/RESULTS.md").read_bytes()

    arm(tree)
    markers = tmp_path / "markers"
    markers.mkdir()
    for _ in range(len(KILL_POINTS) + 1):
        process = tree.start("evaluate", "suite", suite, "--workers", "0", env={"KILL_MARKERS": str(markers)})
        output, _ = process.communicate(timeout=200)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, output
    assert {path.name for path in markers.iterdir()} == set(KILL_POINTS)
    assert (tmp_path / "runs/tiny/RESULTS.md").read_bytes() == expected
    assert not list((tmp_path / "runs").rglob("*.tmp"))

    again = tree.run("evaluate", "suite", suite, "--workers", "0", env={"KILL_MARKERS": str(markers)})
    assert "0 tasks run; cells: 2 done" in again


CENTROID = block("add_a_benchmark", "`evaluate/centroid.py`:")  # the guide's own example


@pytest.mark.slow
def test_a_new_benchmark_is_one_file_one_yaml_and_one_line(tree: Tree, tiny_files: Path, tmp_path: Path) -> None:
    (tree.folder / "evaluate/centroid.py").write_text(CENTROID)
    table = {
        "id": "centroid",
        "title": "Nearest Centroid",
        "metric": "top-1",
        "decimals": 2,
        "columns": {"Top-1": "top1_avgpool"},
    }
    config = KNN | {"benchmark": "centroid", "execution": {}, "tables": [table]}
    splits = {"train_split": "train", "test_split": "val"}
    config["settings"] = {**splits, "features": KNN["settings"]["features"]}
    (tree.folder / "configs/benchmarks/tiny_centroid.yaml").write_text(yaml.safe_dump(config))
    registry = tree.folder / "evaluate/benchmarks.py"
    text = registry.read_text().replace("from evaluate import detection", "from evaluate import centroid, detection")
    registry.write_text(text.replace('    "knn": knn,\n', '    "knn": knn,\n    "centroid": centroid,\n'))
    suite = {
        "name": "centroid",
        "checkpoints": [{"card": str(tiny_files / "checkpoint")}],
        "benchmarks": ["tiny_centroid"],
        "seeds": [0],
    }
    (tree.folder / "configs/suites/centroid.yaml").write_text(yaml.safe_dump(suite))
    tree.run("evaluate", "suite", "configs/suites/centroid.yaml", "--workers", "0")
    record, _ = record_of(tmp_path / "runs/centroid/records")
    page = (tmp_path / "runs/centroid/RESULTS.md").read_text()
    assert "Nearest Centroid" in page and f"{record['metrics']['top1_avgpool']:.2f}" in page
    assert record["metrics"]["top1_avgpool"] > 100 / CLASSES and record["datasets"]["train"]["num_images"] == TRAIN


@pytest.mark.slow
def test_a_failed_task_is_isolated_shown_and_tried_again(tree: Tree, tmp_path: Path) -> None:
    linear = tree.folder / "configs/benchmarks/tiny_linear.yaml"
    text = linear.read_text()
    linear.write_text(re.sub(r"(base_lr:\n *- )1\.6", r"\g<1>1.0e+38", text))
    suite = tree.folder / "configs/suites/tiny.yaml"
    suite.write_text(yaml.safe_dump(yaml.safe_load(suite.read_text()) | {"checkpoints": [{"random": "resnet18"}]}))
    output = tree.run("evaluate", "suite", suite, "--workers", "0", expect=4)
    assert "FAILED (exit code 4): tiny_linear on" in output and "loss is NaN or infinite" in output
    assert "1 done, 1 failed" in output
    assert "–" in (tmp_path / "runs/tiny/RESULTS.md").read_text()
    assert "loss is NaN or infinite" in tree.run("evaluate", "status", suite)
    linear.write_text(text)
    assert "2 done" in tree.run("evaluate", "suite", suite, "--workers", "0")


def test_the_same_suite_is_not_run_twice_at_once(tree: Tree, tmp_path: Path) -> None:
    import fcntl

    folder = tmp_path / "runs/tiny"
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        output = tree.run("evaluate", "suite", "configs/suites/tiny.yaml", expect=2)
    assert "suite 'tiny' is running already" in output and "ZOO_RUNS" in output


def test_what_the_user_sees_for_bad_input(tree: Tree, tiny_files: Path, tmp_path: Path) -> None:
    """One line each, exit code 2, before any work."""
    missing = tree.run("evaluate", "run", "--checkpoint", "gone.pth", "--benchmark", "tiny_knn", expect=2)
    assert missing.startswith("error: gone.pth: no such checkpoint; expected a card.yaml")
    arguments = ("evaluate", "run", "--checkpoint", tiny_files / "checkpoint", "--benchmark", "tiny_knn")
    data = tree.run(*arguments, expect=2, env={"ZOO_DATA": str(tmp_path / "none.yaml")})
    assert data.startswith("error: dataset 'tiny' has no place") and data.count("\n") == 1
    (tmp_path / "file").write_text("")
    runs = tree.run(*arguments, expect=2, env={"ZOO_RUNS": str(tmp_path / "file")})
    assert "error: cannot write to" in runs and "set ZOO_RUNS or ZOO_CACHE" in runs


@pytest.mark.slow
def test_a_truncated_image_ends_the_cell_and_names_the_file(tree: Tree, tiny_files: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_files / "data", tmp_path / "data")
    bad = next((tmp_path / "data/train/class1").iterdir())
    bad.write_bytes(bad.read_bytes()[:-100])
    (tmp_path / "data.yaml").write_text(f"tiny: {tmp_path / 'data'}\n")
    for workers in ("0", "2"):
        output = tree.run(
            "evaluate",
            "run",
            *("--checkpoint", tiny_files / "checkpoint", "--benchmark", "tiny_knn", "--workers", workers),
            expect=2,
            env={"ZOO_DATA": str(tmp_path / "data.yaml")},
        )
        assert f"error: {bad}: the image cannot be decoded" in output and "Traceback" not in output
    assert not list((tmp_path / "runs").rglob("*.json"))


def test_a_killed_suite_takes_its_children_with_it(tree: Tree, tmp_path: Path) -> None:
    import time

    process = tree.start("evaluate", "suite", "configs/suites/tiny.yaml", "--workers", "0")
    children: list[int] = []
    deadline = time.monotonic() + 60
    while not children and time.monotonic() < deadline:
        time.sleep(0.05)
        listing = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        children = [int(pid) for pid in listing.read_text().split()] if listing.exists() else []
    assert children
    process.kill()
    process.communicate()
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    alive = [pid for pid in children if Path(f"/proc/{pid}").exists()]
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    assert not alive


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a_full_disk_ends_the_extraction_with_advice_and_keeps_nothing(
    tree: Tree, tiny_files: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60k", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let root mount")
    try:
        arguments = ("--checkpoint", tiny_files / "checkpoint", "--benchmark", "tiny_knn", "--workers", "0")
        output = tree.run("evaluate", "run", *arguments, expect=2, env={"ZOO_CACHE": str(small)})
        assert "features.npy: the disk is full: free space, or set ZOO_RUNS / ZOO_CACHE" in output
        assert not list(small.rglob("*.npy"))
    finally:
        subprocess.run(["umount", str(small)], check=True)
