"""How is a picture of numbers drawn so that it needs no library, scales, prints, and follows light and dark?

As SVG text: colours are CSS classes of the page (`s0`…`s7`), positions have one decimal, so the same numbers give the
same bytes. A series is told by its colour and by the shape of its marks; every mark says its value in a <title>.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

COLOURS: Final = 8
SERIES: Final = 12  # more in one picture cannot be told apart
WIDTH: Final = 560
NARROW: Final = 320
HEIGHT: Final = 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 44
_SHAPES: Final = (  # around (0, 0)
    "M-3.5,0a3.5,3.5 0 1,0 7,0a3.5,3.5 0 1,0 -7,0z",
    "M-3.2,-3.2h6.4v6.4h-6.4z",
    "M0,-4.2L4,3.2H-4z",
    "M0,-4.6L4.2,0L0,4.6L-4.2,0z",
    "M0,4.2L4,-3.2H-4z",
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value, with the ends of its interval where there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line, or one kind of mark. number: its place among the picture's series, which gives colour and shape."""

    label: str
    number: int
    points: tuple[Point, ...]
    is_published: bool = False  # dashed, open marks


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A finished picture with its legend: (label, the mark as SVG) a series."""

    title: str
    svg: Markup
    legend: tuple[tuple[str, Markup], ...]
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """From values to places in the picture."""

    x0: float
    x1: float
    y0: float
    y1: float
    is_log: bool
    width: int

    def x(self, value: float) -> float:
        place = _log(value) if self.is_log else value
        low, high = (_log(self.x0), _log(self.x1)) if self.is_log else (self.x0, self.x1)
        return LEFT + (place - low) / (high - low) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)


def _log(value: float) -> float:
    return math.log2(value)


def lines(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    ticks: Sequence[float] = (),
    is_log: bool = False,
    has_marks: bool = True,
    level: float | None = None,
) -> Chart:
    """Curves: y against x, a band between the ends of the intervals. ticks: places on the x axis; none: round numbers.

    level: a dotted line across, where a healthy value lies. Series without a point are left out.
    """
    series = [each for each in series if each.points]
    xs = [point.x for each in series for point in each.points]
    width = WIDTH
    x0, x1 = _widened(min(xs), max(xs), share=0.0)
    if ticks:
        x0, x1 = (ticks[0] / 1.15, ticks[-1] * 1.15) if is_log else _widened(ticks[0], ticks[-1], share=0.03)
    frame = _Frame(x0=x0, x1=x1, is_log=is_log, width=width, **_heights(series, level))
    marks = [(value, _number(value)) for value in ticks or rounds(x0, x1)]
    parts = [*_axes(frame, marks, x_label, y_label)]
    if level is not None:
        y = frame.y(level)
        parts.append(Markup('<path class="level" d="M{},{}H{}"/>').format(LEFT, _at(y), width - RIGHT))
    parts += [_band(frame, each) for each in series if len(each.points) > 1]
    parts += [_curve(frame, each) for each in series if len(each.points) > 1]
    for each in series:
        if has_marks or len(each.points) == 1:
            parts += [_mark(frame.x(p.x), frame.y(p.y), each, p, f"{x_label} {_number(p.x)}") for p in each.points]
    return _chart(title, parts, series, width)


def dots(title: str, columns: Sequence[str], series: Sequence[Series], *, y_label: str) -> Chart:
    """Values by column, each with its interval; a point's x is its column's place. Series stand side by side."""
    series = [each for each in series if each.points]
    width = max(NARROW, LEFT + RIGHT + len(columns) * max(72, 14 * len(series)))
    frame = _Frame(x0=-0.5, x1=len(columns) - 0.5, is_log=False, width=width, **_heights(series, None))
    parts = [*_axes(frame, list(enumerate(columns)), "", y_label)]
    for place, each in enumerate(series):
        shift = (place - (len(series) - 1) / 2) * min(0.18, 0.8 / max(1, len(series)))
        for point in each.points:
            x = frame.x(point.x + shift)
            if point.low is not None and point.high is not None:
                ends = _at(x), _at(frame.y(point.low)), _at(frame.y(point.high))
                parts.append(Markup('<path class="bar {}" d="M{},{}V{}"/>').format(_class(each), *ends))
            parts.append(_mark(x, frame.y(point.y), each, point, columns[round(point.x)]))
    return _chart(title, parts, series, width)


def rounds(low: float, high: float, *, about: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, about so many: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _widened(low: float, high: float, *, share: float) -> tuple[float, float]:
    room = (high - low) * share
    return (low - room, high + room) if high > low else (low - 1, high + 1)


def _heights(series: Sequence[Series], level: float | None) -> dict[str, float]:
    values = [end for each in series for p in each.points for end in (p.y, p.low, p.high) if end is not None]
    values += [] if level is None else [level]
    y0, y1 = _widened(min(values), max(values), share=0.05)
    return {"y0": y0, "y1": y1}


def _axes(frame: _Frame, marks: Sequence[tuple[float, str]], x_label: str, y_label: str) -> list[Markup]:
    bottom, right = HEIGHT - BOTTOM, frame.width - RIGHT
    parts = [Markup('<path class="axis" d="M{},{}V{}H{}"/>').format(LEFT, TOP, bottom, right)]
    for value in rounds(frame.y0, frame.y1, about=5):
        y = _at(frame.y(value))
        parts.append(Markup('<path class="grid" d="M{},{}H{}"/>').format(LEFT, y, right))
        parts.append(Markup('<text class="end" x="{}" y="{}" dy=".35em">{}</text>').format(LEFT - 6, y, _number(value)))
    for value, text in marks:
        x = _at(frame.x(value))
        parts.append(Markup('<text class="mid" x="{}" y="{}">{}</text>').format(x, bottom + 16, text))
    middle = (TOP + bottom) // 2
    parts.append(Markup('<text class="mid" x="{}" y="{}">{}</text>').format((LEFT + right) // 2, HEIGHT - 8, x_label))
    turned = Markup('<text class="mid" transform="translate(12,{}) rotate(-90)">{}</text>')
    return [*parts, turned.format(middle, y_label)]


def _curve(frame: _Frame, series: Series) -> Markup:
    path = "L".join(f"{_at(frame.x(p.x))},{_at(frame.y(p.y))}" for p in series.points)
    return Markup('<path class="line {}" d="M{}"/>').format(_class(series), path)


def _band(frame: _Frame, series: Series) -> Markup:
    ends = [(p.x, p.low, p.high) for p in series.points if p.low is not None and p.high is not None]
    if len(ends) < 2:
        return Markup("")
    lower = [f"{_at(frame.x(x))},{_at(frame.y(low))}" for x, low, _ in ends]
    upper = [f"{_at(frame.x(x))},{_at(frame.y(high))}" for x, _, high in reversed(ends)]
    return Markup('<path class="band {}" d="M{}z"/>').format(_class(series), "L".join([*lower, *upper]))


def _mark(x: float, y: float, series: Series, point: Point, where: str) -> Markup:
    text = f"{series.label}, {where}: {_value(point.y)}"
    if point.low is not None and point.high is not None:
        text += f" [{_value(point.low)}, {_value(point.high)}]"
    shape = _SHAPES[series.number % len(_SHAPES)]
    return Markup('<path class="mark {}" transform="translate({},{})" d="{}"><title>{}</title></path>').format(
        _class(series), _at(x), _at(y), shape, text
    )


def _chart(title: str, parts: Sequence[Markup], series: Sequence[Series], width: int) -> Chart:
    svg = Markup(
        '<svg class="chart" viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">{}</svg>'
    ).format(
        width, HEIGHT, width, HEIGHT, f"{title}: {', '.join(each.label for each in series)}", Markup("").join(parts)
    )
    key = Markup(
        '<svg viewBox="-14 -6 28 12" width="28" height="12" aria-hidden="true"><path class="line {0}" d="M-13,0H13"/>'
        '<path class="mark {0}" d="{1}"/></svg>'
    )
    legend = [(each.label, key.format(_class(each), _SHAPES[each.number % len(_SHAPES)])) for each in series]
    return Chart(title=title, svg=svg, legend=tuple(legend))


def _class(series: Series) -> str:
    return f"s{series.number % COLOURS}" + (" published" if series.is_published else "")


def _at(place: float) -> str:
    return f"{place:.1f}".removesuffix(".0")


def _value(value: float) -> str:
    return f"{value:z.2f}"


def _number(value: float) -> str:
    """A tick: as short as it is exact."""
    text = f"{value:,.10g}"
    return "0" if text == "-0" else text.replace("-", "−")
