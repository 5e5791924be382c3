"""A training that is asked to stop and be run again: the state of the next step, then the same bits."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain import train as training
from pretrain.preflight import check
from pretrain.progress import LOG_NAME
from zoo import interrupt
from zoo.checkpoint import CARD_NAME, WEIGHTS_NAME
from zoo.distributed import World

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


@pytest.fixture
def unasked() -> Iterator[None]:
    interrupt._asked.clear()
    yield
    interrupt._asked.clear()


@pytest.mark.parametrize("last", [5, 7])  # the end of the first epoch, without its measurement; within the second
def test_sigusr1_anywhere_ends_in_the_same_bytes(
    tiny: Any, unasked: None, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    def run(out: Path) -> Path:
        plan = check(tiny.config(save={"every_steps": 99}), seed=0, overrides=(), out=out, workers=0, processes=1)
        return training.train(plan, ALONE)

    whole, parts = tiny.folder / "whole", tiny.folder / "parts"
    run(whole)
    judge = training._judge

    def asked(session: Any, step: int, values: Any) -> None:
        judge(session, step, values)
        if step == last - 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(training, "_judge", asked)
    with pytest.raises(KeyboardInterrupt):
        run(parts)
    assert interrupt.exit_code() == 75
    assert (parts / f"state-{last:09d}.pt").exists() and not (parts / CARD_NAME).exists()
    assert "knn" not in (parts / LOG_NAME).read_text() or last == 7
    run(parts)
    assert [list(json.loads(line)) for line in (parts / LOG_NAME).read_text().splitlines()] == [
        list(json.loads(line)) for line in (whole / LOG_NAME).read_text().splitlines()
    ]
    for name in (WEIGHTS_NAME, CARD_NAME):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
