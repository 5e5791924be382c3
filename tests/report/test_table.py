"""Which value stands in which cell, and what never shares a table; through a suite's page, as a reader sees it."""

import random
import re
from pathlib import Path
from typing import Any

import pytest

import report.suite
from report.published import load_published
from report.suite import suite_page
from tests.report.drawn import AVGPOOL, cell, knn, measured, record, row, suite
from zoo.benchmark import AnyBenchmark, TableConfig, benchmark_layout
from zoo.errors import RecordError

PUBLISHED_ROW = "resnet50_8xb32-coslr-100e"


def sections(page: str) -> dict[str, str]:
    """Heading → text below it."""
    parts = re.split(r"^## (.*)$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def line(text: str, label: str) -> list[str]:
    """The cells of the row whose label begins with `label`."""
    found = [one for one in text.splitlines() if one.startswith(f"| {label}") or one.startswith(f"| [{label}")]
    assert len(found) == 1, found
    return [part.strip() for part in found[0].strip("|").split(" | ")][1:]


def test_a_small_suites_page_as_text(tmp_path: Path) -> None:
    random_, trained = (
        record(n, "mini_knn", knn(*v)) for n, v in (("random", (43, 42, 41, 40)), ("sup", (74, 73, 72, 71)))
    )
    rows = [row("random"), row("sup"), row("none", state="collapsed", note="collapsed, stopped at step 120")]
    cells = [*measured(random_, trained), (cell("none", "mini_knn", state="skipped"), None)]
    hashes = [random_.datasets[role].sha256[:8] for role in ("bank", "test")]
    assert suite(tmp_path, rows, cells) == "\n".join(
        [
            "# Results of suite `mini`",
            "",
            "The transfer of 3 checkpoints, by 1 benchmark. 2 of 3 cells (checkpoint × benchmark × seed) done; not "
            "done: 1 skipped. Generated from page.json and records/ by `python -m report build` with this folder; do "
            "not edit.",
            "",
            "## ImageNet Nearest-Neighbor Classification: mini ImageNet (embedded digits)",
            "",
            "| Self-Supervised Config | k=10       | k=20       | k=100      | k=200      |",
            "| ---------------------- | ---------- | ---------- | ---------- | ---------- |",
            "| random                 | 43.0 ± 0.5 | 42.0 ± 0.5 | 41.0 ± 0.5 | 40.0 ± 0.5 |",
            "| sup                    | 74.0 ± 0.5 | 73.0 ± 0.5 | 72.0 ± 0.5 | 71.0 ± 0.5 |",
            "| none ¹                 | –          | –          | –          | –          |",
            "",
            "- Top-1 in percent ± half the width of the 95 % bootstrap interval over the 2,000 test images; –: no "
            "result.",
            "- Not compared, so no bold in their columns: random; sup (the .npz beside the record is not there).",
            f"- Images: mini ImageNet (embedded digits), 12,000 train (`{hashes[0]}`) and 2,000 val (`{hashes[1]}`). "
            "**A substitute for ImageNet: not comparable with published ImageNet numbers.**",
            "- Measured with `mini_knn`: protocol 1; selection: none: nothing is trained or chosen; deterministic.",
            "- ¹ collapsed, stopped at step 120",
            "",
        ]
    )


def test_published_rows_join_the_published_dataset_and_never_a_substitute(tmp_path: Path) -> None:
    results = [record("a", name, knn(50, 51, 52, 53)) for name in ("imagenet_knn", "mini_knn")]
    found = sections(suite(tmp_path, [row("a")], measured(*results)))
    assert list(found) == [
        "ImageNet Nearest-Neighbor Classification",
        "ImageNet Nearest-Neighbor Classification: mini ImageNet (embedded digits)",
    ]
    original, substitute = found.values()
    assert line(original, PUBLISHED_ROW) == ["57.4", "57.6", "55.8", "54.2"]
    assert line(original, "a") == ["50.0 ± 0.5", "51.0 ± 0.5", "52.0 ± 0.5", "53.0 ± 0.5"]
    assert "¹ Published: [mmselfsup model zoo" in original
    assert PUBLISHED_ROW not in substitute and "Published" not in substitute
    assert "A substitute for ImageNet: not comparable with published ImageNet numbers" in substitute


def test_other_images_under_the_same_dataset_name_have_a_table_of_their_own(tmp_path: Path) -> None:
    results = [
        record("a", "mini_knn", knn(50, 51, 52, 53), manifests="a"),
        record("b", "mini_knn", knn(60, 61, 62, 63), manifests="b"),
    ]
    found = sections(suite(tmp_path, [row("a"), row("b")], measured(*results)))
    assert len(found) == 2
    for heading, text in found.items():
        filled = [name for name in ("a", "b") if line(text, name)[0] != "–"]
        assert len(filled) == 1
        result = results["ab".index(filled[0])]
        assert result.datasets["test"].sha256[:8] in heading


def test_a_suite_with_nothing_measured_shows_every_row_with_dashes(tmp_path: Path) -> None:
    rows = [row("a", state="waiting", note="not trained yet"), row("b", state="failed", note="its training failed")]
    cells = [(cell(name, "mini_knn", state="waiting"), None) for name in "ab"]
    (text,) = sections(suite(tmp_path, rows, cells)).values()
    assert line(text, "a ¹") == line(text, "b ²") == ["–"] * 4
    assert "- ¹ waiting: not trained yet\n- ² its training failed\n" in text
    assert "A substitute for ImageNet" in text
    assert "0.0" not in text


@pytest.mark.parametrize("state", ["collapsed", "failed"])
def test_a_collapsed_or_failed_row_shows_nothing_even_if_something_was_recorded(tmp_path: Path, state: str) -> None:
    results = [record(name, "mini_knn", knn(50, 51, 52, 53)) for name in ("a", "b")]
    page = suite(tmp_path, [row("a", state=state), row("b")], measured(*results))
    assert line(page, "a ¹") == ["–"] * 4
    assert f"- ¹ {state}\n" in page
    assert line(page, "b")[0] == "50.0 ± 0.5"


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        (
            {"modified": ("settings.epochs=1",)},
            "Modified, so not shown above: b with `--set settings.epochs=1`: AvgPool 12.50 ± 0.50.",
        ),
        ({"protocol": 99}, "Stale, not shown: `cifar10_linear` of b (protocol was 99, is now 2); measure again."),
    ],
)
def test_a_modified_or_stale_record_is_below_the_table_not_in_it(
    tmp_path: Path, changes: dict[str, Any], note: str
) -> None:
    results = [
        record("a", "cifar10_linear", {AVGPOOL: 80.0}),
        record("b", "cifar10_linear", {AVGPOOL: 12.5}, **changes),
    ]
    page = suite(tmp_path, [row("a"), row("b")], measured(*results))
    assert line(page, "a")[-1] == "80.00 ± 0.50"
    assert line(page, "b") == ["–"] * 6
    assert f"- {note}\n" in page


