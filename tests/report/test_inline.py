"""The tables' Markdown as HTML: as CommonMark reads it, and nothing that a label holds becomes a tag."""

import pytest
from markdown_it import MarkdownIt

from report.inline import html, plain
from report.markdown import code, escape
from report.published import load_published

NASTY = "<script>alert('x')</script> & \"quotes\" [a](b) *b* `c` \\d | **e**"


@pytest.mark.parametrize(
    "markdown",
    [
        "57.4 ± 0.4 (std 0.2, n 3)",
        "**57.4** ± 0.4",
        "a < b & c > d",
        "*differs* (beyond noise)",
        "[page](https://example.org/a_b?x=1) and **bold [link](https://example.org) and `code`**",
        "`k=1` and `` a`b `` and ` x `",
        r"\[not a link\](x) \*not bold\* \\ \| \<b\>",
        code("--set settings.norm_eps=1e-4"),
        code("a `tick`"),
        escape(NASTY),
        "**not closed, [nor this](, nor `this",
    ],
)
def test_it_reads_as_commonmark_does(markdown: str) -> None:
    reference = MarkdownIt("commonmark", {"html": False}).renderInline(markdown)
    assert str(html(markdown)).replace("&#34;", "&quot;").replace("&#39;", "'") == reference


def test_every_published_note_reads_as_commonmark_does() -> None:
    published = load_published()
    notes = [note for table in published.tables.values() for note in table.notes]
    reference = MarkdownIt("commonmark", {"html": False})
    assert [str(html(note)).replace("&#34;", "&quot;").replace("&#39;", "'") for note in notes] == list(
        map(reference.renderInline, notes)
    )


def test_the_words_of_an_escaped_text_are_the_text() -> None:
    assert plain(escape(NASTY)) == NASTY
    assert "<script>" not in html(NASTY)


@pytest.mark.parametrize("address", ["javascript:alert(1)", "data:text/html,x", "file:///etc/passwd", "//host"])
def test_an_address_that_a_page_must_not_follow_is_left_out(address: str) -> None:
    assert html(f"[text]({address})") == "text"
