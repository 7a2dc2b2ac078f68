"""Prompts: what crosses the bottleneck and what truncation takes, with tokenizers of every usual kind."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from conftest import build_prompts
from stage1.config import DataConfig
from stage1.data.datasets import load_qa
from stage1.data.prompts import Prompt
from stage1.data.records import Question
from stage1.errors import UsageError
from stage1_datasets.tiny_squad.lexicon import all_names
from stage1_models.tiny import MODEL_DIR

CORPUS = [
    f"Context: It rains.{' The rain in Spain falls.' * n}\nQuestion: Why?\nAnswer: 1" for n in range(9)
] + ["naïve café 東京 🙂 Straße 12,345 «oui»!\n"] * 4
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def with_bos(tokenizer: Tokenizer, bos: str) -> PreTrainedTokenizerFast:
    number = tokenizer.token_to_id(bos)
    bos_first = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)])
    existing = [tokenizer.post_processor] if tokenizer.post_processor else []
    tokenizer.post_processor = processors.Sequence([*existing, bos_first])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos)  # type: ignore[no-untyped-call]


def byte_level(vocab_size: int, trim_offsets: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE cut as Llama 3 does; with `trim_offsets`, tokens of spaces alone have no width."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA_3), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|bos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return with_bos(tokenizer, "<|bos|>")


def sentence_piece() -> PreTrainedTokenizerFast:
    """BPE as in Llama 2: a normaliser writes "▁" for spaces, unknown characters fall back to their bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS[:8], trainer)
    return with_bos(tokenizer, "<s>")


def tiny() -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(MODEL_DIR)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


MAKERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": lambda: byte_level(400),
    "bytes": lambda: byte_level(257, trim_offsets=True),  # no merges: even "C" is a token
    "sentence-piece": sentence_piece,
    "tiny": tiny,
}


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return MAKERS[request.param]()


@pytest.fixture(scope="module")
def llama_3() -> PreTrainedTokenizerFast:
    return byte_level(400)


def prompt_of(question: Question, tokenizer: PreTrainedTokenizerFast, **how: Any) -> Prompt:
    [prompt] = build_prompts([question], tokenizer, **{"max_tokens": 10_000, **how})
    return prompt


def ask(context: str, question: str = "Why?") -> Question:
    return Question("q", "", context, question, ("a",))


SPECIMEN = ask("It rains. The naïve café of 東京 🙂  falls\tdown.\n It rains.", "Why does the rain fall?")
TEXTS = st.one_of(
    st.text(min_size=1, max_size=60),
    st.lists(st.sampled_from(["It", "rains", ".", "\n", "  ", "東京", "🙂", "\nAnswer:", "Spain "])).map(
        "".join
    ),
).filter(str.strip)


