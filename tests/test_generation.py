"""The greedy loop against stock `generate`, and what it saves: shared beginnings, finished answers."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import with_llm
from random_llama import calls_of
from stage1.bottleneck.statistics import count_tokens
from stage1.data.datasets import spread
from stage1.data.prompts import WORTH_SHARING, Prompt, common_prefix
from stage1.evaluation.conditions import lookup, raw
from stage1.evaluation.generation import Generation, GreedyDecoder, endings
from stage1.llm.model import load_llm
from stage1.plugins.tensors import Embedded
from stage1.session import Session

LENGTH = 12
NOTHING: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def prompts(session: Session) -> list[Prompt]:
    """Of mixed lengths."""
    chosen = session.prompts(spread(session.data.test, 12))
    assert len({len(prompt.ids) for prompt in chosen}) > 6
    return chosen


def decoder(session: Session, stop: Sequence[str] = ("\n",), length: int = LENGTH) -> GreedyDecoder:
    return GreedyDecoder(session.model.llm, session.tokenizer, stop=stop, max_new_tokens=length)


def generated(session: Session, prompt: Prompt, *, as_embeddings: bool, length: int = LENGTH) -> list[int]:
    """What `generate` adds to one prompt, nothing but EOS and its length stopping it."""
    llm: Any = session.model.llm
    ids = torch.tensor([prompt.ids])
    given = {"inputs_embeds": llm.get_input_embeddings()(ids)} if as_embeddings else {"input_ids": ids}
    tokens: list[int] = llm.generate(
        **given, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False, pad_token_id=2
    )[0].tolist()
    return tokens if as_embeddings else tokens[len(prompt.ids) :]


def up_to(stop: Sequence[str], tokens: list[int], session: Session) -> Generation:
    """The answer of what was generated, cut at the first stop."""
    config: Any = session.model.llm.generation_config
    ends = config.eos_token_id
    ended = tokens[-1] in (ends if isinstance(ends, list) else [ends])
    text = str(session.tokenizer.decode(tokens, skip_special_tokens=True))
    for phrase in stop:
        text, found, _ = text.partition(phrase)
        ended |= bool(found)
    return Generation(text, not ended)


def stock(session: Session, prompts: Sequence[Prompt], **how: Any) -> list[Generation]:
    return [up_to(NOTHING, generated(session, prompt, **how), session) for prompt in prompts]


@pytest.fixture(scope="module")
def said(session: Session, prompts: list[Prompt]) -> list[list[int]]:
    return [generated(session, prompt, as_embeddings=False) for prompt in prompts]


# -- the same as generate ---------------------------------------------------------------------------------


@pytest.mark.parametrize("as_embeddings", [False, True])
@pytest.mark.parametrize("stop", [NOTHING, ("\n",), (" th", "ion "), ("\n", "e ")], ids=str)
def test_it_answers_as_generate_does(
    stop: tuple[str, ...],
    as_embeddings: bool,
    session: Session,
    prompts: list[Prompt],
    said: list[list[int]],
) -> None:
    ours = decoder(session, stop).answer(prompts, raw(session) if as_embeddings else None)
    assert ours == [up_to(stop, tokens, session) for tokens in said]
    assert len(set(ours)) > 6
    if stop == ("\n",):
        assert not any(answer.cut for answer in ours)


@pytest.mark.parametrize("as_embeddings", [False, True])
def test_a_random_model_too_at_every_length(
    as_embeddings: bool, gibberish: Session, prompts: list[Prompt]
) -> None:
    embed = raw(gibberish) if as_embeddings else None
    for length in (1, 2, 9):
        ours = decoder(gibberish, NOTHING, length).answer(prompts, embed)
        assert ours == stock(gibberish, prompts, as_embeddings=as_embeddings, length=length)
        assert sum(answer.cut for answer in ours) > 9
    assert len({answer.text for answer in ours}) > 6


def test_eos_ends_an_answer(session: Session, prompts: list[Prompt]) -> None:
    """Any that the model's own configuration names; the fourth token of an answer is made one."""
    llm = load_llm(session.model.folder, dtype="auto", device=session.device)
    own = with_llm(session, llm)
    answer = decoder(own, NOTHING).answer(prompts[:1], None)[0].text
    fourth = session.tokenizer(answer, add_special_tokens=False)["input_ids"][3]
    assert llm.generation_config is not None
    llm.generation_config.eos_token_id = [1, fourth]
    ours = decoder(own, NOTHING).answer(prompts, raw(own))
    assert ours == stock(own, prompts, as_embeddings=True)
    assert ours[0] == Generation(answer[: len(ours[0].text)], cut=False)
    assert len(ours[0].text) < len(answer)


