"""A suite's page is written whole, or an error says which record cannot be used."""

from pathlib import Path

import pytest

from report.published import load_published
from report.suite import build_suite, suite_page
from tests.report.drawn import knn, measured, record, row, suite
from zoo.errors import RecordError


def test_the_page_is_written_into_the_suites_folder(tmp_path: Path) -> None:
    page = suite(tmp_path, [row("a")], measured(record("a", "mini_knn", knn(50, 51, 52, 53))))
    assert build_suite(tmp_path, load_published()) == tmp_path / "RESULTS.md"
    assert (tmp_path / "RESULTS.md").read_text() == page


def test_unreadable_records_are_all_named_and_the_old_page_stays(tmp_path: Path) -> None:
    results = [record(name, "mini_knn", knn(50, 51, 52, 53)) for name in "abc"]
    suite(tmp_path, [row(name) for name in "abc"], measured(*results))
    build_suite(tmp_path, load_published())
    before = (tmp_path / "RESULTS.md").read_bytes()
    bad = [tmp_path / "records" / f"{result.cell_id}.json" for result in results[:2]]
    bad[0].write_text("{")
    bad[1].write_bytes(b"\xff")
    with pytest.raises(RecordError) as caught:
        build_suite(tmp_path, load_published())
    assert all(str(path) in str(caught.value) for path in bad)
    assert (tmp_path / "RESULTS.md").read_bytes() == before


def test_a_record_called_done_that_is_gone_is_an_error(tmp_path: Path) -> None:
    result = record("a", "mini_knn", knn(50, 51, 52, 53))
    suite(tmp_path, [row("a")], measured(result))
    (tmp_path / "records" / f"{result.cell_id}.json").unlink()
    with pytest.raises(RecordError, match=f"{result.cell_id}.json: no such file, though page.json calls it done"):
        suite_page(tmp_path, load_published())


def test_a_folder_without_a_page_is_an_error_that_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="expected a folder that `python -m evaluate suite` wrote"):
        suite_page(tmp_path, load_published())
