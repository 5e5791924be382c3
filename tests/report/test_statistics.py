"""Paired comparisons find what is there, at the error rates they claim, and say what they cannot see."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from evaluate import bootstrap
from evaluate.bootstrap import resample_counts
from report.published import load_published
from report.statistics import (
    NUM_REPLICATES,
    Column,
    Comparisons,
    Stored,
    comparisons,
    difference,
    holm,
    stored_replicates,
)
from report.suite import suite_page
from tests.report.drawn import AVGPOOL, cell, knn, measured, record, row, suite
from zoo.files import digest
from zoo.record import CheckpointRecord, ResultRecord, write_record

HASHES = [digest(number) for number in range(8)]
N = 500  # test images of the calibration
RNG = np.random.default_rng
TEMPLATE = record("any", "cifar10_linear", {"m": 50.0})  # describing a benchmark anew for each would take the time


def made(name: str, replicates: np.ndarray, *, value: float | None = None, seed: int = 0, **changes: Any) -> Any:
    """A record of metric "m" on cifar10_linear and its replicates."""
    ordered = np.sort(replicates.astype(float))
    ends = (ordered[24] + 0.975 * (ordered[25] - ordered[24]), ordered[974] + 0.025 * (ordered[975] - ordered[974]))
    fields: dict[str, Any] = {
        "cell_id": digest([name, seed, sorted(map(str, changes))]),
        "seed": seed,
        "checkpoint": CheckpointRecord(
            name=name, family=name, arch="resnet18", tensors_sha256=name, pretrain_seed=0, epochs=1, preprocessing={}
        ),
        "metrics": {"m": float(replicates.mean()) if value is None else value},
        "confidence": {"m": (float(ends[0]), float(ends[1]))},
    }
    return TEMPLATE.model_copy(update=fields | changes), replicates


def column_of(*results: tuple[ResultRecord, np.ndarray]) -> tuple[Column, Stored]:
    """One column "X"; rows are the records' names."""
    rows: dict[str, tuple[ResultRecord, ...]] = {}
    for result, _ in results:
        rows[result.checkpoint.name] = (*rows.get(result.checkpoint.name, ()), result)
    return Column(name="X", metric="m", rows=rows), {(result.cell_id, "m"): drawn for result, drawn in results}


def compared(*results: tuple[ResultRecord, np.ndarray]) -> Comparisons:
    column, stored = column_of(*results)
    return comparisons([column], stored)


def drawn(mean: float, *, own: float = 0.5, seed: int = 0, shared: float = 1.0) -> np.ndarray:
    """Replicates with a shared and an own part, as results on the same images have."""
    common = RNG(99).standard_normal(NUM_REPLICATES)
    return mean + shared * common + own * RNG(seed).standard_normal(NUM_REPLICATES)


def test_as_many_replicates_are_expected_as_are_stored() -> None:
    assert NUM_REPLICATES == bootstrap.NUM_REPLICATES


def test_holm_adjusts_as_worked_out_by_hand() -> None:
    # Holm (1979): p(1)·m, then p(2)·(m-1) …, never falling; worked out by hand
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_what_two_results_share_is_not_counted_as_noise() -> None:
    """Both intervals are 4 wide and overlap by far; of the difference only the results' own parts remain."""
    found = compared(made("a", drawn(60.0, own=0.2, seed=1)), made("b", drawn(61.5, own=0.2, seed=2)))
    (pair,) = found.pairs
    assert (pair.best, pair.other) == ("b", "a")
    assert pair.difference == pytest.approx(1.5, abs=0.1)
    assert pair.interval == pytest.approx((1.5 - 0.55, 1.5 + 0.55), abs=0.1)
    assert pair.p < 1e-4 and found.bold == {("b", "X")}


def test_the_same_predictions_are_not_told_apart_and_nothing_is_bold() -> None:
    found = compared(made("a", drawn(60.0)), made("b", drawn(60.0)))
    assert found.pairs[0].p == 1.0 and not found.bold
    assert found.verdicts[0].tied == ("b",)


