"""What is measured on the selection split at every check: errors, the objective, F1."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from stage1.bottleneck.batches import in_order
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.statistics import ReconstructionError, count_tokens
from stage1.data.datasets import spread
from stage1.data.prompts import Prompt
from stage1.data.records import Question
from stage1.evaluation.answers import Answering, scores
from stage1.evaluation.conditions import Condition, through
from stage1.progress import Progress
from stage1.session import Session
from stage1.training.inputs import Cross, Presenter, RoundTrip
from stage1.training.objective import Objective

ROWS = 4096
"""Tokens reconstructed at a time."""


class Selection:
    """The selection split, ready to be measured again and again.

    Args:
        session: model, table and questions.
        questions: how many the LLM is asked; 0: none, F1 is not measured.
    """

    def __init__(self, session: Session, questions: int) -> None:
        self.session = session
        self.size = session.config.train.batch_prompts
        self.prompts = session.prompts(session.data.selection)
        self.stats = count_tokens(self.prompts, session.table)
        self.questions = spread(session.data.selection, questions) if questions else []
        self.asked = self._prompts_of(self.questions)
        self.judged = spread(session.data.selection, session.config.train.check_prompts)
        self.typical: dict[str, float] = {}  # term → its value at the first check

    def _prompts_of(self, questions: Sequence[Question]) -> list[Prompt]:
        chosen = {question.id for question in questions}
        return [prompt for prompt in self.prompts if prompt.id in chosen]

    @torch.no_grad()
    def measure(
        self,
        bottleneck: Bottleneck,
        objective: Objective,
        present: Presenter,
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
            terms = self._terms(objective, present, RoundTrip(bottleneck))
            self.typical = self.typical or terms
            scales = objective.scales(self.typical)
            measured["terms"] = terms
            measured["objective"] = sum(scales[name] * value for name, value in terms.items())
        if self.questions:
            measured |= {"f1": self.f1(bottleneck), "questions": len(self.questions)}
        return {**measured, "score": measured.get("objective", measured.get("recon"))}

    def _errors(self, bottleneck: Bottleneck) -> dict[str, float]:
        errors, stats = ReconstructionError(), self.stats
        if bottleneck.tokenwise:
            chunks = zip(torch.split(stats.embeds, ROWS), torch.split(stats.weights, ROWS), strict=True)
            for rows, counts in chunks:
                mask = torch.ones(1, len(rows), dtype=torch.bool, device=rows.device)
                errors.add(rows, bottleneck(rows[None], mask)[0], counts)
        else:
            for batch in in_order(self.prompts, self.session.table, self.size):
                reconstructed = bottleneck(batch.embeds, batch.cross)[batch.cross]
                errors.add(batch.embeds[batch.cross], reconstructed, batch.weights[batch.cross])
        return errors.summary(stats.variance)

    def _terms(self, objective: Objective, present: Presenter, cross: Cross) -> dict[str, float]:
        """Each term's value over all the prompts together."""
        prompts = self._prompts_of(self.judged) if objective.needs_llm else self.prompts
        answers = self.session.answer_ids(self.judged, prompts) if objective.teacher_forced else None
        sums, seen = dict.fromkeys(objective.losses, 0.0), dict.fromkeys(objective.losses, 0.0)
        for batch in in_order(prompts, self.session.table, self.size, answers):
            inputs = present(batch, cross)
            values: Mapping[str, Tensor] = objective(inputs)
            for name, denominator in objective.denominators(inputs).items():
                if weight := float(denominator):
                    seen[name] += weight
                    sums[name] += weight * float(values[name])
        return {name: total / seen[name] for name, total in sums.items()}

    def f1(self, bottleneck: Bottleneck) -> float:
        """F1 of the questions through `bottleneck`, 0 to 100."""
        embed = through(bottleneck, bottleneck.reconstruct, self.session, self.stats)
        answers = self._answering.answers(Condition("bottleneck", self.asked, embed, None))
        return float(scores(self.questions, [answer.text for answer in answers])["f1"].mean())

    @cached_property
    def _answering(self) -> Answering:
        return Answering(self.session, None, Progress())
