"""Questions as tokenized prompts whose segments are known."""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from stage1.config import PromptConfig
from stage1.data.records import Question
from stage1.data.template import Layout, Piece, PromptText
from stage1.errors import UsageError
from stage1.progress import Progress

if TYPE_CHECKING:  # scoring predictions needs no tokenizer and should not wait for one
    from transformers import PreTrainedTokenizerFast

BATCH = 1_000  # prompts tokenized at a time

WORTH_SHARING = 32
"""Tokens that all prompts begin with from which these are run through the LLM once, not for each prompt."""


class Prompt(NamedTuple):
    """A question as the model reads it."""

    id: str
    text: str  # after truncation, without the special tokens that the tokenizer adds
    ids: list[int]  # as the tokenizer makes them of `text`, BOS included
    cross: list[bool]  # which positions go through the bottleneck
    lost: int  # tokens that truncation removed
    fixed: int = (
        0  # tokens around the question (examples, a chat's turns) that stay raw, alike in all prompts
    )
    around: int = 0  # UTF-8 bytes of their text

    def behind(self, length: int) -> "Prompt":
        """The prompt without its first `length` tokens."""
        return self._replace(ids=self.ids[length:], cross=self.cross[length:])


def common_prefix(prompts: Sequence[Prompt]) -> list[int]:
    """What all prompts begin with and what crosses in none, if it is worth running through the LLM just once.

    At least one token is left to each prompt; [] where it is short.
    """
    first = min(prompts, key=lambda prompt: len(prompt.ids))
    length = len(first.ids) - 1
    for prompt in prompts:
        pairs = zip(first.ids[:length], prompt.ids, prompt.cross, strict=False)
        length = next((n for n, (a, b, crosses) in enumerate(pairs) if a != b or crosses), length)
    return list(first.ids[:length]) if length >= WORTH_SHARING else []


class Crossing(NamedTuple):
    """What of a prompt crosses the bottleneck."""

    scope: Literal["prompt", "context"] = "prompt"  # the question's own text, or its context alone
    raw_anchor: bool = False  # the text behind the question (`\nAnswer:`) stays raw
    keep_special: bool = True  # special tokens (BOS) stay raw, whatever the scope
    shots: bool = False  # the examples in front cross too


class _Encoding(NamedTuple):
    """A tokenized prompt; places are characters of its text."""

    ids: list[int]
    starts: list[int]  # of each token
    lasts: list[int]  # each token's last character: the one that decides its segment
    special: list[int]  # 1 for BOS and its like

    def within(self, places: range) -> list[bool]:
        """For each token: it is an ordinary one and its last character is in `places`."""
        return [
            places.start <= last < places.stop and not s
            for last, s in zip(self.lasts, self.special, strict=True)
        ]