def test_p_is_counted_with_one_more_than_the_replicates_on_the_other_side() -> None:
    values = np.concatenate([np.full(960, 1.0), np.full(25, -1.0), np.full(15, 0.0)])  # a zero is on both sides
    found = compared(made("a", 50 + values, value=51.0), made("b", np.full(1000, 50.0), value=50.0))
    assert found.pairs[0].p == pytest.approx(2 * 41 / 1001)


def test_where_counting_ends_the_normal_tail_goes_on_so_that_large_tables_can_be_settled() -> None:
    far = [made(f"r{number}", drawn(50.0, seed=number + 1)) for number in range(60)]
    found = compared(*far, made("best", drawn(60.0, seed=99)))
    assert len(found.pairs) == 60 and max(pair.p for pair in found.pairs) < 2 / 1001
    assert found.bold == {("best", "X")}
    constant = compared(made("a", np.full(1000, 60.0)), made("b", np.full(1000, 50.0)))
    assert constant.pairs[0].p == pytest.approx(2 / 1001)  # no spread, no tail to go by


def test_bold_needs_every_other_row_to_be_beaten() -> None:
    rows = [made("a", drawn(70.0, seed=1)), made("b", drawn(69.9, seed=2)), made("c", drawn(50.0, seed=3))]
    found = compared(*rows)
    assert not found.bold
    assert found.verdicts[0].tied == ("b",) and [pair.is_significant for pair in found.pairs] == [False, True]


def test_holm_runs_over_all_columns_of_the_table() -> None:
    column, stored = column_of(made("a", drawn(60.0, own=0.5, seed=1)), made("b", drawn(61.8, own=0.5, seed=2)))
    alone = comparisons([column], stored).pairs[0]
    many = comparisons([column, *(Column(name=f"Y{n}", metric="m", rows=column.rows) for n in range(9))], stored)
    assert alone.p_holm == alone.p
    assert many.pairs[0].p == alone.p and many.pairs[0].p_holm == pytest.approx(10 * alone.p)


def test_seeds_add_their_variance_with_welchs_degrees_of_freedom() -> None:
    """Replicates without spread leave the seeds alone: scipy's Welch test, to the digit."""
    a, b = [60.0, 61.0, 62.5], [63.0, 64.0, 63.2, 65.1]
    results = [made("a", np.full(1000, v), seed=s) for s, v in enumerate(a)]
    results += [made("b", np.full(1000, v), seed=s) for s, v in enumerate(b)]
    (pair,) = compared(*results).pairs
    expected = stats.ttest_ind(b, a, equal_var=False)
    assert pair.p == pytest.approx(expected.pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    assert pair.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))  # pyright: ignore


def test_of_seeds_without_spread_the_test_images_remain() -> None:
    results = [made("a", drawn(60.0, seed=1), value=60.0, seed=s) for s in range(3)]
    results += [made("b", drawn(62.0, seed=2), value=62.0, seed=s) for s in range(3)]
    (pair,) = compared(*results).pairs
    assert pair.std == pytest.approx(float((drawn(62.0, seed=2) - drawn(60.0, seed=1)).std(ddof=1)))
    assert pair.p == pytest.approx(2 * stats.norm.sf(2.0 / pair.std))


def test_single_runs_of_random_training_are_named_and_deterministic_ones_are_not() -> None:
    random_ = made("a", drawn(60.0, seed=1)), made("b", drawn(61.0, seed=2))
    fixed = [(one.model_copy(update={"deterministic": True}), values) for one, values in random_]
    assert compared(*random_).single_runs == ("a", "b")
    assert compared(*fixed).single_runs == ()


