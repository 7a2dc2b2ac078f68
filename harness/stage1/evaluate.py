"""The evaluation: the same questions through the bottleneck and through the rows that frame it.

`text` (token ids) is the ceiling, `raw` (the original embeddings) proves that embeddings are fed in
correctly, `linear` is the compressor with its own inverse, `bottleneck` the trained adapter, `mean` (every
compressed position is the mean embedding) and `no_context` (the question alone) are the floors.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from stage1.baselines import Baselines
from stage1.bottleneck import Bottleneck, Rebuild
from stage1.data import Prompt, Question, note_truncation, spread
from stage1.errors import UsageError
from stage1.inputs import Inputs
from stage1.llm import load_llm, model_sha256
from stage1.lm import Embed, QATask, Stage1LM, generate_answers
from stage1.measure import rate, rebuilt_rows, reconstruction
from stage1.progress import Progress
from stage1.squad import exact_match, f1
from stage1.stats import ClusterBootstrap
from stage1.tensors import Embedded, TokenStats
from stage1.tokens import count_tokens

SUFFICES, NEARLY = 0.85, 0.60
"""Shares of the `text` row's F1 above which reconstruction suffices, or training must look at answers."""

AUTO_BATCH = {"cpu": 32}
AUTO_BATCH_ELSEWHERE = 128
"""Prompts at a time under `batch_size: auto`: a start, halved when memory runs out. lm-eval's own search
tries the model's full length, however short the prompts are."""


class Throughput(NamedTuple):
    """How fast a row was answered; no part of the results, which must not depend on the machine's load."""

    seconds: float
    questions_per_second: float
    prompt_tokens_per_second: float


class Evaluation(NamedTuple):
    """What came of an evaluation."""

    results: dict[str, Any]  # the content of results.json
    predictions: dict[str, dict[str, str]]  # row → question id → answer
    throughput: dict[str, Throughput | None]  # row → speed; None where the answers came from the cache


class _Row(NamedTuple):
    name: str
    prompts: list[Prompt]
    embed: Embed | None
    key: Any  # JSON: what its answers depend on beside model and settings; None: on the bottleneck


def evaluate(bottleneck: Bottleneck, inputs: Inputs, *, cache: Path | None, progress: Progress) -> Evaluation:
    """Ask the test questions in every row.

    Args:
        bottleneck: trained on the model of `inputs`.
        inputs: model folder, table, questions and configuration.
        cache: folder for the answers that no bottleneck changes (`default_cache()`); None: keep none.
        progress: told of every question and of what is odd.

    Raises:
        UsageError: the model, the questions or the device cannot be used.
        Stage1Error: a single prompt exceeds the memory.
    """
    config = inputs.config
    questions = spread(inputs.data.test, config.eval.limit)
    prompts, bare = inputs.prompts(questions), inputs.prompts(questions, with_context=False)
    note_truncation(prompts, "test", progress)
    stats = count_tokens(prompts, inputs.table)
    with progress.task("Loading the LLM"):
        model = load_llm(
            inputs.folder,
            dtype=config.dtype,
            device=inputs.device,
            trust_remote_code=config.model.trust_remote_code,
        )
        _refuse_other_embeddings(model, stats)
    bottleneck = bottleneck.to(inputs.device).eval()
    asker = _Asker(inputs, model, questions, cache, progress)
    answers = {
        row.name: asker.ask(row) for row in _rows(bottleneck, model, inputs.table, stats, prompts, bare)
    }
    with progress.task("Measuring rate and reconstruction"):
        measured = {
            "rate": rate(bottleneck, prompts, stats, inputs.table),
            "reconstruction": reconstruction(bottleneck, prompts, stats, inputs.table),
        }
    results = _results(inputs, questions, prompts, answers, measured)
    if results["raw_differs"]:
        progress.note(results["verdict"]["text"])
    predictions = {
        name: {q.id: text.strip() for q, text in zip(questions, given, strict=True)}
        for name, given in answers.items()
    }
    return Evaluation(results, predictions, asker.throughput)