class PromptBuilder:
    """How one model is asked: the template, and what stands in front of it and behind it.

    Args:
        config: template, instruction, examples, chat.
        tokenizer: a fast one, for it must tell the place of every token.
        examples: `config.shots` questions whose answers are shown; the same in front of every question.
        with_context: False leaves out the contexts, those of the examples too: the floor.

    Raises:
        UsageError: a chat is asked for, and the tokenizer has no chat template.
    """

    def __init__(
        self,
        config: PromptConfig,
        tokenizer: "PreTrainedTokenizerFast",
        examples: Sequence[Question] = (),
        *,
        with_context: bool = True,
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.text = PromptText(config, tokenizer, examples, with_context=with_context)

    # -- tokens ----------------------------------------------------------------------------------------

    def build(self, questions: Sequence[Question], crossing: Crossing, *, max_tokens: int) -> list[Prompt]:
        """Tokenize questions and mark the positions that cross the bottleneck.

        A token belongs to the segment of its last character: with the scope `context`, the piece ".\\n" that
        ends the context and begins the next line stays raw.

        Args:
            questions: what to ask.
            crossing: what crosses.
            max_tokens: the longest prompt, special tokens included. A longer one loses the end of its
                context or, where the protocol says so, whatever stands at its right end.

        Raises:
            UsageError: a question does not fit even without its context.
        """
        prompts: list[Prompt] = []
        fit = self._cut if self.config.truncate == "right" else self._fit
        for start in range(0, len(questions), BATCH):
            fitted = fit(questions[start : start + BATCH], max_tokens)
            prompts += (_prompt(q, layout, e, lost, crossing) for q, layout, e, lost in fitted)
        return prompts

    def _cut(
        self, questions: Sequence[Question], max_tokens: int
    ) -> Iterator[tuple[Question, Layout, _Encoding, int]]:
        """Each prompt without what stands beyond `max_tokens`, the question included."""
        layouts = [self.text.layout(self.text.fill(q)) for q in questions]
        for question, layout, e in zip(questions, layouts, self._encode(layouts), strict=True):
            kept = _Encoding(*(field[:max_tokens] for field in e))
            text = layout.text if len(e.ids) <= max_tokens else layout.text[: kept.lasts[-1] + 1]
            yield question, layout._replace(text=text), kept, len(e.ids) - len(kept.ids)

    def _fit(
        self, questions: Sequence[Question], max_tokens: int
    ) -> Iterator[tuple[Question, Layout, _Encoding, int]]:
        """Each prompt, and the number of its context's tokens that had to go."""
        fitted: dict[int, tuple[Layout, _Encoding]] = {}
        whole: dict[int, int] = {}  # tokens of the contexts that are too long
        contexts = {number: question.context for number, question in enumerate(questions)}
        pending = list(contexts)
        while pending:
            layouts = [self.text.layout(self.text.fill(questions[i], contexts[i])) for i in pending]
            for i, layout, e in zip(pending, layouts, self._encode(layouts), strict=True):
                surplus = len(e.ids) - max_tokens
                if surplus <= 0:
                    fitted[i] = layout, e
                elif layout.context:
                    whole.setdefault(i, sum(e.within(layout.context)))
                    contexts[i] = _shorter(layout, e, surplus)
                else:
                    raise UsageError(
                        f"Question {questions[i].id!r} takes {len(e.ids)} tokens even without its "
                        f"context; a prompt may have {max_tokens}.",
                        "Leave it out, raise data.max_prompt_tokens, or use a model with a longer context.",
                    )
            pending = [i for i in pending if i not in fitted]
        for i, question in enumerate(questions):
            layout, e = fitted[i]
            yield question, layout, e, whole[i] - sum(e.within(layout.context)) if i in whole else 0

    def _encode(self, layouts: Sequence[Layout]) -> Iterator[_Encoding]:
        """Tokenize whole prompts. What spells a special token in a question is ordinary text.

        In a chat, the control tokens are those that the template writes: the text between the last of them in
        front of the question and the first behind it is tokenized in one go, as the tokenizer would.
        """
        if not self.config.chat:
            yield from self._encoded([layout.text for layout in layouts], special=True)
            return
        (opening, front), (closing, back) = self._opening, self._closing
        spans = [(len(opening), len(layout.text) - len(closing)) for layout in layouts]
        texts = [layout.text[start:end] for layout, (start, end) in zip(layouts, spans, strict=True)]
        for inner, (start, end) in zip(self._encoded(texts), spans, strict=True):
            yield _joined((front, 0), (inner, start), (back, end))

    @cached_property
    def _opening(self) -> tuple[str, _Encoding]:
        """The chat up to its last control token in front of the question.

        Where an example spells one, each of the template's is tokenized alone, and what is between them as
        text.
        """
        head, quoted = self.text.head, self.text.quoted
        controls = re.finditer("|".join(map(re.escape, self._control_tokens)) or "(?!)", head)
        written: list[re.Match[str]] = []
        spelled: list[re.Match[str]] = []
        for match in controls:
            inside = any(place.start <= match.start() < place.stop for place in quoted)
            (spelled if inside else written).append(match)
        text = head[: written[-1].end()] if written else ""
        bos = self.tokenizer.bos_token
        special = not (bos is not None and head.startswith(bos))
        if not spelled:
            return text, next(self._encoded([text], special=special, control=True))
        parts, place = [(next(self._encoded([""], special=special)), 0)], 0
        for match in written:
            between = next(self._encoded([head[place : match.start()]]))
            parts += [(between, place), (next(self._encoded([match.group()], control=True)), match.start())]
            place = match.end()
        return text, _joined(*parts)

    @cached_property
    def _closing(self) -> tuple[str, _Encoding]:
        """The chat from its first control token behind the question."""
        starts = [self.text.tail.find(t) for t in self._control_tokens if t in self.text.tail]
        text = self.text.tail[min(starts) :] if starts else ""
        return text, next(self._encoded([text], control=True))

    @property
    def _control_tokens(self) -> list[str]:
        return sorted(filter(None, self.tokenizer.get_added_vocab()), key=len, reverse=True)

    def _encoded(
        self, texts: Sequence[str], *, special: bool = False, control: bool = False
    ) -> Iterator[_Encoding]:
        """Tokenized texts; `special`: with what the tokenizer adds; `control`: control tokens are read."""
        batch: Any = self.tokenizer(
            list(texts),
            add_special_tokens=special,
            split_special_tokens=not control,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            verbose=False,  # prompts that are too long are dealt with here
        )
        marks = set(self.tokenizer.all_special_ids) if control else set()
        rows = zip(batch["input_ids"], batch["offset_mapping"], batch["special_tokens_mask"], strict=True)
        for ids, places, mask in rows:
            marked = [int(s or token in marks) for s, token in zip(mask, ids, strict=True)]
            yield _Encoding(ids, [start for start, _ in places], [stop - 1 for _, stop in places], marked)

    def too_long(self, questions: Sequence[Question], max_tokens: int) -> set[Question]:
        """The questions that do not fit into `max_tokens` even without their context."""
        if self.config.truncate == "right":
            return set()
        room = max_tokens - self.head_tokens()
        pieces = [(q, self.text.fill(q, "")) for q in questions]
        # No token is shorter than a byte, so only long texts need counting.
        doubtful = [
            (q, self.text.layout(piece)) for q, piece in pieces if 2 * len(piece.text.encode()) > room
        ]
        if not doubtful:
            return set()
        encodings = self._encode([layout for _, layout in doubtful])
        return {q for (q, _), e in zip(doubtful, encodings, strict=True) if len(e.ids) > max_tokens}

    def head_tokens(self) -> int:
        """Tokens that stand in front of every question."""
        return len(next(self._encode([self.text.layout(Piece("", range(0), 0))])).ids)

    def answer_ids(self, questions: Sequence[Question], prompts: Sequence[Prompt]) -> list[list[int]]:
        """The gold continuations as token ids: the first answer and what ends it.

        They are the whole less the prompt: tokenized alone, an answer may fall into other tokens.
        """
        ending = "" if self.config.chat or not self.config.stop else self.text.config.stop[0]
        answers = [f"{self.text.continuation(q)}{ending}" for q in questions]
        if self.config.chat:  # what stands before the last control token changes nothing behind it
            ends = [self.text.tail.rfind(t) + len(t) for t in self._control_tokens if t in self.text.tail]
            fronts = [self.text.tail[max(ends, default=0) :]] * len(answers)
        else:
            fronts = [prompt.text for prompt in prompts]
        special = not self.config.chat
        wholes = [front + answer for front, answer in zip(fronts, answers, strict=True)]
        rows = zip(
            self._encoded(fronts, special=special),
            self._encoded(wholes, special=special),
            self._encoded(answers),
            strict=True,
        )
        eos = [] if ending else [int(self.tokenizer.eos_token_id)]
        return [
            [*(whole.ids[len(f.ids) :] if whole.ids[: len(f.ids)] == f.ids else alone.ids), *eos]
            for f, whole, alone in rows
        ]


def _joined(*parts: tuple[_Encoding, int]) -> _Encoding:
    """Encodings one behind the other, each with the place where its text begins."""
    return _Encoding(
        [token for e, _ in parts for token in e.ids],
        [start + place for e, place in parts for start in e.starts],
        [last + place for e, place in parts for last in e.lasts],
        [special for e, _ in parts for special in e.special],
    )


def _prompt(question: Question, layout: Layout, encoding: _Encoding, lost: int, what: Crossing) -> Prompt:
    cross, own = _crossing(encoding, layout, what), layout.own
    outside = [
        not crosses and (0 <= last < own.start or last >= own.stop)
        for last, crosses in zip(encoding.lasts, cross, strict=True)
    ]
    around = layout.text[: own.start] + layout.text[own.stop :]
    return Prompt(
        question.id, layout.text, encoding.ids, cross, lost, sum(outside), len(around.encode()) * any(outside)
    )


def _crossing(encoding: _Encoding, layout: Layout, what: Crossing) -> list[bool]:
    """For each token: it crosses the bottleneck."""
    if what.scope == "context":
        cross = encoding.within(layout.context)
    else:
        cross = encoding.within(
            range(layout.own.start, layout.anchor if what.raw_anchor else layout.own.stop)
        )
    if what.shots:
        cross = [a or b for a, b in zip(cross, encoding.within(layout.shots), strict=True)]
    if what.keep_special:
        return cross
    return [c or bool(s) for c, s in zip(cross, encoding.special, strict=True)]


def _shorter(layout: Layout, encoding: _Encoding, surplus: int) -> str:
    """The context without its last `surplus` tokens, and in any case without its last character."""
    place = layout.context
    inside = encoding.within(place)
    starts = [start for start, is_context in zip(encoding.starts, inside, strict=True) if is_context]
    stop = starts[-surplus] if surplus < len(starts) else 0
    return layout.text[place.start : max(place.start, min(stop, place.stop - 1))]


def note_truncation(prompts: Sequence[Prompt], which: str, progress: Progress) -> None:
    """Tell how many of the `which` prompts ("test", say) lost the far end of their context."""
    lost = [prompt.lost for prompt in prompts if prompt.lost]
    if lost:
        progress.note(
            f"{len(lost)} of {len(prompts)} {which} prompts lost the end of their context "
            f"({sum(lost)} tokens) to the length limit."
        )
