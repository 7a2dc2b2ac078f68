"""What is measured on the selection split at every check: errors, the objective, F1."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stage1.bottleneck.batches import Batch, in_order
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.statistics import ReconstructionError, count_tokens, training_rows
from stage1.config import RunConfig
from stage1.data.datasets import spread
from stage1.data.prompts import Prompt
from stage1.data.records import Question
from stage1.evaluation.answers import Answering
from stage1.evaluation.conditions import Condition, through
from stage1.evaluation.reconstruction import reconstructed_rows
from stage1.plugins.tensors import CHUNK
from stage1.progress import Progress
from stage1.session import Session
from stage1.training.batches import TokenBatches
from stage1.training.inputs import Cross, RoundTrip

if TYPE_CHECKING:
    from stage1.training.trainer import Trainer


class Selection:
    """The selection split, ready to be measured again and again.

    Args:
        session: model, table and questions.
        prompts: of the split's questions.
        questions: how many the LLM is asked; 0: none, F1 is not measured.
    """

    def __init__(self, session: Session, prompts: list[Prompt], questions: int) -> None:
        self.session, self.prompts = session, prompts
        self.size = session.config.train.batch_prompts
        self.stats = count_tokens(self.prompts, session.table)
        self.questions = spread(session.data.selection, questions) if questions else []
        self.asked = self._prompts_of(self.questions)
        self.judged = spread(session.data.selection, session.config.train.check_prompts)
        self.typical: dict[str, float] = {}  # term → its value at the first check

    def _prompts_of(self, questions: Sequence[Question]) -> list[Prompt]:
        chosen = {question.id for question in questions}
        return [prompt for prompt in self.prompts if prompt.id in chosen]

    @torch.no_grad()
    def measure(self, trainer: "Trainer", *, ask: bool = True) -> dict[str, Any]:
        """Reconstruction errors; the `objective` and its `terms`, where they are measured; `f1` to `ask`.

        `score` is the one number that chooses the checkpoint, lower is better: the objective, its terms on
        distinct tokens where they are trained on these, weighted as there, so that rare ones count. Where
        prompts are trained on without the LLM, and positions match, it is `recon`. An `auto` term is divided
        by its value at the first check, so that scores of different steps compare.
        """
        bottleneck, objective = trainer.bottleneck, trainer.objective
        measured: dict[str, Any] = {}
        if not bottleneck.compressor.changes_length:
            measured |= self._errors(bottleneck)
            measured["score"] = measured["recon"]
        if trainer.fast or objective.needs_llm or bottleneck.compressor.changes_length:
            terms = self._terms(trainer, RoundTrip(bottleneck))
            self.typical = self.typical or terms
            scales = objective.scales(self.typical)
            measured["terms"] = terms
            measured["objective"] = measured["score"] = sum(
                scales[name] * value for name, value in terms.items()
            )
        if self.questions and ask:
            measured |= {"f1": self._f1(bottleneck), "questions": len(self.questions)}
        return measured

    def _errors(self, bottleneck: Bottleneck) -> dict[str, float]:
        errors, stats = ReconstructionError(), self.stats
        if bottleneck.tokenwise:
            errors.add(stats.embeds, reconstructed_rows(bottleneck.reconstruct, stats.embeds), stats.weights)
        else:
            for batch in in_order(self.prompts, self.session.table, self.size):
                reconstructed = bottleneck(batch.embeds, batch.cross)[batch.cross]
                errors.add(batch.embeds[batch.cross], reconstructed, batch.weights[batch.cross])
        return errors.summary(stats.variance)

    def _terms(self, trainer: "Trainer", cross: Cross) -> dict[str, float]:
        """Each term's value over all the prompts together.

        Where training reads distinct tokens, over these, by their share of what they would weigh there; where
        it reads them beside the prompts, this goes for the token-wise terms.
        """
        objective = trainer.objective
        if trainer.fast:
            tokens = self._tokens()
            return _average(trainer, tokens.split(math.ceil(tokens.pieces / CHUNK)), cross)
        prompts = self._prompts_of(self.judged) if objective.needs_llm else self.prompts
        answers = self.session.answer_ids(self.judged, prompts) if objective.teacher_forced else None
        rest = [prompt.behind(trainer.present.shared) for prompt in prompts]
        terms = _average(trainer, in_order(rest, self.session.table, self.size, answers), cross)
        if trainer.bottleneck.tokenwise and objective.mixed:
            seen = trainer.present.apart(self._tokens(), cross)
            terms |= {name: float(loss(seen)) for name, loss in objective.losses.items() if loss.tokenwise}
        return terms

    def _tokens(self) -> Batch:
        rows = training_rows(self.stats, self.session.config.train.uniform, self.session.table, "seen")
        return TokenBatches(rows, len(rows.ids), 0).batch(0)

    def _f1(self, bottleneck: Bottleneck) -> float:
        """F1 of the questions through the bottleneck, 0 to 100."""
        embed = through(bottleneck, bottleneck.reconstruct, self.session, self.stats)
        asked = Condition("bottleneck", self.asked, embed, None)
        return float(self._answering.f1(asked, self.questions).mean())

    @cached_property
    def _answering(self) -> Answering:
        return Answering(self.session, None, Progress())


def _average(trainer: "Trainer", batches: Iterable[Batch], cross: Cross) -> dict[str, float]:
    """Each term's value over all the batches together."""
    objective = trainer.objective
    sums, seen = dict.fromkeys(objective.losses, 0.0), dict.fromkeys(objective.losses, 0.0)
    for batch in batches:
        inputs = trainer.present(batch, cross)
        values: Mapping[str, Tensor] = objective(inputs)
        for name, denominator in objective.denominators(inputs).items():
            if weight := float(denominator):
                seen[name] += weight
                sums[name] += weight * float(values[name])
    return {name: total / seen[name] for name, total in sums.items()}


SHARE = 0.1
"""Of the steps' arithmetic that all F1 checks together may take."""

FEWEST, MOST = 8, 100
"""Questions of a check: the F1 of fewer says nothing, that of more hardly says more."""

ALONE = 4
"""Tokens that are read side by side in the time of one that is generated; those come one after another."""


def affordable_questions(
    config: RunConfig,
    bottleneck: Bottleneck,
    model: PreTrainedModel,
    *,
    reads_llm: bool,
    tokens: float,
    length: float,
) -> int:
    """How many questions each F1 check may ask within `SHARE`, at most `MOST`; 0 where it is under `FEWEST`.

    What checks cost beside the steps is counted instead of timed: the same on every machine. In units of two
    operations: a token's pass forward takes as many as there are parameters, its step three times that. The
    LLM's step is student, its gradient and teacher: three passes, too.

    Args:
        config: steps, checks, the longest answer.
        bottleneck: what is trained.
        model: the LLM that is asked.
        reads_llm: a loss reads it too.
        tokens: that go through the bottleneck in a step.
        length: of a prompt, on average.
    """
    train = config.train
    own = sum(p.numel() for p in bottleneck.parameters())
    table = sum(p.numel() for p in model.get_input_embeddings().parameters())
    llm = sum(p.numel() for p in model.parameters()) - table
    step = 3 * tokens * (own + llm * reads_llm)
    question = llm * (length + ALONE * config.eval.max_new_tokens)
    checks = train.steps // train.check_every + 2  # the start and the closed form at the end
    number = int(SHARE * train.steps * step / (checks * question))
    return min(number, MOST) if number >= FEWEST else 0
