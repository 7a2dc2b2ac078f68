"""The LLM's answers under a condition: batched, looked up where they are known, kept as they come."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from stage1.data.records import Question
from stage1.errors import Stage1Error
from stage1.evaluation.conditions import Condition
from stage1.evaluation.generation import Generation, GreedyDecoder
from stage1.evaluation.squad import f1
from stage1.llm.model import device_name
from stage1.processes import from_all, from_first, share
from stage1.progress import Progress
from stage1.runs.journal import Journal
from stage1.session import Session

FORMAT = 1
"""Of what is kept; counted up when the same prompts would be asked in another way."""

TOKENS_AT_ONCE = {"cpu": 4_096}
TOKENS_AT_ONCE_ELSEWHERE = 262_144
"""Tokens of a batch under `batch_size: auto`: a start, halved when memory runs out."""

PROMPTS_AT_ONCE = 512
"""The most prompts of such a batch."""

TOO_LARGE: list[Any] = []
"""Kept in place of a batch's answers."""


class Answering:
    """Has the LLM answer prompts, one condition after the other; several processes share the batches.

    Args:
        session: model and configuration.
        cache: folder for the answers; None: they are not kept.
        progress: told of every question; None: the session's.

    Attributes:
        throughput: condition → questions per second; None where answers were cached.
    """

    def __init__(self, session: Session, cache: Path | None, progress: Progress | None = None) -> None:
        self.session, self.cache = session, cache
        self.progress = progress or session.progress
        self.throughput: dict[str, float | None] = {}
        self.decoder = GreedyDecoder(
            session.model.llm,
            session.tokenizer,
            stop=session.config.prompt.stop,
            max_new_tokens=session.config.eval.max_new_tokens,
        )
        asked = [session.config.prompt.stop, session.config.eval.max_new_tokens]
        self._decides = [FORMAT, asked, decisive(session)] if cache else None

    def answers(self, condition: Condition) -> list[Generation]:
        """The answers to the condition's prompts, in their order."""
        kept = self.cache is not None and condition.key is not None
        journal = Journal(self.cache if kept else None, [self._decides, condition.key], self.progress)
        found: dict[int, Generation] = {}
        unknown = list(self._batches(condition, journal, found))
        unknown, found = from_first((unknown, found), self.session.device)
        known, pending = len(found), deque(share(unknown, self.session.device))
        self.decoder.share(condition.prompts)
        label = f"Evaluating {condition.name}"
        started = time.perf_counter()
        with self.progress.task(label, sum(map(len, pending)), "questions") as done:
            while pending:
                batch = pending.popleft()
                try:
                    fresh = self.decoder.answer([condition.prompts[i] for i in batch], condition.embed)
                except RuntimeError as error:
                    if not should_reduce_batch_size(error):
                        raise
                else:
                    self._keep(journal, condition, batch, fresh)
                    found |= zip(batch, fresh, strict=True)
                    done(len(batch))
                    continue
                halved(len(batch), self.progress)  # here, where nothing holds the tensors
                if not self._exact:
                    journal.add(_request(condition, batch), TOO_LARGE)
                pending.extendleft(reversed(_halves(batch)))
        for answers in from_all(found, self.session.device):
            found |= answers
        self._note_speed(condition, known, time.perf_counter() - started)
        if not condition.keep:
            journal.forget()
        return [found[number] for number in range(len(condition.prompts))]

    def f1(self, condition: Condition, questions: Sequence[Question]) -> np.ndarray[Any, Any]:
        """[N] F1 of each answer to the condition's prompts, which put the `questions`; 0 to 100."""
        return f1_scores(questions, [answer.text for answer in self.answers(condition)])

    # -- batches, and what is known of them ------------------------------------------------------------

    def _batches(
        self, condition: Condition, journal: Journal, found: dict[int, Generation]
    ) -> Iterator[list[int]]:
        """The prompts that have to be asked, as batches of their numbers; what is known goes into `found`.

        In half precision the other prompts of a batch can tip an answer: batches are looked up whole there.
        """
        if self._exact:
            for number in range(len(condition.prompts)):
                if (answer := journal.get(_request(condition, [number]))) is not None:
                    found[number] = Generation(*answer[0])
        lengths = [len(prompt.ids) for prompt in condition.prompts]
        missing = [number for number in range(len(lengths)) if number not in found]
        for batch in plan(lengths, missing, *self._limits):
            yield from [batch] if self._exact else self._unknown(batch, condition, journal, found)

    def _unknown(
        self, batch: list[int], condition: Condition, journal: Journal, found: dict[int, Generation]
    ) -> Iterator[list[int]]:
        """What of a batch has to be asked; one that ran out of memory is known by its halves."""
        answers = journal.get(_request(condition, batch))
        if answers is None:
            yield batch
        elif answers == TOO_LARGE:
            for half in _halves(batch):
                yield from self._unknown(half, condition, journal, found)
        else:
            found |= zip(batch, (Generation(*answer) for answer in answers), strict=True)

    def _keep(
        self, journal: Journal, condition: Condition, batch: list[int], fresh: list[Generation]
    ) -> None:
        whole = zip(batch, fresh, strict=True)
        units = [([i], [answer]) for i, answer in whole] if self._exact else [(batch, fresh)]
        for numbers, answers in units:
            journal.add(_request(condition, numbers), [list(answer) for answer in answers])

    @property
    def _exact(self) -> bool:
        return self.session.model.llm.dtype in (torch.float32, torch.float64)

    @property
    def _limits(self) -> tuple[int, int]:
        """Prompts and tokens of a batch."""
        size = self.session.config.eval.batch_size
        if size == "auto":
            tokens = TOKENS_AT_ONCE.get(self.session.device.type, TOKENS_AT_ONCE_ELSEWHERE)
            return PROMPTS_AT_ONCE, tokens
        return size, 2**62

    def _note_speed(self, condition: Condition, known: int, seconds: float) -> None:
        questions = len(condition.prompts)
        self.throughput[condition.name] = None if known else questions / seconds
        if known:
            self.progress.note(f"{condition.name}: {known} of {questions} answers were cached.")


