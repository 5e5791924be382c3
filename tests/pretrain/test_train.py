"""Batches that do not depend on how they are made, and a run as a command: cut off, continued, stopped."""

import errno
import fcntl
import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain import checkpoint, session
from pretrain import train as training
from pretrain.preflight import NONFINITE_NAME, check
from pretrain.progress import LOG_NAME, TIMES
from pretrain.replacement import Replacements
from pretrain.session import alone
from pretrain.train import train, training_batches
from zoo.checkpoint import CARD_NAME, WEIGHTS_NAME
from zoo.datasets import manifest
from zoo.distributed import World
from zoo.errors import DataError, NonFiniteError, ZooError
from zoo.transforms import epoch_order

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def batches(tiny: Any, *, rank: int = 0, size: int = 1, workers: int = 0, start: int = 0) -> list[Any]:
    out = tiny.folder / "out"
    plan = check(tiny.config(), seed=0, overrides=(), out=out, workers=workers, processes=size)
    me = World(rank=rank, size=size, local_rank=rank, device=torch.device("cpu"))
    replacements = Replacements(plan.train, {})
    return list(training_batches(plan, me, num_views=2, start_step=start, replacements=replacements))


def assert_equal(found: list[Any], expected: list[Any]) -> None:
    assert [batch[:2] for batch in found] == [batch[:2] for batch in expected]
    for (_, _, views, labels), (_, _, other_views, other_labels) in zip(found, expected, strict=True):
        assert torch.equal(labels, other_labels)
        assert all(torch.equal(view, other) for view, other in zip(views, other_views, strict=True))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # on two cores
@pytest.mark.parametrize("workers", [2, 4])
def test_batches_are_identical_for_any_number_of_workers(tiny: Any, workers: int) -> None:
    alone = batches(tiny)
    labels = manifest("tiny", "train").labels[epoch_order(0, 0, 43)[:8]]
    assert alone[0][3].tolist() == labels.tolist()
    assert len(alone) == 10 and alone[0][2][0].shape == (8, 3, 24, 24) and alone[5][:2] == (6, 1)
    assert_equal(batches(tiny, workers=workers), alone)


def test_batches_are_identical_for_one_and_two_processes(tiny: Any) -> None:
    parts = zip(batches(tiny, rank=0, size=2), batches(tiny, rank=1, size=2, workers=2), strict=True)
    joined = [
        (*one[:2], tuple(torch.cat(pair) for pair in zip(one[2], two[2], strict=True)), torch.cat([one[3], two[3]]))
        for one, two in parts
    ]
    assert_equal(joined, batches(tiny))


def test_batches_from_the_middle_are_the_rest(tiny: Any) -> None:
    assert_equal(batches(tiny, start=7), batches(tiny)[7:])


def wait_for(path: Path, is_running: Callable[[], bool]) -> None:
    """Until `path` exists; the process must still run then."""
    while not path.exists():
        assert is_running()
        time.sleep(0.005)


def log_entries(out: Path) -> list[dict[str, Any]]:
    lines = (out / LOG_NAME).read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def assert_same_run(out: Path, other: Path) -> None:
    for name in (WEIGHTS_NAME, CARD_NAME):
        assert (out / name).read_bytes() == (other / name).read_bytes(), name
    assert log_entries(out) == log_entries(other)


def train_here(tiny: Any, out: Path, *, workers: int = 0, **changes: Any) -> Path:
    """The run in this process, one thread as in the others: the path of its card."""
    return train(check(tiny.config(**changes), seed=0, overrides=(), out=out, workers=workers, processes=1), ALONE)


def test_a_run_killed_and_terminated_anywhere_ends_in_the_same_bytes(tiny: Any, caplog: Any) -> None:
    """30 kills, at any moment and within a save: tests/pretrain/thirty_kills.py."""
    recipe = tiny.write()
    whole, parts = tiny.folder / "whole", tiny.folder / "parts"
    train_here(tiny, whole)

    forked = multiprocessing.get_context("fork").Process(target=train_here, args=(tiny, parts), kwargs={"workers": 1})
    forked.start()
    wait_for(parts / "state-000000002.pt", forked.is_alive)
    forked.kill()
    forked.join()
    assert forked.exitcode == -signal.SIGKILL and not (parts / CARD_NAME).exists()

    process = tiny.start("pretrain", recipe, "--out", parts, "--workers", "2")
    wait_for(parts / "state-000000006.pt", lambda: process.poll() is None)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "going on from step" in errors and "stopped at step" in errors
    assert not (parts / CARD_NAME).exists()

    train_here(tiny, parts)
    assert_same_run(parts, whole)
    (parts / CARD_NAME).unlink()  # as if killed after the last step, before the card was there
    train_here(tiny, parts)
    assert_same_run(parts, whole)
    with caplog.at_level("INFO"):
        train_here(tiny, parts)
    assert "tiny seed 0 is complete" in caplog.text and "epoch" not in caplog.text


