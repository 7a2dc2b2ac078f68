"""F1 against bits per token, as SVG."""

import math
from collections.abc import Iterator
from html import escape

from stage1.reports.frontier import Frontier

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 430, 60, 20, 30, 50

BLUE, ORANGE, GREY = "#1f6fb4", "#d9730d", "#777777"


def draw(record: Frontier) -> str:
    """The points of a frontier, the text cut to as many bits, and what else the bits would buy."""
    return "\n".join(_lines(record)) + "\n"


def _lines(record: Frontier) -> Iterator[str]:
    bits = [*(point.bits_per_token for point in record.points), *record.marks.values()]
    low, high = math.log2(min(bits)) - 0.2, math.log2(max(bits)) + 0.2
    top = max([100.0, *(point.selection.f1 for point in record.points)])

    def x(value: float) -> float:
        return LEFT + (math.log2(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(f1: float) -> float:
        return HEIGHT - BOTTOM - f1 / top * (HEIGHT - TOP - BOTTOM)

    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="sans-serif" font-size="11">'
    )
    title = f"F1 against bits per token: {record.model}, {record.data}"
    yield f'<title>{escape(title)}</title><rect width="100%" height="100%" fill="white"/>'
    for tick in range(0, 101, 20):
        yield _line(LEFT, y(tick), WIDTH - RIGHT, y(tick), "#dddddd")
        yield _text(LEFT - 6, y(tick) + 4, str(tick), "end")
    for power in range(math.ceil(low), math.floor(high) + 1):
        yield _line(x(2**power), HEIGHT - BOTTOM, x(2**power), HEIGHT - BOTTOM + 4, "black")
        yield _text(x(2**power), HEIGHT - BOTTOM + 16, f"{2.0**power:g}", "middle")
    yield _text(WIDTH / 2, HEIGHT - 14, "bits per token", "middle")
    yield _text(LEFT, 16, "F1", "end")
    for number, (mark, value) in enumerate(sorted(record.marks.items(), key=lambda item: item[1])):
        yield _line(x(value), TOP, x(value), HEIGHT - BOTTOM, GREY, dashed=True)
        yield _text(x(value) + 3, HEIGHT - BOTTOM - 8 - 13 * (number % 3), mark, "start", GREY)
    asked = [(point, point.test or point.selection) for point in record.points]
    if asked:
        text = max((found for _, found in asked), key=lambda found: found.n).text_f1
        for f1, name in ((text, "text"), (record.keep * text, f"{100 * record.keep:g} % of it")):
            yield _line(LEFT, y(f1), WIDTH - RIGHT, y(f1), "black", dashed=f1 != text)
            yield _text(LEFT + 4, y(f1) + (-4 if f1 == text else 12), name, "start")
    path = " ".join(f"{x(point.bits_per_token):.1f},{y(found.truncated_f1):.1f}" for point, found in asked)
    yield f'<polyline points="{path}" fill="none" stroke="{ORANGE}"/>'
    for point, found in asked:
        at, costs = x(point.bits_per_token), f"{point.bits_per_token:.1f} bits per token"
        cut = [y(f1) for f1 in (found.truncated_f1_ci95[0], found.truncated_f1, found.truncated_f1_ci95[1])]
        ours = [y(f1) for f1 in (found.f1_ci95[0], found.f1, found.f1_ci95[1])]
        what = f"{point.run}: F1 {found.f1:.1f} of {found.n} questions, {costs}"
        yield _dot(at, cut, ORANGE, ORANGE, f"truncated: F1 {found.truncated_f1:.1f}, {costs}")
        yield _dot(at, ours, BLUE, BLUE if point.test else "white", what)
    for place, (colour, name) in enumerate(((BLUE, "bottleneck (filled: test)"), (ORANGE, "truncated"))):
        yield f'<circle cx="{LEFT + 90 + 170 * place}" cy="12" r="4" fill="{colour}"/>'
        yield _text(LEFT + 98 + 170 * place, 16, name, "start")
    yield "</svg>"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dash}/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str = "black") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _dot(x: float, heights: list[float], colour: str, fill: str, label: str) -> str:
    """A value between the ends of its interval; `label` is shown under the mouse."""
    low, middle, high = heights
    return (
        f'{_line(x, low, x, high, colour)}<circle cx="{x:.1f}" cy="{middle:.1f}" r="4" fill="{fill}" '
        f'stroke="{colour}"><title>{escape(label)}</title></circle>'
    )