def test_the_stops_that_need_no_decoding_on_the_way(session: Session) -> None:
    tokenizer = session.tokenizer
    ends, phrases = endings(session.model.llm, tokenizer, ["\n", "\n\n", "é", str(tokenizer.eos_token)])
    with_newline = {number for number in range(len(tokenizer)) if "\n" in str(tokenizer.decode([number]))}
    assert with_newline
    assert ends == with_newline | {tokenizer.eos_token_id}
    assert phrases == ["\n\n", "é"]  # a letter beyond ASCII may be spread over several tokens


def test_an_answer_that_is_done_costs_nothing_more(session: Session, prompts: list[Prompt]) -> None:
    with calls_of(session.model.llm) as calls:
        decoder(session, length=40).answer(prompts, None)
    sizes = [len(call["input_ids"]) for call in calls]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == len(prompts) > sizes[-1]
    assert len(calls) < 40


def test_a_stop_is_looked_for_in_the_answer_alone(gibberish: Session, prompts: list[Prompt]) -> None:
    """The phrase stands in the prompt too."""
    prompt = prompts[0]
    text = decoder(gibberish, NOTHING).answer([prompt], None)[0].text
    phrase = text[len(text) // 2 - 3 : len(text) // 2 + 3]
    ids = gibberish.tokenizer(f"{phrase} {phrase}{prompt.text}")["input_ids"]
    longer = prompt._replace(ids=ids, cross=[False] * len(ids))
    [whole] = decoder(gibberish, NOTHING).answer([longer], None)
    phrase = whole.text[len(whole.text) // 2 - 3 : len(whole.text) // 2 + 3]
    with calls_of(gibberish.model.llm) as calls:
        [cut] = decoder(gibberish, [phrase, "Context: "]).answer([longer], None)
    assert cut == Generation(whole.text[: whole.text.index(phrase)], cut=False)
    assert len(calls) < LENGTH


# -- what the LLM receives --------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["prompt", "context"])
def test_the_llm_receives_what_the_prompt_says_and_its_own_tokens_raw(scope: Any, gibberish: Session) -> None:
    config = gibberish.config.model_copy(update={"scope": scope})
    prompts = gibberish.under(config).prompts(spread(gibberish.data.test, 12))
    table: Any = gibberish.model.llm.get_input_embeddings().weight
    stats = count_tokens(prompts, gibberish.table)
    constant = lookup(gibberish, stats, torch.full_like(stats.embeds, 0.25))
    with calls_of(gibberish.model.llm) as calls:
        decoder(gibberish, NOTHING).answer(prompts, constant)
    for embeds, prompt in zip(calls[0]["inputs_embeds"], prompts, strict=True):
        own, cross = embeds[-len(prompt.ids) :], torch.tensor(prompt.cross)
        assert (own[cross] == 0.25).all()
        assert torch.equal(own[~cross], table[torch.tensor(prompt.ids)[~cross]])
        assert not prompt.cross[0]  # BOS
    assert len(calls) == LENGTH
    for later in calls[1:]:
        assert later["input_ids"].shape[1] == 1  # one new token each, embedded by the model itself
        assert later.get("inputs_embeds") is None


def test_padded_prompts_are_masked_and_positioned(session: Session, prompts: list[Prompt]) -> None:
    with calls_of(session.model.llm) as calls:
        decoder(session).answer(prompts, raw(session))
    attention, positions = calls[0]["attention_mask"].bool(), calls[0]["position_ids"]
    for row, prompt in enumerate(prompts):
        length = len(prompt.ids)
        assert attention[row].sum() == attention[row, -length:].sum() == length
        assert positions[row, -length:].tolist() == list(range(length))


@pytest.mark.parametrize("as_embeddings", [False, True])
def test_what_pads_does_not_matter(as_embeddings: bool, session: Session, prompts: list[Prompt]) -> None:
    other = deepcopy(session.tokenizer)
    other.pad_token = other.convert_ids_to_tokens(100)
    assert other.pad_token_id == 100 != session.tokenizer.pad_token_id
    embed = raw(session) if as_embeddings else None
    one, two = (
        GreedyDecoder(session.model.llm, tokenizer, stop=["\n"], max_new_tokens=1).first_logits(
            prompts, embed
        )
        for tokenizer in (session.tokenizer, other)
    )
    assert torch.equal(one, two)


def test_a_shorter_code(gibberish: Session, prompts: list[Prompt]) -> None:
    """The length is counted in new tokens, whatever is left of the prompt."""
    embedding: Any = gibberish.model.llm.get_input_embeddings()

    def last_three(ids: Tensor, cross: Tensor, attention: Tensor) -> Embedded:
        return Embedded(embedding(ids[:, -3:]), attention[:, -3:])

    ours = decoder(gibberish, NOTHING).answer(prompts, last_three)
    ends = [prompt._replace(ids=prompt.ids[-3:], cross=prompt.cross[-3:]) for prompt in prompts]
    assert ours == stock(gibberish, ends, as_embeddings=True)


def test_a_model_in_half_precision_gets_half_precision(session: Session, prompts: list[Prompt]) -> None:
    half = with_llm(session, load_llm(session.model.folder, dtype="bfloat16", device=session.device))
    text = decoder(half).first_logits(prompts, None)
    embed = raw(session)  # in float32, of the same rows
    assert torch.equal(decoder(half).first_logits(prompts, embed), text)


# -- shared beginnings ------------------------------------------------------------------------------------


def behind(beginning: list[int], prompts: Sequence[Prompt]) -> list[Prompt]:
    """`prompts` after the same raw tokens, BOS in front of all."""
    return [
        prompt._replace(
            ids=[prompt.ids[0], *beginning, *prompt.ids[1:]],
            cross=[False] * (1 + len(beginning)) + prompt.cross[1:],
        )
        for prompt in prompts
    ]


@pytest.fixture(scope="module")
def examples(session: Session, prompts: list[Prompt]) -> list[Prompt]:
    """Prompts after one and the same example."""
    example = session.prompts(session.data.train[:1])[0].ids[1:]
    assert len(example) >= WORTH_SHARING
    return behind(example, prompts)


@pytest.mark.parametrize("kind", ["ids", "raw", "crossing"])
def test_sharing_changes_nothing(kind: str, session: Session, examples: list[Prompt]) -> None:
    stats = count_tokens(examples, session.table)
    shorter = lookup(session, stats, 0.9 * stats.embeds)
    embed = {"ids": None, "raw": raw(session), "crossing": shorter}[kind]
    alone, sharing = decoder(session), decoder(session)
    sharing.share(examples)
    with calls_of(session.model.llm) as calls:
        logits = sharing.first_logits(examples, embed)
    expected = alone.first_logits(examples, embed)
    longest = max(len(prompt.ids) for prompt in examples)
    assert calls[0]["attention_mask"].shape == (len(examples), longest)
    read = calls[0]["input_ids"] if embed is None else calls[0]["inputs_embeds"]
    assert read.shape[1] <= longest - WORTH_SHARING
    assert float((logits - expected).abs().max()) < 1e-5
    answers = sharing.answer(examples, embed)
    assert answers == alone.answer(examples, embed)
    assert sharing.answer(examples[:3], embed) == answers[:3]  # what is shared is not used up


def test_what_was_shared_before_is_forgotten(
    session: Session, examples: list[Prompt], prompts: list[Prompt]
) -> None:
    sharing, alone = decoder(session), decoder(session)
    sharing.share(examples)
    sharing.share(prompts)
    assert torch.equal(sharing.first_logits(prompts, None), alone.first_logits(prompts, None))
    with calls_of(session.model.llm) as calls:
        sharing.share(examples)
        sharing.share(examples)  # the same again: nothing to be done
    assert len(calls) == 1


def test_only_what_does_not_cross_is_shared_and_something_is_left(prompts: list[Prompt]) -> None:
    one, two = prompts[0], prompts[1]
    same = [one, one]
    assert common_prefix(same) == []  # BOS alone does not cross
    plain = [prompt._replace(cross=[False] * len(prompt.ids)) for prompt in same]
    assert common_prefix(plain) == one.ids[:-1]
    enough = [5] * (WORTH_SHARING - 1)  # behind BOS
    assert common_prefix(behind(enough, [one, two])) == [one.ids[0], *enough]
    assert common_prefix(behind(enough[1:], [one, two])) == []
    example = [5] * WORTH_SHARING
    assert common_prefix(behind([*example, 6, 7], [one, two])) == [one.ids[0], *example, 6, 7]
    crossing = [
        *behind([*example, 6, 7], [one]),
        two._replace(ids=[two.ids[0], *example, 6, 9], cross=[False] * len([0, *example]) + [True, True]),
    ]
    assert common_prefix(crossing) == [one.ids[0], *example]