def test_the_prompt_is_the_text_the_design_fixes(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = prompt_of(SPECIMEN, tokenizer)
    assert prompt.text == f"Context: {SPECIMEN.context}\nQuestion: {SPECIMEN.question}\nAnswer:"
    assert prompt.ids == tokenizer(prompt.text)["input_ids"]
    assert prompt.ids[0] == tokenizer.bos_token_id
    assert (prompt.id, prompt.lost) == ("q", 0)

    bare = prompt_of(SPECIMEN, tokenizer, with_context=False)
    assert bare.text == f"Question: {SPECIMEN.question}\nAnswer:"
    assert bare.ids == tokenizer(bare.text)["input_ids"]
    assert not any(prompt_of(SPECIMEN, tokenizer, with_context=False, scope="context").cross)


def test_in_scope_prompt_all_but_special_tokens_cross(tokenizer: PreTrainedTokenizerFast) -> None:
    for question in (SPECIMEN, ask("  two  spaces   everywhere  ", " ")):
        prompt = prompt_of(question, tokenizer)
        assert prompt.cross == [False] + [True] * (len(prompt.ids) - 1)


def test_in_scope_context_the_crossing_tokens_spell_the_context() -> None:
    tokenizer = tiny()  # here no token reaches over the end of the context
    for raw_anchor in (False, True):
        prompt = prompt_of(SPECIMEN, tokenizer, scope="context", raw_anchor=raw_anchor)
        crossing = [number for number, cross in zip(prompt.ids, prompt.cross, strict=True) if cross]
        assert tokenizer.decode(crossing) == f" {SPECIMEN.context}"


def test_a_raw_anchor_is_the_anchor_and_no_more() -> None:
    tokenizer = tiny()
    prompt = prompt_of(SPECIMEN, tokenizer, raw_anchor=True)
    raw = [number for number, cross in zip(prompt.ids, prompt.cross, strict=True) if not cross]
    assert tokenizer.decode(raw) == f"{tokenizer.bos_token}\nAnswer:"


def test_a_token_across_a_border_belongs_to_the_segment_it_ends_in(llama_3: PreTrainedTokenizerFast) -> None:
    prompt = prompt_of(ask("It rains."), llama_3, scope="context")
    tokens = llama_3.convert_ids_to_tokens(prompt.ids)
    assert ".Ċ" in tokens, "this test needs a token that straddles the border"
    crossing = [number for number, cross in zip(prompt.ids, prompt.cross, strict=True) if cross]
    assert llama_3.decode(crossing) == " It rains"
    raw = prompt_of(ask("It rains."), llama_3, raw_anchor=True)
    raw_ids = [number for number, cross in zip(raw.ids, raw.cross, strict=True) if not cross]
    assert llama_3.convert_ids_to_tokens(raw_ids) == ["<|bos|>", "?Ċ", "Answer", ":"]


@settings(deadline=None)
@given(context=TEXTS, question=TEXTS)
def test_masks_agree_with_counting_bytes(
    llama_3: PreTrainedTokenizerFast, context: str, question: str
) -> None:
    """A byte-level token has one character for each byte: its last byte tells the segment."""
    prompt = prompt_of(ask(context, question), llama_3, scope="context")
    lengths = [len(token) for token in llama_3.convert_ids_to_tokens(prompt.ids)[1:]]
    begin, end = len(b"Context: "), len(f"Context: {context}".encode())
    expected = [begin <= last - 1 < end for last in accumulate(lengths)]
    assert prompt.cross == [False, *expected]

    raw = prompt_of(ask(context, question), llama_3, raw_anchor=True)
    anchor = len(prompt.text.encode()) - len(b"\nAnswer:")
    assert raw.cross == [False, *(last <= anchor for last in accumulate(lengths))]


@settings(max_examples=60, deadline=None)
@given(context=TEXTS, times=st.integers(1, 30), question=TEXTS, spare=st.integers(0, 60))
@example(context="It rains 東京 🙂. ", times=30, question="Why?", spare=7)
def test_truncation_takes_the_end_of_the_context_and_nothing_else(
    tokenizer: PreTrainedTokenizerFast, context: str, times: int, question: str, spare: int
) -> None:
    asked = ask(context * times, question)
    whole, empty = (prompt_of(q, tokenizer) for q in (asked, asked._replace(context="")))
    prompt = prompt_of(asked, tokenizer, max_tokens=len(empty.ids) + spare)
    assert len(prompt.ids) <= len(empty.ids) + spare
    assert prompt.ids == tokenizer(prompt.text)["input_ids"]
    tail = f"\nQuestion: {question}\nAnswer:"
    assert prompt.text.endswith(tail)
    assert whole.text.startswith(prompt.text.removesuffix(tail))
    truncated = len(whole.ids) > len(empty.ids) + spare
    assert (prompt.text != whole.text) == truncated == (prompt.lost > 0)
    assert len(prompt.cross) == len(prompt.ids)


def test_truncation_is_tight_and_counts_tokens() -> None:
    tokenizer = tiny()
    question = ask(" ".join(all_names()[:200]))  # a token each
    whole = prompt_of(question, tokenizer, scope="context")
    for limit in range(len(whole.ids) - 40, len(whole.ids)):
        prompt = prompt_of(question, tokenizer, scope="context", max_tokens=limit)
        assert len(prompt.ids) == limit
        assert prompt.lost == len(whole.ids) - limit == sum(whole.cross) - sum(prompt.cross)
        assert not prompt.text.split("\n")[0].endswith(" ")


def test_a_question_that_does_not_fit_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    question = ask("It rains. " * 50)
    least = len(prompt_of(question._replace(context=""), tokenizer).ids)
    assert len(prompt_of(question, tokenizer, max_tokens=least).ids) <= least
    for with_context in (True, False):
        with pytest.raises(UsageError, match="Question 'q' takes") as caught:
            prompt_of(question, tokenizer, max_tokens=2, with_context=with_context)
        assert "max_prompt_tokens" in caught.value.remedy


def test_many_prompts_keep_their_order() -> None:
    questions = load_qa(DataConfig.model_validate({"train": 2500})).train
    tokenizer = tiny()
    prompts = build_prompts(questions, tokenizer, max_tokens=64)
    assert [p.id for p in prompts] == [q.id for q in questions]
    assert 0 < sum(p.lost > 0 for p in prompts) < 2500
    for question, prompt in list(zip(questions, prompts, strict=True))[::250]:
        assert prompt == prompt_of(question, tokenizer, max_tokens=64)
