"""What the diagnosis works on: a bottleneck, the questions, and the frozen LLM, each asked at most once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from stage1.bottleneck.batches import Batch, in_order
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.splice import Reconstruct
from stage1.bottleneck.statistics import count_tokens
from stage1.data.prompts import Prompt
from stage1.data.records import Question
from stage1.evaluation.answers import Answering, f1_scores
from stage1.evaluation.conditions import Condition, raw, through
from stage1.evaluation.generation import Embed
from stage1.evaluation.reconstruction import Positions, positions
from stage1.llm.chunked import POSITIONS
from stage1.llm.states import FrozenLLM
from stage1.plugins.tensors import TokenStats
from stage1.session import Session
from stage1.training.sensitivity import fitting_stats

PROMPTS_AT_ONCE = 32


class Asked(NamedTuple):
    """The answers of one view of the prompts."""

    answers: list[str]  # as generated, in the order of the questions
    f1: np.ndarray[Any, Any]  # [N] of each, 0 to 100

    @property
    def mean(self) -> float:
        """F1 over all questions, 0 to 100."""
        return float(self.f1.mean())


class NextTokens(NamedTuple):
    """What the LLM makes of the prompts themselves, at the positions whose next token is ordinary."""

    nll: Tensor  # [T] nats: −log p(next token), all prompts one after the other
    guesses: Tensor  # [T] the most probable next token
    final: Tensor  # [N] the most probable first token of each answer

    @property
    def perplexity(self) -> float:
        """exp of the mean over all positions."""
        return float(self.nll.mean().exp())


@dataclass
class Case:
    """A bottleneck under examination.

    Attributes:
        bottleneck: as it was saved, or fitted without training.
        session: model, data and configuration.
        questions, prompts: those asked, and how the run's protocol puts them.
        metrics: the entries of `metrics.jsonl`; none without training.
        cache: where answers are kept that no bottleneck changes; None: nowhere.
        asked, read: what `ask` and `next_tokens` have found out, by name.
    """

    bottleneck: Bottleneck
    session: Session
    questions: list[Question]
    prompts: list[Prompt]
    metrics: list[dict[str, Any]]
    cache: Path | None = None
    asked: dict[str, Asked] = field(default_factory=dict, init=False)
    read: dict[str, NextTokens] = field(default_factory=dict, init=False)

    @cached_property
    def stats(self) -> TokenStats:
        """The tokens that cross in the prompts asked."""
        return count_tokens(self.prompts, self.session.table)

    @cached_property
    def fitted(self) -> TokenStats:
        """The tokens of the run's training prompts, what compressor and adapter were fitted on; without any
        training prompts, those asked.
        """
        if not self.session.data.train:
            return self.stats
        return fitting_stats(self.session, self.session.prompts(self.session.data.train))

    # -- ways of showing the prompts -----------------------------------------------------------------------

    def view(self, reconstruct: Reconstruct, prompts: Sequence[Prompt] | None = None) -> Embed:
        """The prompts with their crossing positions through `reconstruct`."""
        table = self.session.table
        stats = self.stats if prompts is None else count_tokens(prompts, table)
        return through(self.bottleneck, reconstruct, self.session, stats)

    @cached_property
    def raw(self) -> Embed:
        """The original embeddings."""
        return raw(self.session)

    @cached_property
    def positions(self) -> Positions | None:
        """The reconstructed vectors beside the originals; None if the compressor changes the length."""
        return positions(self.bottleneck, self.prompts, self.stats, self.session.table)

    # -- asking --------------------------------------------------------------------------------------------

    def ask(self, name: str, embed: Embed | None, prompts: Sequence[Prompt] | None = None) -> Asked:
        """The answers to the questions where the LLM receives what `embed` makes of `prompts`.

        Asked once under each `name`; None as `embed` gives it the token ids.
        """
        if name not in self.asked:
            shown = self.prompts if prompts is None else list(prompts)
            # What no bottleneck changes may be known, from an evaluation or another diagnosis.
            key = ["text"] if embed is None else ["raw"] if name == "raw" else None
            answers = [a.text for a in self._answering.answers(Condition(name, shown, embed, key))]
            self.asked[name] = Asked(answers, f1_scores(self.questions, answers))
        return self.asked[name]

    @cached_property
    def _answering(self) -> Answering:
        return Answering(self.session, self.cache)

    @cached_property
    def text(self) -> Asked:
        """Token ids: the ceiling."""
        return self.ask("text", None)

    @cached_property
    def ours(self) -> Asked:
        """The bottleneck as it is."""
        return self.ask("bottleneck", self.view(self.bottleneck.reconstruct))

    # -- the prompts themselves ----------------------------------------------------------------------------

    def batches(self, answers: Sequence[list[int]] | None = None) -> Iterator[Batch]:
        """The prompts, right-padded, some at a time and with their `answers`; every position weighs 1."""
        return in_order(self.prompts, self.session.table, PROMPTS_AT_ONCE, answers)

    @torch.no_grad()
    def next_tokens(self, name: str, embed: Embed) -> NextTokens:
        """How well the LLM predicts the original prompts from what it receives; the length must not change.

        Read once under each `name`, as in `ask`.
        """
        if name not in self.read:
            self.read[name] = self._next_tokens(embed)
        return self.read[name]

    def _next_tokens(self, embed: Embed) -> NextTokens:
        llm = FrozenLLM(self.session.model.llm)
        nll, guesses, final = [], [], []
        for batch in self.batches():
            states = llm(embed(batch.ids, batch.cross, batch.attention))
            counted = batch.attention[:, :-1] & batch.ordinary(self.session.special)[:, 1:]
            chosen = torch.split(states.prompt[:, :-1][counted], POSITIONS)
            goals = torch.split(batch.ids[:, 1:][counted], POSITIONS)
            for part, goal in zip(chosen, goals, strict=True):
                logits = llm.head(part).float()
                nll.append(cross_entropy(logits, goal, reduction="none"))
                guesses.append(logits.argmax(-1))
            final.append(llm.head(states.final).argmax(-1))
        return NextTokens(torch.cat(nll), torch.cat(guesses), torch.cat(final))
