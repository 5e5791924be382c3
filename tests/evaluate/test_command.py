"""What the small commands of `python -m evaluate` say; whole runs are in test_run.py."""

from pathlib import Path

import pytest

from evaluate.__main__ import low_shot_sets, predict
from tests.report.drawn import record
from zoo.errors import ConfigError, RecordError
from zoo.record import write_record


def test_low_shot_sets_are_those_of_an_svm_benchmark(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected one that trains low-shot SVMs, found 'imagenet_knn'"):
        low_shot_sets(tmp_path, "imagenet_knn")


def test_predicting_needs_a_record_with_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_RUNS", str(tmp_path))
    with pytest.raises(RecordError, match="no trained heads in any suite's records; run a linear benchmark first"):
        predict([tmp_path / "a.jpg"])
    path = write_record(tmp_path, record("a", "mini_knn", {"top1_k10": 50.0}), {})
    with pytest.raises(RecordError, match="mini_knn keeps no trained heads; expected a linear benchmark's record"):
        predict([tmp_path / "a.jpg"], record=path)
