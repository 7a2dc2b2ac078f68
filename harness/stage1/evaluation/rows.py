"""What the LLM receives in place of a prompt, and the answers it gives to it."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from stage1.bottleneck.bottleneck import Bottleneck, Rebuild
from stage1.data.prompts import Prompt
from stage1.data.records import Question
from stage1.errors import UsageError
from stage1.evaluation.measures import rebuilt_rows
from stage1.evaluation.squad import exact_match, f1
from stage1.llm.loading import load_llm, model_sha256
from stage1.plugins.tensors import Embedded, TokenStats
from stage1.progress import Progress
from stage1.runs.journal import Journal
from stage1.session import Inputs, ModelInputs

if TYPE_CHECKING:  # lm-eval takes most of a second to load, and training alone asks nothing
    from stage1.evaluation.lm_eval.model import Embed

AUTO_BATCH = {"cpu": 32}
AUTO_BATCH_ELSEWHERE = 128
"""Prompts at a time under `batch_size: auto`: a start, halved when memory runs out. lm-eval's own search
tries the model's full length, however short the prompts are."""


class Row(NamedTuple):
    """One way of showing the prompts to the LLM."""

    name: str
    prompts: list[Prompt]
    embed: "Embed | None"
    key: Any  # JSON: what its answers depend on beside model and settings; None: they are not kept
    keep: bool = True  # the answers, beyond this evaluation


class Throughput(NamedTuple):
    """How fast a row was answered; no part of the results, which must not depend on the machine's load."""

    seconds: float
    questions_per_second: float
    prompt_tokens_per_second: float


def load_model(inputs: ModelInputs, progress: Progress) -> PreTrainedModel:
    """The LLM of `inputs`, frozen.

    Raises:
        UsageError: it cannot be used, or it changes what it looks up in its embedding table.
    """
    with progress.task("Loading the LLM"):
        model = load_llm(
            inputs.folder,
            dtype=inputs.config.dtype,
            device=inputs.device,
            trust_remote_code=inputs.config.model.trust_remote_code,
        )
    _refuse_other_embeddings(model, inputs.table)
    return model


def _refuse_other_embeddings(model: PreTrainedModel, table: Tensor) -> None:
    """Some models scale what they look up: their embedding is not the row that the bottleneck has seen."""
    some = torch.arange(0, len(table), max(1, len(table) // 1000), device=table.device)
    if not torch.equal(model.get_input_embeddings()(some), table[some].to(model.dtype)):
        raise UsageError(
            f"{type(model).__name__} changes its embeddings after looking them up, which is not supported.",
            "Use a model of the Llama family.",
        )


@torch.no_grad()
def through(
    bottleneck: Bottleneck,
    rebuild: Rebuild,
    embedding: torch.nn.Module,
    table: Tensor,
    stats: TokenStats,
    prompts: Sequence[Prompt],
) -> "Embed | None":
    """Prompts whose crossing positions went through `rebuild`; None if the compressor knows no inverse."""

    def embed(ids: Tensor, cross: Tensor, attention: Tensor) -> Embedded:
        return bottleneck.splice(Embedded(table[ids].float(), attention), cross, rebuild)

    try:
        if bottleneck.tokenwise:
            return lookup(embedding, stats, rebuilt_rows(rebuild, stats.embeds), len(table))
        if rebuild == bottleneck.rebuild_linear:
            ids = torch.tensor([prompts[0].ids], device=table.device)
            cross = torch.tensor([prompts[0].cross], device=table.device)
            embed(ids, cross, torch.ones_like(cross))
    except NotImplementedError:
        if rebuild == bottleneck.rebuild_linear:
            return None
        raise
    return embed


def lookup(embedding: torch.nn.Module, stats: TokenStats, rows: Tensor, vocabulary: int) -> "Embed":
    """Prompts in which every crossing token of `stats` is its row of `rows` [U, D]."""
    place = torch.zeros(vocabulary, dtype=torch.long, device=rows.device)
    place[stats.ids] = torch.arange(len(stats.ids), device=rows.device)

    def embed(ids: Tensor, cross: Tensor, attention: Tensor) -> Embedded:
        raw = embedding(ids)
        return Embedded(torch.where(cross[..., None], rows[place[ids]].to(raw.dtype), raw), attention)

    return embed


def scores(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    """F1 and exact match of each answer, 0 to 100."""
    pairs = list(zip(answers, questions, strict=True))
    return {
        "f1": np.array([100 * f1(text, question.answers) for text, question in pairs]),
        "exact_match": np.array([100 * exact_match(text, question.answers) for text, question in pairs]),
    }


class Asker:
    """Asks one row after the other, or finds its answers in the cache."""

    def __init__(
        self,
        inputs: Inputs,
        model: PreTrainedModel,
        questions: list[Question],
        cache: Path | None,
        progress: Progress,
    ) -> None:
        from stage1.evaluation.lm_eval.squad_task import QATask

        self.inputs, self.model, self.questions, self.progress = inputs, model, questions, progress
        self.batch_size = batch_size(inputs)
        self.throughput: dict[str, Throughput | None] = {}
        self.cache = cache
        self.decides = {"protocol": QATask.VERSION, **decisive(inputs, model, cache, progress)}

    def ask(self, row: Row) -> list[str]:
        """The row's answers as generated, in the order of the questions."""
        from stage1.evaluation.lm_eval.model import Stage1LM
        from stage1.evaluation.lm_eval.squad_task import QATask, generate_answers

        kept = row.key is not None
        journal = Journal(self.cache if kept else None, [self.decides, row.key], self.progress)
        lm = Stage1LM(
            self.model,
            self.inputs.tokenizer,
            embed=row.embed,
            prompts=row.prompts,
            batch_size=self.batch_size,
            journal=journal,
            progress=self.progress,
            label=f"Asking: {row.name}",
        )
        name, length = task_name(self.inputs), self.inputs.config.eval.max_new_tokens
        started = time.perf_counter()
        answers = generate_answers(lm, QATask(name, self.questions, row.prompts, length))
        self.throughput[row.name] = self._throughput(row, lm.asked, time.perf_counter() - started)
        if not row.keep:
            journal.forget()
        return answers

    def _throughput(self, row: Row, asked: int, seconds: float) -> Throughput | None:
        found = len(self.questions) - asked
        if found:
            self.progress.note(f"{row.name}: {found} of {len(self.questions)} answers were known already.")
            return None
        tokens = sum(len(prompt.ids) for prompt in row.prompts)
        return Throughput(seconds, asked / seconds, tokens / seconds)


def batch_size(inputs: ModelInputs) -> int:
    """Requests at a time, as the configuration says."""
    wanted = inputs.config.eval.batch_size
    return AUTO_BATCH.get(inputs.device.type, AUTO_BATCH_ELSEWHERE) if wanted == "auto" else wanted


def decisive(
    inputs: ModelInputs, model: PreTrainedModel, cache: Path | None, progress: Progress
) -> dict[str, Any]:
    """What every answer of the bare model depends on, as JSON."""
    with progress.task("Hashing the model"):
        model_hash = model_sha256(inputs.folder) if cache else ""
    return {
        "model": model_hash,
        "dtype": str(model.dtype),
        "device": _device_name(inputs.device),
        # In half precision the padding, so the batch, can tip an answer.
        "batch_size": batch_size(inputs),
        "versions": [torch.__version__, transformers.__version__],
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def task_name(inputs: Inputs) -> str:
    """What results call the questions: the data set's name, or its file's without the folder."""
    return Path(inputs.data.name).name
