"""The best rate is found on images that its model has not seen, once, and a killed sweep goes on where it was."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from evaluate.benchmarks import load_benchmark
from evaluate.lr_sweep import HeldOut, LrSweep, choose, held_out_rows, remark, selection
from zoo.errors import DataError, NonFiniteError

SWEEP = LrSweep(factors=(0.3, 1.0, 3.0), held_out=0.1, iterations=0.5)
CONFIG = load_benchmark("voc12aug_segmentation_zoo").settings.engine_config
PARTS = HeldOut(fit=[{}] * 9, test=[{}], score=lambda found: float(found["score"]), metric="mIoU")


class Trainer:
    """Plays an engine: what a model of this rate scores; None diverges, "killed" is a kill."""

    def __init__(self, **scores: Any) -> None:
        self.scores, self.calls = scores, []

    def __call__(self, folder: Path, config: dict[str, Any], parts: HeldOut) -> dict[str, np.ndarray]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "iter_10000.pth").write_text("large")
        factor = folder.name.removeprefix("rate_")
        self.calls.append((factor, config["optim_wrapper"]["optimizer"]["lr"], config["train_cfg"]["max_iters"]))
        score = self.scores[f"at_{factor.replace('.', '_')}"]
        if score is None:
            raise NonFiniteError("diverged")
        if score == "killed":
            raise KeyboardInterrupt
        return {"score": np.array(score)}


def sweep(folder: Path, trainer: Trainer) -> tuple[dict[str, Any], dict[str, Any]]:
    return choose("mmseg", CONFIG, SWEEP, PARTS, folder, trainer)


def test_the_best_rate_is_taken_for_the_protocols_full_schedule(tmp_path: Path) -> None:
    trainer = Trainer(at_0_3=40.0, at_1=50.0, at_3=45.0)
    config, found = sweep(tmp_path, trainer)
    assert trainer.calls == [("0.3", 0.003, 10000), ("1", 0.01, 10000), ("3", 0.03, 10000)]
    assert config == CONFIG
    assert found == {
        "metric": "mIoU",
        "fit": 9,
        "held_out": 1,
        "points": [
            {"factor": factor, "lr": lr, "iterations": 10000, "score": score}
            for factor, lr, score in ((0.3, 0.003, 40.0), (1.0, 0.01, 50.0), (3.0, 0.03, 45.0))
        ],
        "factor": 1.0,
        "lr": 0.01,
        "at_edge": False,
    }
    assert remark(found) is None
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["point.json"] * 3  # no checkpoint


def test_a_rate_at_the_edge_is_said(tmp_path: Path) -> None:
    config, found = sweep(tmp_path, Trainer(at_0_3=40.0, at_1=50.0, at_3=55.0))
    assert config["optim_wrapper"]["optimizer"]["lr"] == 0.03 and config["train_cfg"]["max_iters"] == 20000
    assert remark(found) == (
        "the chosen learning rate 0.03 is at the edge of the grid (0.003, 0.01, 0.03): a better one may lie beyond."
    )


def test_a_rate_that_diverges_is_a_point_without_a_score(tmp_path: Path) -> None:
    _, found = sweep(tmp_path, Trainer(at_0_3=40.0, at_1=41.0, at_3=None))
    assert [point["score"] for point in found["points"]] == [40.0, 41.0, None] and found["factor"] == 1.0
    with pytest.raises(NonFiniteError, match=r"with every learning rate of the sweep \(0.003, 0.01, 0.03\)"):
        sweep(tmp_path / "none", Trainer(at_0_3=None, at_1=None, at_3=None))


def test_of_equal_scores_the_protocols_rate_wins_then_the_lower(tmp_path: Path) -> None:
    assert sweep(tmp_path / "a", Trainer(at_0_3=50.0, at_1=50.0, at_3=50.0))[1]["factor"] == 1.0
    three = LrSweep(factors=(0.5, 1.0, 2.0), held_out=0.1, iterations=1.0)
    trainer = Trainer(at_0_5=50.0, at_1=40.0, at_2=50.0)
    assert choose("mmseg", CONFIG, three, PARTS, tmp_path / "b", trainer)[1]["factor"] == 0.5


def test_a_killed_sweep_trains_no_finished_point_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, Trainer(at_0_3=40.0, at_1="killed"))
    assert (tmp_path / "rate_1" / "iter_10000.pth").exists()  # what the engine goes on from
    again = Trainer(at_1=50.0, at_3=45.0)
    _, found = sweep(tmp_path, again)
    assert [factor for factor, *_ in again.calls] == ["1", "3"]
    assert [point["score"] for point in found["points"]] == [40.0, 50.0, 45.0]
    assert json.loads((tmp_path / "rate_0.3" / "point.json").read_text())["score"] == 40.0


def test_the_held_out_images_depend_on_the_training_set_alone() -> None:
    rows = held_out_rows(1000, 0.1, manifest_sha256="ab" * 32)
    assert len(rows) == 100 and (np.diff(rows) > 0).all() and 0 <= rows[0] and rows[-1] < 1000
    assert (rows == held_out_rows(1000, 0.1, manifest_sha256="ab" * 32)).all()
    assert (rows != held_out_rows(1000, 0.1, manifest_sha256="cd" * 32)).any()
    assert len(held_out_rows(3, 0.1, manifest_sha256="ab" * 32)) == 1  # one at least
    assert len(held_out_rows(2, 0.9, manifest_sha256="ab" * 32)) == 1  # and one left
    with pytest.raises(DataError, match="on held-out training images: expected 2 or more, found 1"):
        held_out_rows(1, 0.5, manifest_sha256="ab" * 32)


def test_a_selection_says_what_was_chosen_how() -> None:
    assert selection(None, "AP50", scaled=False) == "last iteration"
    assert "(0.3, 1, 3 times the scaled one, trained" in selection(SWEEP, "AP50", scaled=True)
    assert selection(SWEEP, "AP50", scaled=False) == (
        "last iteration; learning rate (0.3, 1, 3 times the protocol's, trained 0.5 of the iterations each) chosen by "
        "AP50 on 10 % of the training images"
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"factors": (1.0, 0.3)}, "expected different numbers in rising order, found 1.0, 0.3"),
        ({"factors": (1.0, 1.0)}, "expected different numbers in rising order, found 1.0, 1.0"),
        ({"factors": (1.0,)}, "at least 2 items"),
        ({"held_out": 1.0}, "less than 1"),
        ({"iterations": 1.5}, "less than or equal to 1"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LrSweep.model_validate(SWEEP.model_dump() | changed)
