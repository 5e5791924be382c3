"""Pictures of numbers: marks lie where their values are, and the picture says what it shows without its colours."""

import re
from xml.etree import ElementTree

import pytest

from report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Point, Series, dots, lines, rounds


def marks(svg: str) -> list[tuple[float, float, str]]:
    """(x, y, what it says) of every mark. The SVG must be well-formed XML."""
    root = ElementTree.fromstring(svg)
    found: list[tuple[float, float, str]] = []
    for path in root.iter("path"):
        place = re.fullmatch(r"translate\((.+),(.+)\)", path.get("transform", ""))
        if place:
            found.append((float(place[1]), float(place[2]), path.findtext("title", "")))
    return found


def series(*points: tuple[float, float], label: str = "a", number: int = 0, half: float | None = None) -> Series:
    ends = [(None, None) if half is None else (y - half, y + half) for _, y in points]
    made = [Point(x=x, y=y, low=low, high=high) for (x, y), (low, high) in zip(points, ends, strict=True)]
    return Series(label=label, number=number, points=tuple(made))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (31.2, 46.9, [35, 40, 45]),
        (0, 120_000, [0, 20_000, 40_000, 60_000, 80_000, 100_000, 120_000]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert rounds(low, high) == pytest.approx(expected)
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in rounds(low, high))


def test_a_doubling_of_k_is_the_same_step_everywhere() -> None:
    drawn = lines(
        "t", [series((1, 1), (2, 2), (4, 3), half=0.1)], x_label="k", y_label="y", ticks=[1, 2, 4], is_log=True
    )
    x = [place for place, _, _ in marks(drawn.svg)]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    assert [text for *_, text in marks(drawn.svg)] == [
        "a, k 1: 1.00 [0.90, 1.10]",
        "a, k 2: 2.00 [1.90, 2.10]",
        "a, k 4: 3.00 [2.90, 3.10]",
    ]
    assert drawn.svg.count('class="band s0"') == 1


def test_larger_is_higher_and_all_is_inside_the_frame() -> None:
    drawn = lines("t", [series((0, -1), (10, 5)), series((0, 7), label="b", number=1)], x_label="x", y_label="y")
    places = marks(drawn.svg)
    assert places[0][1] > places[1][1] > places[2][1]
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y, _ in places)


def test_columns_stand_apart_and_rows_side_by_side_with_their_intervals() -> None:
    drawn = dots("t", ["A", "B"], [series((0, 1), (1, 2), half=0.5), series((0, 1), label="b", number=1)], y_label="y")
    (a0, _, _), (a1, _, _), (b0, _, text) = marks(drawn.svg)
    assert a0 < b0 < a1 and text == "b, A: 1.00"
    assert drawn.svg.count('class="bar s0"') == 2
    assert [label for label, _ in drawn.legend] == ["a", "b"]


def test_a_single_value_and_equal_values_can_be_drawn() -> None:
    assert len(marks(lines("t", [series((3, 4))], x_label="x", y_label="y").svg)) == 1
    assert len(marks(lines("t", [series((1, 4), (2, 4))], x_label="x", y_label="y", level=4).svg)) == 2


def test_labels_cannot_become_tags() -> None:
    svg = lines("<b>", [series((1, 1), label="</svg><script>")], x_label="x", y_label="y").svg
    assert "<script>" not in svg and marks(svg)[0][2].startswith("</svg><script>")