def _refuse_other_embeddings(model: PreTrainedModel, stats: TokenStats) -> None:
    """Some models scale what they look up: their embedding is not the row that the bottleneck has seen."""
    looked_up = model.get_input_embeddings()(stats.ids)
    if not torch.equal(looked_up, stats.embeds.to(model.dtype)):
        raise UsageError(
            f"{type(model).__name__} changes its embeddings after looking them up, which is not supported.",
            "Use a model of the Llama family.",
        )


# -- the rows ----------------------------------------------------------------------------------------------


def _rows(
    bottleneck: Bottleneck,
    model: PreTrainedModel,
    table: Tensor,
    stats: TokenStats,
    prompts: list[Prompt],
    bare: list[Prompt],
) -> Iterator[_Row]:
    """The rows in the order in which they are asked and shown."""
    embedding = model.get_input_embeddings()
    mean = bottleneck.mean_embedding
    yield _Row("text", prompts, None, ["text", _tokens(prompts)])
    yield _Row(
        "raw",
        prompts,
        lambda ids, cross, attention: Embedded(embedding(ids), attention),
        ["raw", _tokens(prompts)],
    )
    linear = _through(bottleneck, bottleneck.rebuild_linear, embedding, table, stats, prompts)
    if linear is not None:
        yield _Row("linear", prompts, linear, None)
    rebuilt = _through(bottleneck, bottleneck.rebuild, embedding, table, stats, prompts)
    yield _Row("bottleneck", prompts, rebuilt, None)
    crossing = _sha256([prompt.cross for prompt in prompts])
    yield _Row(
        "mean",
        prompts,
        _lookup(embedding, stats, mean.expand_as(stats.embeds), len(table)),
        ["mean", _tokens(prompts), crossing, _sha256(mean.tolist())],
    )
    yield _Row("no_context", bare, None, ["text", _tokens(bare)])


def _tokens(prompts: Sequence[Prompt]) -> str:
    return _sha256([prompt.ids for prompt in prompts])


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


@torch.no_grad()
def _through(
    bottleneck: Bottleneck,
    rebuild: Rebuild,
    embedding: torch.nn.Module,
    table: Tensor,
    stats: TokenStats,
    prompts: Sequence[Prompt],
) -> Embed | None:
    """Prompts whose crossing positions went through `rebuild`; None if the compressor knows no inverse."""

    def embed(ids: Tensor, cross: Tensor, attention: Tensor) -> Embedded:
        return bottleneck.splice(Embedded(table[ids].float(), attention), cross, rebuild)

    try:
        if bottleneck.tokenwise:
            return _lookup(embedding, stats, rebuilt_rows(rebuild, stats.embeds), len(table))
        ids = torch.tensor([prompts[0].ids], device=table.device)
        cross = torch.tensor([prompts[0].cross], device=table.device)
        embed(ids, cross, torch.ones_like(cross))
    except NotImplementedError:
        if rebuild == bottleneck.rebuild_linear:
            return None
        raise
    return embed


def _lookup(embedding: torch.nn.Module, stats: TokenStats, rows: Tensor, vocabulary: int) -> Embed:
    """Prompts in which every crossing token of `stats` is its row of `rows` [U, D]."""
    place = torch.zeros(vocabulary, dtype=torch.long, device=rows.device)
    place[stats.ids] = torch.arange(len(stats.ids), device=rows.device)

    def embed(ids: Tensor, cross: Tensor, attention: Tensor) -> Embedded:
        raw = embedding(ids)
        return Embedded(torch.where(cross[..., None], rows[place[ids]].to(raw.dtype), raw), attention)

    return embed