def test_families_with_several_pre_training_seeds_are_compared_as_methods() -> None:
    def file(family: str, seed: int, mean: float) -> Any:
        name = f"{family} {seed}"
        card = CheckpointRecord(
            name=name, family=family, arch="resnet18", tensors_sha256=digest(name), pretrain_seed=seed, epochs=1,
            preprocessing={},
        )  # fmt: skip
        return made(name, np.full(1000, mean), checkpoint=card)

    values = {"A": [60.0, 61.0, 62.5], "B": [63.0, 64.0, 63.2]}
    results = [file(family, seed, v) for family, means in values.items() for seed, v in enumerate(means)]
    found = compared(*results, made("single", np.full(1000, 10.0)))
    (pair,) = found.methods
    assert (pair.best, pair.other) == ("B", "A")
    expected = stats.ttest_ind(values["B"], values["A"], equal_var=False)
    assert pair.p == pytest.approx(expected.pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    assert (found.families, found.files) == (3, 7)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (None, "the .npz beside the record is not there"),
        ({}, "no replicates were stored"),
        ({"replicates/m": np.zeros(999, np.float32)}, "999 replicates were stored, expected 1,000"),
        ({"replicates/m": np.full(1000, np.nan, np.float32)}, "the stored replicates are not finite numbers"),
        ({"replicates/m": np.zeros(1000, np.float32)}, "the stored replicates do not give the record's interval"),
        (b"not a zip", "the .npz beside the record cannot be read"),
    ],
)
def test_replicates_that_cannot_be_used_are_given_with_the_reason(tmp_path: Path, arrays: Any, reason: str) -> None:
    good, bad = made("a", drawn(60.0)), made("b", drawn(50.0, seed=3))
    write_record(tmp_path, good[0], {"replicates/m": good[1].astype(np.float32)})
    if isinstance(arrays, bytes):
        (tmp_path / f"{bad[0].cell_id}.npz").write_bytes(arrays)
    elif arrays is not None:
        write_record(tmp_path, bad[0], arrays)
    column, _ = column_of(good, bad)
    stored = stored_replicates([column], tmp_path)
    assert stored[bad[0].cell_id, "m"] == reason
    np.testing.assert_array_equal(stored[good[0].cell_id, "m"], good[1].astype(np.float32))
    found = comparisons([column], stored)
    assert found.uncompared == {reason: ("b",)} and not found.pairs and not found.bold
    assert difference(column, "a", "b", stored) is None


def test_a_damaged_array_is_noticed_by_its_checksum(tmp_path: Path) -> None:
    results = made("a", drawn(60.0)), made("b", drawn(50.0, seed=3))
    for one, values in results:
        write_record(tmp_path, one, {"replicates/m": values.astype(np.float32)})
    path = tmp_path / f"{results[1][0].cell_id}.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    column, _ = column_of(*results)
    assert stored_replicates([column], tmp_path)[results[1][0].cell_id, "m"] == (
        "the .npz beside the record cannot be read"
    )


def test_arrays_are_not_read_where_nothing_is_compared(tmp_path: Path) -> None:
    column, _ = column_of(made("a", drawn(60.0)))
    assert stored_replicates([column], tmp_path / "nowhere") == {}
    found = comparisons([column], {})
    assert not found.pairs and not found.uncompared and not found.verdicts


def test_a_row_without_replicates_keeps_its_column_from_being_bold() -> None:
    column, stored = column_of(
        made("a", drawn(70.0, seed=1)), made("b", drawn(50.0, seed=2)), made("c", drawn(40.0, seed=3))
    )
    missing = {key: value for key, value in stored.items() if key[0] != column.rows["c"][0].cell_id}
    assert comparisons([column], stored).bold == {("a", "X")}
    found = comparisons([column], missing)
    assert len(found.pairs) == 1 and not found.bold


# Calibration. One matrix of counts serves many simulated test sets: the real draws, of eight test-set hashes.


def replicates_of(right: np.ndarray, number: int) -> np.ndarray:
    """(N, S) bool → (1000, S) replicates of top-1 in percent, drawn as the benchmarks draw them."""
    counts = resample_counts(len(right), manifest_sha256=HASHES[number]).astype(np.float32)
    return 100.0 * (counts @ right.astype(np.float32)) / len(right)


def test_the_95_percent_interval_of_top1_covers_95_percent_at_500_images() -> None:
    hits = total = 0
    for number in range(8):
        rng = RNG(number)
        for accuracy in (0.5, 0.6, 0.75):
            replicates = replicates_of(rng.random((N, 500)) < accuracy, number)
            low, high = np.percentile(replicates, [2.5, 97.5], axis=0)
            hits += int(((low <= 100 * accuracy) & (100 * accuracy <= high)).sum())
            total += 500
    assert 94.0 <= 100 * hits / total <= 96.0, hits / total


