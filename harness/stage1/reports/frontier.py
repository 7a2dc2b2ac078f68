"""What `stage1 frontier` found: its record, its table, and what it says in words."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from rich.table import Table

from stage1.config import format_setting
from stage1.reports.report import columns
from stage1.runs.results import Interval


class Measured(BaseModel):
    """A setting's answers to some questions, beside those to the text and to the text cut to as many bits."""

    n: int
    f1: float
    f1_ci95: Interval
    text_f1: float
    share: float | None
    """Of the text F1; None where that is zero."""
    share_ci95: Interval | None
    p_keeps: float
    """How probable answers as good as these are where less than the share is kept."""
    p_short: float
    """How probable answers as bad as these are where the share is kept."""
    truncated_f1: float
    truncated_share: float | None
    truncated_share_ci95: Interval | None


class Point(BaseModel):
    """One setting of one method."""

    run: str
    """Its run's folder."""
    settings: dict[str, Any]
    rate: float
    """What the search orders it by: its ratio, or bits of a position's code."""
    bits_per_token: float
    """Measured, side information and raw positions included."""
    selection: Measured
    test: Measured | None
    """None where it was no candidate."""
    frontier: bool = False
    """Whether no cheaper setting keeps as large a share of the text F1 on the selection questions."""

    @property
    def kept(self) -> float:
        """The share of the text F1 on the selection questions; 0 where that is zero."""
        return self.selection.share or 0.0


class Border(BaseModel):
    """Where the share is lost, each setting by its run; None where there is none."""

    ended: str
    """`found` or `budget spent`."""
    short: str | None
    """The costliest that seems to keep less, by the selection questions."""
    seems: str | None
    """The cheapest that seems to keep the share, by the selection questions."""
    confirmed: str | None
    """The cheapest candidate that keeps the share, by the test questions."""


class Frontier(BaseModel):
    """What frontier.json holds."""

    model: str
    data: str
    keep: float
    error: float
    """Probability, at most, that `border.confirmed` keeps less."""
    axis: str
    passages: int
    """Of the test questions."""
    passages_needed: int
    """As many, at least, it takes to confirm anything."""
    marks: dict[str, float]
    """Bits per token of other ways to send the prompts."""
    points: list[Point]
    """Cheapest first."""
    border: Border
    failed: dict[str, str]
    """Settings that could not be trained, with the reason."""

    def __getitem__(self, run: str) -> Point:
        """The point whose run is called `run`.

        Raises:
            KeyError: there is none.
        """
        for point in self.points:
            if point.run == run:
                return point
        raise KeyError(run)


MARKS = {
    "gzip": "the text, gzipped",
    "token_ids": "token ids, log₂ of the vocabulary",
    "utf8": "the text in UTF-8",
    "bf16": "embeddings in bfloat16",
}
"""What the marks are."""


def table(record: Frontier) -> Iterator[list[Any]]:
    """frontier.csv: a line for each point and each set of questions that it was asked."""
    numbers = [name for name in Measured.model_fields if not name.endswith("_ci95")]
    intervals = [name for name in Measured.model_fields if name.endswith("_ci95")]
    ends = [f"{name.removesuffix('_ci95')}_{end}" for name in intervals for end in ("low", "high")]
    yield ["run", record.axis, "bits_per_token", "questions", *numbers, *ends]
    for point in record.points:
        for which, found in (("selection", point.selection), ("test", point.test)):
            if found is not None:
                values = [getattr(found, name) for name in numbers]
                values += [x for name in intervals for x in getattr(found, name) or ("", "")]
                yield [point.run, point.rate, point.bits_per_token, which, *values]


def tables(record: Frontier) -> Iterator[Table]:
    """A line for each point, those of the frontier bold; with fewer columns for narrow terminals."""
    lines = [cells(record, point) for point in record.points]
    best = [point.frontier for point in record.points]
    for without in ((), ("truncated",)):
        yield columns(heads(record), lines, bold=best, without=without)


def heads(record: Frontier) -> list[str]:
    """What the columns of the table are."""
    ratio = ["ratio"] if record.axis == "ratio" else []
    return ["setting", *ratio, "bits/token", "n", "of text [95 %]", "truncated", "", "of text, test [95 %]"]


def cells(record: Frontier, point: Point) -> list[str]:
    """One line of the table."""
    asked = point.selection
    line = [_named(point), *([f"{point.rate:.4g}"] if record.axis == "ratio" else [])]
    line += [f"{point.bits_per_token:.1f}", str(asked.n), _share(asked), _percent(asked.truncated_share)]
    return [*line, _says(record, asked), _share(point.test) if point.test else ""]


def _named(point: Point) -> str:
    plugins = ("compressor", "compressors", "adapter")
    parts = [(key.rpartition(".")[2], format_setting(value)) for key, value in point.settings.items()]
    return " ".join(value if key in plugins else f"{key}={value}" for key, value in parts)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _share(found: Measured) -> str:
    between = found.share_ci95 and " [{:.1f}, {:.1f}]".format(*(100 * end for end in found.share_ci95))
    return f"{_percent(found.share)}{between or ''}"


def _says(record: Frontier, found: Measured) -> str:
    if found.p_short <= record.error:
        return "falls short"
    if found.p_keeps <= record.error:
        return "keeps it"
    return "near"


def summary(record: Frontier) -> Iterator[str]:
    """Marks and border, a line each."""
    named = {name: f"{MARKS[name]} {bits:.1f}" for name, bits in record.marks.items()}
    yield f"Marks   bits per token: {', '.join(named.values())}"
    for run, error in record.failed.items():
        yield f"Failed  {run}: {error.splitlines()[0]}"
    yield f"Border  {_border(record)}"
    border = record.border
    if border.confirmed and (found := record[border.confirmed].test):
        better = found.f1_ci95[0] > found.truncated_f1
        yield (
            f"Control the text cut to as many bits keeps {_percent(found.truncated_share)}"
            f"{'' if better else '; the bottleneck does not beat it, and has shown nothing'}"
        )


def _border(record: Frontier) -> str:
    border, keep = record.border, f"{100 * record.keep:g} % of the text F1"
    spent = " The budget is spent; the same command goes on." if border.ended != "found" else ""
    if border.confirmed:
        point = record[border.confirmed]
        said = (
            f"{_named(point)} keeps {keep} at {point.bits_per_token:.1f} bits per token: {_tested(point)} "
            f"(error at most {100 * record.error:g} %)."
        )
        if border.seems and border.seems != border.confirmed:
            cheaper = record[border.seems]
            said += f" {_named(cheaper)}, {cheaper.bits_per_token:.1f} bits, may keep it: {_tested(cheaper)}."
        return said + spent
    if border.seems:
        point = record[border.seems]
        said = f"{_named(point)}, {point.bits_per_token:.1f} bits per token, seems to keep {keep}"
        return f"{said}: {_tested(point)}. {_unconfirmed(record)}{spent}"
    return f"No setting that was asked is known to keep {keep}.{spent}"


def _unconfirmed(record: Frontier) -> str:
    if record.passages < record.passages_needed:
        return (
            f"To confirm anything takes test questions about {record.passages_needed} passages; "
            f"there are {record.passages}."
        )
    return "Nothing is confirmed."


def _tested(point: Point) -> str:
    test = f", {_share(point.test)} of {point.test.n} test questions" if point.test else ""
    return f"{_share(point.selection)} of {point.selection.n} selection questions{test}"
