"""Tables are padded, labels are shown as they are, footnotes are numbered by first use."""

from report.markdown import Line, Table, code, counted, escape, render


def table(*lines: Line) -> Table:
    return Table(name="t", section="s", heading="h", columns=("Config", "k=1"), lines=lines, notes=("Percent.",))


def test_a_table_as_text() -> None:
    lines = (
        Line(label="first", footnote="said once", cells=("1.0",)),
        Line(label="second one", footnote=None, cells=("–",)),
        Line(label="third", footnote="said once", cells=("3.0",)),
        Line(label="4", footnote="another", cells=("4.0",)),
    )
    assert render(table(*lines)) == "\n".join(
        [
            "| Config     | k=1 |",
            "| ---------- | --- |",
            "| first ¹    | 1.0 |",
            "| second one | –   |",
            "| third ¹    | 3.0 |",
            "| 4 ²        | 4.0 |",
            "",
            "- Percent.",
            "- ¹ said once",
            "- ² another",
        ]
    )


def test_a_tenth_footnote_has_two_digits() -> None:
    lines = [Line(label="x", footnote=f"note {number}", cells=("1",)) for number in range(10)]
    assert "x ¹⁰" in render(table(*lines))


def test_a_label_cannot_break_the_table() -> None:
    assert escape("a|b\n*c* [d](e) <f>") == r"a\|b \*c\* \[d\](e) \<f\>"
    assert escape("resnet50_8xb32-coslr-100e") == "resnet50_8xb32-coslr-100e"


def test_code_may_hold_a_backtick() -> None:
    assert code("a`b") == "`` a`b ``"


def test_counts_agree_with_their_nouns() -> None:
    assert (counted(1, "cell"), counted(0, "cell"), counted(1200, "cell")) == ("1 cell", "0 cells", "1,200 cells")