def test_what_a_record_says_of_its_value_stands_below_the_table(tmp_path: Path) -> None:
    """Once for all rows that it is true of; a modified record's beside its value."""
    said = {"notes": ["the chosen learning rate 3 is at the edge of the grid (1, 3)."]}
    results = [record(name, "cifar10_linear", {AVGPOOL: 80.0}, details=said) for name in "ab"]
    other = {"modified": ("settings.global_batch=4",), "details": {"notes": ["a global batch of 4 images."]}}
    results.append(record("c", "cifar10_linear", {AVGPOOL: 12.5}, **other))
    page = suite(tmp_path, [row(name) for name in "abc"], measured(*results))
    assert "- a; b: the chosen learning rate 3 is at the edge of the grid (1, 3).\n" in page
    modified = "c with `--set settings.global_batch=4`: AvgPool 12.50 ± 0.50 (a global batch of 4 images)."
    assert f"- Modified, so not shown above: {modified}\n" in page


def test_a_benchmarks_own_notes_stand_below_the_table_that_it_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = (own_table("one", "One", kNN="top1_k20").model_copy(update={"notes": ("By *this* rule.",)}),)
    layouts = {"cifar10_knn": given("cifar10_knn", *tables, own_table("two", "Two", kNN="top1_k10"))}
    monkeypatch.setattr(report.suite, "benchmark_layout", layouts.__getitem__)
    one, two = sections(suite(tmp_path, [row("a")], measured(record("a", "cifar10_knn", knn(1, 2, 3, 4))))).values()
    assert "- By *this* rule.\n" in one and "rule" not in two


