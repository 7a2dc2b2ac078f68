"""From answers to numbers: everything in results.json that follows from the kept answers, and nothing else.

`stage1 eval` calls it with answers that were just given, `stage1 verify` with those that were kept.
"""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np

from stage1.config import RunConfig
from stage1.config.presets import protocol_name
from stage1.data.datasets import passage_hash
from stage1.data.records import Question
from stage1.evaluation.gate import Gate
from stage1.evaluation.squad import character_f1, exact_match, f1, is_unspaced
from stage1.evaluation.statistics import ClusterBootstrap
from stage1.evaluation.verdict import verdict
from stage1.runs.answers import Answer

METRICS = ("f1", "exact_match")


def graded(question: Question, text: str, *, cut: bool) -> Answer:
    """What the LLM said to `question`, with its scores."""
    return marked(
        Answer(
            id=question.id,
            passage=passage_hash(question),
            question=question.question,
            gold=question.answers,
            prediction=text.strip(),
            f1=0.0,
            exact_match=0.0,
            cut=cut,
        )
    )


def marked(answer: Answer) -> Answer:
    """The same answer with the scores that follow from its texts."""
    return answer._replace(
        f1=100 * f1(answer.prediction, answer.gold),
        exact_match=100 * exact_match(answer.prediction, answer.gold),
    )


def summary(
    answers: Mapping[str, Sequence[Answer]],
    config: RunConfig,
    task: str,
    measured: Mapping[str, Any],
    training: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The measured part of results.json: no time, no path, nothing that differs when it is measured again.

    Args:
        answers: condition → the answers, to the same questions in the same order.
        config: what they were asked under.
        task: what results call the questions.
        measured: what does not follow from the answers: `gate`, `truncation`, `rate`, `reconstruction`, …
        training: what the manifest says of it.
    """
    asked = answers["text"]
    bootstrap = ClusterBootstrap([a.passage for a in asked], config.eval.resamples, config.seed)
    scored = {
        name: {metric: np.array([getattr(a, metric) for a in given]) for metric in METRICS}
        for name, given in answers.items()
    }
    ceiling = scored["text"]["f1"]
    unspaced = is_unspaced([answer.question for answer in asked])
    rows = []
    for name, score in scored.items():
        row: dict[str, Any] = {"row": name, "task": task, "n": len(asked)}
        for metric, values in {**score, "f1_vs_text": score["f1"] - ceiling}.items():
            row |= {metric: float(values.mean()), f"{metric}_ci95": bootstrap.interval(values)}
        row["answers_cut"] = sum(answer.cut for answer in answers[name])
        row["answers_differ"] = sum(
            a.prediction != b.prediction for a, b in zip(asked, answers[name], strict=True)
        )
        if unspaced:
            row["character_f1"] = 100 * mean(character_f1(a.prediction, a.gold) for a in answers[name])
        rows.append(row)
    ratio = bootstrap.ratio_interval(scored["bottleneck"]["f1"], ceiling)
    counted = {"n": len(asked), "passages": len({a.passage for a in asked}), **measured["truncation"]}
    gate = Gate(**{key: measured["gate"][key] for key in Gate._fields})
    return {
        "questions": counted,
        "rows": rows,
        **{key: value for key, value in measured.items() if key != "truncation"},
        "verdict": verdict(
            {row["row"]: row for row in rows},
            ratio,
            gate,
            counted,
            measured["reconstruction"],
            protocol_name(config),
            training,
        ),
    }
