"""The share of the text F1 against bits per token, as SVG."""

import math
from collections.abc import Iterator
from html import escape

from stage1.reports.frontier import Frontier
from stage1.runs.results import Interval

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 430, 60, 20, 30, 50

HIGHEST = 1.1
"""Share at the figure's upper edge; intervals are cut there."""

BLUE, ORANGE, GREY = "#1f6fb4", "#d9730d", "#777777"


def draw(record: Frontier) -> str:
    """The points of a frontier, the text cut to as many bits, and what else the bits would buy.

    Shares are drawn, not F1: settings that were asked different numbers of questions then compare.
    """
    return "\n".join(_lines(record)) + "\n"


def _lines(record: Frontier) -> Iterator[str]:
    bits = [*(point.bits_per_token for point in record.points), *record.marks.values()]
    low, high = math.log2(min(bits)) - 0.2, math.log2(max(bits)) + 0.2
    floor = HEIGHT - BOTTOM

    def x(value: float) -> float:
        return LEFT + (math.log2(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(share: float) -> float:
        return floor - min(share, HIGHEST) / HIGHEST * (floor - TOP)

    def dot(at: float, share: float | None, ends: Interval | None, colour: str, fill: str, what: str) -> str:
        heights = [y(value) for value in (share or 0, *(ends or (share or 0, share or 0)))]
        return _dot(
            x(at), heights, colour, fill, f"{what}: {100 * (share or 0):.1f} %, {at:.1f} bits per token"
        )

    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="sans-serif" font-size="11">'
    )
    title = f"Share of the text F1 against bits per token: {record.model}, {record.data}"
    yield f'<title>{escape(title)}</title><rect width="100%" height="100%" fill="white"/>'
    for percent in range(0, 101, 20):
        yield _line(LEFT, y(percent / 100), WIDTH - RIGHT, y(percent / 100), "#dddddd")
        yield _text(LEFT - 6, y(percent / 100) + 4, f"{percent} %", "end")
    for power in range(math.ceil(low), math.floor(high) + 1):
        yield _line(x(2**power), floor, x(2**power), floor + 4, "black")
        yield _text(x(2**power), floor + 16, f"{2.0**power:g}", "middle")
    yield _text(WIDTH / 2, HEIGHT - 14, "bits per token", "middle")
    yield _text(14, 16, "of the text F1", "start")
    for number, (mark, value) in enumerate(sorted(record.marks.items(), key=lambda item: item[1])):
        yield _line(x(value), TOP, x(value), floor, GREY, dashed=True)
        last = number == len(record.marks) - 1
        place = x(value) + (-3 if last else 3)
        yield _text(place, floor - 8 - 13 * (number % 3), mark, "end" if last else "start", GREY)
    yield _line(LEFT, y(record.keep), WIDTH - RIGHT, y(record.keep), "black", dashed=True)
    yield _text(LEFT + 4, y(record.keep) + 12, f"{100 * record.keep:g} %", "start")
    asked = [(point, point.test or point.selection) for point in record.points]
    best = [(p, found) for p, found in asked if p.frontier]
    for colour, line in (
        (ORANGE, [(p.bits_per_token, found.truncated_share) for p, found in asked]),
        (BLUE, [(p.bits_per_token, found.share) for p, found in best]),
    ):
        path = " ".join(f"{x(at):.1f},{y(share or 0):.1f}" for at, share in line)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}"/>'
    for point, found in asked:
        at, fill = point.bits_per_token, BLUE if point.test else "white"
        yield dot(at, found.truncated_share, found.truncated_share_ci95, ORANGE, ORANGE, "truncated")
        what = f"{point.run}, {found.n} questions"
        yield dot(at, found.share, found.share_ci95, BLUE, fill, what)
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
    """A value with the ends of its interval; `label` is shown under the mouse."""
    middle, low, high = heights
    return (
        f'{_line(x, low, x, high, colour)}<circle cx="{x:.1f}" cy="{middle:.1f}" r="4" fill="{fill}" '
        f'stroke="{colour}"><title>{escape(label)}</title></circle>'
    )
