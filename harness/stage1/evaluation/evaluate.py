"""The evaluation: the same questions through the bottleneck and through the rows that frame it.

`text` (token ids) is the ceiling, `raw` (the original embeddings) proves that embeddings are fed in
correctly, `linear` is the compressor with its own inverse, `bottleneck` the trained adapter, `mean` (every
compressed position is the mean embedding) and `no_context` (the question alone) are the floors.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.statistics import count_tokens
from stage1.data.datasets import spread
from stage1.data.prompts import Prompt, note_truncation
from stage1.data.records import Question
from stage1.evaluation.measures import rate, reconstruction
from stage1.evaluation.rows import Asker, Row, Throughput, load_model, lookup, scores, task_name, through
from stage1.evaluation.statistics import ClusterBootstrap
from stage1.plugins.tensors import Embedded, TokenStats
from stage1.progress import Progress
from stage1.runs.journal import sha256
from stage1.session import Inputs

SUFFICES, NEARLY = 0.85, 0.60
"""Shares of the `text` row's F1 above which reconstruction suffices, or training must look at answers."""


NEEDED = ("text", "raw", "bottleneck", "no_context")
"""The rows that a verdict needs; `linear` and `mean` say more about one run than about how runs differ."""


class Evaluation(NamedTuple):
    """What came of an evaluation."""

    results: dict[str, Any]  # the content of results.json
    predictions: dict[str, dict[str, str]]  # row → question id → answer
    throughput: dict[str, Throughput | None]  # row → speed; None where the answers came from the cache


def evaluate(
    bottleneck: Bottleneck,
    inputs: Inputs,
    *,
    cache: Path | None,
    progress: Progress,
    rows: Collection[str] | None = None,
) -> Evaluation:
    """Ask the test questions in every row.

    Args:
        bottleneck: trained on the model of `inputs`.
        inputs: model folder, table, questions and configuration.
        cache: folder for answers (`default_cache()`): those that no bottleneck changes are kept there, the
            others until the evaluation is done. None: keep none.
        progress: told of every question and of what is odd.
        rows: the rows to ask, `NEEDED` among them; None: all there are.

    Raises:
        UsageError: the model, the questions or the device cannot be used.
        Stage1Error: a single prompt exceeds the memory.
    """
    if rows is not None and not set(NEEDED) <= set(rows):
        raise ValueError(f"An evaluation needs the rows {', '.join(NEEDED)}.")
    config = inputs.config
    questions = spread(inputs.data.test, config.eval.limit)
    prompts, bare = inputs.prompts(questions), inputs.prompts(questions, with_context=False)
    note_truncation(prompts, "test", progress)
    stats = count_tokens(prompts, inputs.table)
    model = load_model(inputs, progress)
    bottleneck = bottleneck.to(inputs.device).eval()
    asker = Asker(inputs, model, questions, cache, progress)
    answers = {
        row.name: asker.ask(row)
        for row in _rows(bottleneck, inputs, model, stats, prompts, bare)
        if rows is None or row.name in rows
    }
    with progress.task("Measuring rate and reconstruction"):
        measured = {
            "rate": rate(bottleneck, prompts, stats, inputs.table),
            "reconstruction": reconstruction(bottleneck, prompts, stats, inputs.table),
        }
    results = {
        "schema": 1,
        "protocol": _protocol(bottleneck, inputs),
        **_results(inputs, questions, prompts, answers, measured),
    }
    if results["raw_differs"]:
        progress.note(results["verdict"]["text"])
    predictions = {
        name: {q.id: text.strip() for q, text in zip(questions, given, strict=True)}
        for name, given in answers.items()
    }
    return Evaluation(results, predictions, asker.throughput)


# -- the rows ----------------------------------------------------------------------------------------------