def paired_rows(rng: np.random.Generator, difference: float, sets: int, rows: int = 2) -> list[np.ndarray]:
    """Correct or not, (N, sets) a row, correlated through each image's difficulty; the last row is better."""
    difficulty = rng.standard_normal((N, sets))
    shift = stats.norm.ppf(0.6 + difference) * np.sqrt(2)
    means = [stats.norm.ppf(0.6) * np.sqrt(2)] * (rows - 1) + [shift]
    return [difficulty + rng.standard_normal((N, sets)) < mean for mean in means]


def test_paired_differences_cover_95_percent_and_equal_rows_differ_5_percent_of_the_time() -> None:
    covered = wrong = total = 0
    for number in range(8):
        for true in (0.0, 0.0137, 0.0431):
            right = paired_rows(RNG([number, int(1e4 * true)]), true, 400)
            a, b = (replicates_of(each, number) for each in right)
            low, high = np.percentile(b - a, [2.5, 97.5], axis=0)
            inside = (low - 1e-5 < 100 * true) & (100 * true < high + 1e-5)
            strictly = (low + 1e-5 < 100 * true) & (100 * true < high - 1e-5)
            covered += (int(inside.sum()) + int(strictly.sum())) / 2  # an end that is the truth itself counts half
            total += a.shape[1]
            if not true:
                for s in range(100):
                    values = [100 * float(each[:, s].mean()) for each in right]
                    pair = compared(made("a", a[:, s], value=values[0]), made("b", b[:, s], value=values[1])).pairs[0]
                    wrong += pair.p <= 0.05
    assert 94.0 <= 100 * covered / total <= 96.0, covered / total
    assert 100 * wrong / 800 <= 6.0, wrong / 800


def test_of_equal_rows_a_table_shows_a_bold_value_at_most_5_percent_of_the_time() -> None:
    """Three rows, two columns, nothing to be found; the best is chosen by the same data."""
    shown = 0
    for number in range(8):
        rows = [replicates_of(right, number) for right in paired_rows(RNG([number, 7]), 0.0, 30, rows=6)]
        for s in range(30):
            columns, stored = [], {}
            for c in range(2):
                column, more = column_of(*(made(f"r{r}", rows[3 * c + r][:, s], seed=c) for r in range(3)))
                columns.append(Column(name=str(c), metric="m", rows=column.rows))
                stored |= more
            shown += bool(comparisons(columns, stored).bold)
    assert shown / 240 <= 0.05, shown


def test_rows_far_behind_in_a_large_table_are_settled_without_reading_them(tmp_path: Path) -> None:
    best, near = made("best", drawn(80.0, seed=1)), made("near", drawn(79.0, seed=2))
    far = [made(f"far {number}", drawn(40.0, seed=number)) for number in range(120)]
    for one, values in (best, near):
        write_record(tmp_path, one, {"replicates/m": values.astype(np.float32)})
    column, whole = column_of(best, near, *far)
    stored = stored_replicates([column], tmp_path)
    read, bounded = comparisons([column], whole), comparisons([column], stored)
    assert not bounded.uncompared and bounded.verdicts[0].tied == read.verdicts[0].tied == ("near",)
    assert len(bounded.pairs) == len(read.pairs) == 121 and bounded.files == read.files
    exact = {pair.other: pair for pair in read.pairs}
    for pair in bounded.pairs:
        assert pair.difference == pytest.approx(exact[pair.other].difference)
        assert pair.std >= exact[pair.other].std - 1e-4 and pair.is_significant == exact[pair.other].is_significant


# The page


def written(folder: Path, results: Sequence[tuple[ResultRecord, Mapping[str, np.ndarray]]]) -> str:
    """A suite's page of these records with their replicates."""
    rows = [row(name) for name in dict.fromkeys(result.checkpoint.name for result, _ in results)]
    suite(folder, rows, measured(*(result for result, _ in results)))
    for result, replicates in results:
        arrays = {f"replicates/{name}": values.astype(np.float32) for name, values in replicates.items()}
        write_record(folder / "records", result, arrays)
    return suite_page(folder, load_published())


