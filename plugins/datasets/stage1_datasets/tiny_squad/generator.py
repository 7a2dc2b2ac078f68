"""tiny-squad: invented reading comprehension in SQuAD's schema, made on demand and always the same.

A passage tells two facts about each of three subjects. In some passages two subjects are of one kind and tell
the same kinds of facts: such a passage holds, say, two founding years, and only the question's subject tells
which one is asked for.

Every fact - "Borlund was founded in 1453" - belongs to exactly one split, by a hash of the fact itself.
Whatever the seed, splits therefore share no passage, and not even a fact.
"""

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

import yaml
from pydantic import TypeAdapter

from stage1_datasets.tiny_squad.lexicon import digest, names, pick, shuffled, stream, value

Split = Literal["train", "selection", "test"]

QUESTIONS_PER_PASSAGE = 6
PAIRED = 0.4  # how often two subjects are of one kind
DRAWS = 40  # before giving a fact up: a scarce pool may hold nothing that this split may tell of this subject


class Answers(TypedDict):
    """The accepted answers and where each begins, as in SQuAD."""

    text: list[str]
    answer_start: list[int]


class Record(TypedDict):
    """One question about one passage, in the flat form of SQuAD on the Hugging Face hub."""

    id: str
    title: str
    context: str
    question: str
    answers: Answers


class Fact(NamedTuple):
    """One thing to know about a subject."""

    pool: str  # where its answer comes from
    statements: tuple[str, ...]
    questions: tuple[str, ...]


class Kind(NamedTuple):
    """A kind of subject."""

    pool: str  # where its name comes from
    forms: tuple[str, ...]  # the ways to name it
    facts: tuple[Fact, ...]


@cache
def kinds() -> tuple[Kind, ...]:
    """What `facts.yaml` holds."""
    tree = yaml.safe_load(Path(__file__).with_name("facts.yaml").read_text(encoding="utf-8"))
    return TypeAdapter(tuple[Kind, ...]).validate_python(tree)


def split_of(kind: Kind, fact: Fact, name: str, answer: str) -> Split:
    """The one split in which this fact may be told."""
    tenth = digest("split", kind.forms[0], fact.statements[0], name, answer) % 10
    return "train" if tenth < 6 else "selection" if tenth < 8 else "test"


def tiny_squad(
    split: Split, passages: int, seed: int = 0, subjects: int = 3, facts: int = 2
) -> Iterator[Record]:
    """Yield up to six questions for each of ``passages`` distinct passages: ``facts`` about every subject."""
    seen: set[str] = set()
    rng = stream("tiny-squad", split, seed, subjects, facts)
    while len(seen) < passages:
        records = _passage(rng, split, f"{split}-{seed}-{subjects}x{facts}-{len(seen):06d}", subjects, facts)
        if records and records[0]["context"] not in seen:
            seen.add(records[0]["context"])
            yield from records


def _passage(rng: random.Random, split: Split, key: str, subjects: int, facts: int) -> list[Record]:
    """One passage with its questions, or nothing if a fact is missing or an answer ambiguous."""
    about = shuffled(rng, kinds())[:subjects]
    if subjects > 1 and rng.random() < PAIRED:
        about = shuffled(rng, [about[0], *about[:-1]])
    # Subjects of one kind tell the same facts: each is a distractor for the other.
    chosen = {kind: shuffled(rng, kind.facts)[:facts] for kind in about}

    sentences: list[str] = []
    asked: list[tuple[str, str]] = []
    subject_names = [pick(rng, names(kind.pool)) for kind in about]
    for kind, name in zip(about, subject_names, strict=True):
        told = _subject(rng, split, kind, name, shuffled(rng, chosen[kind]))
        sentences += [sentence for sentence, _, _ in told]
        asked += [(question, answer) for _, question, answer in told]

    context = " ".join(sentences)
    complete = len(asked) == subjects * facts and len(set(subject_names)) == subjects
    if not complete or any(context.count(answer) != 1 for _, answer in asked):
        return []
    return [
        {
            "id": f"{key}-{number}",
            "title": subject_names[0],
            "context": context,
            "question": question,
            "answers": {"text": [answer], "answer_start": [context.index(answer)]},
        }
        for number, (question, answer) in enumerate(shuffled(rng, asked)[:QUESTIONS_PER_PASSAGE])
    ]


def _subject(
    rng: random.Random, split: Split, kind: Kind, name: str, facts: list[Fact]
) -> list[tuple[str, str, str]]:
    """The sentence, question and answer of each fact about one subject."""
    form = pick(rng, kind.forms).format(n=name)
    told: list[tuple[str, str, str]] = []
    for fact in facts:
        draws = (value(rng, fact.pool) for _ in range(DRAWS))
        answer = next((draw for draw in draws if split_of(kind, fact, name, draw) == split), None)
        if answer is None:
            continue
        sentence = pick(rng, fact.statements).format(s=form, a=answer)
        told.append((sentence[0].upper() + sentence[1:], pick(rng, fact.questions).format(s=form), answer))
    return told
