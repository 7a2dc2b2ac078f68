"""The evaluation: the same questions under every condition, and what follows."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.statistics import count_tokens
from stage1.config import RunConfig
from stage1.config.presets import protocol_name
from stage1.data.datasets import spread
from stage1.data.prompts import Prompt, note_truncation
from stage1.evaluation.answers import Answering
from stage1.evaluation.conditions import NEEDED, conditions
from stage1.evaluation.gate import check
from stage1.evaluation.generation import Generation
from stage1.evaluation.rate import rate
from stage1.evaluation.reconstruction import positions, reconstruction
from stage1.evaluation.squad import WORDS_MISLEAD
from stage1.evaluation.summary import graded, summary
from stage1.plugins.tensors import TokenStats
from stage1.runs.answers import Answer
from stage1.session import Session


class Evaluation(NamedTuple):
    """What came of an evaluation."""

    results: dict[str, Any]  # the content of results.json
    answers: dict[str, list[Answer]]  # condition → answer to each question
    throughput: dict[str, float | None]  # condition → questions per second; None where answers were cached

    @property
    def predictions(self) -> dict[str, dict[str, str]]:
        """Condition → question id → answer."""
        return {
            row: {answer.id: answer.prediction for answer in given} for row, given in self.answers.items()
        }


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
        measured = {
            **measure(bottleneck, session, prompts, stats),
            "gate": {**gate._asdict(), "broken": gate.broken},
        }
    kept = {
        name: [graded(q, answer.text, cut=answer.cut) for q, answer in zip(questions, given, strict=True)]
        for name, given in answers.items()
    }
    results = {
        "schema": 1,
        "model": {
            "sha256": session.model.sha256,
            "dtype": str(session.model.llm.dtype).removeprefix("torch."),
        },
        "protocol": protocol(session.config),
        **summary(kept, session.config, task_name(session), measured, training),
    }
    if results["verdict"]["level"] == "protocol broken":
        progress.note(results["verdict"]["text"])
    if "character_f1" in results["rows"][0]:
        progress.note(WORDS_MISLEAD)
    return Evaluation(results, kept, answering.throughput)


def measure(
    bottleneck: Bottleneck, session: Session, prompts: Sequence[Prompt], stats: TokenStats
) -> dict[str, Any]:
    """What is measured of `prompts`, whose tokens `stats` counts, without the LLM."""
    crossing = positions(bottleneck, prompts, stats, session.table)
    lost = [prompt.lost for prompt in prompts if prompt.lost]
    return {
        "truncation": {"truncated_prompts": len(lost), "truncated_tokens": sum(lost)},
        "rate": rate(bottleneck, prompts, stats, session.table),
        "reconstruction": reconstruction(crossing, stats.variance, session.table, bottleneck.seen),
        "size": bottleneck.size(),
    }


def protocol(config: RunConfig) -> dict[str, Any]:
    """What crossed, and who set the norm of a reconstructed vector: under other rules numbers differ."""
    return {
        "name": protocol_name(config),
        "prompt": config.prompt.model_dump(mode="json"),
        "gold": config.data.gold,
        "max_new_tokens": config.eval.max_new_tokens,
        "scope": config.scope,
        "raw_anchor": config.raw_anchor,
        "keep_special": config.keep_special,
        "magnitude": config.magnitude,
    }


def task_name(session: Session) -> str:
    """What results call the questions: the data set's name, or its file's without the folder."""
    return Path(session.config.data.name).name
