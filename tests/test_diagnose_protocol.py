"""How questions are put and answers cut, with every fault built for real; the health of the answers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest

import stage1.diagnosis.generation as generation
import stage1.diagnosis.protocol as protocol
from conftest import small_config
from pairs import pairs
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.data.prompts import Prompt
from stage1.data.records import Question
from stage1.diagnosis.case import Asked, Case
from stage1.evaluation.generation import Embed, GreedyDecoder
from stage1.evaluation.squad import f1, normalize_answer
from stage1.session import Session

N = 20
CUT = 24  # tokens, far fewer than any prompt has


@dataclass
class Counting(Case):
    """A case that remembers which rows were asked."""

    def __post_init__(self) -> None:
        self.rows: list[str] = []

    def ask(self, name: str, embed: Embed | None, prompts: Sequence[Prompt] | None = None) -> Asked:
        self.rows.append(name)
        return super().ask(name, embed, prompts)


def case_of(session: Session, bottleneck: Bottleneck) -> Counting:
    questions = session.data.test[:N]
    return Counting(bottleneck, session, questions, session.prompts(questions), [])


@pytest.fixture(scope="module")
def healthy(session: Session, bottleneck: Bottleneck) -> Counting:
    return case_of(session, bottleneck)


@pytest.fixture(scope="module")
def clean(healthy: Counting) -> dict[str, Any]:
    return protocol.measure(healthy)


@dataclass(frozen=True)
class Faulty(Session):
    """A session whose prompts went through `change`."""

    @staticmethod
    def change(prompt: Prompt, session: Session) -> Prompt:
        raise NotImplementedError

    def prompts(self, questions: Sequence[Question], *, with_context: bool = True) -> list[Prompt]:
        whole = super().prompts(questions, with_context=with_context)
        return [self.change(p, self) for p in whole]


class WithoutBos(Faulty):
    """A tokenizer that puts no BOS in front."""

    @staticmethod
    def change(prompt: Prompt, session: Session) -> Prompt:
        return prompt._replace(ids=prompt.ids[1:], cross=prompt.cross[1:])


class CutFromTheRight(Faulty):
    """`truncation=True` of a tokenizer: the question goes first."""

    @staticmethod
    def change(prompt: Prompt, session: Session) -> Prompt:
        ids = prompt.ids[:CUT]
        text = str(session.tokenizer.decode(ids, skip_special_tokens=True))
        return Prompt(prompt.id, text, ids, prompt.cross[:CUT], len(prompt.ids) - CUT)


class TrailingSpace(Faulty):
    """`Answer: ` as a prompt's end."""

    @staticmethod
    def change(prompt: Prompt, session: Session) -> Prompt:
        space = session.tokenizer(" ", add_special_tokens=False)["input_ids"]
        cross = prompt.cross + [True] * len(space)
        return prompt._replace(text=prompt.text + " ", ids=prompt.ids + space, cross=cross)


def faulty(kind: type[Faulty], session: Session) -> Faulty:
    return kind(**{field.name: getattr(session, field.name) for field in fields(session)})