def plan(
    lengths: Sequence[int], numbers: Sequence[int], most_prompts: int, most_tokens: int
) -> Iterator[list[int]]:
    """`numbers` in batches of at most so many prompts and (padded) tokens, the longest first.

    Prompts of one length stand together, so little of a batch is padding; what would run out of memory does
    so at once. A prompt longer than `most_tokens` is a batch of its own.
    """
    batch: list[int] = []
    for number in sorted(numbers, key=lambda number: -lengths[number]):
        if batch and (len(batch) == most_prompts or (len(batch) + 1) * lengths[batch[0]] > most_tokens):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def halved(size: int, progress: Progress) -> int:
    """Half of as many prompts as exceeded the memory, which is freed: nothing may hold their tensors.

    Raises:
        Stage1Error: it was a single one.
    """
    if size == 1:
        raise Stage1Error(
            "Out of memory with a single prompt.",
            "Lower data.max_prompt_tokens, or use a smaller --dtype, model, or another --device.",
        )
    progress.note(f"Out of memory with {size} prompts at a time: continuing with {size // 2}.")
    clear_device_cache(garbage_collection=True)
    return size // 2


def _halves(batch: list[int]) -> list[list[int]]:
    middle = len(batch) // 2
    return [batch[:middle], batch[middle:]]


def _request(condition: Condition, numbers: Sequence[int]) -> Any:
    """Prompts as JSON; where the LLM is given their ids, it does not matter what crosses."""
    prompts = [condition.prompts[number] for number in numbers]
    return [prompt.ids if condition.embed is None else [prompt.ids, prompt.cross] for prompt in prompts]


def decisive(session: Session) -> dict[str, Any]:
    """What every answer of the bare model depends on beside its prompt, as JSON."""
    return {
        "model": session.model.sha256,
        "dtype": str(session.model.llm.dtype),
        "attention": session.model.llm.config._attn_implementation,
        "device": device_name(session.device),
        "versions": [torch.__version__, transformers.__version__],
    }


def f1_scores(questions: Sequence[Question], answers: Sequence[str]) -> np.ndarray[Any, Any]:
    """[N] F1 of each answer, 0 to 100."""
    return np.array([100 * f1(text, q.answers) for q, text in zip(questions, answers, strict=True)])