def test_seeds_are_averaged_and_both_spreads_are_explained(tmp_path: Path) -> None:
    results = [record("a", "cifar10_linear", {AVGPOOL: 80.0 + seed}, seed=seed) for seed in range(3)]
    page = suite(tmp_path, [row("a")], measured(*results))
    assert line(page, "a")[-1] == "81.00 ± 0.50 (std 1.00, n 3)"
    assert "95 % bootstrap interval over the 2,000 test images" in page
    assert "(std, n): standard deviation over n seeds" in page
    assert "selection: last epoch; seeds 0, 1, 2." in page


def given(name: str, *tables: TableConfig) -> AnyBenchmark:
    return benchmark_layout(name).model_copy(update={"tables": tables})


def svm(*tables: TableConfig, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """cifar10_linear's page as that of a benchmark with these tables; what its record holds beside its metrics."""
    monkeypatch.setattr(report.suite, "benchmark_layout", lambda name: given(name, *tables))
    return {
        "labels": {"best_layer": "feature4"},
        "details": {"trials": {"k1": {"n": 5, "std": 0.52, "min": 38.5, "max": 40.5}}},
        "selection": "cost: cross-validation",
    }


def own_table(id: str, title: str, **columns: str | None) -> TableConfig:
    return TableConfig(id=id, title=title, metric="mAP in percent", decimals=2, columns=dict(columns))


def test_one_result_fills_several_tables_with_numbers_and_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = own_table("full", "SVM", Layer="best_layer", SVM="svm")
    low = own_table("low", "Low-shot SVM", one="k1", two=None)
    beside = svm(full, low, monkeypatch=monkeypatch)
    result = record("a", "cifar10_linear", {"svm": 84.64, "k1": 39.65}, **beside)
    cells = [*measured(result), (cell("b", "cifar10_linear", state="failed"), None)]
    found = sections(suite(tmp_path, [row("a"), row("b")], cells))
    assert list(found) == ["SVM: CIFAR-10 sample", "Low-shot SVM: CIFAR-10 sample"]
    one, other = found.values()
    assert line(one, "a") == ["feature4", "84.64 ± 0.50"]
    assert line(other, "a") == ["39.65 ± 0.50 (trials: std 0.52, n 5)", "–"]
    assert "trials" not in one
    assert "(trials: std, n): standard deviation over the n random draws whose mean each run reports" in other
    assert "over n seeds" not in other
    for text in found.values():
        assert line(text, "b") == ["–"] * 2
        assert (
            "selection: cost: cross-validation; seed 0." in text
            and "- Failed: b with `cifar10_linear`, seed 0." in text
        )


def test_a_modified_result_is_named_below_each_table_with_its_own_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, low = own_table("full", "SVM", Layer="best_layer", SVM="svm"), own_table("low", "Low-shot SVM", one="k1")
    beside = svm(full, low, monkeypatch=monkeypatch)
    result = record("a", "cifar10_linear", {"svm": 84.64, "k1": 39.65}, modified=("settings.eps=1",), **beside)
    one, other = sections(suite(tmp_path, [row("a")], measured(result))).values()
    assert "a with `--set settings.eps=1`: Layer feature4, SVM 84.64 ± 0.50." in one
    assert "a with `--set settings.eps=1`: one 39.65 ± 0.50 (trials: std 0.52, n 5)." in other


def test_a_column_that_no_record_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = svm(own_table("full", "SVM", Layer="best"), monkeypatch=monkeypatch)
    with pytest.raises(RecordError, match="expected a metric or label 'best'.*metrics: k1, svm; labels: best_layer"):
        suite(tmp_path, [row("a")], measured(record("a", "cifar10_linear", {"svm": 84.64, "k1": 39.65}, **beside)))


def test_benchmarks_that_read_the_same_images_in_other_roles_share_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts = {
        "cifar10_knn": given("cifar10_knn", own_table("both", "Both", kNN="top1_k20", Linear=None)),
        "cifar10_linear": given("cifar10_linear", own_table("both", "Both", kNN=None, Linear=AVGPOOL)),
    }
    monkeypatch.setattr(report.suite, "benchmark_layout", layouts.__getitem__)
    results = [record("a", "cifar10_knn", knn(1, 2, 3, 4)), record("a", "cifar10_linear", {AVGPOOL: 5.0})]
    assert {*results[0].datasets} != {*results[1].datasets}
    (text,) = sections(suite(tmp_path, [row("a")], measured(*results))).values()
    assert line(text, "a") == ["2.00 ± 0.50", "5.00 ± 0.50"]


def test_benchmarks_of_one_table_fill_their_own_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = benchmark_layout("cifar10_linear").tables[0]
    columns = dict.fromkeys(table.columns) | {"Feature5": AVGPOOL}
    heads = given("cifar10_linear", table.model_copy(update={"columns": columns}))
    layouts = {"cifar10_linear": benchmark_layout("cifar10_linear"), "mini_heads": heads}
    monkeypatch.setattr(report.suite, "benchmark_layout", layouts.__getitem__)
    five = record("a", "cifar10_linear", {AVGPOOL: 70.0}, cell_id="5" * 64)
    cells = measured(record("a", "cifar10_linear", {AVGPOOL: 80.0}))
    page = suite(tmp_path, [row("a")], [*cells, (cell("a", "mini_heads", five), five)])
    assert line(page, "a") == ["–", "–", "–", "–", "70.00 ± 0.50", "80.00 ± 0.50"]
    assert "Measured with `mini_heads` (Feature5): protocol 2" in page
    assert "No benchmark here fills Feature1, Feature2, Feature3, Feature4." in page


def test_failed_cells_are_named(tmp_path: Path) -> None:
    cells = [*measured(record("a", "mini_knn", knn(1, 2, 3, 4))), (cell("a", "cifar10_linear", state="failed"), None)]
    page = suite(tmp_path, [row("a")], cells)
    assert "- Failed: a with `cifar10_linear`, seed 0.\n" in page
    assert "1 of 2 cells (checkpoint × benchmark × seed) done; not done: 1 failed." in page


def test_equal_labels_are_told_apart(tmp_path: Path) -> None:
    results = [record(name, "mini_knn", knn(1, 2, 3, 4)) for name in ("key-1", "key-2")]
    page = suite(tmp_path, [row("key-1", label="same"), row("key-2", label="same")], measured(*results))
    assert "| same (key-1) " in page and "| same (key-2) " in page


def test_the_same_records_give_the_same_bytes_and_no_time_or_host(tmp_path: Path) -> None:
    results = [record(name, "cifar10_linear", {AVGPOOL: 80.0 + s}, seed=s) for name in "abc" for s in range(3)]
    results += [record(name, "mini_knn", knn(50, 51, 52, 53)) for name in "abc"]
    rows = [row(name) for name in "abc"]
    page = suite(tmp_path / "one", rows, measured(*results))
    later = [one.model_copy(update={"started": "2030-09-08T07:06:05+00:00", "seconds": 7.25}) for one in results]
    later = [one.model_copy(update={"environment": {"host": "another-host"}, "command": "x"}) for one in later]
    assert suite(tmp_path / "two", rows, measured(*later)) == page
    assert not re.search(r"host|20[23]\d|12\.5|tmp", page)
    random.Random(0).shuffle(later)
    by_cell = {(one.checkpoint.name, one.benchmark_config, one.seed): one for one in later}
    again = [by_cell[r.checkpoint.name, r.benchmark_config, r.seed] for r in reversed(results)]
    tables = sections(suite(tmp_path / "three", rows, measured(*again)))
    assert {heading: text.rstrip() for heading, text in tables.items()} == {
        heading: text.rstrip() for heading, text in sections(page).items()
    }


def test_records_of_other_pages_in_the_folder_are_not_read(tmp_path: Path) -> None:
    result = record("a", "mini_knn", knn(50, 51, 52, 53))
    page = suite(tmp_path, [row("a")], measured(result))
    (tmp_path / "records" / f"{'f' * 64}.json").write_text("not a record")
    assert suite_page(tmp_path, load_published()) == page
