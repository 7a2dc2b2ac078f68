"""The verdict: intervals decide, what makes them meaningless comes first, and doubts are said."""

from typing import Any

import pytest

from stage1.evaluation.gate import Gate
from stage1.evaluation.verdict import verdict

SOUND = Gate(prompts=16, difference=0.0, noise=0.0, changed=0)
QUESTIONS = {"n": 100, "passages": 20, "truncated_prompts": 0, "truncated_tokens": 0}
CLEAR = (0.9, [0.86, 0.94])
"""A ratio whose interval decides."""


def say(
    ratio: float = CLEAR[0],
    interval: list[float] | None = CLEAR[1],
    *,
    text: float = 80.0,
    bare: float = -50.0,
    gate: Gate = SOUND,
    differ: int = 0,
    cut: int = 0,
    reconstructed: dict[str, float] | None = None,
    training: dict[str, Any] | None = None,
    **questions: int,
) -> dict[str, Any]:
    """The verdict on such a row; `bare` is where the interval of no_context against text ends."""
    rows: dict[str, dict[str, Any]] = {
        "text": {"f1": text, "answers_cut": cut},
        "raw": {"f1": text, "answers_differ": differ},
        "bottleneck": {"f1": ratio * text},
        "mean": {"f1": 1.5},
        "no_context": {"f1": 2.5, "f1_vs_text_ci95": [-80.0, bare]},
    }
    return verdict(rows, interval, gate, {**QUESTIONS, **questions}, reconstructed, "plain", training)


@pytest.mark.parametrize(
    ("low", "high", "level"),
    [
        (0.85, 0.99, "reconstruction suffices"),
        (0.849, 0.99, "undecided"),
        (0.70, 0.85, "undecided"),
        (0.60, 0.849, "needs generation-aware training"),
        (0.599, 0.80, "undecided"),
        (0.55, 0.60, "undecided"),
        (0.30, 0.599, "too lossy, or broken"),
        (0.50, 0.90, "undecided"),
        (0.0, 0.0, "too lossy, or broken"),
    ],
)
def test_the_interval_decides(low: float, high: float, level: str) -> None:
    said = say((low + high) / 2, [low, high])
    assert said["level"] == level
    assert said["ratio"] == pytest.approx((low + high) / 2)
    assert said["ratio_ci95"] == [low, high]
    assert said["text"].startswith(f"{level}: F1 ")
    assert (said["questions_needed"] is None) == (level != "undecided")


@pytest.mark.parametrize(
    ("ratio", "interval", "needed"),
    [
        (0.801, [0.70, 0.90], 450),  # ±10 points have to become ±5: four times the questions
        (0.84, [0.80, 0.88], 1600),
        (0.85, [0.80, 0.90], 2500),  # on the threshold itself: enough to tell a point from it
        (0.70, [0.58, 0.82], 150),
        (0.72, [0.55, 0.89], 250),  # between both: the nearer threshold counts
        (0.62, [0.30, 0.61], 6050),
    ],
)
def test_how_many_questions_would_decide(ratio: float, interval: list[float], needed: int) -> None:
    said = say(ratio, interval)
    assert said["level"] == "undecided"
    assert said["questions_needed"] == needed
    assert f"about {needed} questions would decide" in said["text"]
    half = say(ratio, interval, n=50)["questions_needed"]
    assert needed / 2 <= half <= needed / 2 + 50


def test_more_are_needed_than_there_are() -> None:
    assert say(0.72, [0.59, 0.80], n=99)["questions_needed"] > 99


def test_the_evidence() -> None:
    said = say(0.9, [0.86, 0.94], text=90.0, reconstructed={"token_recovery": 0.625})["text"]
    assert said == (
        "reconstruction suffices: F1 81.0 is 90 % [86, 94] of the text row's 90.0 (asked as plain, mean "
        "1.5); 62.5 % of the reconstructed tokens are nearest to themselves."
    )


@pytest.mark.parametrize(
    ("text", "interval", "bare"), [(3.0, CLEAR[1], 0.0), (0.0, None, -1.0), (1.0, None, -1.0)]
)
def test_no_ceiling(text: float, interval: list[float] | None, bare: float) -> None:
    said = say(interval=interval, text=text, bare=bare)
    assert said["level"] == "no ceiling"
    assert said["ratio"] == (pytest.approx(0.9) if text else None)
    assert "no better than without the context (2.5)" in said["text"]
    assert said["questions_needed"] is None


def test_a_broken_protocol_comes_before_everything() -> None:
    for text in (80.0, 0.0):
        said = say(text=text, gate=Gate(16, 0.25, 0.001, 0))
        assert said["level"] == "protocol broken"
        assert "logits differ by up to 0.25, by 0.001 where" in said["text"]


def test_few_passages() -> None:
    assert say(passages=9)["text"].endswith("Only 9 passages: the intervals are too narrow.")
    assert "passages" not in say(passages=10)["text"]


def test_truncation() -> None:
    said = say(truncated_prompts=7, truncated_tokens=90)["text"]
    assert said.endswith("7 of 100 prompts lost the end of their context.")


def test_a_model_that_does_not_repeat_itself() -> None:
    said = say(gate=Gate(16, 0.02, 0.03, 5), differ=40)
    assert said["level"] == "reconstruction suffices"
    assert "asked again, 5 of 16 answers changed (logits by up to 0.03)" in said["text"]
    assert said["text"].endswith("--dtype float32 is steadier.")
    assert "raw answered" not in said["text"]  # explained already


def test_batches_that_tip_answers() -> None:
    said = say(differ=3)["text"]
    assert "raw answered 3 of 100 questions otherwise, with equal logits" in said
    assert "raw answered" not in say(differ=3, gate=Gate(16, 0.5, 0.0, 0))["text"]


def test_what_was_still_learning_is_not_called_too_lossy() -> None:
    cut, done = ({"steps": 100, "converged": converged} for converged in (False, True))
    for ratio, interval, otherwise in (
        (0.5, [0.4, 0.59], "too lossy, or broken"),
        (0.7, [0.62, 0.8], "needs generation-aware training"),
    ):
        assert say(ratio, interval, training=done)["level"] == otherwise
        said = say(ratio, interval, training=cut)
        assert said["level"] == ("not converged" if ratio < 0.6 else otherwise)
        assert "still falling after the 100 steps" in said["text"]
