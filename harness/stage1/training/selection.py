"""What is measured on the selection split at every check: errors, the objective, F1."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from stage1.bottleneck.batches import Batch, in_order
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.statistics import ReconstructionError, count_tokens
from stage1.data.datasets import spread
from stage1.evaluation.answers import Answering, scores
from stage1.evaluation.conditions import Condition, through
from stage1.plugins.tensors import LossInputs
from stage1.progress import Progress
from stage1.session import Session
from stage1.training.objective import Objective

ROWS = 4096
"""Tokens rebuilt at a time."""


class Selection:
    """The selection split, ready to be measured again and again.

    Args:
        inputs: model, table and questions.
        ask: have the LLM answer `train.check_questions` of the questions; otherwise F1 is not measured.
    """

    def __init__(self, inputs: Session, *, ask: bool) -> None:
        self.inputs, self.ask = inputs, ask
        self.size = inputs.config.train.batch_prompts
        self.prompts = inputs.prompts(inputs.data.selection)
        self.stats = count_tokens(self.prompts, inputs.table)
        self.questions = spread(inputs.data.selection, inputs.config.train.check_questions)
        asked = {question.id for question in self.questions}
        self.asked = [prompt for prompt in self.prompts if prompt.id in asked]
        self.typical: dict[str, float] = {}  # term → its value at the first check
        self._answers: list[list[int]] | None = None

    @torch.no_grad()
    def measure(
        self,
        bottleneck: Bottleneck,
        objective: Objective,
        loss_inputs: Callable[[Batch], LossInputs],
    ) -> dict[str, Any]:
        """Reconstruction errors; `objective` and its `terms` where prompts are needed for it; `f1`.

        `score` is the one number that chooses the checkpoint, lower is better: `recon`, or the objective
        where a loss reads the LLM or positions do not match. In it an `auto` term is divided by its value
        at the first check, so that scores of different steps compare.
        """
        measured: dict[str, Any] = {}
        if not bottleneck.compressor.changes_length:
            measured |= self._errors(bottleneck)
        if objective.needs_llm or bottleneck.compressor.changes_length:
            terms = self._terms(objective, loss_inputs)
            self.typical = self.typical or terms
            scales = objective.scales(self.typical)
            measured["terms"] = terms
            measured["objective"] = sum(scales[name] * value for name, value in terms.items())
        if self.ask:
            measured["f1"] = self.f1(bottleneck)
        return {**measured, "score": measured.get("objective", measured.get("recon"))}

    def _errors(self, bottleneck: Bottleneck) -> dict[str, float]:
        errors, stats = ReconstructionError(), self.stats
        if bottleneck.tokenwise:
            chunks = zip(torch.split(stats.embeds, ROWS), torch.split(stats.counts, ROWS), strict=True)
            for rows, counts in chunks:
                mask = torch.ones(1, len(rows), dtype=torch.bool, device=rows.device)
                errors.add(rows, bottleneck(rows[None], mask)[0], counts)
        else:
            for batch in in_order(self.prompts, self.inputs.table, self.size):
                rebuilt = bottleneck(batch.embeds, batch.cross)[batch.cross]
                errors.add(batch.embeds[batch.cross], rebuilt, batch.weights[batch.cross])
        return errors.summary(stats.variance)

    def _terms(self, objective: Objective, loss_inputs: Callable[[Batch], LossInputs]) -> dict[str, float]:
        """Each term's mean over the prompts, weighted by how much of a prompt crosses."""
        prompts = self.asked if objective.needs_llm else self.prompts
        if objective.teacher_forced and self._answers is None:
            self._answers = self.inputs.answer_ids(self.questions, self.asked)
        sums: dict[str, float] = {}
        seen = 0.0
        for batch in in_order(prompts, self.inputs.table, self.size, self._answers):
            weight = float(batch.weights.sum())
            values: Mapping[str, Tensor] = objective(loss_inputs(batch))
            seen += weight
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + weight * float(value)
        return {name: total / seen for name, total in sums.items()}

    def f1(self, bottleneck: Bottleneck) -> float:
        """F1 of the questions through `bottleneck`, 0 to 100."""
        embed = through(bottleneck, bottleneck.rebuild, self.inputs, self.stats)
        answers = self._answering.answers(Condition("bottleneck", self.asked, embed, None))
        return float(scores(self.questions, [answer.text for answer in answers])["f1"].mean())

    @cached_property
    def _answering(self) -> Answering:
        return Answering(self.inputs, None, Progress())
