"""Where tensors live, and the refusal to run on the CPU by accident."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from zoo import device
from zoo.distributed import AllReduceBatchNorm
from zoo.errors import ZooError
from zoo.files import ROOT

CPU = torch.device("cpu")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine where torch sees no GPU")
COMMAND = "from zoo.command import guarded\nfrom zoo.device import select\nguarded(lambda: print(select()))\n"


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_DEVICE", raising=False)


def driver(folder: Path, script: str) -> str:
    """A PATH on which an nvidia-smi comes first that runs `script`."""
    folder.mkdir(exist_ok=True)
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


TWO_GPUS = "echo 'GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-1)'; echo 'GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-2)'"


def test_the_drivers_gpus_are_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", driver(tmp_path, TWO_GPUS))
    assert len(device.driver_gpus()) == 2 and device.driver_gpus()[0].startswith("GPU 0: NVIDIA A100")


@pytest.mark.parametrize("script", ["echo 'No devices were found'", "echo 'GPU 0: ghost'; exit 9"])
def test_a_driver_without_gpus_lists_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setenv("PATH", driver(tmp_path, script))
    assert device.driver_gpus() == []


def test_a_driver_that_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", driver(tmp_path, "exec sleep 5"))
    run = subprocess.run
    monkeypatch.setattr(device.subprocess, "run", lambda *a, **k: run(*a, **{**k, "timeout": 0.05}))
    with pytest.raises(ZooError, match="nvidia-smi -L gave no answer .*ZOO_DEVICE=cpu"):
        device.driver_gpus()


@pytest.mark.slow
@no_gpu
def test_gpus_that_torch_does_not_see_stop_a_command(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND],
        cwd=ROOT,
        env={**os.environ, "PATH": driver(tmp_path, TWO_GPUS)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.startswith("error: torch ") and "Traceback" not in ended.stderr
    for words in ("sees no GPU, while the driver lists 2 GPU(s) (GPU 0: NVIDIA A100", "ZOO_PYTHON", "ZOO_DEVICE=cpu"):
        assert words in ended.stderr


@no_gpu
def test_gpus_that_torch_does_not_see_may_be_left_alone_on_purpose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", driver(tmp_path, TWO_GPUS))
    monkeypatch.setenv("ZOO_DEVICE", "cpu")
    assert device.select() == CPU


@no_gpu
def test_a_machine_without_gpus_runs_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", driver(tmp_path, "exit 9"))
    assert device.select() == device.select(3) == CPU


@no_gpu
def test_a_gpu_that_was_asked_for_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", driver(tmp_path, "exit 9"))
    monkeypatch.setenv("ZOO_DEVICE", "cuda")
    with pytest.raises(ZooError, match="sees no GPU, while the driver lists none"):
        device.select()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ZooError, match=r"expected a GPU for local process 2, found 2 GPU\(s\); .*\(--procs\)"):
        device.select(2)


@pytest.mark.parametrize("value", ["gpu", "CPU", "cuda:0", " "])
def test_another_choice_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ZOO_DEVICE", value)
    with pytest.raises(ZooError, match=f"ZOO_DEVICE: expected auto, cpu or cuda, found '{value}'"):
        device.select()


def test_the_cpus_back_end_is_gloo_and_its_memory_not_counted() -> None:
    assert device.backend(CPU) == "gloo" and device.memory_used(CPU) == 0


def test_the_back_end_of_a_gpu_is_nccl() -> None:
    assert device.backend(torch.device("cuda", 0)) == "nccl"


def test_batch_norms_are_exchanged_by_device() -> None:
    ours = device.synchronised_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), CPU)
    theirs = device.synchronised_batch_norm(nn.Sequential(nn.BatchNorm2d(4)), torch.device("cuda", 0))
    assert [type(module) for module in ours.children()] == [nn.Conv2d, AllReduceBatchNorm]
    assert [type(module) for module in theirs.children()] == [nn.SyncBatchNorm]


def test_a_record_of_a_cpu_run_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DEVICE", "cpu")
    assert device.describe() == {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def test_on_the_cpu_batches_are_handed_on_as_they_come() -> None:
    came: list[int] = []

    def batches() -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        for number in range(3):
            came.append(number)
            yield number, (torch.full((2,), number),)

    for number, (tensor,) in device.moved_ahead(batches(), CPU):
        assert came[-1] == number and tensor.tolist() == [number] * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_come_in_order_on_it() -> None:
    batches = ((number, (torch.full((2,), number).pin_memory(),)) for number in range(5))
    for expected, (number, (tensor,)) in enumerate(device.moved_ahead(batches, torch.device("cuda", 0))):
        assert number == expected and tensor.is_cuda and tensor.tolist() == [number] * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_selected_with_tf32_off() -> None:
    assert device.select() == torch.device("cuda", 0)
    assert device.describe()["tf32"] is False and device.describe()["devices"] >= 1
    assert not torch.backends.cudnn.allow_tf32
