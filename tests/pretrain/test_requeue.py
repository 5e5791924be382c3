"""A training that is asked to stop and be run again: the state of the next step, then the same bits."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain import train as training
from pretrain.preflight import check
from zoo import interrupt
from zoo.checkpoint import CARD_NAME, WEIGHTS_NAME
from zoo.distributed import World

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


@pytest.fixture
def unasked() -> Iterator[None]:
    interrupt._asked.clear()
    yield
    interrupt._asked.clear()


def test_sigusr1_in_the_middle_ends_in_the_same_bytes(
    tiny: Any, unasked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(out: Path) -> Path:
        plan = check(tiny.config(save={"every_steps": 99}), seed=0, overrides=(), out=out, workers=0, processes=1)
        return training.train(plan, ALONE)

    whole, parts = tiny.folder / "whole", tiny.folder / "parts"
    run(whole)
    judge = training._judge

    def asked(session: Any, step: int, values: Any) -> None:
        judge(session, step, values)
        if step == 6:  # in the middle of the second epoch
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(training, "_judge", asked)
    with pytest.raises(KeyboardInterrupt):
        run(parts)
    assert interrupt.exit_code() == 75
    assert (parts / "state-000000007.pt").exists() and not (parts / CARD_NAME).exists()
    run(parts)
    for name in (WEIGHTS_NAME, CARD_NAME):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
