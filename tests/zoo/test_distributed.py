"""Gathering by index, and the exit code of processes started here. Batch norm over processes: tests/pretrain."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from zoo.distributed import World, gather_by_index, gather_rows, launch, share, world
from zoo.errors import ZooError
from zoo.files import ROOT

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))

GATHER = """
    import numpy as np, torch
    from zoo.distributed import barrier, gather_by_index, gather_rows, share, world
    from zoo.errors import ZooError

    def check_indices(me):
        mine = np.arange(me.rank, 7, me.size)[::-1]
        rows = np.stack([mine * 10, mine * 100], axis=1)
        found = gather_by_index(mine, rows, total=7, me=me)
        assert found.tolist() == [[index * 10, index * 100] for index in range(7)] and found.dtype == rows.dtype
        mine = np.arange(3) if me.rank == 1 else np.arange(0)  # the other process has none, and no width either
        found = gather_by_index(mine, np.ones((len(mine), 4)) if len(mine) else np.empty(0), total=3, me=me)
        assert found.shape == (3, 4)
        for indices, first in (([0, 1], 0), ([me.rank], 2)):
            try:
                gather_by_index(np.array(indices), np.array(indices), total=3, me=me)
            except ZooError as error:
                assert f"first: sample {first})" in str(error), error
            else:
                raise AssertionError("doubled or missing rows passed")

    def check_rows(me):
        whole = torch.arange(24, dtype=torch.float32).view(8, 3)
        for cuts in ([0, 3, 5, 8], [0, 8], [0, 1, 2, 3, 4, 8], [0, 2, 4, 6, 8]):
            parts = [slice(start, end) for start, end in zip(cuts, cuts[1:])]
            local = [whole[part] for part in share(parts, me)]
            assert torch.equal(gather_rows(local, parts, me=me), whole), cuts

    with world() as me:
        assert me.size == 2 and me.is_main == (me.rank == 0)
        check_indices(me)
        check_rows(me)
        barrier(me)
"""
FAIL = """
    import torch.distributed as dist
    from zoo.command import guarded
    from zoo.distributed import world
    from zoo.errors import CollapseError

    def main():
        with world() as me:
            if me.rank == 1:
                raise CollapseError('collapsed')
            dist.barrier()  # rank 0 waits for a process that has gone

    guarded(main)
"""
WAIT = """
    import os, signal, sys, time
    from pathlib import Path
    from zoo.command import guarded

    def main():
        rank = os.environ["RANK"]
        Path("ready" + rank).touch()
        try:
            if Path("request").exists():
                os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(100)
        finally:
            Path("ended" + rank).touch()

    guarded(main)
