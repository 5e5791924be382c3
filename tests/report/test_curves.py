"""Curves of pre-training runs: what is drawn and tabled is what the logs say."""

import json
from pathlib import Path

import pytest

from report.curves import draw, knn_table, read_log
from zoo.errors import RecordError

LOG = [
    {"epoch": 0, "step": 10, "loss": -0.1, "std_sqrt_d": 0.9, "effective_rank": 12.5},
    {"epoch": 0, "step": 20, "loss": -0.5, "std_sqrt_d": 0.8},
    {"epoch": 0, "step": 20, "knn20_top1": 31.25},
    {"epoch": 1, "step": 40, "knn20_top1": 35.0},
]
SUPERVISED = [{"epoch": 0, "step": 10, "loss": 2.0, "std_sqrt_d": None}, {"epoch": 1, "step": 40, "knn20_top1": 60.04}]


def write(folder: Path, log: list[dict]) -> Path:
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    return folder


def test_the_table_has_a_row_an_epoch_and_a_dash_for_what_was_not_measured(tmp_path: Path) -> None:
    runs = [("a", read_log(write(tmp_path / "a", LOG))), ("b", SUPERVISED)]
    assert knn_table(runs) == "| epoch | a | b |\n| --- | --- | --- |\n| 1 | 31.2 | – |\n| 2 | 35.0 | 60.0 |\n"


def test_the_picture_is_the_same_bytes_for_the_same_logs_and_names_every_run(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        draw([("SimSiam", LOG), ("supervised", SUPERVISED)], tmp_path / name, baselines=[("random", 33.9)])
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    assert all(word in text for word in ("SimSiam", "supervised", "random", "kNN top-1 in percent"))
    assert "<dc:date>" not in text
    assert "effective rank of z/|z|" in text and "norm of the gradient" not in text  # which no log has


def test_a_log_that_is_absent_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no such file; expected a folder that python -m pretrain wrote"):
        read_log(tmp_path)
    folder = write(tmp_path / "a", LOG)
    with (folder / "log.jsonl").open("a") as log:
        log.write("{half")
    with pytest.raises(RecordError, match=r"log.jsonl:5: not JSON"):
        read_log(folder)
