"""The evaluation: the same questions under every condition, and what follows."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.size import size
from stage1.bottleneck.statistics import count_tokens
from stage1.config.presets import protocol_name
from stage1.data.datasets import spread
from stage1.data.prompts import note_truncation
from stage1.data.records import Question
from stage1.evaluation.answers import Answering, Throughput, scores
from stage1.evaluation.conditions import NEEDED, conditions
from stage1.evaluation.gate import Gate, check
from stage1.evaluation.generation import Generation
from stage1.evaluation.rate import rate
from stage1.evaluation.reconstruction import positions, reconstruction
from stage1.evaluation.squad import WORDS_MISLEAD, character_f1, is_unspaced
from stage1.evaluation.statistics import ClusterBootstrap
from stage1.evaluation.verdict import verdict
from stage1.session import Session


class Evaluation(NamedTuple):
    """What came of an evaluation."""

    results: dict[str, Any]  # the content of results.json
    predictions: dict[str, dict[str, str]]  # condition → question id → answer
    throughput: dict[str, Throughput | None]  # condition → speed; None where the answers came from the cache


def evaluate(
    bottleneck: Bottleneck,
    session: Session,
    *,
    cache: Path | None,
    rows: Collection[str] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Ask the test questions under every condition.

    Args:
        bottleneck: trained on the session's model.
        session: model, questions and configuration.
        cache: folder for answers (`default_cache()`): those that no bottleneck changes are kept there, the
            others until the evaluation is done. None: keep none.
        rows: the conditions to ask, `NEEDED` among them; None: all there are.
        training: how the bottleneck's training went (`Course.summary`), if that is known.

    Raises:
        UsageError: the model, the questions or the device cannot be used.
        Stage1Error: a single prompt exceeds the memory.
    """
    if rows is not None and not set(NEEDED) <= set(rows):
        raise ValueError(f"An evaluation needs the rows {', '.join(NEEDED)}.")
    progress = session.progress
    questions = spread(session.data.test, session.config.eval.limit)
    prompts = session.prompts(questions)
    note_truncation(prompts, "test", progress)
    stats = count_tokens(prompts, session.table)
    bottleneck = bottleneck.to(session.device).eval()
    answering = Answering(session, cache)
    answers: dict[str, list[Generation]] = {}
    for condition in conditions(bottleneck, session, stats, questions, prompts, rows):
        if condition.known is None:
            answers[condition.name] = answering.answers(condition)
        else:
            other, order = condition.known
            answers[condition.name] = [answers[other][i] for i in order]
    gate = check(answering, prompts)
    with progress.task("Measuring rate and reconstruction"):
        crossing = positions(bottleneck, prompts, stats, session.table)
        measured = {
            "rate": rate(bottleneck, prompts, stats, session.table),
            "reconstruction": reconstruction(crossing, stats.variance, session.table, bottleneck.seen),
            "size": size(bottleneck),
        }
    lost = [prompt.lost for prompt in prompts if prompt.lost]
    counted = {
        "n": len(questions),
        "passages": len({question.context for question in questions}),
        "truncated_prompts": len(lost),
        "truncated_tokens": sum(lost),
    }
    results = {
        "schema": 1,
        "protocol": protocol(bottleneck, session),
        "questions": counted,
        **_results(session, questions, answers, gate, counted, measured, training),
    }
    if results["verdict"]["level"] == "protocol broken":
        progress.note(results["verdict"]["text"])
    predictions = {
        name: {q.id: answer.text.strip() for q, answer in zip(questions, given, strict=True)}
        for name, given in answers.items()
    }
    if is_unspaced([q.question for q in questions]):
        progress.note(WORDS_MISLEAD)
        for row in results["rows"]:
            given = predictions[row["row"]]
            row["character_f1"] = 100 * mean(character_f1(given[q.id], q.answers) for q in questions)
    return Evaluation(results, predictions, answering.throughput)


def protocol(bottleneck: Bottleneck, session: Session) -> dict[str, Any]:
    """What crossed, and who set the norm of a reconstructed vector: under other rules numbers differ."""
    config = session.config
    return {
        "name": protocol_name(config),
        "prompt": config.prompt.model_dump(mode="json"),
        "gold": config.data.gold,
        "max_new_tokens": config.eval.max_new_tokens,
        "scope": config.scope,
        "raw_anchor": config.raw_anchor,
        "keep_special": config.keep_special,
        "magnitude": bottleneck.magnitude,
    }


def task_name(session: Session) -> str:
    """What results call the questions: the data set's name, or its file's without the folder."""
    return Path(session.config.data.name).name


def _results(
    session: Session,
    questions: Sequence[Question],
    answers: Mapping[str, Sequence[Generation]],
    gate: Gate,
    counted: Mapping[str, int],
    measured: Mapping[str, Any],
    training: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The measured part of results.json: no time, no path, nothing that differs when it is measured again."""
    settings = session.config.eval
    bootstrap = ClusterBootstrap([q.context for q in questions], settings.resamples, session.config.seed)
    scored = {name: scores(questions, [a.text for a in given]) for name, given in answers.items()}
    ceiling = scored["text"]["f1"]
    rows = []
    for name, score in scored.items():
        row: dict[str, Any] = {"row": name, "task": task_name(session), "n": len(questions)}
        for metric, values in {**score, "f1_vs_text": score["f1"] - ceiling}.items():
            row |= {metric: float(values.mean()), f"{metric}_ci95": bootstrap.interval(values)}
        row["answers_cut"] = sum(answer.cut for answer in answers[name])
        row["answers_differ"] = sum(
            a.text != b.text for a, b in zip(answers["text"], answers[name], strict=True)
        )
        rows.append(row)
    ratio = bootstrap.ratio_interval(scored["bottleneck"]["f1"], ceiling)
    by_name = {row["row"]: row for row in rows}
    return {
        "rows": rows,
        **measured,
        "gate": {**gate._asdict(), "broken": gate.broken},
        "verdict": verdict(
            by_name,
            ratio,
            gate,
            counted,
            measured["reconstruction"],
            protocol_name(session.config),
            training,
        ),
    }