"""
LAUNCH = "import sys; from zoo.command import guarded; from zoo.distributed import launch; "
LAUNCH += "guarded(lambda: launch(2, ['program']))"


def started(folder: Path, program: str) -> "subprocess.Popen[str]":
    """`zoo.distributed.launch` of two processes that run `program`."""
    (folder / "program.py").write_text(textwrap.dedent(program))
    env = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "ZOO_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", LAUNCH], cwd=folder, env=env, stderr=subprocess.PIPE, text=True)


def launched(folder: Path, program: str) -> tuple[int, str]:
    """Its exit code and stderr."""
    process = started(folder, program)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def wait_for(*paths: Path) -> None:
    end = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < end, paths
        time.sleep(0.05)


def test_one_process_is_the_whole_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ZOO_DEVICE", "cpu")
    with world() as me:
        assert me == ALONE and me.is_main and not torch.distributed.is_initialized()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_disjoint_and_whole(size: int) -> None:
    worlds = [World(rank=rank, size=size, local_rank=rank, device=torch.device("cpu")) for rank in range(size)]
    assert sorted(item for me in worlds for item in share(range(5), me)) == list(range(5))


def test_rows_come_in_sample_order() -> None:
    rows = np.array([[2.0, 0.5], [0.0, 1.5], [1.0, 2.5]], dtype=np.float32)
    found = gather_by_index(np.array([2, 0, 1]), rows, total=3, me=ALONE)
    assert found.dtype == np.float32 and found.tolist() == [[0.0, 1.5], [1.0, 2.5], [2.0, 0.5]]


def test_no_samples_are_no_rows() -> None:
    assert len(gather_by_index(np.arange(0), np.zeros((0, 4)), total=0, me=ALONE)) == 0


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 1], "expected one row for each of 3 samples, found 1 with none or several (first: sample 2)"),
        ([0, 1, 1, 2], "found 1 with none or several (first: sample 1)"),
        ([0, 1, 1], "found 2 with none or several (first: sample 1)"),
        ([0, 1, 2, 3], "with none or several (first: sample 3)"),
        ([], "found 3 with none or several (first: sample 0)"),
    ],
)
def test_missing_doubled_and_foreign_samples_are_refused(indices: list[int], message: str) -> None:
    with pytest.raises(ZooError) as caught:
        gather_by_index(np.array(indices, dtype=np.int64), np.array(indices), total=3, me=ALONE)
    assert message in str(caught.value)


def test_one_process_keeps_its_rows() -> None:
    parts = [slice(0, 2), slice(2, 3)]
    local = [torch.ones(2, 4), torch.zeros(1, 4)]
    assert torch.equal(gather_rows(local, parts, me=ALONE), torch.cat(local))


@pytest.mark.slow
def test_two_processes_gather_what_one_has(tmp_path: Path) -> None:
    code, errors = launched(tmp_path, GATHER)
    assert code == 0, errors


@pytest.mark.slow
def test_a_collapse_in_one_process_is_the_commands_exit_code(tmp_path: Path) -> None:
    """Although the process that waits for it fails too, and torchrun counts that one as the first."""
    code, errors = launched(tmp_path, FAIL)
    assert code == 3, errors
    assert "error [rank 1]: collapsed" in errors


@pytest.mark.slow
def test_processes_end_when_their_launcher_is_killed(tmp_path: Path) -> None:
    launcher = started(tmp_path, WAIT)
    wait_for(tmp_path / "ready0", tmp_path / "ready1")
    launcher.kill()
    wait_for(tmp_path / "ended0", tmp_path / "ended1")
    launcher.communicate()


@pytest.mark.slow
def test_processes_that_are_launched_answer_sigusr1(tmp_path: Path) -> None:
    (tmp_path / "request").touch()
    code, errors = launched(tmp_path, WAIT)
    assert code == 75, errors


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([1], 1),
        ([1, 3], 3),
        ([3, 1], 3),
        ([1, -15], 1),
        ([-9, 1], 137),
        ([2, -15], 2),
        ([1, 130], 1),  # 130: a peer that the launcher ended
        ([4, 2], 4),
        ([-9, -15], 137),
    ],
    ids=str,
)
def test_the_exit_code_is_the_first_verdict_and_else_the_first_failure(
    codes: list[int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = {}
    for rank, code in enumerate(codes):
        with monkeypatch.context() as patch:
            patch.setattr("time.time", lambda rank=rank: 1000 + rank)
            failures[rank] = ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file="")

    def fails(*arguments: str) -> None:
        raise ChildFailedError("program", failures)

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda config, entry: fails)
    assert launch(len(codes), ["program"]) == expected


def test_a_terminated_launcher_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def terminated(*arguments: str) -> None:
        raise SignalException("stopped", signal.SIGTERM)

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda config, entry: terminated)
    with pytest.raises(KeyboardInterrupt):
        launch(2, ["program"])


def test_processes_that_all_succeed_end_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        "torch.distributed.launcher.api.elastic_launch", lambda config, entry: lambda *a: started.append(a)
    )
    assert launch(2, ["evaluate", "run", "--procs", "2"]) == 0
    assert started == [("-m", "evaluate", "run", "--procs", "2")]
