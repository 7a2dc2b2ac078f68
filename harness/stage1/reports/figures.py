"""Which figures are drawn of results: for reports, model cards and the documentation alike."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from stage1.reports.frontier import Frontier
from stage1.reports.report import ROWS
from stage1.reports.svg import Bar, Point, Series, intervals, plot

MOST_POINTS = 200
"""Points of a curve that are drawn; more cannot be told apart."""

F1_CURVE = "F1 on the selection split"


def rows(results: Mapping[str, Any]) -> Element:
    """F1 of every row, with its interval."""
    meanings = {row["row"]: ROWS.get(row["row"], "").rpartition(": ")[2] for row in results["rows"]}
    bars = [_bar(row, f"{row['row']}: {meanings[row['row']]}") for row in results["rows"]]
    return intervals("F1 of every row, with its 95 % interval", bars, "F1", high=100)


def stages(results: Mapping[str, Any], names: Sequence[str]) -> Element:
    """F1 on its way through `names`."""
    found = {row["row"]: row for row in results["rows"]}
    bars = [_bar(found[name], name) for name in names if name in found]
    return intervals("Where F1 goes: from stage to stage", bars, "F1", high=100)


def _bar(row: Mapping[str, Any], name: str) -> Bar:
    return Bar(name, row["f1"], row["f1_ci95"], strong=row["row"] == "bottleneck")


def marks(rate: Mapping[str, float], gzip_bits: float | None) -> dict[str, float]:
    """Bits per token of the bottleneck and of other ways to send the prompt, the smallest first."""
    bits = rate["bits_per_token"]
    found = {
        "this bottleneck": bits,
        "token ids, log2 V": bits * rate["vs_token_ids"],
        "UTF-8 text": bits * rate["vs_text"],
        "bf16 embeddings": bits * rate["vs_bf16"],
    }
    if gzip_bits is not None:
        found["gzip of the text"] = gzip_bits
    return dict(sorted(found.items(), key=lambda item: item[1]))


def rate_card(found: Mapping[str, float]) -> Element:
    """`marks` as a figure."""
    bars = [Bar(name, bits, strong=name == "this bottleneck") for name, bits in found.items()]
    return intervals("Bits per token", bars, "bits per token (logarithmic)", log=True)


def curves(metrics: Sequence[Mapping[str, Any]]) -> dict[str, list[Series]]:
    """Title → the curves of a training: the loss and its terms, what chose the checkpoint, F1, the rate."""
    lines = {
        "Loss and its terms in training": dict(_loss(metrics)),
        "On the selection split": dict(_selection(metrics)),
        F1_CURVE: {"F1": _numbers(metrics, "selection", "f1")},
        "Learning rate": {"learning rate": _numbers(metrics, "lr")},
    }
    return _drawn(lines)


def side_by_side(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[Series]]:
    """Title → a curve for each of several runs, by its name and log: what chose its checkpoint, and F1."""
    keys = {"Selection score": "score", F1_CURVE: "f1"}
    return _drawn(
        {
            title: {name: _numbers(log, "selection", key) for name, log in runs.items()}
            for title, key in keys.items()
        }
    )


def _drawn(lines: Mapping[str, Mapping[str, list[Point]]]) -> dict[str, list[Series]]:
    """Title → name → points as series; a curve takes two points."""
    found = {
        title: [Series(name, _thinned(p), dots=len(p) < 30) for name, p in named.items() if len(p) > 1]
        for title, named in lines.items()
    }
    return {title: series for title, series in found.items() if series}


def curve(title: str, series: Sequence[Series]) -> Element:
    """One of `curves` as a figure, logarithmic where it falls far."""
    f1, values = title == F1_CURVE, [point.y for one in series for point in one.points]
    falls_far = not f1 and min(values) > 0 and max(values) / min(values) > 20
    ends = (0.0, 100.0) if f1 else None
    return plot(title, series, "step", "F1" if f1 else "value", log_y=falls_far, y_range=ends, height=260)


def _loss(metrics: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Point]]]:
    yield "loss", _numbers(metrics, "loss")
    for term in dict.fromkeys(name for entry in metrics for name in entry.get("terms", ())):
        yield term, _numbers(metrics, "terms", term, "value")


def _selection(metrics: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Point]]]:
    for name in ("score", "objective", "recon"):
        yield name, _numbers(metrics, "selection", name)
    terms = dict.fromkeys(n for entry in metrics for n in entry.get("selection", {}).get("terms", ()))
    for term in terms:
        if term != "recon":
            yield f"term {term}", _numbers(metrics, "selection", "terms", term)


def _numbers(metrics: Sequence[Mapping[str, Any]], *path: str) -> list[Point]:
    """The finite numbers at `path` in the log, by step."""
    points = []
    for entry in metrics:
        value: Any = entry
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, int | float) and math.isfinite(value):
            points.append(Point(entry["step"], float(value)))
    return points


def _thinned(points: list[Point]) -> list[Point]:
    """At most `MOST_POINTS` of them, the last among them."""
    every = math.ceil(len(points) / MOST_POINTS)
    return points if every < 2 else [*points[:-1:every], points[-1]]


def f1_against_bits(measured: Iterable[tuple[str, Point]], levels: Mapping[str, float]) -> Element:
    """F1 against bits per token: each point by the name of its line.

    A point is a run, or the average of runs that differ in their seed; `levels` are rows that do not depend
    on bits.
    """
    lines: dict[str, list[Point]] = {}
    for name, point in sorted(measured, key=lambda one: one[1].x):
        lines.setdefault(name, []).append(point)
    return plot(
        "F1 against bits per token, with 95 % intervals",
        [Series(name, points) for name, points in lines.items()],
        "bits per token (logarithmic)",
        "F1",
        log_x=True,
        y_range=(0, 100),
        levels=levels,
        height=max(360, 60 + 18 * len(lines)),
    )


HIGHEST = 110.0
"""Per cent at the upper edge of `frontier`; intervals are cut there."""


def frontier(record: Frontier) -> Element:
    """Share of the text F1 against bits per token, beside the text cut to as many bits.

    Shares are drawn, not F1: settings that were asked different numbers of questions then compare.
    """

    def point(bits: float, share: float | None, ends: Sequence[float] | None, says: str) -> Point:
        interval = [min(100 * end, HIGHEST) for end in ends or ()]
        return Point(bits, min(100 * (share or 0.0), HIGHEST), interval, f"{says}, {bits:.1f} bits per token")

    lines: dict[str, list[Point]] = {"on the frontier": [], "other settings": [], "truncated text": []}
    for one in record.points:
        found, bits = one.test or one.selection, one.bits_per_token
        says = f"{one.run}, {found.n} {'test' if one.test else 'selection'} questions"
        name = "on the frontier" if one.frontier else "other settings"
        lines[name].append(point(bits, found.share, found.share_ci95, says))
        cut = point(bits, found.truncated_share, found.truncated_share_ci95, "truncated")
        lines["truncated text"].append(cut)
    return plot(
        f"Share of the text F1 against bits per token: {record.model}, {record.data}",
        [Series(name, points, line=name != "other settings") for name, points in lines.items() if points],
        "bits per token (logarithmic)",
        "% of the text F1",
        log_x=True,
        y_range=(0, HIGHEST),
        levels={f"{100 * record.keep:g} %": 100 * record.keep},
        marks=record.marks,
        height=400,
    )
