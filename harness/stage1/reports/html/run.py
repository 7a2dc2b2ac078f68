"""The report of one run, and the parts of it that a report of several runs shows, too."""

from typing import Any
from xml.etree.ElementTree import Element

from markupsafe import Markup

from stage1.progress import Progress
from stage1.reports import figures
from stage1.reports.html.facts import STAGES, Facts
from stage1.reports.html.page import number, render
from stage1.reports.html.questions import Asked, collect
from stage1.reports.report import HEADER, cells, summary
from stage1.reports.svg import inline
from stage1.runs.run import Run


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
