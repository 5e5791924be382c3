"""log.jsonl, and how a resumed run takes it up."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.progress import LOG_NAME, TIMES, RunLog


def run(folder: Path, start: int, end: int, *, enabled: bool = True) -> None:
    folder.mkdir(exist_ok=True)
    device = torch.device("cpu")
    with RunLog(folder, start_step=start, total_steps=40, batch_size=8, device=device, enabled=enabled) as log:
        for step in range(start + 1, end + 1):
            log.step(step // 20, step, {"loss": 1 / step, "std_sqrt_d": None, "lr": 0.1})
            if step % 20 == 0:
                log.measure(step // 20, step, {"knn20_top1": 50.0})


def entries(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / LOG_NAME).read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def test_a_line_every_ten_steps_and_one_a_measurement(tmp_path: Path) -> None:
    run(tmp_path, 0, 40)
    assert [entry["step"] for entry in entries(tmp_path)] == [10, 20, 20, 30, 40, 40]
    assert entries(tmp_path)[0] == {"epoch": 0, "step": 10, "loss": 0.1, "lr": 0.1}
    assert (tmp_path / "tensorboard").is_dir()


@pytest.mark.parametrize("torn", ["", '{"epoch": 1, "st', '{"epoch": 0, "step": 3'])
def test_a_resumed_log_equals_an_uninterrupted_one(tmp_path: Path, torn: str) -> None:
    run(tmp_path / "whole", 0, 40)
    run(tmp_path / "parts", 0, 33)
    with (tmp_path / "parts" / LOG_NAME).open("a") as stream:
        stream.write(torn)
    run(tmp_path / "parts", 25, 40)
    assert entries(tmp_path / "parts") == entries(tmp_path / "whole")


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    run(tmp_path, 0, 40, enabled=False)
    assert not list(tmp_path.iterdir())
