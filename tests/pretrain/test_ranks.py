"""Several processes compute what one computes. Real processes over gloo, in double precision."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain import session
from pretrain.checkpoint import latest_state
from pretrain.preflight import check
from pretrain.progress import LOG_NAME
from pretrain.session import build_model
from pretrain.train import train
from zoo.checkpoint import WEIGHTS_NAME
from zoo.distributed import World
from zoo.files import ROOT

PATIENCE = 480  # seconds: on a crowded machine four processes on two cores are slow

TRAIN = """
import sys
from pathlib import Path
import torch
from pretrain.preflight import check
from pretrain.session import build_model
from pretrain.train import train
from zoo.config import load
from zoo.distributed import world
from zoo.recipe import PretrainConfig

with world() as me:
    config, out = load(Path(sys.argv[1]), PretrainConfig), Path(sys.argv[2])
    train(check(config, seed=0, overrides=(), out=out, workers=0, processes=me.size), me, dtype=torch.float64)
"""

AS_COMMAND = """
import os, signal, sys
from pathlib import Path
from pretrain import session
from pretrain import train as training
from pretrain.preflight import check
from zoo.command import guarded
from zoo.config import load
from zoo.distributed import world
from zoo.recipe import PretrainConfig

recipe, *outs = map(Path, sys.argv[1:])
session.LATE_SECONDS = session.LEAVE_SECONDS = 0
judge = training._judge

def judged(session, step, values):
    judge(session, step, values)
    if session.me.is_main:
        os.kill(os.getpid(), signal.SIGUSR1)

def main():
    with world() as me:
        config, out = load(recipe, PretrainConfig), outs[me.rank % len(outs)]
        training.train(check(config, seed=0, overrides=(), out=out, workers=0, processes=me.size), me)

training._judge = judged
guarded(main)
"""

BATCH_NORM = """
import sys
import torch
from torch import nn
from zoo.device import synchronised_batch_norm
from zoo.distributed import world

def inputs():
    generator = torch.Generator().manual_seed(0)
    flat = 3 + torch.randn(9, 4, dtype=torch.float64, generator=generator)
    return {"flat": flat, "maps": torch.randn(9, 4, 3, 2, dtype=torch.float64, generator=generator) * 2 - 1}

def outcome(norm, images, weights):
    images = images.clone().requires_grad_(True)
    (norm(images) * weights).sum().backward()
    return images.grad, norm(images).detach()

with world() as me:
    start, end = [(0, 2), (2, 9)][me.rank]  # unequal shares
    for name, whole in inputs().items():
        for affine in (True, False):
            kind = nn.BatchNorm1d if whole.dim() == 2 else nn.BatchNorm2d
            plain, ours = kind(4, affine=affine).double(), kind(4, affine=affine).double()
            if affine:
                with torch.no_grad():
                    for norm in (plain, ours):
                        norm.weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
            ours = synchronised_batch_norm(nn.Sequential(ours), me.device)[0]
            weights = torch.cos(torch.arange(whole.numel(), dtype=torch.float64)).view(whole.shape)
            expected = outcome(plain, whole, weights)
            found = outcome(ours, whole[start:end], weights[start:end])
            for mine, one in zip(found, expected):
                assert torch.allclose(mine, one[start:end], rtol=0, atol=1e-12), (name, affine)
            for key, value in plain.state_dict().items():
                if "running" in key or "num" in key:
                    assert torch.allclose(ours.state_dict()[key].double(), value.double(), rtol=0, atol=1e-12), key
            if affine:
                total = ours.weight.grad.clone()
                torch.distributed.all_reduce(total)
                assert torch.allclose(total, plain.weight.grad, rtol=0, atol=1e-11)
            assert torch.allclose(ours.eval()(whole), plain.eval()(whole), rtol=0, atol=1e-12)
    narrow = (3 + inputs()["maps"]).bfloat16()  # as autocast hands it on; statistics are float32
    plain, ours = nn.BatchNorm2d(4), synchronised_batch_norm(nn.Sequential(nn.BatchNorm2d(4)), me.device)[0]
    expected, found = plain(narrow.float()), ours(narrow[start:end])
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected[start:end].bfloat16())
    assert torch.allclose(ours.running_var, plain.running_var, rtol=0, atol=1e-6)
