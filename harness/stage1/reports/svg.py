"""Figures as SVG, drawn without a library: two kinds, points over two axes and intervals in rows.

The markup is built as a tree, which escapes what others wrote; how it looks is said in `figure.css`, so that
one drawing serves light, dark and printed pages, and a file of its own (`standalone`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement, tostring

from stage1.text import one_line, visible, visible_lines

STYLE = (Path(__file__).parent / "html" / "templates" / "figure.css").read_text(encoding="utf-8")
COLOURS = 8
"""Series after which colours repeat; every other one is dashed, too."""

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760.0, 56.0, 240.0, 16.0, 46.0
ROW = 30.0
"""Pixels of a row of `intervals`."""

LABELS = 240.0
"""Pixels for the names of the rows of `intervals`."""


class Point(NamedTuple):
    """A measurement at a place."""

    x: float
    y: float
    interval: Sequence[float] = ()  # of y: low, high
    says: str = ""  # shown by the browser when one points at it
    href: str = ""


class Series(NamedTuple):
    """Points that belong together, in the order of the line through them."""

    name: str
    points: Sequence[Point]
    line: bool = True
    dots: bool = True


class Bar(NamedTuple):
    """One row of `intervals`: a value from zero on, its interval where there is one."""

    name: str
    value: float
    interval: Sequence[float] = ()  # low, high
    strong: bool = False


class _Axis:
    """Numbers → pixels."""

    def __init__(self, low: float, high: float, start: float, end: float, *, log: bool = False) -> None:
        self.log = log
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - 1, high + 1)
        self.low, self.high, self.start, self.end = low, high, start, end

    def at(self, value: float) -> float:
        here, low, high = (math.log(v) if self.log else v for v in (value, self.low, self.high))
        return self.start + (here - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> Iterator[float]:
        """Round numbers, five or so."""
        if self.log:
            yield from _round_in_log(self.low, self.high)
            return
        step = _round_step((self.high - self.low) / 5)
        for number in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1):
            yield number * step


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= rough)


def _round_in_log(low: float, high: float) -> list[float]:
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [
        [t * 10.0**k for k in tens for t in times if low * 0.999 <= t * 10.0**k <= high * 1.001]
        for times in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7))
    ]
    return next((ticks for ticks in inside if len(ticks) >= 4), inside[-1])


def plot(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    y_range: tuple[float, float] | None = None,
    levels: Mapping[str, float] | None = None,
    marks: Mapping[str, float] | None = None,
    height: float = 340.0,
) -> Element:
    """Points, their intervals and the lines through them, over two axes.

    Args:
        title: what a screen reader says of it.
        series: what is drawn, at least one point; on an axis that is logarithmic, positive.
        x_label: name and unit of the x axis.
        y_label: of the y axis.
        log_x: whether x is logarithmic.
        log_y: likewise.
        y_range: the ends of the y axis; None: what there is.
        levels: name → height of a line from side to side.
        marks: name → place of a line from top to bottom.
        height: in pixels; the width is always 760.
    """
    levels, marks = levels or {}, marks or {}
    points = [point for one in series for point in one.points]
    xs = [*(point.x for point in points), *marks.values()]
    ys = [value for point in points for value in (point.y, *point.interval)] + list(levels.values())
    low, high = y_range or (min(ys), max(ys))
    x_axis = _Axis(min(xs), max(xs), LEFT + 14, WIDTH - RIGHT - 14, log=log_x)
    y_axis = _Axis(low, high, height - BOTTOM, TOP, log=log_y)
    figure = _figure(title, height)
    _frame(figure, x_axis, y_axis, x_label, y_label, height)
    for name, level in levels.items():
        y = y_axis.at(level)
        _line(figure, "level", LEFT, y, WIDTH - RIGHT, y)
        _text(figure, name, WIDTH - RIGHT - 4, y - 4, "end")
    for number, (name, value) in enumerate(sorted(marks.items(), key=lambda item: item[1])):
        x = x_axis.at(value)
        _line(figure, "level", x, TOP, x, height - BOTTOM)
        left = x < (LEFT + WIDTH - RIGHT) / 2
        place, anchor = (x + 4, "start") if left else (x - 4, "end")
        _text(figure, name, place, height - BOTTOM - 8 - 14 * (number % 3), anchor)
    for number, one in enumerate(series):
        _series(figure, number, one, x_axis, y_axis)
    return figure


def _frame(figure: Element, x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str, height: float) -> None:
    bottom, right = height - BOTTOM, WIDTH - RIGHT
    for value in y_axis.ticks():
        y = y_axis.at(value)
        _line(figure, "grid", LEFT, y, right, y)
        _text(figure, f"{value:g}", LEFT - 6, y + 4, "end")
    for value in x_axis.ticks():
        x = x_axis.at(value)
        _line(figure, "tick", x, bottom, x, bottom + 4)
        _text(figure, f"{value:g}", x, bottom + 17, "middle")
    _line(figure, "axis", LEFT, bottom, right, bottom)
    _text(figure, x_label, (LEFT + right) / 2, height - 8, "middle")
    middle = (TOP + bottom) / 2
    label = _text(figure, y_label, 14, middle, "middle")
    label.set("transform", f"rotate(-90 14 {middle:.1f})")


def _series(figure: Element, number: int, one: Series, x_axis: _Axis, y_axis: _Axis) -> None:
    dashed = " dashed" if number % 2 else ""
    group = SubElement(figure, "g", {"class": f"s{number % COLOURS}"})
    places = [(x_axis.at(point.x), y_axis.at(point.y)) for point in one.points]
    if one.line and len(places) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        SubElement(group, "polyline", {"class": f"line{dashed}", "points": path})
    for point, (x, y) in zip(one.points, places, strict=True):
        if point.interval:
            _interval(group, x, *map(y_axis.at, point.interval))
        if one.dots:
            _dot(group, point, x, y)
    y = TOP + 10 + 18 * number
    left = WIDTH - RIGHT + 12
    _line(group, f"line{dashed}", left, y - 4, left + 22, y - 4)
    _text(figure, one_line(one.name, 30), left + 28, y, "start")


def _interval(group: Element, x: float, low: float, high: float) -> None:
    _line(group, "interval", x, low, x, high)
    for y in (low, high):
        _line(group, "interval", x - 3, y, x + 3, y)


def _dot(group: Element, point: Point, x: float, y: float) -> None:
    parent = SubElement(group, "a", {"href": point.href}) if point.href else group
    dot = SubElement(parent, "circle", {"class": "dot", "cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "4"})
    if point.says:
        SubElement(dot, "title").text = visible_lines(point.says)


def intervals(
    title: str, rows: Sequence[Bar], x_label: str, *, log: bool = False, high: float = 0
) -> Element:
    """A bar for each row from the left end, with its interval and number; `log` begins below the smallest.

    `high` is what the axis reaches at least.
    """
    most = max([high, *(value for bar in rows for value in (bar.value, *bar.interval))])
    least = min(bar.value for bar in rows) / 2 if log else 0.0
    height = TOP + ROW * len(rows) + BOTTOM
    axis = _Axis(least, most, LABELS, WIDTH - 150, log=log)
    figure = _figure(title, height)
    for value in axis.ticks():
        x = axis.at(value)
        _line(figure, "grid", x, TOP, x, height - BOTTOM)
        _text(figure, f"{value:g}", x, height - BOTTOM + 17, "middle")
    for number, bar in enumerate(rows):
        middle = TOP + ROW * (number + 0.5)
        group = SubElement(figure, "g", {"class": "s0" if bar.strong else "s7"})
        end = max(axis.at(bar.value), LABELS)
        box = {"x": f"{LABELS:g}", "y": f"{middle - 8:.1f}", "width": f"{end - LABELS:.1f}", "height": "16"}
        SubElement(group, "rect", {"class": "bar", **box})
        if bar.interval:
            low, high = map(axis.at, bar.interval)
            _line(group, "interval", low, middle, high, middle)
            end = max(end, high)
        _text(figure, one_line(bar.name, 38), LABELS - 8, middle + 4, "end")
        _text(figure, f"{bar.value:.1f}", end + 6, middle + 4, "start")
    _text(figure, x_label, (LABELS + WIDTH - 150) / 2, height - 8, "middle")
    return figure


def _figure(title: str, height: float) -> Element:
    named = {
        "xmlns": "http://www.w3.org/2000/svg",
        "role": "img",
        "class": "figure",
        "viewBox": f"0 0 {WIDTH:g} {height:g}",
        "aria-label": visible(title),
    }
    figure = Element("svg", named)
    SubElement(figure, "rect", {"class": "paper", "width": f"{WIDTH:g}", "height": f"{height:g}"})
    return figure


def _line(parent: Element, kind: str, x1: float, y1: float, x2: float, y2: float) -> None:
    ends = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    SubElement(parent, "line", {"class": kind, **ends})


def _text(parent: Element, text: str, x: float, y: float, anchor: str) -> Element:
    element = SubElement(parent, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor})
    element.text = one_line(text)
    return element


def inline(figure: Element) -> str:
    """The figure as a part of a page that has `figure.css`."""
    return tostring(figure, encoding="unicode")


def standalone(figure: Element) -> bytes:
    """The figure as a file of its own, on white."""
    style = Element("style")
    style.text = STYLE
    figure.insert(0, style)
    return f"{inline(figure)}\n".encode()
