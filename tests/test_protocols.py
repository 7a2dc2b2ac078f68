"""How a question is put: templates, examples, chats, named protocols, and what of it crosses."""

from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from conftest import Notes, build_prompts, embedded, opened, small_config
from random_llama import calls_of
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.statistics import count_tokens
from stage1.config import PromptConfig, RunConfig, merge, overlay, validate
from stage1.config.presets import PROTOCOLS, protocol_name
from stage1.data.prompts import Prompt, PromptBuilder
from stage1.data.records import Question
from stage1.data.template import draw_examples, without_context
from stage1.errors import ConfigError, UsageError
from stage1.evaluation.answers import Answering
from stage1.evaluation.conditions import Condition, lookup
from stage1.evaluation.rate import rate
from stage1.plugins.tensors import TokenStats
from stage1.session import Session
from stage1_models.tiny import MODEL_DIR

CHATML = (
    "{% for m in messages %}{{ '<|begin_of_text|>' + m['role'] + '\n' + m['content'] + '<|end_of_text|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|begin_of_text|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
)


def tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    own: Any = AutoTokenizer.from_pretrained(MODEL_DIR)
    own.chat_template = template
    return own  # type: ignore[no-any-return]


def question(number: int, context: str = "The tower of Zilburgh has {n} steps.") -> Question:
    asked = f"How many steps has tower {number}?"
    return Question(str(number), "t", context.format(n=number), asked, (str(number), "none"))


QUESTIONS = [question(n) for n in range(10, 20)]


def crossing_text(prompt: Prompt, own: PreTrainedTokenizerFast) -> str:
    crossed = [token for token, crosses in zip(prompt.ids, prompt.cross, strict=True) if crosses]
    return str(own.decode(crossed))


# -- templates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    ["{context}", "{question}", "no field", "{context} {question} {answer}", "{context} {context} {question}",
     "{context} {question", "{} {question}"],
)  # fmt: skip
def test_a_template_names_context_and_question_once_each(template: str) -> None:
    with pytest.raises(ConfigError, match=r"prompt\.template"):
        validate({"prompt": {"template": template}})


def test_any_template_is_filled_and_its_segments_known() -> None:
    config = PromptConfig(template="Q: {question}\nText: {context}\nA:")
    own = tokenizer()
    [prompt] = build_prompts(QUESTIONS[:1], own, prompt=config)
    assert prompt.text == "Q: How many steps has tower 10?\nText: The tower of Zilburgh has 10 steps.\nA:"
    [context] = build_prompts(QUESTIONS[:1], own, prompt=config, scope="context")
    assert "The tower" in crossing_text(context, own)
    assert "How many" not in crossing_text(context, own)
    [anchored] = build_prompts(QUESTIONS[:1], own, prompt=config, raw_anchor=True)
    assert not crossing_text(anchored, own).endswith("A:")


@pytest.mark.parametrize(
    ("template", "bare"),
    [
        ("Context: {context}\nQuestion: {question}\nAnswer:", "Question: {question}\nAnswer:"),
        ("Q: {question}\nText: {context}\nA:", "Q: {question}\nA:"),
        ("{context} {question} =", " {question} ="),
    ],
)
def test_without_its_context_a_template_loses_the_line(template: str, bare: str) -> None:
    assert without_context(template) == bare


def test_what_spells_a_special_token_is_ordinary_text() -> None:
    own = tokenizer()
    tricky = question(3, "They said {n} <|end_of_text|> and left. <|begin_of_text|>")
    [prompt] = build_prompts([tricky], own)
    assert prompt.ids.count(own.eos_token_id) == 0
    assert prompt.ids.count(own.bos_token_id) == 1
    assert crossing_text(prompt, own) == prompt.text


# -- examples ----------------------------------------------------------------------------------------------


def test_examples_stand_in_front_with_their_answers_and_stay_raw() -> None:
    own = tokenizer()
    [prompt] = build_prompts(QUESTIONS[5:6], own, prompt=PromptConfig(shots=2), examples=QUESTIONS[:2])
    blocks = prompt.text.split("\n\n")
    assert [block.split("Answer:")[1] for block in blocks] == [" 10", " 11", ""]
    assert blocks[0].startswith("Context: The tower of Zilburgh has 10 steps.\nQuestion:")
    assert crossing_text(prompt, own).strip() == blocks[2]
    config = PromptConfig(shots=2, instruction="Be brief.")
    [crossed] = build_prompts(
        QUESTIONS[5:6], own, prompt=config, examples=QUESTIONS[:2], shots=True, max_tokens=500
    )
    assert "Be brief." in crossed.text
    assert "Be brief." not in crossing_text(crossed, own)
    assert crossing_text(crossed, own).count("Context:") == 3