COLLAPSING: dict[str, Any] = {
    "batch_size": 32,
    "base_lr": 4.0,  # 0.5 at this batch size; one step an epoch
    "epochs": 25,
    "views": {"crop": 16},
    "collapse": {"below": 0.7, "window": 5, "grace_steps": 10, "action": "stop"},
    "monitor": {"every_epochs": 99},
    "save": {"every_steps": 99},
}


def test_a_collapsing_run_is_stopped_with_exit_code_3(tiny: Any) -> None:
    """No mock: without stop-gradient this small run does collapse."""
    recipe = tiny.write(**COLLAPSING, method={**tiny.recipe()["method"], "stop_gradient": False})
    out = tiny.folder / "out"
    code, errors = tiny.run("pretrain", recipe, "--out", out, "--workers", "0")
    assert code == 3, errors
    assert "tiny seed 0 has collapsed at step" in errors and "No weights were exported" in errors
    found = json.loads((out / "collapsed.json").read_text())
    assert found["rule"] == COLLAPSING["collapse"] and sorted(found["std"])[2] < 0.7 and found["step"] >= 10
    assert not (out / CARD_NAME).exists() and not (out / WEIGHTS_NAME).exists()


def test_its_healthy_twin_is_not_stopped(tiny: Any) -> None:
    """To the step at which the other has long been stopped."""
    assert train_here(tiny, tiny.folder / "out", **{**COLLAPSING, "epochs": 16}).exists()


def test_a_collapse_may_be_recorded_instead(tiny: Any) -> None:
    rule = {"below": 0.999, "window": 1, "grace_steps": 1, "action": "record"}
    assert train_here(tiny, tiny.folder / "out", collapse=rule, epochs=1).exists()
    assert "collapsed" not in (tiny.folder / "out" / LOG_NAME).read_text()


