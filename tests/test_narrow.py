"""Terminals of 80 and 100 columns: fewer columns of a table, and none of them cut."""

import io
from collections.abc import Iterable
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from stage1.cli.console import print_fitting, say
from stage1.diagnosis import show
from stage1.reports import report

INTERVAL = [12.345, 99.999]
NAMES = ["text", "raw", "linear", "bottleneck", "mean", "no_context", "truncated", "shuffled"]
RESULTS: dict[str, Any] = {
    "teacher_forced": True,
    "rows": [
        {
            "row": name,
            **dict.fromkeys(("f1", "exact_match", "f1_vs_text"), -38.4),
            **{f"{key}_ci95": [-42.4, -34.6] for key in ("f1", "exact_match", "f1_vs_text")},
        }
        for name in NAMES
    ],
}
SWEEP: dict[str, Any] = {
    "axes": {"compressor.ratio": [8], "compressor": ["pca"]},
    "compare": {"axis": "compressor", "value": "random_projection"},
    "averages": [
        {
            "settings": {"compressor.ratio": 8, "compressor": "pca"},
            "seeds": [0, 1, 2],
            "bits_per_token": 504.4,
            "text_f1": 91.6,
            "parameters": 12_345_678,
            "f1": 90.7,
            "f1_ci95": INTERVAL,
            "f1_spread": 1.25,
            "compared": {"f1_difference": 1.5, "f1_difference_ci95": INTERVAL},
        }
    ],
}
DIAGNOSIS: dict[str, Any] = {
    "measured": {
        "ablation": {
            "stages": [
                {"name": "inverse", "f1": 50.0, "f1_ci95": INTERVAL, "perplexity": 4e5, "agreement": 0.5}
            ],
            "variants": [],
        }
    }
}


def printed(tables: Iterable[Table], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    print_fitting(console, tables)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_results_are_never_cut(width: int) -> None:
    shown = printed(report.tables(RESULTS), width)
    assert "…" not in shown
    assert all(name in shown for name in NAMES)
    assert shown.count("-38.4  [-42.4, -34.6]") == {40: 8, 60: 15}.get(width, 23)  # text has no difference
    assert ("what the LLM receives" in shown) == (width == 200)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_sweeps_and_diagnoses_are_never_cut(width: int) -> None:
    for tables, heads in (
        (report.sweep_tables(SWEEP), ["of text F1", "99 % of 91.6"]),
        (show.stages(DIAGNOSIS), []),
    ):
        shown = printed(tables, width)
        assert "…" not in shown
        assert "12.3, 100.0]" in shown
        assert all(head in shown for head in heads)
        assert max(map(len, shown.splitlines())) <= width


def test_long_lines_break_between_words_on_a_terminal_alone() -> None:
    line = " ".join(["reconstruction"] * 20)
    for terminal in (True, False):
        console = Console(file=io.StringIO(), width=80, force_terminal=terminal)
        say(console, line)
        printed = console.file.getvalue().rstrip()  # type: ignore[attr-defined]
        assert {*printed.split()} == {"reconstruction"}
        assert (max(map(len, printed.splitlines())) <= 80) == terminal
