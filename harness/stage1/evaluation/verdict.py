"""What the numbers say, from intervals and not from points."""

import math
from collections.abc import Mapping
from typing import Any

from stage1.config import NEARLY, SUFFICES
from stage1.evaluation.gate import Gate

TOO_LOSSY = "too lossy, or broken"

FEW_PASSAGES = 10
"""Fewer passages than this make no interval that deserves the name."""


def verdict(
    rows: Mapping[str, Mapping[str, Any]],
    ratio_ci95: list[float] | None,
    gate: Gate,
    questions: Mapping[str, int],
    reconstructed: Mapping[str, float] | None,
    protocol: str,
    training: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`level`, `ratio` (the bottleneck's share of the text F1), its `ratio_ci95`, and `text` for people.

    Two things make every other number meaningless and come first: embeddings that do not do what token ids
    do, and a model that answers no better with the context than without. Otherwise the interval of the ratio
    decides; one that holds a threshold decides nothing, and `questions_needed` estimates how many would.

    Args:
        rows: the conditions' results by name.
        ratio_ci95: of the ratio, from the same resamples as every other interval; None without a ratio.
        gate: whether embeddings are fed in correctly.
        questions: `n`, `passages`, `truncated_prompts`.
        reconstructed: the reconstruction's numbers, if any.
        protocol: what the way of asking is called.
        training: how it ended; where its error was still falling, nothing is too lossy yet.
    """
    text, ours = rows["text"]["f1"], rows["bottleneck"]["f1"]
    ratio = ours / text if text else None
    needed = None
    cut = training is not None and training["converged"] is False
    if gate.broken:
        level = "protocol broken"
        evidence = (
            "given embeddings instead of token ids, the model says something else (logits differ by up to "
            f"{gate.difference:.3g}, by {gate.noise:.3g} where it is given ids twice); nothing else counts"
        )
    elif ratio is None or ratio_ci95 is None or rows["no_context"]["f1_vs_text_ci95"][1] >= 0:
        level = "no ceiling"
        evidence = (
            f"asked as {protocol}, the bare model's F1 {text:.1f} is no better than without the context "
            f"({rows['no_context']['f1']:.1f}): these questions cannot judge a bottleneck"
        )
    else:
        level, needed = _level(ratio, ratio_ci95, questions["n"])
        if cut and level == TOO_LOSSY:
            level = "not converged"
        low, high = (100 * bound for bound in ratio_ci95)
        floors = [f"{name} {rows[name]['f1']:.1f}" for name in ("linear", "mean") if name in rows]
        evidence = (
            f"F1 {ours:.1f} is {100 * ratio:.0f} % [{low:.0f}, {high:.0f}] of the text row's {text:.1f} "
            f"({', '.join([f'asked as {protocol}', *floors])})"
        )
        controls = [f"{name} {rows[name]['f1']:.1f}" for name in ("truncated", "shuffled") if name in rows]
        if controls:
            evidence += f"; controls: {', '.join(controls)}"
        if reconstructed is not None:
            recovered = 100 * reconstructed["token_recovery"]
            evidence += f"; {recovered:.1f} % of the reconstructed tokens are nearest to themselves"
        if cut and training is not None:
            evidence += f"; the error was still falling after the {training['steps']} steps allowed"
        if needed is not None:
            evidence += f"; about {needed} questions would decide"
    remarks = " ".join(_remarks(gate, rows, questions))
    return {
        "level": level,
        "ratio": ratio,
        "ratio_ci95": ratio_ci95,
        "questions_needed": needed,
        "text": f"{level}: {evidence}.{' ' * bool(remarks)}{remarks}",
    }


def _level(ratio: float, interval: list[float], n: int) -> tuple[str, int | None]:
    """What the interval says, and how many questions would decide where it says nothing."""
    low, high = interval
    if low >= SUFFICES:
        return "reconstruction suffices", None
    if high < NEARLY:
        return TOO_LOSSY, None
    if low >= NEARLY and high < SUFFICES:
        return "needs generation-aware training", None
    inside = [bound for bound in (NEARLY, SUFFICES) if low < bound <= high]
    # An interval's width falls with the root of the questions.
    distance = max(min(abs(ratio - bound) for bound in inside), 0.01)
    needed = n * ((high - low) / 2 / distance) ** 2
    return "undecided", max(n + 1, math.ceil(needed / 50) * 50)


def _remarks(gate: Gate, rows: Mapping[str, Mapping[str, Any]], questions: Mapping[str, int]) -> list[str]:
    said = []
    if questions["passages"] < FEW_PASSAGES:
        said.append(f"Only {questions['passages']} passages: the intervals are too narrow.")
    if cut := questions["truncated_prompts"]:
        said.append(f"{cut} of {questions['n']} prompts lost the end of their context.")
    if (cut := rows["text"]["answers_cut"]) > questions["n"] / 5:
        said.append(f"{cut} answers to the text itself were cut at eval.max_new_tokens: see --protocol.")
    if not gate.repeats:
        said.append(
            f"The model does not repeat itself: asked again, {gate.changed} of {gate.prompts} answers "
            f"changed (logits by up to {gate.noise:.3g}). --dtype float32 is steadier."
        )
    elif rows["raw"]["answers_differ"] and not gate.broken:
        said.append(
            f"raw answered {rows['raw']['answers_differ']} of {questions['n']} questions otherwise, with "
            "equal logits: batches tip answers. --dtype float32 is steadier."
        )
    return said
