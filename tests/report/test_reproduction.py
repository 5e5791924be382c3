"""A row that should give published numbers again is held to them, with tolerances that have a source."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from report.__main__ import app
from report.published import load_published
from report.reproduction import Check, checks
from report.statistics import Column
from report.suite import suite_page
from tests.report.drawn import knn, measured, record, row, suite
from zoo.errors import ZooError
from zoo.files import CONFIGS, digest
from zoo.record import CheckpointRecord, ResultRecord

PUBLISHED = load_published()
WEIGHTS, RECIPE = "simsiam_r50_100e_mmselfsup0", "simsiam_r50_100e"
TEMPLATE = record("any", "cifar10_linear", {"m": 50.0})


def card(family: str) -> CheckpointRecord:
    return CheckpointRecord(
        name="SimSiam 100", family=family, arch="resnet50", tensors_sha256=digest(family), pretrain_seed=None,
        epochs=100, preprocessing={},
    )  # fmt: skip


def result(
    value: float, metric: str = "m", *, half: float | None = 0.4, family: str = WEIGHTS, **changes: Any
) -> ResultRecord:
    confidence = {} if half is None else {metric: (value - half, value + half)}
    fields = {"metrics": {metric: value}, "confidence": confidence, "checkpoint": card(family)}
    return TEMPLATE.model_copy(update=fields | changes)


def checked(table: str, column: str, *runs: ResultRecord, metric: str = "m") -> list[Check]:
    columns = [Column(name=column, metric=metric, rows={"row": runs})]
    return list(checks(table, PUBLISHED.tables[table].decimals, columns, list(PUBLISHED.rows(table))))


def test_every_link_leads_to_a_family_that_exists() -> None:
    links = [row for source in PUBLISHED.sources for row in source.rows if row.weights or row.recipe]
    assert len(links) == 4
    for published in links:
        assert published.weights is None or (CONFIGS / "checkpoints" / f"{published.weights}.yaml").is_file()
        assert published.recipe is None or (CONFIGS / "pretrain" / f"{published.recipe}.yaml").is_file()
        assert str(100 if "100" in published.label else 200) in f"{published.weights} {published.recipe}"


@pytest.mark.parametrize(
    ("table", "column", "value", "outcome", "tolerance"),
    [
        ("imagenet_knn", "k=20", 57.9, "reproduced", 0.0 + 0.4 + 0.05),
        ("imagenet_knn", "k=20", 58.1, "differs", 0.0 + 0.4 + 0.05),
        ("imagenet_linear", "AvgPool", 67.5, "reproduced", 0.5 + 0.4 + 0.005),
        ("imagenet_linear", "AvgPool", 67.3, "differs", 0.5 + 0.4 + 0.005),
        ("voc0712_detection", "AP50", 80.4, "reproduced", 0.3 + 0.4 + 0.005),
        ("voc0712_detection", "AP50", 74.8, "differs", 0.3 + 0.4 + 0.005),
        ("voc12aug_segmentation", "mIOU", 48.35, "not comparable", None),
    ],
)
def test_a_value_is_judged_by_known_noise_its_interval_and_rounding(
    table: str, column: str, value: float, outcome: str, tolerance: float | None
) -> None:
    (check,) = checked(table, column, result(value))
    assert (check.outcome, check.published) == (outcome, "resnet50_8xb32-coslr-100e")
    assert check.tolerance == (tolerance if tolerance is None else pytest.approx(tolerance))


def test_low_shot_is_held_to_how_its_own_draws_spread() -> None:
    spread = {"trials": {"low_shot_k1": {"n": 5, "std": 1.0, "min": 37.0, "max": 41.0}}}
    (check,) = checked("voc07_svm", "k=1", result(40.8, "low_shot_k1", details=spread), metric="low_shot_k1")
    assert check.tolerance == pytest.approx(1.96 * (2 / 5) ** 0.5 + 0.4 + 0.005) and check.outcome == "reproduced"
    (check,) = checked("voc07_svm", "k=1", result(39.65, "low_shot_k1"), metric="low_shot_k1")
    assert check.outcome == "not comparable" and "the published draws are unknown" in check.why


def test_the_mean_over_seeds_is_compared() -> None:
    (check,) = checked("imagenet_linear", "AvgPool", result(67.0), result(69.0, seed=1))
    assert check.found == pytest.approx(68.0) and check.outcome == "reproduced"


def test_weights_trained_anew_are_told_from_the_published_ones() -> None:
    (check,) = checked("imagenet_knn", "k=20", result(57.6, family=RECIPE))
    assert check.is_retrained and "repeats of the pre-training spread is not known" in check.why
    assert not checked("imagenet_knn", "k=20", result(57.6))[0].is_retrained


def test_the_reference_repositorys_best_epoch_is_not_comparable_with_a_last_one() -> None:
    (check,) = checked("imagenet_linear_reference", "top-1 acc.", result(68.1, family="simsiam_r50_100e_b512_fb"))
    assert (check.outcome, check.expected) == ("not comparable", 68.1) and "best epoch" in check.why


def test_a_record_without_an_interval_and_unlinked_rows() -> None:
    (check,) = checked("imagenet_knn", "k=20", result(57.6, half=None))
    assert (check.outcome, check.why) == ("not comparable", "the record has no interval")
    assert checked("imagenet_knn", "k=20", result(57.6, family="another")) == []
    assert checked("imagenet_knn", "k=5", result(57.6)) == []


def page(folder: Path, config: str, family: str = WEIGHTS) -> str:
    one = record("SimSiam 100", config, knn(57.4, 60.6, 55.9, 54.2), checkpoint=card(family))
    return suite(folder, [row("SimSiam 100")], measured(one))


def test_the_page_and_the_command_show_the_check(tmp_path: Path) -> None:
    text = page(tmp_path, "imagenet_knn")
    assert "## Reproduction check" in text
    (line,) = [line for line in text.splitlines() if "*differs*" in line]
    assert "ImageNet Nearest-Neighbor Classification, k=20" in line and "| +3.0 " in line
    assert "- 3 reproduced, 1 differ, 0 not comparable." in text
    shown = CliRunner().invoke(app, ["reproduction", str(tmp_path)])
    assert shown.exit_code == 0 and shown.stdout.strip() in text


@pytest.mark.parametrize(("config", "family"), [("mini_knn", WEIGHTS), ("imagenet_knn", "another")])
def test_without_anything_to_check_there_is_no_section_and_the_command_says_so(
    tmp_path: Path, config: str, family: str
) -> None:
    assert "Reproduction" not in page(tmp_path, config, family)
    shown = CliRunner().invoke(app, ["reproduction", str(tmp_path)])
    assert isinstance(shown.exception, ZooError)
    assert "expected a row whose family is 'weights' or 'recipe' of a published row" in str(shown.exception)


def test_the_section_is_the_same_in_the_suites_page(tmp_path: Path) -> None:
    text = page(tmp_path, "imagenet_knn")
    assert suite_page(tmp_path, PUBLISHED) == text
