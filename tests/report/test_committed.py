"""The committed page holds published tables and results/, is reproduced exactly, and drift does not pass."""

import random
from pathlib import Path

import pytest

import report.committed
from report.committed import build_committed, committed_blocks, drift
from report.published import load_published
from tests.report.drawn import heads, knn, record, write_records
from zoo.benchmark import AnyBenchmark, TableConfig, benchmark_layout
from zoo.errors import ConfigError, RecordError
from zoo.files import ROOT
from zoo.record import ResultRecord

EMPTY = "# By hand\n\n<!-- generated: begin -->\n<!-- generated: end -->\n\nAlso by hand.\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository root with an empty page and no results."""
    (tmp_path / "RESULTS.md").write_text(EMPTY)
    return tmp_path


def page(root: Path) -> str:
    return committed_blocks(root, load_published())[""]


def test_the_repositorys_own_page_is_up_to_date() -> None:
    assert drift(ROOT, load_published()) == ""


def test_building_replaces_the_generated_text_only_and_is_stable(root: Path) -> None:
    assert build_committed(root, load_published()) == [root / "RESULTS.md"]
    text = (root / "RESULTS.md").read_text()
    assert text.startswith("# By hand\n\n<!-- generated: begin -->\n\n11 published tables from 4 sources")
    assert text.endswith("<!-- generated: end -->\n\nAlso by hand.\n")
    assert build_committed(root, load_published()) == []
    assert drift(root, load_published()) == ""


def test_without_results_the_published_tables_stand_alone_and_say_so(root: Path) -> None:
    text = page(root)
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings[:6] == [
        "## Classification",
        "### VOC SVM / Low-shot SVM",
        "### ImageNet Linear Evaluation",
        "### Places205 Linear Evaluation",
        "### ImageNet Nearest-Neighbor Classification",
        "## Detection",
    ]
    assert "Nothing measured here is recorded in results/ yet." in text
    assert "Published rows only: not measured here yet (`imagenet_knn`)." in text
    assert "Published rows only: no benchmark here fills this table." in text
    assert "reference repository's LARS" not in text
    assert "±" not in text


def test_results_on_imagenet_stand_beside_published_rows_and_substitutes_apart(root: Path) -> None:
    results = [
        record("ours", "imagenet_knn", knn(50, 51, 52, 53)),
        record("ours", "imagenet_linear", heads(68.5, reference=67.9)),
        record("ours", "mini_knn", knn(70, 71, 72, 73)),
    ]
    write_records(root / "results", results)
    blocks = committed_blocks(root, load_published())
    assert "resnet50_8xb32-coslr-100e" in blocks["imagenet_knn"]
    assert "50.0 ± 0.5" in blocks["imagenet_knn"] and "70.0" not in blocks["imagenet_knn"]
    assert "SimSiam, 100 epochs, batch 512" in blocks["imagenet_linear_reference"]
    assert "67.9 ± 0.5" in blocks["imagenet_linear_reference"]
    assert "report the best epoch on the validation images" in blocks["imagenet_linear_reference"]
    assert "70.0 ± 0.5" in blocks["imagenet_knn:mini_imagenet"]
    assert "resnet50_8xb32" not in blocks["imagenet_knn:mini_imagenet"]
    text = blocks[""]
    assert "3 results of 1 checkpoint (records in results/). 9 of the 12 hold published rows only." in text
    assert text.index("## Substitute datasets") > text.index("## Paper")


@pytest.mark.parametrize(
    ("section", "after", "before"),
    [
        ("Classification", "### ImageNet Nearest-Neighbor Classification", "## Detection"),
        ("Retrieval", "## Paper", "## Substitute datasets"),
        (None, "## Paper", "## Substitute datasets"),
    ],
)
def test_a_benchmarks_own_table_stands_in_the_section_it_names(
    root: Path, monkeypatch: pytest.MonkeyPatch, section: str | None, after: str, before: str
) -> None:
    def layout(name: str) -> AnyBenchmark:
        config = benchmark_layout(name)
        if name not in ("imagenet_knn", "mini_knn"):
            return config
        own = TableConfig(id="own", title="Own", section=section, metric="x", decimals=1, columns={"A": "top1_k20"})
        return config.model_copy(update={"tables": (*config.tables, own)})

    monkeypatch.setattr(report.committed, "benchmark_layout", layout)
    results = [record("ours", name, knn(50, 51, 52, 53)) for name in ("imagenet_knn", "mini_knn")]
    write_records(root / "results", results)
    blocks = committed_blocks(root, load_published())
    assert "51.0 ± 0.5" in blocks["own:imagenet"] and "not comparable" not in blocks["own:imagenet"]
    assert "51.0 ± 0.5" in blocks["own:mini_imagenet"] and "not comparable" in blocks["own:mini_imagenet"]
    headings = [line for line in blocks[""].splitlines() if line.startswith("#")]
    at = headings.index("### Own: ImageNet")
    assert headings.index(after) < at < headings.index(before)
    assert [line for line in headings[:at] if line.startswith("## ")][-1] == f"## {section or 'Further datasets'}"
    assert headings[-3:] == [
        "## Substitute datasets",
        "### ImageNet Nearest-Neighbor Classification: mini ImageNet (embedded digits)",
        "### Own: mini ImageNet (embedded digits)",
    ]
    assert len({line for line in headings if line.startswith("## ")}) == sum(
        line.startswith("## ") for line in headings
    )
    assert "2 results of 1 checkpoint (records in results/). 10 of the 11 hold published rows only." in blocks[""]