def test_a_loss_that_is_not_finite_stops_the_run(tiny: Any) -> None:
    method = {"name": "supervised", "label_smoothing": 0.0}
    out = tiny.folder / "out"
    message = r"tiny seed 0: the loss is (nan|inf), .* in epoch 1, step \d of 10, at lr 3.125e\+10. The batch: \d"
    with pytest.raises(NonFiniteError, match=message) as error:
        train_here(tiny, out, method=method, collapse=None, base_lr=1.0e12)
    assert not (out / CARD_NAME).exists()
    assert NonFiniteError.exit_code == 4
    found = json.loads((out / NONFINITE_NAME).read_text())
    step = found["step"]
    assert [each["sample"] for each in found["batch"]] == epoch_order(0, 0, 43)[8 * step - 8 : 8 * step].tolist()
    for each in found["batch"]:
        assert f"{each['sample']} {manifest('tiny', 'train').paths[each['sample']]}" in str(error.value)
    assert not list(out.glob(f"state-{step:09d}.pt"))


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_is_saved(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = iter([1.0, math.inf])
    monkeypatch.setattr(training, "gradient_norm", lambda parameters: torch.tensor(next(norms)))
    with pytest.raises(NonFiniteError, match=r"the loss is -?\d.*, the gradient's norm inf, in epoch 1, step 2 of 10"):
        train_here(tiny, tiny.folder / "out")
    assert not list((tiny.folder / "out").glob("state-*"))


def test_the_log_has_what_is_watched(tiny: Any) -> None:
    train_here(tiny, tiny.folder / "out", epochs=1, batch_size=4, collapse={"below": 0.9})  # ten steps
    first, measured = (json.loads(line) for line in (tiny.folder / "out" / LOG_NAME).read_text().splitlines())
    assert first["step"] == 10 and 1 <= first["effective_rank"] <= 3 and first["gradient_norm"] > 0
    assert {"loss", "std_sqrt_d", "lr", "predictor_lr", "images_per_second"} < set(first)
    assert 0.05 < first["memory_gb"] < 100 and "gpu_memory_gb" not in first
    assert 0 <= measured["knn3_top1"] <= 100


def test_a_full_disk_while_a_state_is_written_leaves_the_one_before(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out, write = tiny.folder / "out", checkpoint.write_state

    def full(path: Path, content: Any) -> None:
        if "000000004" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_state", full)
    with pytest.raises(OSError, match="No space left on device"):
        train_here(tiny, out)
    assert [path.name for path in out.glob("state-*")] == ["state-000000002.pt"]


def test_a_run_goes_on_from_before_a_damaged_state(tiny: Any) -> None:
    whole, parts = tiny.folder / "whole", tiny.folder / "parts"
    train_here(tiny, whole, epochs=1)
    train_here(tiny, parts, epochs=1)
    (parts / CARD_NAME).unlink()
    (parts / "state-000000005.pt").write_bytes(b"")
    train_here(tiny, parts, epochs=1)
    assert_same_run(parts, whole)
    states = sorted(path.name for path in parts.glob("state-*"))
    assert states == ["state-000000004.pt", "state-000000005.pt", "state-000000005.pt.unreadable"]


def test_a_killed_trainings_folder_is_free_at_once(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Although its loader workers are still there; the remains of its save go."""
    monkeypatch.setattr(session, "LEAVE_SECONDS", 1)
    caplog.set_level("INFO")
    out = tiny.folder / "out"
    plan = check(tiny.config(), seed=0, overrides=(), out=out, workers=0, processes=1)
    fork = multiprocessing.get_context("fork")

    def holds() -> None:
        with alone(plan, ALONE):
            fork.Process(target=time.sleep, args=(60,)).start()
            (out / ".state-000000002.pt.abc.tmp").write_bytes(b"half")
            (out / "ready").touch()
            time.sleep(60)

    forked = fork.Process(target=holds)
    forked.start()
    wait_for(out / "ready", forked.is_alive)
    with pytest.raises(ZooError, match=f"out: already being trained by process {forked.pid} on "), alone(plan, ALONE):
        pass
    assert f"process {forked.pid} on {socket.gethostname()} is at work in it; waiting up to 1 s" in caplog.text
    (worker,) = map(int, Path(f"/proc/{forked.pid}/task/{forked.pid}/children").read_text().split())
    forked.kill()
    forked.join()
    with alone(plan, ALONE):
        assert sorted(path.name for path in out.iterdir()) == ["lock", "ready"]
    os.kill(worker, signal.SIGKILL)


def test_a_disk_that_cannot_lock_does_not_stop_a_run(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    plan = check(tiny.config(), seed=0, overrides=(), out=tiny.folder / "out", workers=0, processes=1)
    with alone(plan, ALONE):
        assert "out: cannot be locked (No locks available); start no second training in it." in caplog.text


def test_a_failed_measurement_loses_nothing_and_is_made_up_for(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tiny.folder / "whole", tiny.folder / "parts"
    save = {"every_steps": 99}
    train_here(tiny, whole, save=save)
    knn, fails = training.knn_top1, iter([True, False, True, False])  # both epochs' the first time

    def sometimes(*arguments: Any, **named: Any) -> float | None:
        if next(fails):
            raise RuntimeError("out of memory")
        return knn(*arguments, **named)

    monkeypatch.setattr(training, "knn_top1", sometimes)
    for step in (5, 10):
        with pytest.raises(RuntimeError, match="out of memory"):
            train_here(tiny, parts, save=save)
        assert (parts / f"state-{step:09d}.pt").exists()
    train_here(tiny, parts, save=save)
    assert_same_run(parts, whole)
    assert sum("knn3_top1" in entry for entry in log_entries(parts)) == 2


def test_a_wrong_recipe_ends_with_exit_code_2_and_all_problems(tiny: Any) -> None:
    recipe = tiny.write(batch_size=9, monitor={"k": 25})
    code, errors = tiny.run("pretrain", recipe, "--procs", "2", "--set", "base_lr=0.5")
    assert code == 2 and "Traceback" not in errors
    assert "found 9 for 2" in errors and "monitor.k" in errors


def test_an_image_that_breaks_during_the_run_is_named(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(Path(tiny.env["ZOO_DATA"]).parent / "data", tiny.folder / "data")
    (tiny.folder / "data.yaml").write_text(f"tiny: {copy}\n")
    monkeypatch.setenv("ZOO_DATA", str(tiny.folder / "data.yaml"))
    (copy / "train" / "class0" / "0_003.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(DataError, match="class0/0_003.png: expected an image"):
        train_here(tiny, tiny.folder / "out")


def test_an_error_within_a_step_ends_the_loader_workers(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They heed no signal, and its traceback holds what would end them: the process could not leave."""

    def fails(session: Any, step: int, values: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(training, "_judge", fails)
    with pytest.raises(RuntimeError, match="out of memory") as held:
        train_here(tiny, tiny.folder / "out", workers=1)
    assert held.traceback and not multiprocessing.active_children()
