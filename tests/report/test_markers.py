"""Only what stands between markers is replaced; wrong markers are named with their lines."""

import pytest

from report.markers import fill, names
from zoo.errors import ConfigError

BLOCKS = {"": "PAGE", "knn": "| a |\n| - |"}
TEXT = "# Title\n\n<!-- generated: begin -->\nold\nolder\n<!-- generated: end -->\n\nby hand, no break at the end"


def test_text_outside_the_markers_is_kept_byte_for_byte() -> None:
    filled = fill(TEXT, BLOCKS, where="X.md")
    assert filled == (
        "# Title\n\n<!-- generated: begin -->\n\nPAGE\n\n<!-- generated: end -->\n\nby hand, no break at the end"
    )


def test_filling_twice_changes_nothing() -> None:
    once = fill(TEXT, BLOCKS, where="X.md")
    assert fill(once, BLOCKS, where="X.md") == once


def test_named_blocks_stand_beside_each_other() -> None:
    text = "<!-- generated:knn begin -->\n<!-- generated:knn end -->\nx\n" + TEXT
    assert names(text) == {"", "knn"}
    assert fill(text, BLOCKS, where="X.md").startswith(
        "<!-- generated:knn begin -->\n\n| a |\n| - |\n\n<!-- generated:knn"
    )


def test_a_marker_inside_a_line_is_text() -> None:
    text = "write `<!-- generated: begin -->` into the file\n"
    assert names(text) == set()
    assert fill(text, BLOCKS, where="X.md") == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n<!-- generated: begin -->\n", "line 2: <!-- generated: begin --> without its end"),
        ("<!-- generated: end -->\n", "line 1: <!-- generated: end --> without its begin"),
        ("<!-- generated:a begin -->\n<!-- generated:a end -->\n", "line 1: no block 'a'; there are: knn"),
        ("<!-- generated: begin -->\n<!-- generated:knn end -->\n", "without its begin"),
        ("<!-- generated: begin -->\n<!-- generated:knn begin -->\n", "inside the block begun on line 1"),
    ],
)
def test_wrong_markers_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match="X.md: the markers") as caught:
        fill(text, BLOCKS, where="X.md")
    assert message in str(caught.value)
