"""`stage1 report`: a run, several runs, a sweep or a frontier as one HTML file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stage1.config import format_setting
from stage1.errors import UsageError
from stage1.files import read_record, write_atomic
from stage1.progress import Progress
from stage1.reports import figures
from stage1.reports.frontier import MARKS, Frontier, cells, heads, summary
from stage1.reports.html.page import number, render
from stage1.reports.html.questions import Asked
from stage1.reports.html.run import Facts, browser, markup, run_page, section
from stage1.reports.report import interval
from stage1.reports.svg import Point
from stage1.runs.run import Run
from stage1.sweeps.grid import label


class Member(NamedTuple):
    """One of several runs."""

    number: int
    name: str
    run: Run
    facts: Facts
    settings: Mapping[str, str]  # what it differs in

    @property
    def anchor(self) -> str:
        """Where its section stands in the page."""
        return f"run-{self.number}"

    @property
    def series(self) -> str:
        """The line of the figure that it belongs to: numbers vary along a line."""
        name = label({k: v for k, v in self.settings.items() if not _is_number(v)}) or "bottleneck"
        return f"{name}, teacher-forced" if self.facts.teacher_forced else name


def write_report(places: Sequence[Path], output: Path, progress: Progress) -> Path:
    """Write a report of what lies at `places` to `output`, and say where that is.

    Args:
        places: the folder of a run, a sweep or a frontier, or those of several runs.
        output: the HTML file, which is replaced.
        progress: told what is read.

    Raises:
        UsageError: a place holds neither, a run is not trained or damaged, or `output` is no file.
    """
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise UsageError(f"{output} is no file that can be written.", "Name one: --output report.html")
    write_atomic(output, _page(places, progress).encode())
    return output


def _page(places: Sequence[Path], progress: Progress) -> str:
    if len(places) > 1:
        return several_page(_runs([Run.open(place) for place in places]), {})
    place = places[0]
    for file, make in KINDS.items():
        if (place / file).exists():
            return make(place, progress)
    raise UsageError(
        f"{place} holds neither a run nor a sweep nor a frontier ({', '.join(KINDS)}).",
        "Pass the folder that `stage1 train`, `stage1 sweep` or `stage1 frontier` printed.",
    )


def _sweep_page(folder: Path) -> str:
    record = read_record(folder / "sweep.json", "Make it again with the same `stage1 sweep` command.")
    members = []
    for i, cell in enumerate((cell for cell in record["cells"] if cell["results"] is not None), 1):
        run = Run.open(folder / Path(cell["run"]).name)
        name = label({**cell["settings"], "seed": cell["seed"]})
        members.append(Member(i, name, run, Facts.of(run), _shown(cell["settings"])))
    if not members:
        raise UsageError(f"No run of {folder} is finished.", "Go on with the same `stage1 sweep` command.")
    return several_page(members, {**record, "name": folder.resolve().name})


def _frontier_page(folder: Path) -> str:
    read = read_record(folder / "frontier.json", "Make it again with the same `stage1 frontier` command.")
    record = Frontier.model_validate(read)
    return render(
        "frontier.html.jinja",
        {
            "title": folder.resolve().name,
            "questions": None,
            "sentences": list(summary(record)),
            "figure": markup(figures.frontier(record)),
            "header": heads(record),
            "lines": [cells(record, point) for point in record.points],
            "marks": [(MARKS[name], number(bits)) for name, bits in record.marks.items()],
        },
    )


KINDS: Mapping[str, Callable[[Path, Progress], str]] = {
    "sweep.json": lambda place, progress: _sweep_page(place),
    "frontier.json": lambda place, progress: _frontier_page(place),
    "config.yaml": lambda place, progress: run_page(Run.open(place), progress),
}
"""File that says what a folder is → its report."""


def _runs(runs: Sequence[Run]) -> list[Member]:
    """Runs by their names, with the settings in which they differ; the seed has a column of its own."""
    facts = [Facts.of(run) for run in runs]
    trees = [each.settings() for each in facts]
    keys = dict.fromkeys(key for tree in trees for key in tree if key != "seed")
    differing = [key for key in keys if any(tree.get(key) != trees[0].get(key) for tree in trees)]
    names = [each.name for each in facts]
    return [
        Member(
            i,
            f"{each.name} ({i})" if names.count(each.name) > 1 else each.name,
            run,
            each,
            {key: tree.get(key, "") for key in differing},
        )
        for i, (run, each, tree) in enumerate(zip(runs, facts, trees, strict=True), 1)
    ]


def several_page(members: Sequence[Member], sweep: Mapping[str, Any]) -> str:
    """The report of several trained runs, of which `sweep` is the record where they are a sweep's."""
    measured = [member for member in members if member.facts.results is not None]
    if not measured:
        raise UsageError("None of these runs is evaluated.", f"stage1 eval {members[0].run.path}")
    base, notes = measured[0], [f"{m.name} is not evaluated." for m in members if m not in measured]
    asked, apart = _paired(measured)
    levels, unlike = _levels(measured)
    points = [*_averages(measured, sweep), *_truncated(measured)]
    best = max(measured, key=lambda member: float(member.facts.row["bottleneck"]["f1"]))
    values = {
        "title": sweep.get("name")
        or " and ".join(m.name for m in members[:3]) + ("…" if members[3:] else ""),
        "sentence": (
            f"{len(measured)} runs; the highest F1 is {best.facts.row['bottleneck']['f1']:.1f} "
            f"({best.name}) at {best.facts.rate['bits_per_token']:.1f} bits per token."
        ),
        "figure": markup(figures.f1_against_bits(points, levels)),
        "notes": [*notes, *apart, *unlike],
        **_tables(measured, sweep),
        "base": base.name,
        "difference_header": ("run", "F1 − base [95 %]", "right → wrong", "wrong → right"),
        "differences": list(_differences(asked, base)),
        "runs": [{**section(m.facts, Asked({}), m.anchor), "title": m.name} for m in members],
        "failures": [f"{c['run']}: {c['error']}" for c in sweep.get("cells", ()) if c["error"]],
        "note": asked.note,
        **browser(asked, list(asked.rows)[-1], base.name),
    }
    return render("several.html.jinja", values)


