"""How numbers are written, and which records are not results of the benchmark as configured."""

import json
from typing import Any

import pytest

from report.values import ABSENT, exclusion, fixed, measured
from tests.report.drawn import AVGPOOL, knn, record
from zoo.benchmark import benchmark_layout
from zoo.errors import RecordError
from zoo.record import ResultRecord


def linear(top1: float, *, seed: int = 0, half_width: float = 0.5) -> ResultRecord:
    return record("a", "cifar10_linear", {"top1": top1}, seed=seed, half_width=half_width)


def text(*records: ResultRecord, planned: int | None = None) -> str:
    return measured(records, "top1", decimals=2, planned=len(records) if planned is None else planned)


def test_nothing_measured_is_a_dash_and_a_measured_zero_is_a_zero() -> None:
    assert text() == ABSENT == "–"
    assert text(linear(0.0, half_width=0.0)) == "0.00 ± 0.00"


def test_one_run_is_its_value_and_half_the_width_of_its_interval() -> None:
    assert text(linear(57.404, half_width=0.456)) == "57.40 ± 0.46"


def test_an_interval_that_is_not_symmetric_counts_by_its_width() -> None:
    result = record("a", "cifar10_linear", {"top1": 50.0}, confidence={"top1": (48.0, 51.0)})
    assert text(result) == "50.00 ± 1.50"


def test_several_seeds_are_a_mean_with_their_own_spread_beside_the_interval() -> None:
    runs = [linear(50.0, seed=0, half_width=0.4), linear(52.0, seed=1, half_width=0.6)]
    assert text(*runs) == text(*reversed(runs)) == "51.00 ± 0.50 (std 1.41, n 2)"


def test_missing_seeds_are_counted() -> None:
    assert text(linear(50.0), planned=3) == "50.00 ± 0.50 (n 1 of 3)"
    assert text(linear(50.0), linear(52.0, seed=1), planned=3).endswith("(std 1.41, n 2 of 3)")


def test_a_deterministic_benchmark_counts_once() -> None:
    runs = [record("a", "mini_knn", knn(50, 51, 52, 53), seed=s, cell_id=f"{s}" * 64) for s in (1, 0)]
    assert measured(runs, "top1_k10", decimals=1, planned=2) == "50.0 ± 0.5"


def test_a_record_without_an_interval_shows_none() -> None:
    assert text(record("a", "cifar10_linear", {"top1": 50.0}, confidence={})) == "50.00"


def test_a_missing_metric_is_an_error_that_names_it() -> None:
    with pytest.raises(
        RecordError, match=r"cifar10_linear on a.*expected a metric or label 'top1'.*: top5; labels: none\."
    ):
        text(record("a", "cifar10_linear", {"top5": 50.0}))


def layer(*words: str) -> str:
    runs = [
        record("a", "cifar10_linear", {"top1": 50.0}, seed=s, labels={"best": word}) for s, word in enumerate(words)
    ]
    return measured(runs, "best", decimals=2, planned=len(runs))


def test_a_label_is_shown_as_the_word_it_is() -> None:
    assert layer() == ABSENT
    assert layer("feature5") == layer("feature5", "feature5") == "feature5"
    assert layer("feature5", "feature4", "feature5") == "feature5 / feature4"
    assert layer("a|b") == "a\\|b"


def test_a_label_that_one_seed_lacks_is_an_error_that_names_both_kinds() -> None:
    runs = [
        record("a", "cifar10_linear", {"top1": 50.0}, seed=s, labels={key: "x"}) for s, key in enumerate(("best", "b"))
    ]
    with pytest.raises(RecordError, match=r"metric or label 'best'.*found metrics: top1; labels: b\."):
        measured(runs, "best", decimals=2, planned=2)


def drawn_anew(top1: float, std: float, *, seed: int = 0) -> ResultRecord:
    trials = {"top1": {"n": 5, "std": std, "min": top1 - 1, "max": top1 + 1}}
    return record("a", "cifar10_linear", {"top1": top1}, seed=seed, details={"trials": trials})


def test_the_spread_over_trials_stands_beside_that_over_images_and_seeds() -> None:
    assert text(drawn_anew(39.65, 0.52)) == "39.65 ± 0.50 (trials: std 0.52, n 5)"
    assert text(drawn_anew(39.65, 0.52), planned=3) == "39.65 ± 0.50 (n 1 of 3; trials: std 0.52, n 5)"
    runs = [drawn_anew(50.0, 0.4), drawn_anew(52.0, 0.6, seed=1)]
    assert text(*runs) == "51.00 ± 0.50 (std 1.41, n 2; trials: std 0.50, n 5)"


def test_trials_that_some_seeds_lack_are_not_shown() -> None:
    assert text(drawn_anew(50.0, 0.4), linear(52.0, seed=1)) == "51.00 ± 0.50 (std 1.41, n 2)"


def test_no_negative_zero() -> None:
    assert fixed(-0.004, 2) == "0.00"


def test_a_result_of_the_benchmark_as_configured_is_not_excluded() -> None:
    assert exclusion(linear(50.0), benchmark_layout("cifar10_linear")) is None
    assert exclusion(record("a", "mini_knn", knn(1, 2, 3, 4)), benchmark_layout("mini_knn")) is None


def changed_settings(**changes: Any) -> dict[str, Any]:
    return json.loads(json.dumps(benchmark_layout("cifar10_linear").settings)) | changes


@pytest.mark.parametrize(
    ("changes", "kind", "why"),
    [
        ({"modified": ("settings.epochs=1", "settings.eps=0.1")}, "modified", "settings.epochs=1, settings.eps=0.1"),
        ({"protocol": 99}, "stale", "protocol was 99"),
        ({"benchmark": "knn"}, "stale", "benchmark was knn, is now linear"),
        ({"settings": changed_settings(epochs=99)}, "stale", "epochs was 99"),
        ({"settings": changed_settings(extra=1)}, "stale", "extra was 1, is now absent"),
        ({"settings": changed_settings(test_transform={})}, "stale", "test_transform.crop was absent"),
    ],
)
def test_other_settings_exclude_a_record_and_are_named(changes: dict[str, Any], kind: str, why: str) -> None:
    found = exclusion(record("a", "cifar10_linear", {"top1": 50.0}, **changes), benchmark_layout("cifar10_linear"))
    assert found is not None and found.kind == kind
    assert why in found.why


def test_a_null_setting_is_one_that_is_not_named() -> None:
    """Records of before a setting was there, and files that leave it out, are of the same benchmark."""
    config = benchmark_layout("cifar10_linear")
    result = record("a", "cifar10_linear", {AVGPOOL: 80.0})
    newer = result.model_copy(update={"settings": result.settings | {"lr_sweep": None}})
    assert exclusion(newer, config) is None
    stated = config.model_copy(update={"settings": config.settings | {"lr_sweep": None}})
    assert exclusion(result, stated) is None
    other = exclusion(result.model_copy(update={"settings": result.settings | {"lr_sweep": 3}}), config)
    assert other is not None and other.why == "lr_sweep was 3, is now absent"


def test_another_dataset_excludes_a_record() -> None:
    found = exclusion(record("a", "cifar10_linear", {"top1": 50.0}), benchmark_layout("imagenet_linear"))
    assert found is not None and found.why == "dataset was cifar10_sample, is now imagenet"
