"""The LLM under lm-eval: embeddings do what token ids do, and lm-eval's pitfalls with them are covered."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from conftest import Notes, build_prompts
from random_llama import calls_of, random_llama
from stage1.data.records import Question
from stage1.errors import Stage1Error
from stage1.evaluation.generation import Embed
from stage1.evaluation.lm_eval.model import Stage1LM
from stage1.evaluation.lm_eval.quiet import quiet_lm_eval
from stage1.llm.model import load_llm
from stage1.llm.tokenizer import load_tokenizer
from stage1.plugins.tensors import Embedded
from stage1_datasets.tiny_squad import tiny_squad
from stage1_models.tiny import MODEL_DIR

CPU = torch.device("cpu")
TOKENIZER = load_tokenizer(MODEL_DIR)
LENGTH = 8  # tokens of an answer at most


def some_questions(count: int) -> list[Question]:
    """Questions about as many passages, cut so that prompts differ in length and batches are padded."""
    passages = {r["context"]: r for r in tiny_squad("test", count, subjects=2)}
    return [
        Question(r["id"], r["title"], text[: 60 + 30 * (i % 6)], r["question"], tuple(r["answers"]["text"]))
        for i, (text, r) in enumerate(passages.items())
    ]


QUESTIONS = some_questions(20)


PROMPTS = build_prompts(QUESTIONS, TOKENIZER, scope="prompt", raw_anchor=False, max_tokens=400)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def llama(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = random_llama(tmp_path_factory.mktemp("llama"), tied=request.param)
    return load_llm(folder, dtype="auto", device=CPU)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = random_llama(tmp_path_factory.mktemp("llama"), tied=False)
    return load_llm(folder, dtype="auto", device=CPU)


def raw(model: Any) -> Embed:
    return lambda ids, cross, attention: Embedded(model.get_input_embeddings()(ids), attention)


def ask(model: Any, embed: Embed | None = None, *, length: int = LENGTH, **kw: Any) -> list[str]:
    lm = Stage1LM(model, TOKENIZER, embed=embed, **kw)
    return lm.generate_until([request_of(prompt.text, max_gen_toks=length) for prompt in PROMPTS])


def request_of(context: str, **options: Any) -> Any:
    from lm_eval.api.instance import Instance

    settings = {"until": ["\n"], "max_gen_toks": LENGTH, "do_sample": False, **options}
    return Instance("generate_until", {}, (context, settings), 0, ("questions", 0, 1))


# -- embeddings do what ids do ----------------------------------------------------------------------------


def test_raw_equals_text_whatever_the_batch(llama: Any) -> None:
    reference = ask(llama, batch_size=1)
    assert len(set(reference)) > len(reference) // 2  # or equality would say little
    assert ask(llama, raw(llama), batch_size=1) == reference
    for size in (7, 16):
        assert ask(llama, batch_size=size) == reference
        assert ask(llama, raw(llama), batch_size=size) == reference


def test_text_equals_stock_lm_eval(llama: Any) -> None:
    with quiet_lm_eval():
        stock: Any = HFLM(pretrained=llama, tokenizer=TOKENIZER, batch_size=4)
        expected = stock.generate_until([request_of(p.text) for p in PROMPTS], disable_tqdm=True)
    assert ask(llama, batch_size=4) == expected
    assert ask(llama, raw(llama), batch_size=4) == expected


def test_padded_prompts_are_masked_and_positioned(untied: Any) -> None:
    with calls_of(untied) as calls:
        ask(untied, raw(untied), batch_size=20)
    first = calls[0]
    lengths = torch.tensor(sorted((len(p.ids) for p in PROMPTS), reverse=True))
    attention, positions = first["attention_mask"].bool(), first["position_ids"]
    assert attention.sum(1).tolist() == lengths.tolist()
    assert not attention[-1, 0]  # padded on the left
    assert attention[:, -1].all()
    for row, length in enumerate(lengths):
        assert positions[row, -length:].tolist() == list(range(length))


def test_bf16_model_gets_bf16_embeddings(tmp_path: Path) -> None:
    model = load_llm(random_llama(tmp_path), dtype="bfloat16", device=CPU)
    expected = ask(model, batch_size=20)
    assert (
        ask(model, lambda i, c, a: Embedded(raw(model)(i, c, a).embeds.float(), a), batch_size=20) == expected
    )


# -- what crosses -----------------------------------------------------------------------------------------


def marked(model: Any, mark: float) -> Embed:
    """Every crossing position is a constant vector."""

    def embed(ids: Tensor, cross: Tensor, attention: Tensor) -> Embedded:
        embeds = model.get_input_embeddings()(ids)
        return Embedded(torch.where(cross[..., None], torch.full_like(embeds, mark), embeds), attention)

    return embed


def test_contexts_cross_and_generated_tokens_do_not(untied: Any) -> None:
    table = untied.get_input_embeddings().weight
    with calls_of(untied) as calls:
        ask(untied, marked(untied, 0.25), batch_size=20)
    received = calls[0]["inputs_embeds"]
    by_length = sorted(PROMPTS, key=lambda p: (-len(p.ids), p.text))
    for embeds, prompt in zip(received, by_length, strict=True):
        own = embeds[-len(prompt.ids) :]
        cross = torch.tensor(prompt.cross)
        assert (own[cross] == 0.25).all()
        assert torch.equal(own[~cross], table[torch.tensor(prompt.ids)[~cross]])
        assert not prompt.cross[0]  # BOS
    assert len(calls) > 1
    for later in calls[1:]:
        ids = later["input_ids"]
        embeds = later.get("inputs_embeds")
        assert ids.shape == (20, 1)  # one new token each, embedded by the model itself
        assert embeds is None


def test_contexts_are_tokenized_as_prompts_are(untied: Any) -> None:
    with calls_of(untied) as calls:
        ask(untied, batch_size=1)
    seen = {tuple(call["input_ids"][0].tolist()) for call in calls if call["input_ids"].shape[1] > 1}
    assert seen == {tuple(prompt.ids) for prompt in PROMPTS}
    assert all(ids.count(TOKENIZER.bos_token_id) == 1 for ids in seen)


def test_all_but_special_tokens_cross(untied: Any) -> None:
    lm = Stage1LM(untied, TOKENIZER, embed=marked(untied, 0.5), batch_size=2)
    text = f"{TOKENIZER.bos_token}In 1453 the city fell."
    with calls_of(untied) as calls:
        lm.generate_until([request_of(text), request_of("Short.")])
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert ids[0] == TOKENIZER.bos_token_id
    crossed = (calls[0]["inputs_embeds"] == 0.5).all(2)
    assert crossed.sum(1).tolist() == [len(ids) - 1, len(TOKENIZER("Short.")["input_ids"]) - 1]


# -- where answers end ------------------------------------------------------------------------------------


def test_an_answer_ends_with_its_line() -> None:
    model = load_llm(MODEL_DIR, dtype="auto", device=CPU)
    for embed in (None, raw(model)):
        with calls_of(model) as calls:
            answers = ask(model, embed, batch_size=20, length=64)
        assert not any("\n" in answer for answer in answers)
        assert len(calls) < 40  # generation itself stopped, not only the text


@pytest.mark.parametrize("as_embeddings", [False, True])
def test_a_stop_phrase_is_looked_for_in_the_answer_only(as_embeddings: bool, untied: Any) -> None:
    """A phrase of several tokens, which stands in the prompt too and must not end the answer there."""
    embed = raw(untied) if as_embeddings else None
    plain = Stage1LM(untied, TOKENIZER, embed=embed)
    text = PROMPTS[0].text
    [whole] = plain.generate_until([request_of(text, until=[], max_gen_toks=12)])
    middle = len(whole) // 2
    phrase = whole[middle - 3 : middle + 3]
    prompt = phrase + text
    [whole] = plain.generate_until([request_of(prompt, until=[], max_gen_toks=12)])
    phrase = whole[middle - 3 : middle + 3]
    with calls_of(untied) as calls:
        [cut] = plain.generate_until([request_of(prompt, until=[phrase, "Context: "], max_gen_toks=12)])
    assert cut == whole[: whole.index(phrase)]
    assert len(calls) < 12


def test_length_is_counted_in_new_tokens(untied: Any) -> None:
    def last_three(ids: Tensor, cross: Tensor, attention: Tensor) -> Embedded:
        return Embedded(untied.get_input_embeddings()(ids[:, -3:]), attention[:, -3:])

    with calls_of(untied) as calls:
        shortened = ask(untied, last_three, batch_size=1, length=5)
    assert len(calls) == 5 * len(PROMPTS)
    expected = [
        untied.generate(
            inputs_embeds=untied.get_input_embeddings()(torch.tensor([prompt.ids[-3:]])),
            attention_mask=torch.ones(1, 3),
            max_new_tokens=5,
            do_sample=False,
            pad_token_id=2,
        )
        for prompt in PROMPTS
    ]
    assert shortened == [TOKENIZER.decode(row[0], skip_special_tokens=True) for row in expected]


# -- memory, noise, refusals ------------------------------------------------------------------------------


def test_out_of_memory_halves_the_batch(untied: Any) -> None:
    def tight(limit: int) -> Embed:
        def embed(ids: Tensor, cross: Tensor, attention: Tensor) -> Embedded:
            if len(ids) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return raw(untied)(ids, cross, attention)

        return embed

    progress = Notes()
    assert ask(untied, tight(3), batch_size=16, progress=progress) == ask(untied)
    assert [note.split(":")[0] for note in progress.notes] == [
        f"Out of memory with {size} prompts at a time" for size in (16, 8, 4)
    ]
    with pytest.raises(Stage1Error, match="Out of memory with a single prompt"):
        ask(untied, tight(0), batch_size=2)


def test_other_errors_are_not_taken_for_memory(untied: Any) -> None:
    def broken(ids: Tensor, cross: Tensor, attention: Tensor) -> Embedded:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        ask(untied, broken, batch_size=4)


def test_nothing_is_printed(untied: Any, capfd: pytest.CaptureFixture[str]) -> None:
    ask(untied, raw(untied), batch_size=4)
    assert capfd.readouterr() == ("", "")
