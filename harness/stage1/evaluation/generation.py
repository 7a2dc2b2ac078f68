"""Greedy answers to prepared prompts, whatever the LLM receives in place of their tokens.

Stock `generate` was built for texts: it cannot share what stands in front of every prompt, and given
embeddings it behaves differently from given ids. The loop here is the textbook one; tests hold it equal to
`generate`.
"""

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stage1.data.prompts import Prompt, common_prefix
from stage1.llm.architecture import cache_name, repeated
from stage1.plugins.tensors import Embedded

Embed = Callable[[Tensor, Tensor, Tensor], Embedded]
"""What the LLM receives instead of ids [B, L] whose positions `cross` [B, L] (bool) are compressed, given
the `attention` [B, L] (bool): left-padded embeddings [B, M, D] and their attention [B, M]."""


class Generation(NamedTuple):
    """One answer."""

    text: str  # up to the first stop
    cut: bool  # `max_new_tokens` ended it, not a stop


class GreedyDecoder:
    """The frozen LLM as it answers: greedy decoding, tokens of its own never compressed.

    Args:
        model: the LLM, frozen.
        tokenizer: its tokenizer.
        stop: texts that end an answer; EOS always does.
        max_new_tokens: of an answer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        stop: Sequence[str],
        max_new_tokens: int,
    ) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self._takes = signature(model.forward).parameters
        self._cache = cache_name(model)
        self._ends, self._phrases = endings(model, tokenizer, stop)
        self._stop = tuple(stop)
        self._prefix: list[int] = []  # what all prompts begin with; nothing of it crosses
        self._read_prefix: Any = None  # the cache behind it, of one row

    @torch.inference_mode()
    def share(self, prompts: Sequence[Prompt]) -> None:
        """Run what `prompts` have in common in front (few-shot examples) once; `answer` goes on from it."""
        common = common_prefix(prompts)
        if common != self._prefix:
            ids = torch.tensor([common], device=self.model.device)
            out = self._forward(ids, None, torch.ones_like(ids), None) if common else None
            self._prefix, self._read_prefix = common, getattr(out, self._cache, None)

    @torch.inference_mode()
    def answer(self, prompts: Sequence[Prompt], embed: Embed | None) -> list[Generation]:
        """The answers to one batch; `embed` says what the LLM receives, None: the token ids."""
        attention, out = self._read(prompts, embed)
        alive = torch.arange(len(prompts), device=attention.device)
        tokens: list[list[int]] = [[] for _ in prompts]
        while True:
            chosen = out.logits[:, -1].argmax(-1)  # [A]
            numbers = chosen.tolist()
            for row, number in zip(alive.tolist(), numbers, strict=True):
                tokens[row].append(number)
            going = [
                place
                for place, (row, number) in enumerate(zip(alive.tolist(), numbers, strict=True))
                if number not in self._ends and not self._has_phrase(tokens[row])
            ]
            if not going or len(tokens[alive[0]]) == self.max_new_tokens:
                return [self._generation(row) for row in tokens]
            cache = getattr(out, self._cache)
            if len(going) < len(alive):  # answers that are done cost nothing more
                kept = torch.tensor(going, device=alive.device)
                cache.batch_select_indices(kept)
                alive, attention, chosen = alive[kept], attention[kept], chosen[kept]
            attention = torch.cat([attention, attention.new_ones(len(alive), 1)], dim=1)
            out = self._forward(chosen[:, None], None, attention, cache)

    @torch.inference_mode()
    def first_logits(self, prompts: Sequence[Prompt], embed: Embed | None) -> Tensor:
        """[B, V] what the LLM says at the last position of each prompt, before any token of its own."""
        logits: Tensor = self._read(prompts, embed)[1].logits[:, -1]
        return logits

    # -- one pass --------------------------------------------------------------------------------------

    def _read(self, prompts: Sequence[Prompt], embed: Embed | None) -> tuple[Tensor, Any]:
        """The prompts through the LLM: the attention [B, P + M] of what it has read, and its output."""
        shared, embeds = len(self._prefix), None
        ids, cross, attention = self._padded([prompt.behind(shared) for prompt in prompts])
        if embed is not None:
            embedded = embed(ids, cross, attention)
            embeds, attention = embedded.embeds.to(self.model.dtype), embedded.attention
        cache = None
        if shared:
            cache = repeated(self._read_prefix, len(prompts))
            attention = torch.cat([attention.new_ones(len(prompts), shared), attention], dim=1)
        attention = attention.long()
        return attention, self._forward(ids, embeds, attention, cache)

    def _padded(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor, Tensor]:
        """Side by side, padded on the left: ids, what crosses, and attention, [B, L] each."""
        length = max(len(prompt.ids) for prompt in prompts)
        rows = [(prompt, length - len(prompt.ids)) for prompt in prompts]
        pad, device = self.tokenizer.pad_token_id, self.model.device
        return (
            torch.tensor([[pad] * fill + prompt.ids for prompt, fill in rows], device=device),
            torch.tensor([[False] * fill + prompt.cross for prompt, fill in rows], device=device),
            torch.tensor([[False] * fill + [True] * (length - fill) for _, fill in rows], device=device),
        )

    def _forward(self, ids: Tensor, embeds: Tensor | None, attention: Tensor, cache: Any) -> Any:
        given: dict[str, Any] = {"input_ids": ids} if embeds is None else {"inputs_embeds": embeds}
        length = ids.shape[1] if embeds is None else embeds.shape[1]
        if "position_ids" in self._takes:
            given["position_ids"] = (attention.cumsum(1) - 1).clamp(min=0)[:, -length:]
        if "logits_to_keep" in self._takes:
            given["logits_to_keep"] = 1
        return self.model(**given, attention_mask=attention, use_cache=True, **{self._cache: cache})

    # -- the end of an answer --------------------------------------------------------------------------

    def _has_phrase(self, tokens: list[int]) -> bool:
        if not self._phrases:
            return False
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return any(phrase in text for phrase in self._phrases)

    def _generation(self, tokens: list[int]) -> Generation:
        text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
        for stop in self._stop:
            text = text.partition(stop)[0]
        ended = tokens[-1] in self._ends or self._has_phrase(tokens)
        return Generation(text, cut=not ended)


def endings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, stop: Sequence[str]
) -> tuple[frozenset[int], list[str]]:
    """The tokens that end an answer, and the stop texts that only decoding every step can find.

    A stop of one ASCII character is found in the text exactly if a token that contains it was generated, so
    that the loop need not decode anything.
    """
    own: Any = model.generation_config
    own = own.eos_token_id if own is not None else None
    ends = {tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or [])}
    phrases = []
    for text in stop:
        if len(text) == 1 and text.isascii():
            ends |= tokens_containing(tokenizer, text)
        elif text != tokenizer.eos_token:
            phrases.append(text)
    return frozenset(ends), phrases


def tokens_containing(tokenizer: PreTrainedTokenizerFast, character: str) -> frozenset[int]:
    """The tokens with `character` in their text."""
    texts = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
    return frozenset(number for number, text in enumerate(texts) if character in text)