TEXT = "text: no bottleneck"
"""The row of the questions that holds the bare model's answers."""


def _paired(members: Sequence[Member]) -> tuple[Asked, list[str]]:
    """The first run's questions with the answers of all that were asked the same; who was not."""
    base = members[0]
    text = base.run.read_answers("text")
    rows, apart = {TEXT: text}, []
    for member in members:
        given = member.run.read_answers("bottleneck")
        if [(a.id, a.asked) for a in given] == [(a.id, a.asked) for a in text]:
            rows[member.name] = given
        else:
            apart.append(f"{member.name} was asked other questions than {base.name}: it is not paired.")
    return Asked(rows, note="A prompt over its reconstruction stands in the report of a single run."), apart


def _differences(asked: Asked, base: Member) -> Iterator[Sequence[str]]:
    """Every run against the first, paired by question."""
    settings = base.facts.config
    bootstrap = asked.bootstrap(settings.eval.resamples, settings.seed)
    first, right = asked.f1(base.name), asked.right(base.name)
    for name in asked.rows:
        if name in (TEXT, base.name):
            continue
        change, now = asked.f1(name) - first, asked.right(name)
        flips = int((right & ~now).sum()), int((now & ~right).sum())
        yield name, interval(float(change.mean()), bootstrap.interval(change)), *map(str, flips)