def neighbours(name: str, mean: float, seed: int, config: str = "mini_knn", **kwargs: Any) -> Any:
    replicates = {metric: drawn(mean, seed=seed + n, **kwargs) for n, metric in enumerate(knn(1, 2, 3, 4))}
    ends = {metric: np.percentile(values, [2.5, 97.5]) for metric, values in replicates.items()}
    metrics = {metric: float(values.mean()) for metric, values in replicates.items()}
    confidence = {metric: (float(low), float(high)) for metric, (low, high) in ends.items()}
    return record(name, config, metrics, confidence=confidence), replicates


def test_a_page_sets_the_best_in_bold_and_says_what_was_compared(tmp_path: Path) -> None:
    page = written(tmp_path, [neighbours("a", 50.0, 1), neighbours("b", 60.0, 11)])
    (line,) = [line for line in page.splitlines() if line.startswith("| b ")]
    assert re.fullmatch(r"\| b +(\| \*\*(59|60)\.\d\*\* ± 2\.\d ){4}\|", line), line
    assert page.count("**5") + page.count("**6") == 4
    assert (
        "- **Bold**: better than every other measured row of its column (paired bootstrap on the same test images, "
        "1,000 replicates; Holm over the 4 comparisons of this table, 5 %); this compares these two files, not the "
        "methods: one checkpoint a family.\n"
    ) in page
    assert "cannot be told apart" not in page and "Power" not in page


def test_a_page_says_what_cannot_be_told_apart_and_what_could_have_been(tmp_path: Path) -> None:
    means = {"a": 60.0, "b": 60.0, "c": 40.0}
    page = written(tmp_path, [neighbours(n, mean, 9 * s, own=2.0) for s, (n, mean) in enumerate(means.items())])
    assert "- Nothing is bold: no value is better than every other" in page and "not the methods" in page
    assert "- 1 row cannot be told apart from the best in k=10, k=20, k=100, k=200.\n" in page
    found = re.search(r"- Power: a difference of 1\.0 point cannot be seen here\. .* differ by (\S+) to (\S+) ", page)
    assert found and float(found[1]) == pytest.approx(2.8 * 2.0 * 2**0.5, rel=0.1)  # (1.96 + 0.84) · std


def test_published_rows_are_never_bold_and_never_compared(tmp_path: Path) -> None:
    page = written(tmp_path, [neighbours(n, m, 9, config="imagenet_knn") for n, m in (("a", 10.0), ("b", 20.0))])
    assert "published rows have no replicates and are not compared" in page
    assert "| 57.4 " in page and "**57.4**" not in page
    assert re.search(r"\| b .*\*\*2\d\.\d\*\*", page)


def test_one_seed_of_random_training_and_missing_arrays_are_said_on_the_page(tmp_path: Path) -> None:
    results = []
    for number, name in enumerate("ab"):
        values = drawn(60.0 + 10 * number, seed=number)
        ends = (float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5)))
        one = record(name, "cifar10_linear", {AVGPOOL: float(values.mean())}, confidence={AVGPOOL: ends})
        results.append((one, {AVGPOOL: values}))
    page = written(tmp_path, results)
    assert "where training is random and one seed was run, that run: what another would change is not in it" in page
    (tmp_path / "records" / f"{results[0][0].cell_id}.npz").unlink()
    page = suite_page(tmp_path, load_published())
    assert "- Not compared, so no bold in their columns: a (the .npz beside the record is not there).\n" in page
    assert "**Bold**" not in page


def test_the_same_records_give_the_same_bytes_and_the_table_carries_its_comparisons(tmp_path: Path) -> None:
    results = [neighbours("a", 50.0, 1), neighbours("b", 60.0, 11)]
    assert written(tmp_path / "one", results) == written(tmp_path / "two", results)


def test_a_blank_row_is_not_compared(tmp_path: Path) -> None:
    written(tmp_path, [neighbours("a", 50.0, 1), neighbours("b", 60.0, 11)])
    cells = measured(neighbours("a", 50.0, 1)[0]) + [(cell("b", "mini_knn", state="failed"), None)]
    suite(tmp_path, [row("a"), row("b", state="failed")], cells)
    assert "Bold" not in suite_page(tmp_path, load_published())