"""


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def run_processes(code: str, arguments: list[str], *, size: int, env: dict[str, str], expected: int = 0) -> list[str]:
    """The stderr of `size` processes that run `code`, joined as torchrun does it; all must end with `expected`.

    After an error gloo's threads abort the process now and then, when it has said all.
    """
    common = {**os.environ, **env, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(size)}
    common["LOCAL_WORLD_SIZE"] = str(size)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        errors = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    allowed = (expected, -signal.SIGABRT) if expected else (0,)
    assert all(process.returncode in allowed for process in processes), "\n".join(errors)
    return errors


def run_agents(code: Path, arguments: list[str], *, env: dict[str, str]) -> None:
    """Run the file `code` under two torchrun agents on loopback, as on two nodes of one process each."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port()}", "--rdzv-id=two"]
    agents = [
        subprocess.Popen(
            [*torchrun, f"--node-rank={node}", *meeting, str(code), *arguments],
            cwd=ROOT,
            env={**os.environ, **env},
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    try:
        errors = [agent.communicate(timeout=PATIENCE)[1] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert all(agent.returncode == 0 for agent in agents), "\n".join(errors)


def test_our_batch_norm_on_unequal_shares_is_batch_norm_on_the_whole(tiny: Any) -> None:
    run_processes(BATCH_NORM, [], size=2, env=tiny.env)


def outcome(config: Any, out: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """What the last step's line says, and every step's deviation; every parameter, statistic and momentum."""
    plan = check(config, seed=0, overrides=(), out=out, workers=0, processes=1)
    state = latest_state(out, plan.identity)
    assert state is not None and state.step == 5
    last = json.loads((out / LOG_NAME).read_text().splitlines()[0])
    momenta = {f"momentum {key}": value["momentum_buffer"] for key, value in state.optimizer["state"].items()}
    return [*(last[name] for name in ("loss", "gradient_norm", "effective_rank")), *state.deviations], {
        **state.model,
        **momenta,
    }


def test_two_nodes_and_four_processes_equal_one_after_five_steps(tiny: Any) -> None:
    """Batch 8, five steps of an epoch of 43 images; learning rate 0.05, so that the weights do move."""
    (tiny.folder / "train.py").write_text(TRAIN)
    changes: dict[str, Any] = {"epochs": 1, "save": {"every_steps": 99}}
    recipe, config = tiny.write(**changes), tiny.config(**changes)
    alone = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    plan = check(config, seed=0, overrides=(), out=tiny.folder / "1", workers=0, processes=1)
    train(plan, alone, dtype=torch.float64)
    numbers, tensors = outcome(config, plan.out)
    start = build_model(config, num_classes=2, seed=0).state_dict()["backbone.conv1.weight"]
    assert (tensors["backbone.conv1.weight"] - start).abs().max() > 1e-3
    results = {}
    for size in (2, 4):
        out = tiny.folder / f"{size}"
        if size == 2:
            run_agents(tiny.folder / "train.py", [str(recipe), str(out)], env=tiny.env)
        else:
            run_processes(TRAIN, [str(recipe), str(out)], size=size, env=tiny.env)
        results[size] = outcome(config, out)
    assert len(numbers) == 8 and tensors["backbone.conv1.weight"].dtype == torch.float64
    for size, (other_numbers, other_tensors) in results.items():
        assert other_numbers == pytest.approx(numbers, rel=0, abs=1e-9), size
        for name, tensor in tensors.items():
            assert torch.allclose(other_tensors[name].double(), tensor.double(), rtol=0, atol=1e-9), (size, name)


def test_all_processes_say_that_they_are_to_be_run_again_when_one_is(tiny: Any) -> None:
    out = tiny.folder / "out"
    errors = run_processes(AS_COMMAND, [str(tiny.write()), str(out)], size=2, env=tiny.env, expected=75)
    assert all("stopped, to be run again" in each for each in errors)
    assert (out / "state-000000002.pt").exists()


def test_a_folder_that_is_not_shared_is_noticed_before_the_first_step(tiny: Any) -> None:
    outs = [tiny.folder / "one", tiny.folder / "two"]
    errors = run_processes(AS_COMMAND, [str(tiny.write()), *map(str, outs)], size=2, env=tiny.env, expected=2)
    assert all(
        "not every process sees what process 0 has written; put --out on a shared disk" in each for each in errors
    )


def test_a_second_training_in_a_folder_is_refused_on_all_processes(tiny: Any) -> None:
    out, recipe = tiny.folder / "out", tiny.write()
    alone = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    with session.alone(check(tiny.config(), seed=0, overrides=(), out=out, workers=0, processes=1), alone):
        errors = run_processes(AS_COMMAND, [str(recipe), str(out)], size=2, env=tiny.env, expected=2)
    assert all(f"{out}: already being trained by process {os.getpid()} on " in each for each in errors)
    assert [path.name for path in out.iterdir()] == ["lock"]


def test_procs_starts_the_processes_itself(tiny: Any) -> None:
    out = tiny.folder / "out"
    code, errors = tiny.run("pretrain", tiny.write(epochs=1), "--out", out, "--workers", "1", "--procs", "2")
    assert code == 0, errors
    assert "on 2 process(es)" in errors and (out / WEIGHTS_NAME).exists()
    assert errors.count("run ") == 1  # the second process is silent