class _Asker:
    """Asks one row after the other, or finds its answers in the cache."""

    def __init__(
        self,
        inputs: Inputs,
        model: PreTrainedModel,
        questions: list[Question],
        cache: Path | None,
        progress: Progress,
    ) -> None:
        self.inputs, self.model, self.questions, self.progress = inputs, model, questions, progress
        settings = inputs.config.eval
        automatic = AUTO_BATCH.get(inputs.device.type, AUTO_BATCH_ELSEWHERE)
        self.batch_size = automatic if settings.batch_size == "auto" else settings.batch_size
        self.throughput: dict[str, Throughput | None] = {}
        with progress.task("Hashing the model"):
            model_hash = model_sha256(inputs.folder) if cache else ""
        common = {
            "protocol": QATask.VERSION,
            "model": model_hash,
            "max_new_tokens": settings.max_new_tokens,
            "dtype": str(model.dtype),
            "device": _device_name(inputs.device),
            # In half precision the padding, so the batch, can tip an answer.
            "batch_size": self.batch_size,
            "versions": [torch.__version__, transformers.__version__],
        }
        self.baselines = Baselines(cache, common, progress)

    def ask(self, row: _Row) -> list[str]:
        """The row's answers as generated, in the order of the questions."""
        ids = [question.id for question in self.questions]
        if row.key is not None and (known := self.baselines.read(row.key, ids)) is not None:
            self.progress.note(f"{row.name}: the bare model's answers are in the cache.")
            self.throughput[row.name] = None
            return known
        name, length = task_name(self.inputs), self.inputs.config.eval.max_new_tokens
        lm = Stage1LM(
            self.model,
            self.inputs.tokenizer,
            embed=row.embed,
            prompts=row.prompts,
            batch_size=self.batch_size,
            progress=self.progress,
            label=f"Asking: {row.name}",
        )
        started = time.perf_counter()
        answers = generate_answers(lm, QATask(name, self.questions, row.prompts, length))
        seconds = time.perf_counter() - started
        tokens = sum(len(prompt.ids) for prompt in row.prompts)
        self.throughput[row.name] = Throughput(seconds, len(answers) / seconds, tokens / seconds)
        if row.key is not None:
            self.baselines.write(row.key, ids, answers)
        return answers


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def task_name(inputs: Inputs) -> str:
    """What results call the questions: the data set's name, or its file's without the folder."""
    return Path(inputs.data.name).name


# -- the results -------------------------------------------------------------------------------------------


def _results(
    inputs: Inputs,
    questions: Sequence[Question],
    prompts: Sequence[Prompt],
    answers: Mapping[str, Sequence[str]],
    measured: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of results.json: no time, no path, nothing that differs when it is measured again."""
    settings = inputs.config.eval
    bootstrap = ClusterBootstrap([q.context for q in questions], settings.resamples, inputs.config.seed)
    scores = {name: _scores(questions, given) for name, given in answers.items()}
    ceiling = scores["text"]["f1"]
    rows = []
    for name, score in scores.items():
        row: dict[str, Any] = {"row": name, "task": task_name(inputs), "n": len(questions)}
        for metric, values in {**score, "f1_vs_text": score["f1"] - ceiling}.items():
            row |= {metric: float(values.mean()), f"{metric}_ci95": bootstrap.interval(values)}
        rows.append(row)
    differs = sum(a != b for a, b in zip(answers["text"], answers["raw"], strict=True))
    lost = [prompt.lost for prompt in prompts if prompt.lost]
    return {
        "schema": 1,
        "rows": rows,
        **measured,
        "truncated": {"prompts": len(lost), "tokens": sum(lost)},
        "raw_equals_text": not differs,
        "raw_differs": differs,
        "verdict": verdict({row["row"]: row for row in rows}, differs, measured["reconstruction"]),
    }


def _scores(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    pairs = list(zip(answers, questions, strict=True))
    return {
        "f1": np.array([100 * f1(text, question.answers) for text, question in pairs]),
        "exact_match": np.array([100 * exact_match(text, question.answers) for text, question in pairs]),
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
