"""Answers to many prompts: in batches, looked up where they are known, kept as they come, halved to fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Notes, small_config, with_settings
from random_llama import random_llama
from stage1.data.datasets import spread
from stage1.errors import Stage1Error
from stage1.evaluation import answers as module
from stage1.evaluation.answers import Answering, plan
from stage1.evaluation.conditions import Condition, raw
from stage1.evaluation.generation import Embed, Generation, GreedyDecoder
from stage1.progress import Progress
from stage1.session import Session

N = 12
Batches = list[list[str]]


@pytest.fixture(scope="module")
def half(llama: Path) -> Session:
    """A random Llama in half precision."""
    config = small_config(f"model={llama}", "eval.max_new_tokens=6", "dtype=bfloat16")
    return Session.open(config, Progress())


@pytest.fixture(params=["gibberish", "half"])
def either(request: pytest.FixtureRequest) -> Session:
    session: Session = request.getfixturevalue(request.param)
    return session


def watched(patch: pytest.MonkeyPatch, before: Callable[[list[str]], object] = lambda batch: None) -> Batches:
    """The ids of the prompts that the LLM is asked from now on, batch by batch; `before` is told of each."""
    batches: Batches = []
    own = GreedyDecoder.answer

    def answer(self: GreedyDecoder, prompts: Any, embed: Any) -> list[Generation]:
        before([prompt.id for prompt in prompts])
        batches.append([prompt.id for prompt in prompts])
        return own(self, prompts, embed)

    patch.setattr(GreedyDecoder, "answer", answer)
    return batches


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Batches:
    return watched(monkeypatch)


def ask(
    session: Session,
    cache: Path | None = None,
    *settings: str,
    n: int = N,
    key: Any = "text",
    embed: Embed | None = None,
    keep: bool = True,
    progress: Progress | None = None,
) -> dict[str, Generation]:
    """Question → answer, under other settings of the evaluation."""
    session = with_settings(session, *settings)
    prompts = session.prompts(spread(session.data.test, n))
    condition = Condition("text", prompts, embed, key, keep)
    found = Answering(session, cache, progress).answers(condition)
    return {prompt.id: answer for prompt, answer in zip(prompts, found, strict=True)}


def kept(cache: Path) -> list[Path]:
    return sorted((cache / "answers").glob("*.jsonl"))


def ids(batches: Batches) -> set[str]:
    return {name for batch in batches for name in batch}


# -- batches ----------------------------------------------------------------------------------------------


def test_batches_hold_prompts_of_one_length_the_longest_first() -> None:
    lengths = [5, 9, 5, 2, 9, 7]
    assert list(plan(lengths, range(6), 2, 10**9)) == [[1, 4], [5, 0], [2, 3]]
    assert list(plan(lengths, range(6), 99, 20)) == [[1, 4], [5, 0], [2, 3]]
    assert list(plan(lengths, [3, 2, 0], 99, 15)) == [[2, 0, 3]]
    assert list(plan(lengths, range(6), 99, 4)) == [[1], [4], [5], [0], [2], [3]]  # too long by itself
    assert list(plan(lengths, [], 2, 4)) == []


def test_answers_come_in_the_order_of_the_prompts_whatever_the_batch(
    gibberish: Session, asked: Batches
) -> None:
    one = ask(gibberish, None, "eval.batch_size=1")
    assert [len(batch) for batch in asked] == [1] * N
    assert len(set(one.values())) > N // 2  # or equality would say little
    for size in (5, "auto"):
        asked.clear()
        assert ask(gibberish, None, f"eval.batch_size={size}") == one
        assert len(asked) == (3 if size == 5 else 1)


def test_throughput(gibberish: Session, tmp_path: Path) -> None:
    prompts = gibberish.prompts(spread(gibberish.data.test, N))
    for _ in range(2):
        answering = Answering(gibberish, tmp_path)
        for name, key in (("kept", "text"), ("not kept", None)):
            answering.answers(Condition(name, prompts, None, key))
    assert answering.throughput["kept"] is None  # known already
    assert isinstance(answering.throughput["not kept"], float)


# -- what is known ----------------------------------------------------------------------------------------


def test_in_float32_another_limit_finds_what_is_known(
    gibberish: Session, asked: Batches, tmp_path: Path
) -> None:
    first = ask(gibberish, tmp_path, n=N)
    assert ids(asked) == set(first)
    asked.clear()
    notes = Notes()
    assert ask(gibberish, tmp_path, "eval.batch_size=5", n=N, progress=notes) == first
    assert asked == []
    assert notes.notes == [f"text: {N} of {N} answers were cached."]
    more = ask(gibberish, tmp_path, n=2 * N)
    assert ids(asked) == set(more) - set(first)
    assert len(more) == 2 * N
    assert more == ask(gibberish, n=2 * N)


def test_in_half_precision_a_batch_is_known_as_a_whole(half: Session, asked: Batches, tmp_path: Path) -> None:
    """The other prompts of a batch can tip an answer: answers of different batches are never mixed."""
    first = ask(half, tmp_path, "eval.batch_size=5")
    batches = list(asked)
    assert [len(batch) for batch in batches] == [5, 5, 2]
    asked.clear()
    assert ask(half, tmp_path, "eval.batch_size=5") == first
    assert asked == []
    for settings, n in ((("eval.batch_size=4",), N), (("eval.batch_size=5",), N - 1)):
        asked.clear()
        found, fresh = ask(half, tmp_path, *settings, n=n), list(asked)
        asked.clear()
        assert found == ask(half, None, *settings, n=n)
        assert fresh == [batch for batch in asked if batch not in batches]
        assert fresh


def test_what_decides_an_answer_decides_where_it_is_kept(
    gibberish: Session, half: Session, asked: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(session: Session, *settings: str, **how: Any) -> int:
        asked.clear()
        ask(session, tmp_path, *settings, **how)
        return sum(map(len, asked))

    assert again(gibberish) == N
    assert again(gibberish) == 0
    assert again(gibberish, "eval.max_new_tokens=5") == N
    assert again(gibberish, key="raw") == N
    assert again(gibberish, "scope=context") == 0  # where ids are given, it does not matter what crosses
    assert again(gibberish, key="raw", embed=raw(gibberish)) == N
    assert again(gibberish, "scope=context", key="raw", embed=raw(gibberish)) == N
    assert again(half) == N
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    assert again(gibberish) == N
    assert again(gibberish, key=None) == again(gibberish, key=None) == N  # nothing is kept without a key


def test_another_model_is_another_file(llama: Path, asked: Batches, tmp_path: Path) -> None:
    other = random_llama(tmp_path / "other", seed=1)
    config = small_config("eval.max_new_tokens=6")
    for path in (llama, other):
        asked.clear()
        named = config.model_copy(update={"model": config.model.model_copy(update={"name": str(path)})})
        ask(Session.open(named, Progress()), tmp_path / "cache")
        assert ids(asked) != set()
    assert len(kept(tmp_path / "cache")) == 2


def test_what_depends_on_a_bottleneck_is_forgotten_when_it_is_done(
    gibberish: Session, asked: Batches, tmp_path: Path
) -> None:
    ask(gibberish, tmp_path, key=["bottleneck", "abc"], keep=False)
    assert kept(tmp_path) == []
    ask(gibberish, tmp_path, key=["bottleneck", "abc"], keep=True)
    assert len(kept(tmp_path)) == 1
    assert len(asked) == 2


# -- interrupted ------------------------------------------------------------------------------------------


def test_an_interrupted_evaluation_goes_on(
    either: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ask(either, None, "eval.batch_size=5")

    def third(_: list[str]) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        done = watched(patch, third)
        with pytest.raises(KeyboardInterrupt):
            ask(either, tmp_path, "eval.batch_size=5", keep=False)
    assert len(kept(tmp_path)) == 1
    notes = Notes()
    assert ask(either, tmp_path, "eval.batch_size=5", keep=False, progress=notes) == whole
    assert notes.notes == [f"text: 10 of {N} answers were cached."]
    assert kept(tmp_path) == []


# -- memory -----------------------------------------------------------------------------------------------


def small_memory(patch: pytest.MonkeyPatch, most: int) -> list[int]:
    """From now on so many prompts fit at a time; the sizes that are tried."""
    tried: list[int] = []

    def too_many(batch: list[str]) -> None:
        tried.append(len(batch))
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    watched(patch, too_many)
    return tried


def test_out_of_memory_halves_the_batch_and_what_was_answered_in_halves_is_known(
    either: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, notes = ask(either, None, "eval.batch_size=3"), Notes()
    tried = small_memory(monkeypatch, 3)
    assert ask(either, tmp_path, progress=notes) == expected
    assert tried == [12, 6, 3, 3, 6, 3, 3]
    assert notes.notes == [
        f"Out of memory with {size} prompts at a time: continuing with {size // 2}." for size in (12, 6, 6)
    ]
    tried.clear()
    assert ask(either, tmp_path) == expected
    assert tried == []


def test_a_single_prompt_that_does_not_fit(gibberish: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    small_memory(monkeypatch, 0)
    with pytest.raises(Stage1Error, match="Out of memory with a single prompt"):
        ask(gibberish, None, "eval.batch_size=2")


def test_other_errors_are_not_taken_for_memory(gibberish: Session) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        ask(gibberish, embed=broken)