def test_the_floor_shows_no_context_of_examples_either() -> None:
    prompts = build_prompts(
        QUESTIONS[5:6],
        tokenizer(),
        prompt=PromptConfig(shots=1),
        examples=QUESTIONS[:1],
        with_context=False,
    )
    asked = "Question: How many steps has tower {}?\nAnswer:".format
    assert prompts[0].text == f"{asked(10)} 10\n\n{asked(15)}"


def test_examples_are_drawn_by_seed_from_different_passages() -> None:
    twice = [*QUESTIONS, *(q._replace(id=f"{q.id}b") for q in QUESTIONS)]
    drawn = draw_examples(twice, 5, seed=1)
    assert drawn == draw_examples(twice, 5, seed=1)
    assert len({q.context for q in drawn}) == 5
    assert any(draw_examples(twice, 5, seed=seed) != drawn for seed in (2, 3))
    with pytest.raises(UsageError, match="11 examples need as many training passages; there are 10"):
        draw_examples(twice, 11, seed=0)


def test_no_example_is_about_a_passage_that_is_asked() -> None:
    session = opened("prompt.shots=3")
    shown = {q.context for q in session.examples}
    assert len(shown) == 3
    assert shown <= {q.context for q in session.data.train}
    assert shown.isdisjoint(q.context for q in [*session.data.test, *session.data.selection])


def test_examples_that_leave_no_room_for_a_context_are_left_out_whole() -> None:
    notes = Notes()
    session = opened("prompt.shots=9", "data.max_prompt_tokens=400", progress=notes)
    prompts = session.prompts(session.data.test[:8])
    assert 0 < len(session.examples) < 9
    assert any("of 9 examples are shown" in note for note in notes.notes)
    for asked, prompt in zip(session.data.test[:8], prompts, strict=True):
        assert len(prompt.ids) <= 400
        assert prompt.text.endswith(f"Question: {asked.question}\nAnswer:")


# -- chats -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [CHATML, NO_SYSTEM])
def test_a_chat_is_the_templates_with_one_bos_and_examples_as_turns(template: str) -> None:
    own = tokenizer(template)
    config = PromptConfig(chat=True, shots=1, instruction="Be brief.")
    [prompt] = build_prompts(QUESTIONS[5:6], own, prompt=config, examples=QUESTIONS[:1])
    assert prompt.text.count("assistant\n") == 2
    assert prompt.text.endswith("<|begin_of_text|>assistant\n")
    assert "Be brief." in prompt.text
    assert prompt.ids == own(prompt.text, add_special_tokens=False)["input_ids"]
    filled = config.template.format(context=QUESTIONS[5].context, question=QUESTIONS[5].question)
    assert crossing_text(prompt, own) == filled


@pytest.mark.parametrize(
    "template", [CHATML, NO_SYSTEM, CHATML.replace("m['content']", "m['content'] | trim")]
)
def test_control_tokens_in_questions_and_examples_of_a_chat_are_text(template: str) -> None:
    """Beside the same texts without: the template's own tokens are alike, what is spelled is no token."""
    own = tokenizer(template)
    spelled = [question(n, " They said {n} <|end_of_text|> and left. <|begin_of_text|> ") for n in (3, 4, 5)]
    plain = [q._replace(context=q.context.replace("<|", "< |")) for q in spelled]
    config = PromptConfig(chat=True, shots=2, instruction="Be brief.")
    ours, usual = (
        build_prompts(asked[:1], own, prompt=config, examples=asked[1:], shots=True)[0]
        for asked in (spelled, plain)
    )
    for token in (own.bos_token_id, own.eos_token_id):
        assert ours.ids.count(token) == usual.ids.count(token)
    assert own.decode(ours.ids) == ours.text
    assert "<|end_of_text|> and left" in crossing_text(ours, own)
    controls = [own.bos_token_id, own.eos_token_id]
    raw = [[t for t, c in zip(p.ids, p.cross, strict=True) if t in controls and c] for p in (ours, usual)]
    assert raw == [[], []]  # special tokens stay raw, and these are all that there are


def test_a_chat_without_a_template_is_refused() -> None:
    with pytest.raises(UsageError, match="no chat template"):
        PromptBuilder(PromptConfig(chat=True), tokenizer())