def never_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers go on beyond the newline."""
    built = GreedyDecoder.__init__

    def without_stop(self: GreedyDecoder, *args: Any, stop: Any, max_new_tokens: int) -> None:
        built(self, *args, stop=[], max_new_tokens=max_new_tokens)

    monkeypatch.setattr(GreedyDecoder, "__init__", without_stop)


# -- protocol ---------------------------------------------------------------------------------------------


def test_a_sound_protocol_has_nothing_to_report_and_asks_nothing_twice(
    healthy: Counting, clean: dict[str, Any]
) -> None:
    assert json.loads(json.dumps(clean, allow_nan=False)) == clean
    assert clean["n"] == N
    assert clean["text_f1"] == clean["raw_f1"] > 80
    assert clean["raw_differs"] == 0
    assert clean["bos"] == {"expected": True, "missing": 0, "f1_text_with": None, "f1_ours_with": None}
    assert clean["truncated"] == {"prompts": 0, "tokens": 0}
    assert set(clean["cut"].values()) == {0, None}
    assert clean["stop"] == {
        "unstopped": 0,
        "run_on": 0,
        "f1_text_first_line": None,
        "f1_ours_first_line": None,
    }
    assert clean["trailing_space"] == 0
    assert clean["chat_template"] == {"there": False, "used": False}
    assert set(healthy.rows) == {"text", "raw", "bottleneck"}


def test_prompts_without_bos(session: Session, bottleneck: Bottleneck, healthy: Counting) -> None:
    """With BOS back in front the answers are those of the sound protocol."""
    case = case_of(faulty(WithoutBos, session), bottleneck)
    measured = protocol.measure(case)
    assert measured["bos"] == {
        "expected": True,
        "missing": N,
        "f1_text_with": healthy.text.mean,
        "f1_ours_with": healthy.ours.mean,
    }
    assert measured["cut"]["f1_text_whole"] is None
    again = case.ask("bottleneck with BOS", None)  # the name it is known under
    assert again.answers == healthy.ours.answers


def test_bos_in_front_of_a_prompt_that_fills_the_context() -> None:
    prompt = Prompt("a", "text", [5, 6, 7], [True, False, True], 0)
    assert protocol.with_bos(prompt, 0, 3)[2:4] == ([0, 6, 7], [False, False, True])
    assert protocol.with_bos(prompt, 0, 4)[2:4] == ([0, 5, 6, 7], [False, True, False, True])
    assert protocol.with_bos(prompt, 5, 3) is prompt


def test_prompts_cut_from_the_right(session: Session, bottleneck: Bottleneck, healthy: Counting) -> None:
    """The question is gone; whole prompts give the sound protocol's F1."""
    measured = protocol.measure(case_of(faulty(CutFromTheRight, session), bottleneck))
    assert measured["text_f1"] < 30
    assert measured["cut"] == {
        "question_missing": N,
        "anchor_missing": N,
        "f1_text_whole": healthy.text.mean,
        "f1_ours_whole": healthy.ours.mean,
    }
    lost = sum(len(prompt.ids) - CUT for prompt in healthy.prompts)
    assert measured["truncated"] == {"prompts": N, "tokens": lost}
    assert measured["bos"]["missing"] == 0


def test_contexts_cut_as_they_should_be_are_no_cut_prompts(session: Session, bottleneck: Bottleneck) -> None:
    config = small_config(f"eval.limit={N}", "data.max_prompt_tokens=60")
    case = case_of(session.under(config), bottleneck)
    measured = protocol.measure(case)
    assert measured["truncated"]["prompts"] == sum(p.lost > 0 for p in case.prompts) > N / 2
    assert set(measured["cut"].values()) == {0, None}


def test_a_trailing_space_is_not_taken_for_a_cut(session: Session, bottleneck: Bottleneck) -> None:
    measured = protocol.measure(case_of(faulty(TrailingSpace, session), bottleneck))
    assert measured["trailing_space"] == N
    assert set(measured["cut"].values()) == {0, None}


