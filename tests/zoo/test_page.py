"""page.json, what a suite tells the report."""

from pathlib import Path

import pytest

from zoo.errors import RecordError
from zoo.page import PAGE_NAME, Page, PageCell, PageRow, read_page, write_page

PAGE = Page(
    suite="mini",
    rows=(PageRow(key="a", label="größer", state="collapsed", note="collapsed, stopped at step 120"),),
    benchmarks=("mini_knn",),
    cells=(PageCell(row="a", benchmark="mini_knn", seed=0, cell_id=None, state="skipped"),),
)


def test_a_written_page_is_read_back_equal(tmp_path: Path) -> None:
    write_page(tmp_path, PAGE)
    assert read_page(tmp_path) == PAGE


def test_a_folder_without_a_page_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        RecordError, match=f"{PAGE_NAME}: no such file; expected a folder that `python -m evaluate suite`"
    ):
        read_page(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", '{"suite": 1}'])
def test_a_malformed_page_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / PAGE_NAME).write_text(content)
    with pytest.raises(RecordError, match=f"{PAGE_NAME}: malformed .*run the suite again"):
        read_page(tmp_path)
