"""The text of a prompt: the template, filled with a question, and what stands around it.

A prompt is what stands in front of every question (an instruction, examples, the opening of a chat), the
question and its context in their template, and what closes it. By default that is
`Context: …\\nQuestion: …\\nAnswer:` alone, without a trailing space, which would be a token of its own: the
answer begins with the space.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from random import Random
from string import Formatter
from typing import TYPE_CHECKING, NamedTuple

from stage1.config import PromptConfig
from stage1.data.records import Question
from stage1.errors import UsageError

if TYPE_CHECKING:  # scoring predictions needs no tokenizer and should not wait for one
    from transformers import PreTrainedTokenizerFast

BETWEEN = "\n\n"  # examples
MARK = "\N{WHITE STAR}stage1\N{WHITE STAR}"
"""Stands in for a text in a chat, to be found again."""


class Piece(NamedTuple):
    """A filled template; places are characters of `text`."""

    text: str
    context: range  # empty without one
    anchor: int  # where the text behind the question (or context, whichever comes last) begins


class Layout(NamedTuple):
    """Where the segments of one prompt lie."""

    text: str
    context: range
    own: range  # question, context and their template
    anchor: int
    shots: range


class PromptText:
    """How one model is asked.

    Args:
        config: template, instruction, examples, chat.
        tokenizer: has the chat's template.
        examples: `config.shots` questions whose answers are shown; the same in front of every question.
        with_context: False leaves out the contexts, those of the examples too.

    Attributes:
        head: what stands in front of every question.
        tail: what stands behind it.
        shots: where the examples lie in `head`.
        quoted: where the texts of a chat's examples lie in `head`, without what the chat's template writes.

    Raises:
        UsageError: a chat is asked for, and the tokenizer has no chat template.
    """

    def __init__(
        self,
        config: PromptConfig,
        tokenizer: "PreTrainedTokenizerFast",
        examples: Sequence[Question],
        *,
        with_context: bool,
    ) -> None:
        self.config, self.tokenizer, self.with_context = config, tokenizer, with_context
        self.examples = list(examples)
        self.quoted: list[range] = []
        self.head, self.tail, self.shots = self._chat() if config.chat else self._plain()

    def _plain(self) -> tuple[str, str, range]:
        head = f"{self.config.instruction}{BETWEEN}" if self.config.instruction else ""
        shown = "".join(f"{self.fill(q).text}{self.continuation(q)}{BETWEEN}" for q in self.examples)
        return head + shown, "", range(len(head), len(head) + len(shown))

    def _chat(self) -> tuple[str, str, range]:
        if not self.tokenizer.chat_template:
            raise UsageError(
                "The model's tokenizer has no chat template.",
                "Leave out --chat (prompt.chat), or use a model that was tuned to chat.",
            )
        mark = MARK
        turns = [(self.fill(q).text, self.continuation(q)) for q in self.examples]
        whole = self._rendered([*turns, (mark, None)])
        head, _, tail = whole.partition(mark)
        opening = self._rendered([(mark, None)]).partition(mark)[0]
        start = len(opening) if turns and head.startswith(opening) else 0
        self.quoted = list(self._quoted(turns, head))
        return head, tail, range(start, len(head) if turns else start)

    def _quoted(self, turns: Sequence[tuple[str, str]], head: str) -> Iterator[range]:
        """Where each text of `turns` stands in `head`, which holds them in this order."""
        marked = self._rendered([*([(MARK, MARK)] * len(turns)), (MARK, None)])
        place = 0
        for text, written in zip(chain.from_iterable(turns), marked.split(MARK), strict=False):
            text = text if head.startswith(text, place + len(written)) else text.strip()  # as some templates
            place += len(written)
            if not head.startswith(text, place):
                return  # a template that changes texts in another way
            yield range(place, place + len(text))
            place += len(text)

    def _rendered(self, turns: Sequence[tuple[str, str | None]]) -> str:
        """The chat as text; the last turn's answer is still to come."""
        instruction = self.config.instruction
        messages = []
        for question, answer in turns:
            messages.append({"role": "user", "content": question})
            if answer is not None:
                messages.append({"role": "assistant", "content": answer})
        system = [{"role": "system", "content": instruction}] if instruction else []
        try:
            return self._template([*system, *messages])
        except Exception:  # whatever a template raises on a role that it does not know (Gemma: system)
            if not system:
                raise
            messages[0]["content"] = f"{instruction}{BETWEEN}{messages[0]['content']}"
            return self._template(messages)

    def _template(self, messages: list[dict[str, str]]) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def fill(self, question: Question, context: str | None = None) -> Piece:
        """The question in the template; its own context unless another is given."""
        template = self.config.template
        if not self.with_context:
            template = without_context(template)
        values = {"context": question.context if context is None else context, "question": question.question}
        parts: list[str] = []
        place, span, anchor = 0, range(0), 0
        for text, field in _fields(template):
            filled = values[field] if field else ""
            parts += [text, filled]
            if field:
                place += len(text)
                span = range(place, place + len(filled)) if field == "context" else span
                place += len(filled)
                anchor = place
        return Piece("".join(parts), span, anchor)

    @property
    def ending(self) -> str:
        """The text that every whole prompt of no chat ends with; empty for a chat."""
        return "" if self.config.chat else [text for text, _ in _fields(self.config.template)][-1]

    def continuation(self, question: Question) -> str:
        """The first gold answer as it goes on from the prompt."""
        spaced = self.config.chat or self.config.template[-1:].isspace()
        return question.gold if spaced else f" {question.gold}"

    def layout(self, piece: Piece) -> Layout:
        """The whole text around `piece`."""
        start = len(self.head)
        context = range(start + piece.context.start, start + piece.context.stop)
        text = f"{self.head}{piece.text}{self.tail}"
        return Layout(text, context, range(start, start + len(piece.text)), start + piece.anchor, self.shots)


def _fields(template: str) -> Iterator[tuple[str, str | None]]:
    """The template's texts, each with the name of the field behind it; None behind the last one."""
    for text, field, _, _ in Formatter().parse(template):
        yield text, field


def without_context(template: str) -> str:
    """The template without the line of the context, or without the context alone if all is one line."""
    lines = template.splitlines(keepends=True)
    kept = [line for line in lines if "{context}" not in line]
    if any("{question}" in line for line in kept):
        return "".join(kept)
    return template.replace("{context}", "")


def draw_examples(pool: Sequence[Question], shots: int, seed: int) -> list[Question]:
    """`shots` questions to be shown with their answers, no two about one passage, drawn by `seed`.

    Raises:
        UsageError: there are not so many passages.
    """
    by_passage = {question.context: question for question in pool}
    if len(by_passage) < shots:
        raise UsageError(
            f"{shots} examples need as many training passages; there are {len(by_passage)}.",
            "Lower --shots (prompt.shots), or give more training data.",
        )
    return Random(seed).sample(list(by_passage.values()), shots)  # noqa: S311 - no secret
