"""A comparison for people, spreadsheets and papers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from stage1.config import format_setting
from stage1.reports.report import columns, interval
from stage1.text import one_line

METRICS = {"f1": "F1", "exact_match": "exact match"}

LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "−": "$-$",
        "→": r"$\rightarrow$",
    }
)
"""What LaTeX would obey, as text."""


def _settings(settings: Mapping[str, Any]) -> str:
    """Settings by the last part of their path, where that says which is meant."""
    last = {key: key.rpartition(".")[2] for key in settings}
    names = list(last.values())
    return ", ".join(
        f"{last[key] if names.count(last[key]) == 1 else key}={format_setting(value)}"
        for key, value in settings.items()
    )


def _name(side: Mapping[str, Any]) -> str:
    """What a side is called: the settings that are its own, or else its run."""
    return one_line(_settings(side["settings"]) or side["runs"][0])


def sides(compared: Mapping[str, Any]) -> Iterator[Table]:
    """A line for each side; with fewer columns for narrow terminals."""
    heads = ["", "seeds", "bits/token", "F1 [95 %]", "spread", "exact match [95 %]"]
    lines = []
    for side in compared["sides"]:
        f1, exact = side["f1"], side["exact_match"]
        spread = "" if f1["spread"] is None else f"{f1['spread']:.2f}"
        line = [side["label"], str(len(side["seeds"])), f"{side['bits_per_token']:.1f}"]
        lines.append(
            [*line, interval(f1["mean"], f1["ci95"]), spread, interval(exact["mean"], exact["ci95"])]
        )
    single = ["seeds", "spread"] if all(side["f1"]["spread"] is None for side in compared["sides"]) else []
    for without in ([], ["spread", "exact match [95 %]"]):
        yield columns(heads, lines, without=single + without)


def legend(compared: Mapping[str, Any]) -> Iterator[str]:
    """What each label stands for."""
    for side in compared["sides"]:
        settings = f"  ({_settings(side['settings'])})" if side["settings"] else ""
        yield one_line(f"{side['label']}  {', '.join(side['runs'])}{settings}")


def pairs(compared: Mapping[str, Any]) -> Iterator[Table]:
    """A line for each pair; with fewer columns for narrow terminals."""
    yield _pairs(compared, ("f1", "exact_match"))
    yield _pairs(compared, ("f1",))


def _pairs(compared: Mapping[str, Any], metrics: Sequence[str]) -> Table:
    corrected = len(compared["pairs"]) > 1
    heads = ["", "bits/token"]
    for metric in metrics:
        heads += [f"{METRICS[metric]} [95 %]", "p (Holm)" if corrected else "p", "detectable"]
    lines = []
    for pair in compared["pairs"]:
        line = [_title(pair), f"{pair['bits_per_token']:+.1f}"]
        for tested in (pair[metric] for metric in metrics):
            line += [interval(tested["difference"], tested["ci95"], "+"), _p(tested["p_holm"])]
            line.append("" if tested["detectable"] is None else f"{tested['detectable']:.1f}")
        gained = sum(flip["gained"] for flip in pair["flips"])
        lines.append([*line, str(gained), str(len(pair["flips"]) - gained)])
    found = [any(pair[metric]["found"] for metric in metrics) for pair in compared["pairs"]]
    return columns([*heads, "gained", "lost"], lines, bold=found)


def verdicts(compared: Mapping[str, Any]) -> Iterator[str]:
    """What each pair's F1 says, a sentence each."""
    for pair in compared["pairs"]:
        tested = pair["f1"]
        if tested["found"]:
            better, worse = (pair["second"], pair["first"])[:: 1 if tested["difference"] > 0 else -1]
            yield f"{better} answers better than {worse}: F1 {_difference(tested)}."
            continue
        said = (
            f"No difference between {pair['first']} and {pair['second']} is shown: F1 {_difference(tested)}"
        )
        if tested["detectable"] is not None:
            said += f"; one of {tested['detectable']:.1f} would have been, four times in five"
        yield f"{said}."


def flips(pair: Mapping[str, Any], limit: int) -> Iterator[tuple[Mapping[str, Any], list[tuple[str, str]]]]:
    """The pair's flipped questions, each with lines of a head and a text."""
    for flip in pair["flips"][:limit]:
        lines = [("gold", " | ".join(dict.fromkeys(flip["gold"])))]
        for label, answers in ((pair["first"], flip["first"]), (pair["second"], flip["second"])):
            right = flip["gained"] == (label == pair["second"])
            lines.append((f"{label} {'✓' if right else '✗'}", " | ".join(dict.fromkeys(answers))))
        yield flip, [(head, one_line(text)) for head, text in lines]


def table(compared: Mapping[str, Any]) -> Iterator[list[Any]]:
    """A line for each pair and metric."""
    by_label = {side["label"]: side for side in compared["sides"]}
    numbers = ("difference", "low", "high", "p", "p_holm", "detectable", "bootstrap_low", "bootstrap_high")
    yield ["first", "second", "metric", "questions", "passages", "first_mean", "second_mean", *numbers]
    for pair in compared["pairs"]:
        first, second = by_label[pair["first"]], by_label[pair["second"]]
        for metric in METRICS:
            tested = pair[metric]
            yield [
                *(_name(first), _name(second), metric, compared["questions"], compared["passages"]),
                *(first[metric]["mean"], second[metric]["mean"], tested["difference"], *tested["ci95"]),
                *(tested["p"], tested["p_holm"], tested["detectable"], *tested["bootstrap_ci95"]),
            ]


def to_latex(compared: Mapping[str, Any]) -> str:
    """A table of the sides and one of the differences, for the package booktabs."""
    first = [["", "bits/token", "F1", "exact match"]]
    for side in compared["sides"]:
        line = [f"{side['label']}: {_name(side)}".translate(LATEX), f"{side['bits_per_token']:.1f}"]
        first.append(line + [_math(side[metric]["mean"], side[metric]["ci95"], ".1f") for metric in METRICS])
    second = [["", "bits/token", "F1", "$p$", "exact match", "$p$"]]
    for pair in compared["pairs"]:
        line = [_title(pair).translate(LATEX), f"${pair['bits_per_token']:+.1f}$"]
        for tested in (pair[metric] for metric in METRICS):
            line += [_math(tested["difference"], tested["ci95"], "+.1f"), f"${_p(tested['p_holm'])}$"]
        second.append(line)
    return f"{_tabular(first)}\n{_tabular(second)}"


def _tabular(lines: Sequence[Sequence[str]]) -> str:
    head, *body = [" & ".join(line) for line in lines]
    rows = "".join(f"{row} \\\\\n" for row in body)
    return (
        f"\\begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}\n\\toprule\n{head} \\\\\n\\midrule\n"
        f"{rows}\\bottomrule\n\\end{{tabular}}\n"
    )


def _math(value: float, interval: Sequence[float], form: str) -> str:
    low, high = (format(bound, form) for bound in interval)
    return f"${value:{form}}\\ [{low}, {high}]$"


def _title(pair: Mapping[str, Any]) -> str:
    return f"{pair['second']} − {pair['first']}"


def _difference(tested: Mapping[str, Any]) -> str:
    said = f"{interval(tested['difference'], tested['ci95'], '+')}, p = {_p(tested['p_holm'])}"
    return said.replace("= <", "< ")


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
