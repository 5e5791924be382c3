"""What runs when, how often it is tried, and what stands when it has failed."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from evaluate import features, linear, queue, slurm
from evaluate.cells import resolve
from evaluate.queue import Ended, Here, run_suite
from evaluate.run import obtain_features
from evaluate.slurm import Slurm, parameters
from evaluate.suite import Selection, make_plan
from evaluate.suite_file import SlurmResources, SuiteConfig
from evaluate.tasks import Resources, Task, tasks
from tests.evaluate.test_linear import ALONE, measured
from tests.evaluate.tiny_world import LINEAR
from zoo import interrupt
from zoo.checkpoint import CARD_NAME
from zoo.errors import ConfigError, ZooError

ONE = Resources(procs=1, workers=0, hours=None, memory_gb=None, gpus=0)


def task(key: str, *needs: str, kind: Any = "cell", accepted: tuple[int, ...] = (0,), run: str = "pass") -> Task:
    arguments = ("timeit", "-n1", "-r1", run)  # the quickest module that runs a line
    return Task(
        key=key, title=f"task {key}", arguments=arguments, needs=needs, accepted=accepted, kind=kind, resources=ONE
    )


class Scripted:
    """An executor whose tasks end with the codes it is given, one at a time."""

    def __init__(self, folder: Path, codes: dict[str, list[Any]], *, chains: bool = False) -> None:
        self.folder, self.codes, self.chains = folder, codes, chains
        self.active: list[Task] = []
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.stopped = False

    def adopt(self, task: Task) -> bool:
        return False

    def start(self, chosen: Sequence[Task], *, again: bool = False) -> list[Task]:
        room = list(chosen) if self.chains else [] if self.active else list(chosen[:1])
        self.active += room
        self.begun += [task.key for task in room]
        return room

    def wait(self, seconds: float) -> list[Ended]:
        task = self.active.pop(0)
        path = self.folder / "logs" / f"{task.key}.log"
        path.parent.mkdir(exist_ok=True)
        path.write_text("begun\nits last words\n")
        code = self.codes.get(task.key, [0]).pop(0) if self.codes.get(task.key) else 0
        if isinstance(code, BaseException):
            raise code
        return [Ended(task=task, code=code)]

    def cancel(self, task: Task) -> None:
        self.active.remove(task)
        self.cancelled.append(task.key)

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(queue, "write_page", lambda folder, page: None)
    plan: Any = SimpleNamespace(folder=tmp_path, records=tmp_path / "records", page=lambda: None)

    def run(found: list[list[Task]], codes: dict[str, list[Any]], *, chains: bool = False) -> Any:
        lists = iter(found)
        executor = Scripted(tmp_path, codes, chains=chains)
        made = queue._Run(executor, lambda: (plan, next(lists)))
        made.go(wait=True)
        return made, executor

    return run


@pytest.mark.parametrize(
    ("codes", "times", "failed"),
    [
        ([75, 75, 75, 0], 4, 0),  # to be run again
        ([-signal.SIGUSR1, 0], 2, 0),  # asked before it could answer
        ([-9, 0], 2, 0),  # killed: once more
        ([137, 75, 0], 3, 0),
        ([130, -15], 2, -15),
        ([-9, 75, -9], 3, -9),
        ([1], 1, 1),
        ([2], 1, 2),
        ([4], 1, 4),
    ],
)
def test_what_is_tried_again(ran: Any, codes: list[int], times: int, failed: int, tmp_path: Path) -> None:
    made, executor = ran([[task("a")]], {"a": codes})
    assert executor.begun == ["a"] * times and made.exit_code == failed
    note = tmp_path / "failed/a.json"
    assert note.exists() == bool(failed)
    if failed:
        assert json.loads(note.read_text()) == {
            "task": "task a",
            "exit_code": failed,
            "reason": "begun\nits last words",
        }


def test_a_failure_stops_what_needs_it_and_nothing_else(ran: Any, caplog: pytest.LogCaptureFixture) -> None:
    found = [task("features", kind="extract"), task("a", "features"), task("b"), task("c", "features")]
    made, executor = ran([found], {"features": [2], "b": [4]})
    assert executor.begun == ["features", "b"]
    assert made.blocked == {"task a": "task features", "task c": "task features"}
    assert made.exit_code == 2 and list(made.failed) == ["features", "b"]
    assert "FAILED (exit code 2): task features\n    begun\n    its last words" in caplog.text


def test_a_checkpoint_that_was_made_brings_its_cells(ran: Any) -> None:
    make, other = task("m", kind="make"), task("n", kind="make")
    found = [[make, other], [other, task("a")], [task("a"), task("b")]]
    made, executor = ran(found, {})
    assert executor.begun == ["m", "n", "a", "b"] and made.num_run == 4 and not made.failed


def test_a_collapse_that_does_not_come_is_a_failure(ran: Any, tmp_path: Path) -> None:
    make = task("m", kind="make", accepted=(3,))
    assert ran([[make], []], {"m": [3]})[0].exit_code == 0
    assert ran([[make], []], {"m": [0]})[0].exit_code == 1
    assert "expected to be stopped as collapsed" in (tmp_path / "failed/m.json").read_text()


def test_followers_are_started_at_once_and_called_back_when_their_need_is_killed(ran: Any) -> None:
    found = [task("x", kind="extract"), task("a", "x"), task("b", "x")]
    made, executor = ran([found], {"x": [-9, 0]}, chains=True)
    assert executor.begun == ["x", "a", "b", "x", "a", "b"] and executor.cancelled == ["a", "b"]
    assert made.exit_code == 0 and not made.running and not made.waiting
    made, executor = ran([found], {"x": [2]}, chains=True)
    assert executor.cancelled == ["a", "b"] and set(made.blocked) == {"task a", "task b"}


def test_an_interrupt_ends_the_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "write_page", lambda folder, page: None)
    plan: Any = SimpleNamespace(folder=tmp_path, records=tmp_path, page=lambda: None)
    executor = Scripted(tmp_path, {"a": [KeyboardInterrupt()]})
    made = queue._Run(executor, lambda: (plan, [task("a")]))
    with pytest.raises(KeyboardInterrupt):
        made.go(wait=True)
    assert executor.stopped


def test_slots_are_filled_in_order_and_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    here = Here(tmp_path, jobs=2, procs=1)
    run = "import os, time; print(os.environ['OMP_NUM_THREADS']); time.sleep(0.2)"
    found = [task(key, run=run) for key in "abc"]
    assert here.start(found) == found[:2] and here.start(found[2:]) == []
    ended = here.wait(20)
    assert ended and all(one.code == 0 for one in ended)
    assert here.start(found[2:]) == found[2:]
    while here.running:
        here.wait(20)
    cores = len(os.sched_getaffinity(0))
    assert (tmp_path / "logs/a.log").read_text().startswith(f"{max(1, cores // 2)}\n")


def test_a_task_sees_the_gpus_of_its_slots_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "_gpus", lambda: ["3", "5", "7"])
    here = Here(tmp_path, jobs=None, procs=1)
    assert here.jobs == 3
    run = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(0.2)"
    two = Task(**{**vars(task("b", run=run)), "resources": Resources(**{**vars(ONE), "procs": 2})})
    found = [task("a", run=run), two, task("c", run=run)]
    assert here.start(found) == found[:2] and here.free == []  # c waits though a slot of jobs is left
    while here.running:
        here.wait(20)
    assert here.free and sorted(here.free) == ["3", "5", "7"]
    assert (tmp_path / "logs/a.log").read_text().startswith("3\n")
    assert (tmp_path / "logs/b.log").read_text().startswith("5,7\n")


def test_children_are_terminated_and_waited_for(tmp_path: Path) -> None:
    here = Here(tmp_path, jobs=1, procs=1)
    here.start([task("a", run="import time; time.sleep(60)")])
    begun = time.monotonic()
    here.stop()
    ((_, child, _),) = here.running.values()
    assert child.returncode == -signal.SIGTERM and time.monotonic() - begun < 20


def write_suite(tiny: Path, tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "suite.yaml"
    content = {
        "name": "queue",
        "checkpoints": [{"random": "resnet18"}, {"card": str(tiny / "checkpoint")}],
        "benchmarks": ["tiny_knn", "tiny_linear"],
        "seeds": [0, 1],
    }
    path.write_text(yaml.safe_dump(content | changes))
    return path


def test_the_tasks_of_a_suite(tiny: Path, tmp_path: Path) -> None:
    plan = make_plan(write_suite(tiny, tmp_path))
    make, extract, *cells = tasks(plan, num_workers=3, num_processes=2)
    assert (make.kind, make.arguments[:2], make.needs) == ("make", ("pretrain.untrained", "--arch"), ())
    assert "--procs" not in make.arguments and extract.kind == "extract"
    assert extract.arguments.count("--cell") == 3 and extract.arguments[-4:] == ("--workers", "3", "--procs", "2")
    assert [cell.needs for cell in cells] == [(extract.key,)] * 3
    assert [cell.title.split(" on ")[0] for cell in cells] == ["tiny_knn", "tiny_linear", "tiny_linear"]
    for cell in cells:
        assert cell.arguments[:3] == ("evaluate", "run", "--cell") and Path(cell.arguments[3]).stem == cell.key
    only = tasks(plan, num_workers=0, num_processes=1, selection=Selection(only=("tiny_knn",)))
    assert [found.kind for found in only] == ["make", "cell"]
    failed = Selection(failed=frozenset([extract.key]))  # its cells could not be tried
    assert len(tasks(plan, num_workers=0, num_processes=1, selection=failed)) == 4


def test_resources_come_from_the_suite_first(tiny: Path, tmp_path: Path) -> None:
    block = {"gpus_per_node": 4, "time_hours": 8.0, "nodes": 2}
    kinds = {"linear": {"hours": 2.0, "procs": 3, "nodes": 1}, "make": {"memory_gb": 1.5}}
    plan = make_plan(write_suite(tiny, tmp_path, resources={"slurm": block, "by_kind": kinds}))
    found = tasks(plan, num_workers=0, num_processes=1, slurm=plan.suite.resources.slurm)
    by_title = {one.title.split(" on ")[0]: one.resources for one in found}
    linear = Resources(procs=3, workers=0, nodes=1, hours=2.0, memory_gb=None, gpus=4)
    knn = Resources(procs=4, workers=0, nodes=2, hours=8.0, memory_gb=None, gpus=4)
    assert by_title["tiny_linear"] == linear and by_title["tiny_knn"] == knn
    untrained = by_title["resnet18, random weights"]
    assert (untrained.procs, untrained.nodes, untrained.gpus, untrained.memory_gb) == (1, 1, 1, 1.5)


def test_staying_or_not_is_for_slurm(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--no-wait: expected --on slurm with it"):
        run_suite(tmp_path / "any.yaml", num_workers=0, num_processes=1, wait=False)


def suite_config() -> SuiteConfig:
    return SuiteConfig(name="s", checkpoints=(), benchmarks=("a",), seeds=(0,))


def test_a_machine_without_slurm_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None if name in ("srun", "squeue") else name)
    with pytest.raises(ConfigError, match="found no srun, squeue; start this on a login node"):
        Slurm(tmp_path, suite_config())
    monkeypatch.setattr(slurm.shutil, "which", lambda name: name)
    monkeypatch.setattr(slurm, "squeue", lambda: None)
    with pytest.raises(ZooError, match="squeue gave no answer"):
        Slurm(tmp_path, suite_config())


def test_what_slurm_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="found neither slurm.time_hours nor by_kind.cell.hours"):
        parameters(task("a"), SlurmResources(), ())
    resources = Resources(procs=8, workers=4, nodes=2, hours=1.5, memory_gb=0.5, gpus=8)
    asked = parameters(
        Task(**{**vars(task("a")), "resources": resources}),
        SlurmResources(
            partition="p", account="x", qos="q", cpus_per_gpu=6, array_parallelism=3, setup=("module load y",)
        ),
        ("7", "9_1"),
    )
    extra: Any = asked.pop("additional_parameters")
    assert asked == {
        "time": 90,
        "nodes": 2,
        "ntasks_per_node": 1,
        "partition": "p",
        "account": "x",
        "qos": "q",
        "gpus_per_node": 8,
        "cpus_per_task": 48,
        "mem": "512M",
        "array_parallelism": 3,
        "setup": ["module load y"],
        "stderr_to_stdout": True,
        "dependency": "afterok:7:9_1",
    }
    assert extra["signal"] == "USR1@120" and extra["requeue"] is True


@pytest.mark.parametrize(
    ("note", "listed", "left", "adopted"),
    [
        ({"name": "n", "index": 1, "job": "4_1"}, {"4_1": ("RUNNING", "n")}, None, "4_1"),
        ({"name": "n", "index": 1, "job": "4_1"}, {"4_1": ("FAILED", "n")}, None, None),
        ({"name": "n", "index": 1, "job": "4_1"}, {"4_1": ("COMPLETING", "n")}, {"code": 0}, None),
        ({"name": "n", "index": 1, "job": None}, {"4_0": ("PENDING", "n"), "4_1": ("PENDING", "n")}, None, "4_1"),
        ({"name": "n", "index": 0, "job": None}, {"5": ("PENDING", "n")}, None, "5"),  # killed right after sbatch
        ({"name": "n", "index": 0, "job": None}, {"5": ("PENDING", "other")}, None, None),  # and right before
    ],
)
def test_jobs_of_a_killed_controller_are_found(
    note: dict, listed: dict, left: dict | None, adopted: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm.shutil, "which", lambda name: name)
    monkeypatch.setattr(slurm, "squeue", lambda: listed)
    executor = Slurm(tmp_path, suite_config())
    assert not executor.adopt(task("a"))
    (tmp_path / "jobs/a.json").write_text(json.dumps(note))
    if left:
        (tmp_path / "jobs/a.exit.json").write_text(json.dumps(left))
    assert executor.adopt(task("a")) == (adopted is not None)
    assert adopted is None or executor.jobs["a"].id == adopted


@pytest.mark.parametrize(("state", "code"), [("TIMEOUT", 75), ("NODE_FAIL", 75), ("CANCELLED", -9), (None, -9)])
def test_a_job_that_left_no_note_ends_by_its_state(
    state: str | None, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm.shutil, "which", lambda name: name)
    answers: Iterator[Any] = iter([{}, {"4": ("RUNNING", "n")}, None, *[{"4": (state, "n")} if state else {}] * 2])
    monkeypatch.setattr(slurm, "squeue", lambda: next(answers))
    monkeypatch.setattr(slurm, "ASK_SECONDS", 0.0)
    monkeypatch.setattr(slurm, "LOOK_SECONDS", 0.0)
    executor = Slurm(tmp_path, suite_config())
    executor.jobs["a"] = slurm._Job(task("a"), "4")
    (ended,) = executor.wait(20)
    assert ended.code == code and f"job 4: {state or 'forgotten'}" in ended.how and not executor.jobs


def test_two_who_want_the_same_features_at_once_extract_them_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What two suites in one cache do: the second waits for the first and finds all done."""
    monkeypatch.setattr(features, "track", lambda sequence, *args, **kwargs: sequence)
    cell = resolve("tiny_knn", tiny / "checkpoint" / CARD_NAME, 0)
    real, passes, found = features._extract_to, [], []

    def extract_to(partial: Path, *args: Any, **kwargs: Any) -> None:
        passes.append(partial.name)
        time.sleep(0.2)
        real(partial, *args, **kwargs)

    monkeypatch.setattr(features, "_extract_to", extract_to)
    threads = [
        threading.Thread(target=lambda: found.append(obtain_features(cell, num_workers=0, me=ALONE))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(passes) == len(set(passes)) == 2  # train and val, once each
    for role in found[0]:
        assert np.array_equal(found[0][role]["avgpool"], found[1][role]["avgpool"])


def test_a_linear_benchmark_asked_to_stop_goes_on_to_the_same_bits(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = {"lars": LINEAR["settings"]["recipes"]["lars"]}
    seldom = "execution.save_minutes=1000"
    whole, heads = measured(tiny, tmp_path / "whole", recipes, seldom)
    real, calls = linear._Trainer.step, []

    def step(self: Any, *arguments: Any) -> None:
        real(self, *arguments)
        calls.append(1)
        if len(calls) == 4:  # three chunks an epoch: in the middle of the second
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(linear._Trainer, "step", step)
    interrupt._asked.clear()
    with pytest.raises(KeyboardInterrupt):
        measured(tiny, tmp_path / "parts", recipes, seldom)
    assert interrupt.exit_code() == 75
    interrupt._asked.clear()
    resumed, again = measured(tiny, tmp_path / "parts", recipes, seldom)
    assert len(calls) == 9
    assert resumed.metrics == whole.metrics and resumed.details["history"] == whole.details["history"]
    assert all(torch.equal(heads[key], again[key]) for key in heads)
