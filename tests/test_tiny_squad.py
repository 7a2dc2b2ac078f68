"""tiny-squad must be the same everywhere, keep its splits apart, and suit the tiny model's vocabulary."""

import hashlib
import json
import re
from itertools import groupby
from typing import get_args

import pytest
from tokenizers import Tokenizer

from stage1_datasets.tiny_squad import Record, Split, tiny_squad
from stage1_datasets.tiny_squad.generator import QUESTIONS_PER_PASSAGE
from stage1_datasets.tiny_squad.lexicon import NUMBERS, YEARS, all_names
from stage1_models.tiny import MODEL_DIR

SPLITS: tuple[Split, ...] = get_args(Split)
# The trained weights know this very data: a change of it is a change of the model too.
KNOWN_BYTES = "a6c5ee8983ab4c8585a7d0116a7bcc8fc19600ab80a20df67a6a1239ea754a69"


def as_bytes(records: list[Record]) -> bytes:
    return json.dumps(records, sort_keys=True).encode()


@pytest.fixture(scope="module")
def records() -> dict[Split, list[Record]]:
    return {split: list(tiny_squad(split, 300)) for split in SPLITS}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))


def sentences(records: list[Record]) -> set[str]:
    """The sentences that name their subject and a name beside; "It ended in rain" may be true of many."""
    names = set(all_names())
    every = {part for context in {r["context"] for r in records} for part in re.split(r"(?<=\.) ", context)}
    return {part for part in every if len(names.intersection(re.findall(r"\w+", part))) >= 2}


def test_the_data_are_the_data_the_model_was_trained_on() -> None:
    """Whatever Python's own hashes are, which differ from process to process."""
    found = as_bytes([r for split in SPLITS for r in tiny_squad(split, 20)])
    assert hashlib.sha256(found).hexdigest() == KNOWN_BYTES


def test_seeds_and_lengths() -> None:
    longer = list(tiny_squad("train", 40))
    shorter = list(tiny_squad("train", 20))
    assert longer[: len(shorter)] == shorter
    assert {r["context"] for r in tiny_squad("train", 40, seed=1)}.isdisjoint(r["context"] for r in longer)


@pytest.mark.parametrize("split", SPLITS)
def test_schema(records: dict[Split, list[Record]], split: Split) -> None:
    found = records[split]
    assert len({r["id"] for r in found}) == len(found)
    passages = [list(group) for _, group in groupby(found, key=lambda r: r["context"])]
    assert len(passages) == len({r["context"] for r in found}) == 300
    for passage in passages:
        assert len(passage) == QUESTIONS_PER_PASSAGE == len({r["question"] for r in passage})
        assert passage[0]["title"] in passage[0]["context"]
    for r in found:
        assert set(r) == {"id", "title", "context", "question", "answers"}
        assert "\n" not in r["context"] + r["question"]
        assert r["question"].endswith("?")
        assert "{" not in r["context"] + r["question"]


@pytest.mark.parametrize("split", SPLITS)
def test_the_answer_stands_once_and_only_in_the_passage(
    records: dict[Split, list[Record]], split: Split
) -> None:
    for r in records[split]:
        (answer,), (start,) = r["answers"]["text"], r["answers"]["answer_start"]
        assert r["context"].find(answer) == start
        assert r["context"].count(answer) == 1
        assert not re.search(rf"\b{answer}\b", r["question"])


def test_many_passages_ask_the_same_of_two_subjects(records: dict[Split, list[Record]]) -> None:
    """With the names masked, questions repeat: only the name tells which of two answers is meant."""
    names = set(all_names())
    repeats = 0
    for _, group in groupby(records["test"], key=lambda r: r["context"]):
        shapes = [tuple(w for w in re.findall(r"\w+", r["question"]) if w not in names) for r in group]
        repeats += len(set(shapes)) < len(shapes)
    assert repeats > 40  # of 300; 40 % have two subjects of a kind, asked in one of several phrasings


def test_splits_share_no_passage_and_no_fact(records: dict[Split, list[Record]]) -> None:
    for one, other in (("train", "selection"), ("train", "test"), ("selection", "test")):
        first, second = records[one], records[other]  # type: ignore[index]
        assert {r["id"] for r in first}.isdisjoint(r["id"] for r in second)
        assert {r["context"] for r in first}.isdisjoint(r["context"] for r in second)
        assert sentences(first).isdisjoint(sentences(second))
    assert all(len(sentences(records[split])) > 100 for split in SPLITS)


@pytest.mark.parametrize(("subjects", "facts"), [(1, 5), (2, 1), (4, 2)])
def test_other_shapes_of_passage(subjects: int, facts: int) -> None:
    found = list(tiny_squad("train", 20, subjects=subjects, facts=facts))
    assert len({r["context"] for r in found}) == 20
    assert {r["context"].count(".") for r in found} == {subjects * facts}
    assert len(found) == 20 * min(QUESTIONS_PER_PASSAGE, subjects * facts)


def test_names_are_distinct_words() -> None:
    names = all_names()
    assert len(names) == len(set(names)) == 1200
    assert all(re.fullmatch("[A-Z][a-z]{3,11}", name) for name in names)


def test_every_word_is_one_token(tokenizer: Tokenizer, records: dict[Split, list[Record]]) -> None:
    start = tokenizer.token_to_id("<|begin_of_text|>")
    for word in (*all_names(), *YEARS, *NUMBERS):
        ids = tokenizer.encode(" " + word).ids
        assert len(ids) == 2, word
        assert ids[0] == start
    for r in records["test"]:
        prompt = f"Context: {r['context']}\nQuestion: {r['question']}\nAnswer: {r['answers']['text'][0]}\n"
        pieces = re.findall(r"\w+|[^\w ]", prompt)
        assert len(tokenizer.encode(prompt).ids) == 1 + len(pieces)
        assert len(pieces) < 190


def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer) -> None:
    text = "Ünïcode 東京 🙂\n\tand 12,345 'spaces'  . "
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_folder_is_complete_and_small() -> None:
    files = {path.name: path.stat().st_size for path in MODEL_DIR.iterdir() if path.is_file()}
    assert set(files) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(files.values()) <= 12_000_000
    config = json.loads((MODEL_DIR / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"], config["pad_token"]) == (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|pad|>",
    )
    assert config["padding_side"] == "left"
    assert config["clean_up_tokenization_spaces"] is False