def _levels(members: Sequence[Member]) -> tuple[dict[str, float], list[str]]:
    """Rows that no bottleneck changes, where they are the same for all runs."""
    levels = {}
    for row in ("text", "no_context"):
        values = {round(float(member.facts.row[row]["f1"]), 1) for member in members}
        if len(values) == 1:
            levels[row] = values.pop()
    return levels, [] if "text" in levels else ["The runs have different text rows: they are in the table."]


def _averages(members: Sequence[Member], sweep: Mapping[str, Any]) -> Iterator[tuple[str, Point]]:
    """The points of the figure by their lines: means over the seeds in a sweep, otherwise the runs."""
    if "averages" not in sweep:
        for member in members:
            bits, row = member.facts.rate["bits_per_token"], member.facts.row["bottleneck"]
            yield member.series, _point(bits, row, member.name, f"#{member.anchor}")
        return
    for average in sweep["averages"]:
        member = next(m for m in members if m.settings == _shown(average["settings"]))
        says = f"{label(average['settings'])}, {len(average['seeds'])} seeds"
        yield member.series, _point(average["bits_per_token"], average, says, f"#{member.anchor}")


def _truncated(members: Sequence[Member]) -> Iterator[tuple[str, Point]]:
    """The control on the same axis: text cut to as many bits, once for each rate."""
    seen = set()
    for member in members:
        row, bits = member.facts.row.get("truncated"), member.facts.rate["bits_per_token"]
        if row and round(bits, 1) not in seen:
            seen.add(round(bits, 1))
            yield "truncated (control)", _point(bits, row, f"text cut to {bits:.1f} bits per token")


def _point(bits: float, measured: Mapping[str, Any], what: str, href: str = "") -> Point:
    f1, ci95 = measured["f1"], measured["f1_ci95"]
    return Point(bits, f1, ci95, f"{what}: F1 {interval(f1, ci95).strip()}", href)


def _tables(members: Sequence[Member], sweep: Mapping[str, Any]) -> dict[str, Any]:
    """The parallel table, and the one of averages where there are seeds."""
    keys = list(members[0].settings)
    compare = sweep.get("compare")
    against = [f"F1 − {compare['axis']}={format_setting(compare['value'])} [95 %]"] if compare else []
    averages = []
    for average in sweep.get("averages", ()):
        line = [*_shown(average["settings"]).values()]
        line += [", ".join(map(str, average["seeds"])), number(average["bits_per_token"])]
        line += [interval(average["f1"], average["f1_ci95"]), number(average["f1_spread"], 2)]
        if compare:
            found = average["compared"]
            line.append(interval(found["f1_difference"], found["f1_difference_ci95"]) if found else "")
        averages.append(line)
    return {
        "header": ("run", *keys, "seed", *COLUMNS),
        "lines": [{"name": m.name, "anchor": m.anchor, "cells": list(_cells(m))} for m in members],
        "average_header": (*keys, "seeds", "bits/token", "F1 [95 %]", "spread", *against),
        "averages": averages,
    }


COLUMNS = (
    *("bits/token", "F1 [95 %]", "% of text", "exact match"),
    *("recon", "cosine", "tokens recovered", "verdict"),
)
"""What the parallel table says of each run."""


def _cells(member: Member) -> Iterator[str]:
    results, ours = member.facts.results or {}, member.facts.row["bottleneck"]
    text, error = member.facts.row["text"]["f1"], results["reconstruction"] or {}
    yield from member.settings.values()
    yield str(member.facts.config.seed)
    yield number(results["rate"]["bits_per_token"])
    yield interval(ours["f1"], ours["f1_ci95"])
    yield number(100 * ours["f1"] / text if text else None, 0)
    yield number(ours["exact_match"])
    yield from (number(error.get("recon"), 4), number(error.get("cosine"), 4))
    yield number(100 * error["token_recovery"] if error else None)
    yield results["verdict"]["level"] + (", teacher-forced" if member.facts.teacher_forced else "")


def _shown(settings: Mapping[str, Any]) -> dict[str, str]:
    return {key: format_setting(value) for key, value in settings.items()}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
