"""How finished runs look on a terminal, 80 columns wide or more."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from stage1.cli.console import make_console, print_fitting, say
from stage1.diagnosis.show import prompt as prompt_lines
from stage1.inspection.questions import Asked
from stage1.inspection.verify import Verified
from stage1.reports import comparison
from stage1.text import one_line

LONGEST_HEAD = 24
"""Columns of what stands before an answer."""

STYLES = {"holds": "green", "fails": "bold red", "unknown": "yellow"}
"""Of a check, by how it ended."""


def show_questions(shown: Sequence[Asked], found: int, asked: int) -> None:
    """Questions with gold answers, answers by row, and prompts where there are any."""
    console = make_console()
    for number, question in enumerate(shown, 1):
        console.print(f"{number}. {one_line(question.question)}", style="bold")
        lines = [("gold", "", " | ".join(dict.fromkeys(question.gold)))]
        for rows in _alike(question):
            score = f"{question.f1[rows[0]]:.0f}"
            lines.append((", ".join(rows), score, question.answers[rows[0]]))
        console.print(_grid(lines))
        _print_prompt(console, question.prompt)
        console.print()
    console.print(f"{len(shown)} of {found} questions ({asked} were asked); the numbers are F1.")


def _alike(question: Asked) -> Iterable[list[str]]:
    """The rows, those with the same answer together."""
    by_answer: dict[str, list[str]] = {}
    for row, answer in question.answers.items():
        by_answer.setdefault(answer, []).append(row)
    return by_answer.values()


def _grid(lines: Iterable[Sequence[str]]) -> Padding:
    """Lines of short heads and a text that is folded, not cut."""
    grid = Table.grid(padding=(0, 2))
    for *heads, text in lines:
        grid.add_row(*(one_line(cell) for cell in (*heads, text or "—")))
    for column in grid.columns[:-1]:
        column.max_width = LONGEST_HEAD
    grid.columns[-1].overflow = "fold"
    return Padding(grid, (0, 0, 0, 3), expand=False)


def _print_prompt(console: Console, tokens: list[dict[str, Any]] | None) -> None:
    for line in prompt_lines(tokens, min(console.width, 100)) if tokens else ():
        console.print(line, soft_wrap=True)


def show_compared(compared: Mapping[str, Any], number: int) -> None:
    """Sides, pairs, what they say, and `number` flips of each pair."""
    console = make_console()

    tell = partial(say, console)
    tell(
        f"{compared['questions']} questions about {compared['passages']} passages, asked of all as "
        f"{compared['protocol']}"
    )
    for text in compared["differences"]:
        tell(f"Not the same: {text}.", "yellow")
    for text in compared["notes"]:
        tell(text, "yellow")
    for line in comparison.legend(compared):
        tell(line)
    console.print()
    print_fitting(console, comparison.sides(compared))
    console.print()
    print_fitting(console, comparison.pairs(compared))
    console.print()
    for line in comparison.verdicts(compared):
        tell(line, "bold")
    for pair in compared["pairs"]:
        if number and pair["flips"]:
            console.print()
            count = len(pair["flips"])
            tell(f"{min(number, count)} of {count} flips from {pair['first']} to {pair['second']}:")
        for flip, lines in comparison.flips(pair, number):
            tell(one_line(flip["question"]), "bold")
            console.print(_grid(lines))
            for label, tokens in (
                (pair["first"], flip["first_prompt"]),
                (pair["second"], flip["second_prompt"]),
            ):
                if tokens:
                    tell(f"The prompt through {label}:", "dim")
                    _print_prompt(console, tokens)


def show_runs(found: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """A line for each run; in narrow terminals without model, protocol and date."""
    console = make_console()
    if not found:
        console.print(f"No such run in {folder}.", soft_wrap=True)
        return
    every = ("date", "run", "model", "protocol", "method", "bits/token", "F1", "share", "verdict")
    without: tuple[set[str], ...] = (
        set(),
        {"protocol"},
        {"protocol", "model"},
        {"protocol", "model", "method"},
        {*every[2:6], "date"},
    )
    print_fitting(
        console, [_runs(found, folder, [head for head in every if head not in left]) for left in without]
    )


def _runs(found: Sequence[Mapping[str, Any]], folder: Path, heads: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        number = head in ("bits/token", "F1", "share")
        table.add_column(head, no_wrap=head != "run", justify="right" if number else "left", overflow="fold")
    for run in found:
        place = Path(run["run"])
        cells = {
            "date": (run["date"] or "")[:10],
            "run": str(place.relative_to(folder)) if place != folder else str(place),
            "model": run["model"] or "",
            "protocol": run["protocol"] or "",
            "method": run["method"] or "",
            "bits/token": "" if run["bits_per_token"] is None else f"{run['bits_per_token']:.1f}",
            "F1": "" if run["f1"] is None else f"{run['f1']:.1f}",
            "share": "" if run["share"] is None else f"{100 * run['share']:.0f} %",
            "verdict": run["verdict"] or run["state"],
        }
        style = "red" if run["state"] == "damaged" else ""
        table.add_row(*(one_line(cells[head]) for head in heads), style=style)
    return table


def show_verified(verified: Verified) -> None:
    """What holds, what does not, what is not known here, and what would have to be asked again."""
    console = make_console()
    for check in verified.checks:
        say(console, f"{check.state:8}{check.name:10}{check.claim}", STYLES[check.state])
        for problem in check.problems:
            say(console, f"        {one_line(problem)}")
    say(console, "\nOnly asking the LLM again can tell:")
    for text in verified.to_ask:
        say(console, f"  {text}")
    console.print(f"  {verified.command}  (on a copy: it replaces the results)", soft_wrap=True)
    failed = [check.name for check in verified.checks if check.state == "fails"]
    unknown = [check.name for check in verified.checks if check.state == "unknown"]
    said = f"does not hold: {', '.join(failed)}" if failed else "nothing contradicts the results"
    if unknown:
        said += f"; not known here: {', '.join(unknown)}"
    say(console, f"\nVerified: {said}.", "bold")