def test_answers_that_nothing_stops(
    session: Session,
    bottleneck: Bottleneck,
    healthy: Counting,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model goes on with questions of its own; the first lines are the sound protocol's answers."""
    never_stop(monkeypatch)
    case = case_of(session, bottleneck)
    measured = protocol.measure(case)
    run_on = [answer for answer in case.text.answers if answer.partition("\n")[2].strip()]
    assert measured["stop"] == {
        "unstopped": 0,
        "run_on": len(run_on),
        "f1_text_first_line": healthy.text.mean,
        "f1_ours_first_line": healthy.ours.mean,
    }
    assert len(run_on) == N
    assert measured["text_f1"] < healthy.text.mean - 20


def test_answers_that_reach_the_length_limit(
    session: Session, bottleneck: Bottleneck, healthy: Counting
) -> None:
    config = small_config(f"eval.limit={N}", "eval.max_new_tokens=2")
    case = case_of(session.under(config), bottleneck)
    measured = protocol.measure(case)
    lengths = [len(session.tokenizer(a, add_special_tokens=False)["input_ids"]) for a in healthy.text.answers]
    assert measured["stop"]["unstopped"] == sum(length >= 2 for length in lengths) > 0
    assert measured["stop"]["run_on"] == 0


def test_embeddings_that_do_not_do_what_ids_do(session: Session, bottleneck: Bottleneck) -> None:
    case = case_of(session, bottleneck)
    original = case.raw

    def shrunk(*args: Any) -> Any:
        embedded = original(*args)
        return embedded._replace(embeds=0.01 * embedded.embeds)

    case.raw = shrunk
    measured = protocol.measure(case)
    pairs_of = zip(case.text.answers, case.ask("raw", case.raw).answers, strict=True)
    assert measured["raw_differs"] == sum(a != b for a, b in pairs_of) > 0


def test_chat_templates(session: Session, bottleneck: Bottleneck, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, and used only where the prompts hold its control tokens."""
    case = case_of(session, bottleneck)
    monkeypatch.setattr(session.tokenizer, "chat_template", "<|begin_of_text|><|user|>{{ messages }}")
    assert protocol.chat_template(case) == {"there": True, "used": False}
    added = {**session.tokenizer.get_added_vocab(), "<|user|>": 7}
    monkeypatch.setattr(session.tokenizer, "get_added_vocab", lambda: added)
    case.prompts[0] = case.prompts[0]._replace(ids=[0, 7, *case.prompts[0].ids[1:]])
    assert protocol.chat_template(case) == {"there": True, "used": True}


# -- generation -------------------------------------------------------------------------------------------


def test_health_of_real_answers(healthy: Counting) -> None:
    measured = generation.measure(healthy)
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    for name in ("ours", "text"):
        assert measured[name]["distinct_answers"] > 0.5
        assert measured[name]["empty"] == measured[name]["contains_gold_but_wrong"] == 0
    assert len(measured["examples"]) == 8
    example, question = measured["examples"][2], healthy.questions[2]
    assert (example["question"], example["gold"]) == (question.question, question.answers[0])
    assert example["ours"] == healthy.ours.answers[2].strip()
    assert example["f1"] == 100 * f1(example["ours"], question.answers)


def test_first_tokens_are_the_first_ones_of_the_answers(healthy: Counting) -> None:
    """Where the first token predicted is the gold one, so is the generated answer's, and conversely."""
    measured = generation.measure(healthy)["first_token"]

    def first(text: str) -> int:
        ids: list[int] = healthy.session.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids[0]

    gold = [first(f" {question.answers[0]}\n") for question in healthy.questions]
    for name, asked in (("ours", healthy.ours), ("text", healthy.text)):
        right = [first(f"{answer}\n") == want for answer, want in zip(asked.answers, gold, strict=True)]
        assert measured[name] == sum(right) / N
    alike = zip(healthy.ours.answers, healthy.text.answers, strict=True)
    assert measured["agreement"] == sum(first(f"{a}\n") == first(f"{b}\n") for a, b in alike) / N


def test_a_compressor_that_changes_the_length_has_no_first_tokens(session: Session) -> None:
    case = case_of(session, pairs(session.table.shape[1]))
    measured = generation.measure(case)
    assert measured["first_token"] is None
    assert measured["ours"]["contains_gold"] < measured["text"]["contains_gold"]
    assert protocol.measure(case)["raw_differs"] == 0


def health(*answers: str, gold: str = "1984") -> dict[str, Any]:
    """Health of hand-written answers to questions with one gold answer."""
    questions = [Question(str(i), "", "c", "q", (gold,)) for i in range(len(answers))]
    scored = np.array([100 * f1(answer, (gold,)) for answer in answers])
    return generation.health(Asked(list(answers), scored), questions)


def test_stuck_answers() -> None:
    stuck = health(" the the the the", " the the", "", " the the")
    assert stuck["distinct_answers"] == 3 / 4
    assert stuck["distinct_1"] == 1 / 8
    assert stuck["distinct_2"] == 1 / 5
    assert stuck["empty"] == 1 / 4
    assert stuck["most_common"] == {"answer": "the the", "share": 0.5}
    assert stuck["longest_repeat"] == {"words": 4, "answer": "the the the the"}
    assert stuck["mean_words"] == 2
    assert stuck["contains_gold"] == 0


def test_nothing_answered() -> None:
    nothing = health("", "")
    assert nothing["empty"] == 1
    assert nothing["distinct_1"] == nothing["distinct_2"] == nothing["longest_repeat"]["words"] == 0


def test_the_right_answer_in_the_wrong_form() -> None:
    long = " 1984, which was a year of great joy and of much else"
    told = health(long, " In 1984.", " 198", " 19842", gold="1984")
    assert normalize_answer(long).startswith("1984 which")
    assert told["contains_gold"] == 1 / 2
    assert told["contains_gold_but_wrong"] == 1 / 4
    assert health("the", gold="the")["contains_gold"] == 0  # a gold answer that normalises to nothing
