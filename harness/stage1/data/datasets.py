"""Questions and answers by name or file, in splits that share no passage."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Literal, NamedTuple

from stage1.config import DataConfig
from stage1.data.records import Question, read_questions
from stage1.data.tiny_squad.generator import QUESTIONS_PER_PASSAGE, Split, tiny_squad
from stage1.errors import UsageError
from stage1.files import expanded
from stage1.hub import download

TINY_TEST_QUESTIONS = 1_200
HUB_SQUAD = "rajpurkar/squad"


class QAData(NamedTuple):
    """A data set in splits that share no passage."""

    name: str
    train: list[Question]
    selection: list[Question]
    test: list[Question]
    unanswerable: int  # SQuAD v2 questions without an answer: left out, only counted
    sha256: str  # of the test split's content


def load_qa(config: DataConfig, seed: int, *, everything_is_test: bool = False) -> QAData:
    """Load the data set that `config` names.

    `tiny-squad` and `squad` have their own test split. A file is one pool: its passages are dealt out by a
    hash of seed and text, 80 % train, 10 % selection, 10 % test, so that no passage is in two splits.

    Args:
        config: the name, and how many questions train and selection may have.
        seed: decides how passages are split; `tiny-squad` and the test split of `squad` never change.
        everything_is_test: put all of a file into the test split; the other splits stay empty.

    Raises:
        UsageError: there is no such data set or file, or it cannot be used as it is.
    """
    train: list[Question] = []
    selection: list[Question] = []
    unanswerable = 0
    if config.name == "tiny-squad":
        test = _tiny("test", TINY_TEST_QUESTIONS)
        if not everything_is_test:
            train, selection = _tiny("train", config.train), _tiny("selection", config.selection)
    elif config.name == "squad":
        test, _ = read_questions(_hub_file("validation"))
        if not everything_is_test:
            train, selection = _deal(read_questions(_hub_file("train"))[0], seed, shares=(0.9, 0.1))
    else:
        path = expanded(config.name)
        test, unanswerable = read_questions(path)
        if not everything_is_test:
            train, selection, test = _deal(test, seed, shares=(0.8, 0.1, 0.1))
    if config.gold == "first":
        train, selection, test = (
            [q._replace(answers=q.answers[:1]) for q in s] for s in (train, selection, test)
        )
    return QAData(
        name=config.name,
        train=spread(train, config.train),
        selection=spread(selection, config.selection),
        test=test,
        unanswerable=unanswerable,
        sha256=hashlib.sha256(json.dumps(test).encode()).hexdigest(),
    )


def _first_gold(questions: list[Question]) -> list[Question]:
    return [question._replace(answers=question.answers[:1]) for question in questions]


def _tiny(split: Split, count: int) -> list[Question]:
    """At least `count` questions of tiny-squad: whole passages, no more than needed."""
    records = tiny_squad(split, ceil(count / QUESTIONS_PER_PASSAGE))
    return [
        Question(r["id"], r["title"], r["context"], r["question"], tuple(r["answers"]["text"]))
        for r in records
    ]


def _hub_file(split: Literal["train", "validation"]) -> Path:
    """The Parquet file of SQuAD's split, downloaded unless the Hub's cache has it.

    Not through `datasets.load_dataset`: without a network it retries for 23 seconds before it says so.
    """
    pattern = f"plain_text/{split}-*.parquet"
    files = sorted(download(HUB_SQUAD, [pattern], repo_type="dataset").glob(pattern))
    if not files:  # offline, the client answers with whatever part of the repository it has
        raise UsageError(
            f"The Hub's cache lacks the {split} split of {HUB_SQUAD}.",
            "Connect to the network, or download SQuAD elsewhere and pass its file: --data dev-v1.1.json.",
        )
    return files[0]


def _deal(questions: list[Question], seed: int, shares: Sequence[float]) -> list[list[Question]]:
    """Deal passages out into one split for each share; questions keep their order.

    Passages are ordered by a hash of seed and text, so the order of the file plays no role.
    """

    def passage(question: Question) -> str:
        return " ".join(question.context.split())  # a stray space must not put one passage into two splits

    def place(text: str) -> bytes:
        return hashlib.sha256(f"{seed}\n{text}".encode()).digest()

    order = sorted({passage(q) for q in questions}, key=place)
    if len(order) < len(shares):
        raise UsageError(
            f"Too few passages ({len(order)}) to train on: train, selection and test may not share one.",
            f"Give at least {len(shares)}, or train on other data and use these for evaluation only.",
        )
    sizes = [max(1, round(share * len(order))) for share in shares[1:]]
    sizes.insert(0, len(order) - sum(sizes))
    owners = [index for index, size in enumerate(sizes) for _ in range(size)]
    owner = dict(zip(order, owners, strict=True))
    return [[q for q in questions if owner[passage(q)] == index] for index in range(len(shares))]


def spread(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """At most `limit` questions, evenly over the passages and in their old order.

    First the first question of every passage, then every second one, and so on; where not all passages can
    have a further question, those that do are evenly spaced.
    """
    if limit is None or len(questions) <= limit:
        return list(questions)
    asked: dict[str, int] = defaultdict(int)
    rounds: dict[int, list[int]] = defaultdict(list)  # round → places of the questions it takes
    for place, question in enumerate(questions):
        rounds[asked[question.context]].append(place)
        asked[question.context] += 1
    taken: list[int] = []
    for places in rounds.values():
        room = min(limit - len(taken), len(places))
        taken += [places[index * len(places) // room] for index in range(room)]
    return [questions[place] for place in sorted(taken)]