def _rows(
    bottleneck: Bottleneck,
    inputs: Inputs,
    model: PreTrainedModel,
    stats: TokenStats,
    prompts: list[Prompt],
    bare: list[Prompt],
) -> Iterator[Row]:
    """The rows in the order in which they are asked and shown."""
    embedding, table = model.get_input_embeddings(), inputs.table
    mean, rules = bottleneck.mean_embedding, _protocol(bottleneck, inputs)
    compressed = [rules, bottleneck.fingerprint()]
    yield Row("text", prompts, None, ["text"])
    yield Row("raw", prompts, lambda ids, cross, attention: Embedded(embedding(ids), attention), ["raw"])
    linear = through(bottleneck, bottleneck.rebuild_linear, embedding, table, stats, prompts)
    if linear is not None:
        yield Row("linear", prompts, linear, ["linear", *compressed], keep=False)
    rebuilt = through(bottleneck, bottleneck.rebuild, embedding, table, stats, prompts)
    yield Row("bottleneck", prompts, rebuilt, ["bottleneck", *compressed], keep=False)
    constant = lookup(embedding, stats, mean.expand_as(stats.embeds), len(table))
    yield Row("mean", prompts, constant, ["mean", rules, sha256(mean.tolist())])
    yield Row("no_context", bare, None, ["text"])


# -- the results -------------------------------------------------------------------------------------------


def _protocol(bottleneck: Bottleneck, inputs: Inputs) -> dict[str, Any]:
    """What crossed, and who said how long a rebuilt vector is: numbers under other rules do not compare."""
    config = inputs.config
    return {
        "scope": config.scope,
        "raw_anchor": config.raw_anchor,
        "keep_special": config.keep_special,
        "magnitude": bottleneck.magnitude,
    }


def _results(
    inputs: Inputs,
    questions: Sequence[Question],
    prompts: Sequence[Prompt],
    answers: Mapping[str, Sequence[str]],
    measured: Mapping[str, Any],
) -> dict[str, Any]:
    """The measured part of results.json: no time, no path, nothing that differs when it is measured again."""
    settings = inputs.config.eval
    bootstrap = ClusterBootstrap([q.context for q in questions], settings.resamples, inputs.config.seed)
    scored = {name: scores(questions, given) for name, given in answers.items()}
    ceiling = scored["text"]["f1"]
    rows = []
    for name, score in scored.items():
        row: dict[str, Any] = {"row": name, "task": task_name(inputs), "n": len(questions)}
        for metric, values in {**score, "f1_vs_text": score["f1"] - ceiling}.items():
            row |= {metric: float(values.mean()), f"{metric}_ci95": bootstrap.interval(values)}
        rows.append(row)
    differs = sum(a != b for a, b in zip(answers["text"], answers["raw"], strict=True))
    lost = [prompt.lost for prompt in prompts if prompt.lost]
    return {
        "rows": rows,
        **measured,
        "truncated": {"prompts": len(lost), "tokens": sum(lost)},
        "raw_equals_text": not differs,
        "raw_differs": differs,
        "verdict": verdict({row["row"]: row for row in rows}, differs, measured["reconstruction"]),
    }


def verdict(
    rows: Mapping[str, Mapping[str, Any]], raw_differs: int, rebuilt: Mapping[str, float] | None
) -> dict[str, Any]:
    """What the numbers say: `level`, `ratio` (the bottleneck's share of the `text` row's F1) and `text`.

    Two things make every other number meaningless and come first: embeddings that do not do what token ids
    do, and a model that answers no better with the context than without.
    """
    text, ours = rows["text"]["f1"], rows["bottleneck"]["f1"]
    ratio = ours / text if text else None
    if raw_differs:
        level = "protocol broken"
        evidence = (
            f"raw differs from text on {raw_differs} of {rows['raw']['n']} questions; nothing else counts"
        )
    elif ratio is None or rows["no_context"]["f1_vs_text_ci95"][1] >= 0:
        level = "no ceiling"
        evidence = (
            f"the bare model's F1 {text:.1f} is no better than without the context "
            f"({rows['no_context']['f1']:.1f}): these questions cannot judge a bottleneck"
        )
    else:
        level = (
            "reconstruction suffices"
            if ratio >= SUFFICES
            else "needs generation-aware training"
            if ratio >= NEARLY
            else "too lossy, or broken"
        )
        floors = [f"{name} {rows[name]['f1']:.1f}" for name in ("linear", "mean") if name in rows]
        evidence = f"F1 {ours:.1f} is {100 * ratio:.0f} % of the text row's {text:.1f} ({', '.join(floors)})"
        if rebuilt is not None:
            evidence += (
                f"; {100 * rebuilt['token_recovery']:.1f} % of the rebuilt tokens are nearest to themselves"
            )
    return {"level": level, "ratio": ratio, "text": f"{level}: {evidence}."}