def test_the_order_of_files_does_not_matter(root: Path) -> None:
    results = [record(name, "imagenet_knn", knn(50, 51, 52, 53)) for name in "cab"]
    results += [record("a", "imagenet_linear", heads(60.0 + s), seed=s) for s in range(3)]
    write_records(root / "results", results)
    text = page(root)
    for path in (root / "results").glob("*.json"):
        path.unlink()
    random.Random(1).shuffle(results)
    write_records(root / "results", results)
    assert page(root) == text
    assert "61.00 ± 0.50 (std 1.00, n 3)" in text


def test_the_same_weights_under_two_names_are_one_row(root: Path) -> None:
    first = record("a", "imagenet_knn", knn(50, 51, 52, 53))
    other = record("a", "imagenet_linear", heads(60.0))
    renamed = other.model_copy(update={"checkpoint": other.checkpoint.model_copy(update={"name": "b"})})
    write_records(root / "results", [first, renamed])
    blocks = committed_blocks(root, load_published())
    assert "| a " in blocks["imagenet_knn"] and "| a " in blocks["imagenet_linear"]


def test_two_checkpoints_of_one_name_are_told_apart(root: Path) -> None:
    one, other = record("a", "imagenet_knn", knn(50, 51, 52, 53)), record("b", "imagenet_knn", knn(60, 61, 62, 63))
    renamed = other.model_copy(update={"checkpoint": other.checkpoint.model_copy(update={"name": "a"})})
    write_records(root / "results", [one, renamed])
    block = committed_blocks(root, load_published())["imagenet_knn"]
    assert block.count("| a (") == 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (record("a", "imagenet_knn", knn(1, 2, 3, 4), modified=("settings.temperature=1.0",)), "modified"),
        (record("a", "imagenet_knn", knn(1, 2, 3, 4), protocol=99), "stale (protocol was 99, is now 1)"),
        (record("a", "imagenet_knn", knn(1, 2, 3, 4), benchmark_config="gone"), "found 'gone'"),
    ],
)
def test_an_unfit_record_is_refused_and_named(root: Path, bad: ResultRecord, message: str) -> None:
    write_records(root / "results", [bad])
    for call in (drift, build_committed):
        with pytest.raises(RecordError, match=f"{bad.cell_id}.json") as caught:
            call(root, load_published())
        assert message in str(caught.value)
    assert (root / "RESULTS.md").read_text() == EMPTY


def test_an_unreadable_record_is_refused_and_named(root: Path) -> None:
    (root / "results").mkdir()
    (root / "results" / f"{'a' * 64}.json").write_text("{}")
    with pytest.raises(RecordError, match=f"{'a' * 64}.json: not a readable result record"):
        drift(root, load_published())


def test_drift_is_shown_as_a_diff_of_the_file(root: Path) -> None:
    build_committed(root, load_published())
    text = (root / "RESULTS.md").read_text()
    (root / "RESULTS.md").write_text(text.replace("| 57.6 |", "| 57.9 |"))
    difference = drift(root, load_published())
    assert difference.startswith("--- RESULTS.md (committed)\n+++ RESULTS.md (regenerated)\n")
    assert "| 57.9 |" in next(line for line in difference.splitlines() if line.startswith("-|"))
    assert "| 57.6 |" in next(line for line in difference.splitlines() if line.startswith("+|"))


def test_the_readmes_blocks_are_filled_and_checked_too(root: Path) -> None:
    build_committed(root, load_published())
    readme = root / "README.md"
    readme.write_text("# Read me\n\n<!-- generated:imagenet_knn begin -->\n<!-- generated:imagenet_knn end -->\n")
    assert "+++ README.md (regenerated)" in drift(root, load_published())
    assert build_committed(root, load_published()) == [readme]
    assert "| 57.4 | 57.6 | 55.8  | 54.2  |" in readme.read_text()
    assert drift(root, load_published()) == ""


def test_a_readme_without_markers_is_left_alone(root: Path) -> None:
    (root / "README.md").write_text("# Read me\n")
    assert build_committed(root, load_published()) == [root / "RESULTS.md"]


@pytest.mark.parametrize(("text", "found"), [(None, "no such file"), ("# By hand\n", "no such lines")])
def test_a_page_without_markers_is_an_error_that_gives_them(root: Path, text: str | None, found: str) -> None:
    (root / "RESULTS.md").unlink()
    if text is not None:
        (root / "RESULTS.md").write_text(text)
    with pytest.raises(ConfigError, match=f"<!-- generated: begin --> and <!-- generated: end -->.*{found}"):
        build_committed(root, load_published())