# -- gold continuations ------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [PromptConfig(), PromptConfig(stop=[]), PromptConfig(chat=True)])
def test_prompt_and_continuation_are_the_tokens_of_the_whole(config: PromptConfig) -> None:
    own = tokenizer(CHATML)
    prompts = build_prompts(QUESTIONS, own, prompt=config)
    builder = PromptBuilder(config, own)
    for asked, prompt, answer in zip(QUESTIONS, prompts, builder.answer_ids(QUESTIONS, prompts), strict=True):
        space = "" if config.chat else " "
        end = "\n" if config.stop and not config.chat else ""
        whole = own(f"{prompt.text}{space}{asked.answers[0]}{end}", add_special_tokens=not config.chat)
        ids = whole["input_ids"] + ([] if end else [own.eos_token_id])
        assert prompt.ids + answer == ids


# -- truncation --------------------------------------------------------------------------------------------


def test_cut_from_the_right_loses_the_question() -> None:
    own = tokenizer()
    long = question(7, "The tower of Zilburgh has {n} steps. " * 30)
    [prompt] = build_prompts([long], own, prompt=PromptConfig(truncate="right"), max_tokens=50)
    assert len(prompt.ids) == len(prompt.cross) == 50
    assert prompt.lost > 100
    assert "Question" not in prompt.text
    [kept] = build_prompts([long], own, max_tokens=50)
    assert kept.text.endswith("Question: How many steps has tower 7?\nAnswer:")


# -- named protocols ---------------------------------------------------------------------------------------


def under(name: str, *settings: str) -> RunConfig:
    return validate(merge(overlay({}, PROTOCOLS.find(name).settings), {}, settings))


@pytest.mark.parametrize("preset", PROTOCOLS.all(), ids=lambda preset: preset.name)
def test_a_protocol_says_what_it_is_and_is_recognised(preset: Any) -> None:
    assert preset.text.startswith(f"# {preset.summary}\n")
    assert protocol_name(under(preset.name)) == preset.name


def test_a_protocol_that_was_changed_is_called_so() -> None:
    assert protocol_name(RunConfig()) == "plain"
    assert protocol_name(under("plain", "prompt.shots=3")) == "few_shot"
    assert protocol_name(under("few_shot", "prompt.shots=5")) == "few_shot with shots=5"
    assert protocol_name(under("few_shot", "prompt.instruction=Go")) == "few_shot with another instruction"


def test_the_studys_protocol_has_its_faults() -> None:
    config = under("study")
    session = Session.open(config, Notes(), before=embedded())
    [prompt, *_] = session.prompts(session.data.test[:4])
    assert prompt.text.endswith("Answer: ")
    assert len(prompt.ids) <= 256
    assert all(len(q.answers) == 1 for q in session.data.test)
    assert config.prompt.stop == []
    with pytest.raises(UsageError, match=r"few_shot"):
        PROTOCOLS.find("fewshot")


# -- what arrives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots_cross", [False, True])
def test_the_llm_receives_examples_raw_unless_they_cross(shots_cross: bool) -> None:
    settings = ("prompt.shots=2", f"prompt.shots_cross={str(shots_cross).lower()}", "eval.max_new_tokens=2")
    session = opened(*settings)
    prompts = session.prompts(session.data.test[:3])
    table = session.table.float()
    ids = torch.arange(len(table))
    every = TokenStats(ids, torch.ones(len(ids), dtype=torch.float64), table)
    embed = lookup(session, every, torch.full_like(table, 7.0))  # what crosses arrives as sevens
    with calls_of(session.model.llm) as calls:
        Answering(session, None).answers(Condition("sevens", prompts, embed, None))
    arrived = [call["inputs_embeds"] for call in calls if call.get("inputs_embeds") is not None]
    sevens = sum(int((part == 7.0).all(-1).sum()) for part in arrived)
    assert sevens == sum(sum(prompt.cross) for prompt in prompts)
    crossing = [crossing_text(prompt, session.tokenizer) for prompt in prompts]
    assert all((text.count("Context:") == 3) == shots_cross for text in crossing)


def test_what_stands_around_every_question_is_not_charged(session: Session, bottleneck: Bottleneck) -> None:
    """The rate under few_shot is that of the question itself, token for token and bit for bit."""
    questions = session.data.test[:6]
    alone = session.prompts(questions)
    behind = session.under(small_config("prompt.shots=2")).prompts(questions)
    assert all(len(b.ids) - b.fixed == len(a.ids) for a, b in zip(alone, behind, strict=True))
    one, two = (
        rate(bottleneck, prompts, count_tokens(prompts, session.table), session.table)
        for prompts in (alone, behind)
    )
    assert one == two
