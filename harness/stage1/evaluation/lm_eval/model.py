"""The frozen LLM as lm-eval drives it, with requests that may cross a bottleneck on their way."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import stop_sequences_criteria
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stage1.evaluation.answers import halved
from stage1.evaluation.generation import Embed, endings
from stage1.evaluation.lm_eval.quiet import quiet_lm_eval
from stage1.llm.table import require_rows
from stage1.progress import Progress
from stage1.runs.journal import Journal
from stage1.session import Session

REQUESTS_AT_ONCE = {"cpu": 32}
REQUESTS_AT_ONCE_ELSEWHERE = 128
"""Requests of a batch under `batch_size: auto`: a start, halved when memory runs out. lm-eval's own search
tries the model's full length, however short the requests are."""


def requests_at_once(session: Session) -> int:
    """Requests of a batch, as the configuration says."""
    wanted = session.config.eval.batch_size
    if wanted == "auto":
        return REQUESTS_AT_ONCE.get(session.device.type, REQUESTS_AT_ONCE_ELSEWHERE)
    return wanted


class Stage1LM(HFLM):  # type: ignore[misc]
    """lm-eval's Hugging Face model around one that is loaded already, requests crossing a bottleneck.

    A request's context crosses; its continuation, and every token that the model generates, is embedded by
    the model itself, raw. (A hook on its embedding layer would compress those too, and a replaced layer
    would break tied weights.)

    Args:
        model: the LLM, frozen.
        tokenizer: its tokenizer, padding on the left.
        embed: how contexts reach the model; None for token ids.
        keep_special: special tokens (BOS) cross raw; every other token of a context crosses.
        whole: a continuation whose likelihood is asked crosses too, as input; generated tokens never do.
        batch_size: requests at a time; halved when memory runs out.
        journal: where answers are looked up, and kept as they come.
        progress: told of every request done.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        embed: Embed | None = None,
        keep_special: bool = True,
        whole: bool = False,
        batch_size: int = 1,
        journal: Journal | None = None,
        progress: Progress | None = None,
        label: str = "Asking",
    ) -> None:
        with quiet_lm_eval():  # it warns that a loaded model ignores arguments that are not given here
            super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
        self.embed, self.keep_special, self.whole = embed, keep_special, whole
        self.progress, self.label = progress or Progress(), label
        self.journal = journal or Journal(None, None, self.progress)
        self.asked = 0  # requests that were not in the journal
        self.cache_hook = self  # lm-eval calls `add_partial` with every answer as it comes
        self._at_once = batch_size
        self._lengths: dict[tuple[int, ...], tuple[int, int]] = {}
        self._done: Callable[[int], None] = lambda done: None

    # -- answers: looked up, asked, kept ------------------------------------------------------------------

    def answer(self, requests: Sequence[Instance], ask: Callable[..., list[Any]]) -> list[Any]:
        """The answers to `requests` in their order; only those that the journal lacks are asked."""
        known = [self.journal.get([request.request_type, *request.args]) for request in requests]
        missing = [request for request, answer in zip(requests, known, strict=True) if answer is None]
        self.asked += len(missing)
        with self.progress.task(self.label, len(missing), "requests") as self._done:
            fresh = iter(ask(missing, disable_tqdm=True) if missing else [])
        return [next(fresh) if answer is None else answer for answer in known]

    def add_partial(self, attr: str, req: Sequence[Any], res: Any) -> None:
        """Keep an answer that has just come; see `CacheHook`."""
        self._done(1)
        options = req[-1]
        drawn = isinstance(options, Mapping) and options.get("do_sample")
        if not drawn:  # a random answer is another one each time
            self.journal.add([attr, *req], res)

    def wire_text(self, request: Instance) -> str:
        """The part of a request that crosses the bottleneck: its context, with `whole` all of it."""
        if request.request_type == "loglikelihood_rolling":
            return str(request.args[0]) if self.whole else ""
        continued = self.whole and request.request_type == "loglikelihood"
        return "".join(request.args) if continued else str(request.args[0])

    def is_too_long(self, request: Instance) -> bool:
        """Whether lm-eval cuts a request's beginning off, for it to fit into the model's length."""
        if request.request_type == "loglikelihood":
            return len(self.tok_encode("".join(request.args))) > int(self.max_length) + 1
        if request.request_type == "generate_until":
            room = int(self.max_length) - int(request.args[1].get("max_gen_toks", self.max_gen_toks))
            return len(self.tok_encode(request.args[0])) > room
        return False  # a rolling likelihood takes window after window

    # -- what crosses ----------------------------------------------------------------------------------

    def crossing(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Which positions [B, L] of contexts cross the bottleneck."""
        return attention.bool() & self._may_cross(ids)

    def _may_cross(self, ids: Tensor) -> Tensor:
        if not self.keep_special:
            return torch.ones_like(ids, dtype=torch.bool)
        return ~torch.isin(ids, torch.tensor(self.tokenizer.all_special_ids, device=ids.device))

    def _require_rows(self, ids: Tensor) -> None:
        require_rows(int(ids.max()), self.model.get_input_embeddings().num_embeddings)

    # -- generation -----------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers to `requests`, in their order; see `HFLM.generate_until`."""
        return self.answer(requests, super().generate_until)

    def _model_generate(
        self,
        context: Tensor,
        max_length: int,
        stop: list[str],
        *,
        attention_mask: Tensor,
        **options: Any,
    ) -> Tensor:
        """`context` [B, L] followed by what the model adds, as the caller expects it, padded on the right."""
        if options.get("temperature") == 0.0:
            del options["temperature"]  # greedy; transformers would warn about it
            options.setdefault("do_sample", False)
        room = max_length - context.shape[1]
        rows: list[Tensor] = []
        while len(rows) < len(context):
            part = slice(len(rows), len(rows) + self._at_once)
            tokens, attention = context[part], attention_mask[part]
            try:
                rows.extend(self._generate(tokens, attention, room, stop, options))
                continue
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
            self._at_once = halved(len(tokens), self.progress)  # here, where nothing holds the failed attempt
        new = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        return torch.cat([context, new], dim=1)

    @torch.inference_mode()
    def _generate(
        self, ids: Tensor, attention: Tensor, room: int, stop: list[str], options: Mapping[str, Any]
    ) -> Tensor:
        """At most `room` new tokens [B, T] for each prompt."""
        self._require_rows(ids)
        prompt: dict[str, Tensor] = {"input_ids": ids, "attention_mask": attention}
        start = ids.shape[1]
        cross = self.crossing(ids, attention)
        if self.embed is not None and cross.any():  # as in `_model_call`
            embedded = self.embed(ids, cross, attention.bool())
            # Given embeddings alone, `generate` returns the new tokens alone: stop criteria count from zero.
            start = 0
            prompt = {
                "inputs_embeds": embedded.embeds.to(self.model.dtype),
                "attention_mask": embedded.attention.long(),
            }
        ends, phrases = endings(self.model, self.tokenizer, stop)
        generated: Tensor = self.model.generate(
            **prompt,
            max_new_tokens=room,
            eos_token_id=sorted(ends),
            pad_token_id=self.tokenizer.pad_token_id,
            stopping_criteria=stop_sequences_criteria(self.tokenizer, phrases, start, len(ids)),
            use_cache=True,
            **options,
        )
        return generated[:, start:]

    # -- likelihoods ----------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation, and whether it is what greedy decoding would say."""
        answers = self.answer(requests, super().loglikelihood)
        return [(likelihood, greedy) for likelihood, greedy in answers]  # JSON knows no tuples

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood in nats of each text, which has no context: it crosses where `whole` is set."""
        ask, at_once = super().loglikelihood_rolling, 8 * self._at_once

        def in_parts(missing: list[Instance], disable_tqdm: bool) -> list[float]:
            # lm-eval tells the cache after the last window of all texts; interrupted, all would be lost.
            parts = (missing[start : start + at_once] for start in range(0, len(missing), at_once))
            return [answer for part in parts for answer in ask(part, disable_tqdm=disable_tqdm)]

        return self.answer(requests, in_parts)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """See `HFLM`, whose `_model_call` is given tokens alone: where contexts end is noted beforehand.

        The same tokens may be asked with two different contexts, and cross differently: in another round.
        """
        answers: dict[int, tuple[float, bool]] = {}
        pending = list(range(len(requests)))
        while pending:
            now: list[int] = []
            later: list[int] = []
            self._lengths = {}
            for number in pending:
                asked, context, continuation = requests[number]
                tokens = (context + continuation)[-(self.max_length + 1) :][:-1]
                # A window of a rolling likelihood has no request of its own: all of it is continuation.
                lengths = len(tokens), 0 if asked is None else len(tokens) + 1 - len(continuation)
                first = self.embed is None or self._lengths.setdefault(_unpadded(tokens), lengths) == lengths
                (now if first else later).append(number)
            found = self._likelihoods([requests[number] for number in now], override_bs)
            answers |= zip(now, found, strict=True)
            pending = later
        return [answers[number] for number in range(len(requests))]

    def _likelihoods(self, requests: list[Any], override_bs: int | None) -> list[tuple[float, bool]]:
        while True:
            try:
                found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, True, override_bs)
                return found
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
            self._at_once = self.batch_size_per_gpu = halved(self.batch_size, self.progress)

    def _model_call(
        self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Logits [B, L, V] of right-padded ids [B, L]."""
        self._require_rows(inps)
        as_ids = partial(super()._model_call, inps, attn_mask, labels)
        if self.embed is None:
            return as_ids()  # type: ignore[no-any-return]
        lengths, attention, cross = self._scored(inps)
        if not cross.any():  # a compressor that changes the length may not do with nothing
            return as_ids()  # type: ignore[no-any-return]
        with torch.no_grad():
            embedded = self.embed(inps, cross, attention)
            embeds = embedded.embeds.to(self.model.dtype)
            if torch.equal(embedded.attention, attention):  # padded on the right as lm-eval does, unmasked
                return self.model(inputs_embeds=embeds).logits  # type: ignore[no-any-return]
            shorter = self.model(
                inputs_embeds=embeds,
                attention_mask=embedded.attention.long(),
                position_ids=(embedded.attention.long().cumsum(1) - 1).clamp(min=0),
            ).logits  # [B, M, V], padded on the left
        return _ends_at(shorter, lengths, inps.shape[1])

    def _scored(self, ids: Tensor) -> tuple[list[int], Tensor, Tensor]:
        """Lengths of right-padded requests [B, L], and which positions attend and cross, [B, L] bool."""
        known = torch.tensor([self._lengths[_unpadded(row)] for row in ids.tolist()], device=ids.device)
        lengths, contexts = known[:, :1], known[:, 1:]
        position = torch.arange(ids.shape[1], device=ids.device)
        sent = position < (lengths if self.whole else contexts)
        return lengths[:, 0].tolist(), position < lengths, sent & self._may_cross(ids)


def _unpadded(tokens: Sequence[int]) -> tuple[int, ...]:
    """`tokens` without the zeros at their end, which is what lm-eval pads with."""
    length = len(tokens)
    while length and tokens[length - 1] == 0:
        length -= 1
    return tuple(tokens[:length])


def _ends_at(logits: Tensor, lengths: Sequence[int], width: int) -> Tensor:
    """Left-padded `logits` [B, M, V] moved to [B, width, V] so that row *i* ends at `lengths[i]`.

    The caller reads the last ones, which predict the continuation; a shortened context leaves a gap in
    front of them.
    """
    moved = logits.new_zeros(len(logits), width, logits.shape[2])
    for row, length in enumerate(lengths):
        count = min(length, logits.shape[1])
        moved[row, length - count : length] = logits[row, logits.shape[1] - count :]
    return moved
