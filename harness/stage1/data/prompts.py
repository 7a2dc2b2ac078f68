"""Questions as tokenized prompts whose segments are known.

A prompt is `Context: …\\nQuestion: …\\nAnswer:` without a trailing space, which would be a token of its own:
the answer begins with the space.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from stage1.data.records import Question
from stage1.errors import UsageError
from stage1.progress import Progress

if TYPE_CHECKING:  # scoring predictions needs no tokenizer and should not wait for one
    from transformers import PreTrainedTokenizerFast

BATCH = 1_000  # prompts tokenized at a time
CONTEXT = "Context: "
ANCHOR = "\nAnswer:"


class Prompt(NamedTuple):
    """A question as the model reads it."""

    id: str
    text: str  # after truncation, without special tokens
    ids: list[int]  # as the tokenizer makes them of `text`, BOS included
    cross: list[bool]  # which positions go through the bottleneck
    lost: int  # tokens of the context that truncation removed


def prompt_text(question: str, context: str | None) -> str:
    """The prompt as text; None leaves out the context line."""
    head = "" if context is None else f"{CONTEXT}{context}\n"
    return f"{head}Question: {question}{ANCHOR}"


class _Encoding(NamedTuple):
    """A tokenized prompt; places are characters of `text`."""

    text: str
    context: range  # places of the context; empty without one
    ids: list[int]
    starts: list[int]  # of each token
    lasts: list[int]  # each token's last character: the one that decides its segment
    special: list[int]  # 1 for BOS and its like

    def within(self, first: int, stop: int) -> list[bool]:
        """For each token: it is an ordinary one and its last character is in `first` to `stop`."""
        return [first <= last < stop and not s for last, s in zip(self.lasts, self.special, strict=True)]

    def crossing(
        self, scope: Literal["prompt", "context"], *, raw_anchor: bool, keep_special: bool
    ) -> list[bool]:
        """For each token: it crosses the bottleneck."""
        if scope == "context":
            cross = self.within(self.context.start, self.context.stop)
        else:
            cross = self.within(0, len(self.text) - (len(ANCHOR) if raw_anchor else 0))
        return cross if keep_special else [c or bool(s) for c, s in zip(cross, self.special, strict=True)]

    def context_tokens(self) -> int:
        """The number of tokens in the context."""
        return sum(self.within(self.context.start, self.context.stop))

    def shorter_context(self, surplus: int) -> str:
        """The context without its last `surplus` tokens, and in any case without its last character."""
        inside = self.within(self.context.start, self.context.stop)
        starts = [start for start, is_context in zip(self.starts, inside, strict=True) if is_context]
        stop = starts[-surplus] if surplus < len(starts) else 0
        return self.text[self.context.start : max(self.context.start, min(stop, self.context.stop - 1))]


def build_prompts(
    questions: Sequence[Question],
    tokenizer: "PreTrainedTokenizerFast",
    *,
    scope: Literal["prompt", "context"],
    raw_anchor: bool,
    keep_special: bool = True,
    max_tokens: int,
    with_context: bool = True,
    progress: Progress | None = None,
) -> list[Prompt]:
    """Tokenize questions and mark the positions that cross the bottleneck.

    A token belongs to the segment of its last character: in `scope="context"`, the piece ".\\n" that ends the
    context and begins the next line stays raw.

    Args:
        questions: what to ask.
        tokenizer: a fast one, for it must tell the place of every token.
        scope: whether the whole prompt crosses or the context alone.
        raw_anchor: leave the closing `\\nAnswer:` uncompressed.
        keep_special: special tokens (BOS) cross raw, whatever the scope.
        max_tokens: the longest prompt, special tokens included. A longer one loses the end of its context.
        with_context: False leaves out the context line altogether.
        progress: told of every prompt done.

    Raises:
        UsageError: a question does not fit even without its context.
    """
    prompts: list[Prompt] = []
    with (progress or Progress()).task("Tokenizing prompts", len(questions), "prompts") as done:
        for start in range(0, len(questions), BATCH):
            batch = questions[start : start + BATCH]
            contexts = [q.context if with_context else None for q in batch]
            fitted = _fit(batch, contexts, tokenizer, max_tokens)
            for q, e, lost in fitted:
                cross = e.crossing(scope, raw_anchor=raw_anchor, keep_special=keep_special)
                prompts.append(Prompt(q.id, e.text, e.ids, cross, lost))
            done(len(batch))
    return prompts


def _fit(
    questions: Sequence[Question],
    contexts: list[str | None],
    tokenizer: "PreTrainedTokenizerFast",
    max_tokens: int,
) -> list[tuple[Question, _Encoding, int]]:
    """Each question with its tokenized prompt and the number of context tokens that had to go."""
    fitted: dict[int, _Encoding] = {}
    whole: dict[int, int] = {}  # tokens of the contexts that are too long
    pending = list(range(len(questions)))
    while pending:
        encodings = _encode([(questions[i].question, contexts[i]) for i in pending], tokenizer)
        for i, encoding in zip(pending, encodings, strict=True):
            if len(encoding.ids) <= max_tokens:
                fitted[i] = encoding
            elif encoding.context:
                whole.setdefault(i, encoding.context_tokens())
                contexts[i] = encoding.shorter_context(len(encoding.ids) - max_tokens)
            else:
                raise UsageError(
                    f"Question {questions[i].id!r} takes {len(encoding.ids)} tokens even without its "
                    f"context; a prompt may have {max_tokens}.",
                    "Leave it out, raise data.max_prompt_tokens, or use a model with a longer context.",
                )
        pending = [i for i in pending if i not in fitted]
    lost = {i: count - fitted[i].context_tokens() for i, count in whole.items()}
    return [(question, fitted[i], lost.get(i, 0)) for i, question in enumerate(questions)]


def _encode(pairs: list[tuple[str, str | None]], tokenizer: "PreTrainedTokenizerFast") -> list[_Encoding]:
    """Tokenize the prompts of (question, context) pairs."""
    texts = [prompt_text(question, context) for question, context in pairs]
    contexts = [
        range(0) if context is None else range(len(CONTEXT), len(CONTEXT) + len(context))
        for _, context in pairs
    ]
    batch = tokenizer(
        texts,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,  # prompts that are too long are dealt with here
    )
    rows = zip(
        texts,
        contexts,
        batch["input_ids"],
        batch["offset_mapping"],
        batch["special_tokens_mask"],
        strict=True,
    )
    return [
        _Encoding(
            text, context, ids, [start for start, _ in places], [stop - 1 for _, stop in places], special
        )
        for text, context, ids, places, special in rows
    ]


def answer_ids(questions: Sequence[Question], tokenizer: "PreTrainedTokenizerFast") -> list[list[int]]:
    """The gold continuations as token ids: a space, the first answer, a newline."""
    texts = [f" {question.answers[0]}\n" for question in questions]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def note_truncation(prompts: Sequence[Prompt], which: str, progress: Progress) -> None:
    """Tell how many of the `which` prompts ("test", say) lost the far end of their context."""
    lost = [prompt.lost for prompt in prompts if prompt.lost]
    if lost:
        progress.note(
            f"{len(lost)} of {len(prompts)} {which} prompts lost the end of their context "
            f"({sum(lost)} tokens) to the length limit."
        )
