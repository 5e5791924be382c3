"""One suite by one process, by the local queue and by Slurm: the same page, whatever is killed on the way."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.evaluate.tiny_world import Tree
from zoo.files import ROOT

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
HOLD = '''
import os, pathlib, time
folder = pathlib.Path(os.environ.get("HOLDS", "nowhere"))
def hold(name):
    """Wait here, the first time only, until somebody removes the file."""
    if (folder / name).exists() and not (folder / f"{name}.reached").exists():
        (folder / f"{name}.reached.tmp").write_text(str(os.getpid()))
        (folder / f"{name}.reached.tmp").rename(folder / f"{name}.reached")
        while (folder / name).exists():
            time.sleep(0.05)
def kill_once(name):
    if (folder / name).exists():
        (folder / name).unlink()
        os.killpg(0, 9)
'''
HOOKS = (  # file, the line a hook goes behind, the hook
    ("pretrain/train.py", "    _judge(session, step, values)", 'hold(f"step{step}")'),
    ("evaluate/linear.py", "            indices = _tensor(chunk.indices)", 'hold(f"chunk{number}")'),
    ("zoo/record.py", "    write_atomic(arrays_path, buffer.getvalue())", 'kill_once(f"record-{record.benchmark}")'),
)


def arm(tree: Tree) -> None:
    (tree.folder / "hooks.py").write_text(HOLD)
    for file, line, hook in HOOKS:
        text = (tree.folder / file).read_text()
        found = next((row for row in text.splitlines() if row.startswith(line)), None)
        assert found, f"{file} has no line {line!r} any more"
        indent = " " * (len(line) - len(line.lstrip()))
        behind = f"{found}\n{indent}from hooks import hold, kill_once; {hook}"
        (tree.folder / file).write_text(text.replace(found, behind, 1))
    path = tree.folder / "evaluate/slurm.py"
    text = path.read_text()
    assert "ASK_SECONDS = 10.0" in text
    path.write_text(text.replace("ASK_SECONDS = 10.0", "ASK_SECONDS = 1.0"))


def write_suite(tree: Tree, **changes: object) -> Path:
    path = tree.folder / "configs/suites/tiny.yaml"
    content = yaml.safe_load(path.read_text()) | {"resources": {"slurm": {"time_hours": 0.2}}} | changes
    path.write_text(yaml.safe_dump(content))
    return path


def soon(what: Callable[[], object], seconds: float = 90) -> None:
    """Until `what()` is true."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.05)


def scancel(*arguments: str) -> None:
    subprocess.run(["scancel", *arguments], check=True)


def test_one_page_by_one_process_by_the_queue_and_by_slurm_in_spite_of_kills(
    tree: Tree, tmp_path: Path, loopback: Path
) -> None:
    suite = write_suite(tree, checkpoints=[{"pretrain": "configs/pretrain/tiny.yaml"}])
    line = ("evaluate", "suite", suite, "--workers", "0")
    arm(tree)
    others = {}  # without HOLDS nothing is held or killed; they run while Slurm's queue is waited for
    for jobs in ("1", "2"):
        where = {"ZOO_RUNS": str(tmp_path / f"runs{jobs}"), "ZOO_CACHE": str(tmp_path / f"cache{jobs}")}
        others[jobs] = tree.start(*line, "--jobs", jobs, env=where)
    holds, folder = tmp_path / "holds", tmp_path / "runs/tiny"
    holds.mkdir()
    for name in ("step3", "step5", "step7", "step9", "chunk2", "record-knn"):
        (holds / name).touch()

    def reached(name: str) -> int:
        path = holds / f"{name}.reached"
        soon(path.exists)
        return int(path.read_text())

    def start() -> "subprocess.Popen[str]":
        return tree.start(*line, "--on", "slurm", env={"HOLDS": str(holds)})

    controller = start()
    reached("step3")
    controller.kill()  # the controller; its job goes on
    controller.communicate()
    (note,) = (folder / "jobs").glob("*-seed0-????????.json")
    job = json.loads(note.read_text())["job"]
    controller = start()
    (holds / "step3").unlink()

    reached("step5")
    scancel("--signal=USR1", job)  # as Slurm does before the time limit
    time.sleep(0.5)
    (holds / "step5").unlink()

    reached("step7")  # the same job, out of the queue again
    for node in ("1", "2"):
        os.kill(int((loopback / f"slurmd.zoo{node}.pid").read_text()), signal.SIGTERM)
        soon(lambda node=node: not (loopback / f"slurmd.zoo{node}.pid").exists())
        subprocess.run([ROOT / "scripts/slurm_on_loopback.sh", "node", loopback, node], check=True)
    (holds / "step7").unlink()

    os.kill(reached("step9"), signal.SIGKILL)  # a worker
    (holds / "step9").unlink()

    reached("chunk2")
    scancel("--me")  # the queue
    (holds / "chunk2").unlink()
    outputs = [controller.communicate(timeout=150)[0]]
    while controller.returncode and len(outputs) < 3:
        controller = start()
        outputs.append(controller.communicate(timeout=150)[0])
    assert controller.returncode == 0, outputs
    assert "is running already" in outputs[0] and "was killed" in outputs[0]
    log = next((folder / "logs").glob("*-seed0-????????.log")).read_text()
    assert not (holds / "record-knn").exists()
    for jobs, process in others.items():
        output, _ = process.communicate(timeout=100)
        assert process.returncode == 0, output
        assert (tmp_path / f"runs{jobs}/tiny/RESULTS.md").read_bytes() == (folder / "RESULTS.md").read_bytes()
    assert len(list((folder / "records").glob("*.json"))) == 2 and not list(tmp_path.rglob("*.tmp"))
    assert not list((folder / "failed").glob("*"))
    for said in ("going on from step 6", "going on from step 8", "stopped, to be run again"):
        assert said in log, log
    assert "0 tasks run; cells: 2 done" in tree.run(*line, "--on", "slurm", env={"HOLDS": str(holds)})


def test_a_cell_on_two_nodes_and_a_controller_that_does_not_wait(tree: Tree, tiny_files: Path, tmp_path: Path) -> None:
    suite = write_suite(
        tree,
        checkpoints=[{"card": str(tiny_files / "checkpoint")}],
        benchmarks=["tiny_linear"],
        resources={"slurm": {"time_hours": 0.2}, "by_kind": {"linear": {"nodes": 2}}},
    )
    line = ("evaluate", "suite", suite, "--workers", "0", "--on", "slurm")
    assert "1 jobs are with Slurm" in tree.run(*line, "--no-wait")
    records = tmp_path / "runs/tiny/records"
    output = tree.run(*line)  # adopts the job, or finds it done
    assert "submitted" not in output, output
    (path,) = records.glob("*.json")
    record = json.loads(path.read_text())
    assert record["environment"]["processes"] == 2
    assert len(list((tmp_path / "runs/tiny/logs").glob("*.node1.log"))) == 1
