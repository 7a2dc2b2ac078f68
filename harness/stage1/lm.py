"""The frozen LLM as lm-eval drives it, with prompts that may arrive as embeddings, and SQuAD as its task."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import compress
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import stop_sequences_criteria
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stage1.data import Prompt, Question
from stage1.errors import Stage1Error
from stage1.progress import Progress
from stage1.squad import exact_match, f1
from stage1.tensors import Embedded

Embed = Callable[[Tensor, Tensor, Tensor], Embedded]
"""What the LLM receives instead of ids [B, L] whose positions `cross` [B, L] (bool) are compressed, given
the `attention` [B, L] (bool): left-padded embeddings [B, M, D] and their attention [B, M]."""


class Stage1LM(HFLM):  # type: ignore[misc]
    """lm-eval's Hugging Face model around one that is loaded already, prompts crossing a bottleneck.

    The prompt crosses; tokens that the model generates are embedded by the model itself, raw. (A hook on its
    embedding layer would compress them too, and a replaced layer would break tied weights.)

    Args:
        model: the LLM, frozen.
        tokenizer: its tokenizer, padding on the left.
        embed: how prompts reach the model; None for token ids.
        prompts: prompts whose tokens and crossing positions are known. Of any other, every token but the
            special ones crosses.
        batch_size: prompts at a time; halved when memory runs out.
        progress: told of every prompt done.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        embed: Embed | None = None,
        prompts: Sequence[Prompt] = (),
        batch_size: int = 1,
        progress: Progress | None = None,
        label: str = "Generating",
    ) -> None:
        with quiet_lm_eval():  # it warns that a loaded model ignores arguments that are not given here
            super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
        self.embed = embed
        self.progress, self.label = progress or Progress(), label
        self._ids = {prompt.text: prompt.ids for prompt in prompts}
        self._cross = {tuple(prompt.ids): prompt.cross for prompt in prompts}
        self._at_once = batch_size
        self._containing: dict[str, set[int]] = {}
        self._done: Callable[[int], None] = lambda done: None

    # -- tokens: known prompts are taken as they are ------------------------------------------------------

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """The ids of `string`; see `HFLM.tok_encode`."""
        known = self._ids.get(string)
        if known is None or add_special_tokens is False:
            ids: list[int] = super().tok_encode(string, add_special_tokens, left_truncate_len, **kwargs)
            return ids
        return known[-left_truncate_len:] if left_truncate_len else known

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Padded ids [B, L] and their attention mask [B, L]; see `HFLM.tok_batch_encode`."""
        if not all(string in self._ids for string in strings):
            encoded: tuple[Tensor, Tensor] = super().tok_batch_encode(
                list(strings), padding_side, left_truncate_len, truncation
            )
            return encoded
        rows = [self.tok_encode(string, left_truncate_len=left_truncate_len) for string in strings]
        batch = self.tokenizer.pad({"input_ids": rows}, padding_side=padding_side, return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"]

    def _crossing(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Which positions [B, L] of left-padded prompts cross the bottleneck."""
        special = torch.tensor(self.tokenizer.all_special_ids, device=ids.device)
        cross = attention.bool() & ~torch.isin(ids, special)
        for row, (tokens, attends) in enumerate(zip(ids.tolist(), attention.tolist(), strict=True)):
            known = self._cross.get(tuple(compress(tokens, attends)))
            if known is not None:
                cross[row, -len(known) :] = torch.tensor(known, device=ids.device)
        return cross

    # -- generation -----------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers to `requests`, in their order; see `HFLM.generate_until`."""
        with self.progress.task(self.label, len(requests), "questions") as self._done:
            answers: list[str] = super().generate_until(requests, disable_tqdm=True)
        return answers

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
                self._done(len(tokens))
                continue
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
            self._halve(len(tokens))  # here, where the failed attempt's tensors are no longer held
        new = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        return torch.cat([context, new], dim=1)

    @torch.inference_mode()
    def _generate(
        self, ids: Tensor, attention: Tensor, room: int, stop: list[str], options: Mapping[str, Any]
    ) -> Tensor:
        """At most `room` new tokens [B, T] for each prompt."""
        prompt: dict[str, Tensor] = {"input_ids": ids, "attention_mask": attention}
        if self.embed is not None:
            embedded = self.embed(ids, self._crossing(ids, attention), attention.bool())
            prompt = {
                "inputs_embeds": embedded.embeds.to(self.model.dtype),
                "attention_mask": embedded.attention.long(),
            }
        # Given embeddings alone, `generate` returns the new tokens alone: stop criteria count from zero.
        start = ids.shape[1] if self.embed is None else 0
        ends, phrases = self._ends(stop)
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

    def _halve(self, size: int) -> None:
        if size == 1:
            raise Stage1Error(
                "Out of memory with a single prompt.",
                "Lower data.max_prompt_tokens, or use a smaller --dtype, model, or another --device.",
            )
        self._at_once = size // 2
        self.progress.note(f"Out of memory with {size} prompts at a time: going on with {self._at_once}.")
        clear_device_cache(garbage_collection=True)

    def _ends(self, stop: Sequence[str]) -> tuple[set[int], list[str]]:
        """The tokens that end an answer, and the stop phrases that only decoding every step can find.

        A stop of one ASCII character is found in the text exactly if a token that contains it was generated,
        so that the loop need not decode anything.
        """
        own = self.model.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or [])}
        phrases = []
        for text in stop:
            if len(text) == 1 and text.isascii():
                ends |= self._tokens_containing(text)
            elif text != self.tokenizer.eos_token:
                phrases.append(text)
        return ends, phrases

    def _tokens_containing(self, character: str) -> set[int]:
        if character not in self._containing:
            texts = self.tokenizer.batch_decode([[number] for number in range(len(self.tokenizer))])
            self._containing[character] = {i for i, text in enumerate(texts) if character in text}
        return self._containing[character]

    # -- likelihoods ----------------------------------------------------------------------------------------

    def _model_call(
        self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Logits [B, L, V] of right-padded ids [B, L], which come without a mask or a context's length."""
        if self.embed is not None:
            raise NotImplementedError("Log-likelihoods through a bottleneck are not supported yet.")
        logits: Tensor = super()._model_call(inps, attn_mask, labels)
        return logits


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Only errors from lm-eval's own log."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


class QATask(Task):  # type: ignore[misc]
    """Questions with prepared prompts, scored as SQuAD v1.1: an answer ends with its line."""

    VERSION = 1
    OUTPUT_TYPE = "generate_until"

    def __init__(
        self, name: str, questions: Sequence[Question], prompts: Sequence[Prompt], max_new_tokens: int
    ) -> None:
        with quiet_lm_eval():  # it warns that the generation settings are not in a file
            super().__init__()
        self.set_config("task", name)
        self._docs = [
            {**question._asdict(), "prompt": prompt.text}
            for question, prompt in zip(questions, prompts, strict=True)
        ]
        self._options = {"until": ["\n"], "max_gen_toks": max_new_tokens, "do_sample": False}

    def download(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the questions are given."""

    def has_training_docs(self) -> bool:  # noqa: D102
        return False

    def has_validation_docs(self) -> bool:  # noqa: D102
        return False

    def has_test_docs(self) -> bool:  # noqa: D102
        return True

    def test_docs(self) -> list[dict[str, Any]]:
        """The questions with their prompts."""
        return self._docs

    def doc_to_text(self, doc: Mapping[str, Any]) -> str:
        """The prompt."""
        return str(doc["prompt"])

    def doc_to_target(self, doc: Mapping[str, Any]) -> str:
        """The gold continuation begins with the space."""
        return f" {doc['answers'][0]}"

    def build_all_requests(self, **kwargs: Any) -> None:
        """One request for each question; lm-eval's own method draws a progress bar for this."""
        self._instances = [
            self.construct_requests(doc, self.doc_to_text(doc), metadata=(self.task_name, number, 1))
            for number, doc in enumerate(self._docs)
        ]

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> Instance:
        """Greedy generation up to the end of the line."""
        return Instance("generate_until", doc, (ctx, dict(self._options)), 0, kwargs["metadata"])

    def process_results(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
        """Exact match and F1 of one answer, 0 to 100."""
        answer, gold = results[0], doc["answers"]
        return {"exact_match": 100 * exact_match(answer, gold), "f1": 100 * f1(answer, gold)}

    def aggregation(self) -> dict[str, Any]:
        """The mean over the questions."""
        return {"exact_match": mean, "f1": mean}

    def higher_is_better(self) -> dict[str, bool]:  # noqa: D102
        return {"exact_match": True, "f1": True}


def generate_answers(lm: Stage1LM, task: QATask) -> list[str]:
    """The task's answers as generated, in the order of its questions."""
    from lm_eval.evaluator import evaluate  # a second more, which training should not wait for

    with quiet_lm_eval():
        evaluated = evaluate(lm, {"tasks": {task.task_name: task}}, bootstrap_iters=0, log_samples=True)
    samples = sorted(evaluated["samples"][task.task_name], key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"][0] for sample in samples]
