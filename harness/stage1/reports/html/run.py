"""The report of one run, from its folder, and the parts of it that a report of several runs shows, too."""

import os
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from markupsafe import Markup

from stage1.config import RunConfig, flat, format_setting, settings_of
from stage1.files import read_record
from stage1.progress import Progress
from stage1.reports import figures
from stage1.reports.html.page import number, render
from stage1.reports.html.questions import Asked, collect
from stage1.reports.report import HEADER, cells, interval, placeless, summary
from stage1.reports.svg import inline
from stage1.runs.run import Run

STAGES = ("text", "raw", "linear", "bottleneck")
"""The way of F1: what the LLM receives at each step of it."""


class Facts(NamedTuple):
    """A trained run's files, read."""

    name: str  # the folder's, without where it lies
    config: RunConfig
    results: dict[str, Any] | None  # None: not evaluated
    manifest: dict[str, Any]
    diagnosis: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    times: dict[str, Any]

    @classmethod
    def of(cls, run: Run) -> "Facts":
        """Read them.

        Raises:
            UsageError: the run is not trained, or a file of it is damaged.
        """
        run.require_trained()
        results, manifest, config = run.read_results(), run.read_manifest(), run.config
        name, diagnosis = run.path.resolve().name, None
        if os.path.lexists(place := run.path / "diagnosis.json"):
            diagnosis = read_record(place, "Remove it: a report may be without.")
            for finding in diagnosis["findings"]:
                finding["command"] = (finding["command"] or "").replace(str(diagnosis["run"]), name)
        times, data = run.read_timings().get("time", {}), config.data.name
        for time in times.values():
            shares = time["shares"].items()
            time["shares"] = [
                (work.replace(data, placeless(data)), number(100 * share)) for work, share in shares
            ]
        return cls(name, config, results, manifest, diagnosis, run.metrics(), times)

    @property
    def row(self) -> dict[str, Mapping[str, Any]]:
        """Row → its numbers; empty before an evaluation."""
        return {row["row"]: row for row in self.results["rows"]} if self.results else {}

    @property
    def rate(self) -> Mapping[str, float]:
        """What the prompts cost; empty before an evaluation."""
        return self.results["rate"] if self.results else {}

    @property
    def teacher_forced(self) -> bool:
        """Whether a loss saw the gold answers: such results do not compare with others."""
        return bool(self.manifest.get("teacher_forced"))

    def settings(self) -> dict[str, str]:
        """The configuration by dotted path, but for where something lies."""
        return {
            key: format_setting(value if key.startswith("prompt.") else placeless(value))
            for key, value in settings_of(self.config).items()
            if key != "init" and value is not None
        }

    def provenance(self) -> Iterator[tuple[str, str]]:
        """The manifest, a line for each entry."""
        for key, value in flat(self.manifest).items():
            if value is not None:
                yield key, format_setting(value)

    def losses(self, asked: Asked) -> Iterator[tuple[str, str, str]]:
        """F1 from stage to stage: each paired difference, with its interval."""
        bootstrap = asked.bootstrap(self.config.eval.resamples, self.config.seed)
        for before, after in pairwise(name for name in STAGES if name in self.row):
            change = asked.f1(after) - asked.f1(before)
            yield before, after, interval(float(change.mean()), bootstrap.interval(change))


def run_page(run: Run, progress: Progress) -> str:
    """The report of one trained run.

    Raises:
        UsageError: it is not trained, or a file of it is damaged.
    """
    facts = Facts.of(run)
    return page(facts, collect(run, list(facts.row), progress) if facts.results else Asked({}))


def page(facts: Facts, asked: Asked) -> str:
    """The report of a run with these questions."""
    shown = {"title": facts.name, "run": section(facts, asked, "run"), "note": asked.note}
    return render("run.html.jinja", {**shown, **browser(asked, "bottleneck", "text")})


def section(facts: Facts, asked: Asked, anchor: str) -> dict[str, Any]:
    """What the template of a run's section shows."""
    results = facts.results
    shown: dict[str, Any] = {
        "anchor": anchor,
        "facts": facts,
        "curves": {
            title: markup(figures.curve(title, series))
            for title, series in figures.curves(facts.metrics).items()
        },
        "settings": facts.settings().items(),
        "provenance": list(facts.provenance()),
        "results": results,
    }
    if results is None:
        return shown
    *said, verdict = summary(results)
    marks = figures.marks(results["rate"], asked.reading and asked.reading.gzip_bits)
    return shown | {
        "verdict": verdict.removeprefix("Verdict: "),
        "said": [line.partition(" ")[::2] for line in said],
        "header": HEADER,
        "rows": cells(results),
        "rows_figure": markup(figures.rows(results)),
        "losses": list(facts.losses(asked)) if asked.rows else [],
        "stages_figure": markup(figures.stages(results, STAGES)),
        "marks": [(name, number(bits, 2)) for name, bits in marks.items()],
        "marks_figure": markup(figures.rate_card(marks)),
    }


def browser(asked: Asked, judged: str, against: str) -> dict[str, Any]:
    """What the template of the questions shows."""
    if not asked.rows:
        return {"questions": None}
    return {
        "questions": asked.data(judged, against),
        "first": asked.first(judged, against),
        "judged": judged,
        "against": against,
    }


def markup(figure: Element) -> Markup:
    """The figure as a part of the page."""
    return Markup(inline(figure))  # noqa: S704 - the tree's own serialiser has escaped it
