"""Questions and answers by name or file, in splits that share no passage."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from stage1.config import DataConfig
from stage1.data.records import Question
from stage1.data.sources import Source, find_source
from stage1.errors import UsageError


class TrainedOn(NamedTuple):
    """What a run must remember of its data to know them again, and to know what it has seen."""

    content: str  # hash of the questions that the test split was dealt from, in any order
    test: str  # `QAData.sha256`
    passages: frozenset[str]  # `passage_hash` of every passage in training or selection


class QAData(NamedTuple):
    """A data set in splits that share no passage."""

    name: str
    train: list[Question]
    selection: list[Question]
    test: list[Question]
    unanswerable: int  # SQuAD v2 questions without an answer: left out, only counted
    left_out: dict[str, int]  # reason → records that cannot be asked, or must not
    notes: tuple[str, ...]  # what a user must know of how the data were read, a line each
    sha256: str  # of the test split's content
    content: str  # hash of the questions that the test split was dealt from, in any order

    @property
    def trained_on(self) -> TrainedOn:
        """What a run that is trained on these data remembers of them."""
        seen = frozenset(passage_hash(q) for q in (*self.train, *self.selection))
        return TrainedOn(self.content, self.sha256, seen)

    def without(self, questions: Collection[Question], reason: str) -> "QAData":
        """The data without these questions, which are counted."""
        train, selection, test = (
            [q for q in split if q not in questions] for split in (self.train, self.selection, self.test)
        )
        note = f"{self.name}: {len(questions)} questions with {reason} were left out."
        return self._replace(
            train=train,
            selection=selection,
            test=test,
            left_out={**self.left_out, reason: len(questions)},
            notes=(*self.notes, note),
        )


def load_qa(
    config: DataConfig, *, everything_is_test: bool = False, trained_on: TrainedOn | None = None
) -> QAData:
    """Load the data set that `config` names.

    A data set with splits of its own keeps them. Of one pool of questions, as a file is, the passages are
    dealt out by a hash of `config.split_seed` and text: 80 % train, 10 % selection, 10 % test, so that no
    passage is in two splits; where the test split is its own, 90 % of the others train and 10 % select.

    Args:
        config: the name, how it is read, and how many questions train and selection may have.
        everything_is_test: put all of a pool into the test split; the other splits stay empty.
        trained_on: of the run that is to be asked. Its own data, whatever their name, are dealt out as they
            were; of others everything is test but the passages that the run has seen.

    Raises:
        UsageError: there is no such data set or file, or it cannot be used as it is.
        PluginError: the data set's plugin raised.
    """
    source = find_source(config.name, config)
    records = source.read("test", None)
    content = _hash(sorted(records.questions))
    notes = list(records.notes(config.name))
    if records.unanswerable:
        notes.append(f"{len(records.unanswerable)} unanswerable questions were left out.")
    data = QAData(
        name=config.name,
        train=[],
        selection=[],
        test=records.questions,
        unanswerable=len(records.unanswerable),
        left_out={reason: len(names) for reason, names in records.left_out.items()},
        notes=tuple(notes),
        sha256=_hash(records.questions),
        content=content,
    )
    if not everything_is_test and (trained_on is None or trained_on.content == content):
        data = _with_training(data, source, config)
    if trained_on is not None:
        data = _unseen(data, trained_on.passages)
    return _first_gold(data) if config.gold == "first" else data


def _first_gold(data: QAData) -> QAData:
    """The data with one gold answer for each question."""
    train, selection, test = (
        [q._replace(answers=q.answers[:1]) for q in split]
        for split in (data.train, data.selection, data.test)
    )
    return data._replace(train=train, selection=selection, test=test, sha256=_hash(test))


def _with_training(data: QAData, source: Source, config: DataConfig) -> QAData:
    """The data with training and selection questions: of their own, or else dealt out of the test pool.

    Of their own, those about passages of the test questions are left out.
    """
    if config.train_from is None and "train" not in source.splits:
        train, selection, test = _deal(data.test, config.split_seed, shares=(0.8, 0.1, 0.1))
        data = data._replace(test=test, sha256=_hash(test))
    else:
        if config.train_from is not None and config.train_from != config.name:
            source = find_source(config.train_from, config)
        if {"train", "selection"} <= {*source.splits}:
            pools = [source.read("train", config.train), source.read("selection", config.selection)]
        else:
            pools = [source.read("train" if "train" in source.splits else "test", None)]
        taken = {passage_hash(q) for q in data.test}
        apart = [[q for q in pool.questions if passage_hash(q) not in taken] for pool in pools]
        notes = [*data.notes, *(note for pool in pools for note in pool.notes(source.name))]
        left_out = data.left_out
        if shared := sum(len(pool.questions) for pool in pools) - sum(map(len, apart)):
            reason = "a passage of the test questions"
            left_out = {**left_out, reason: shared}
            notes.append(f"{source.name}: {shared} training questions with {reason} were left out.")
        data = data._replace(notes=tuple(notes), left_out=left_out)
        train, selection = apart if len(apart) == 2 else _deal(apart[0], config.split_seed, shares=(0.9, 0.1))
    return data._replace(train=spread(train, config.train), selection=spread(selection, config.selection))


def _unseen(data: QAData, passages: Collection[str]) -> QAData:
    """The data without the test questions about `passages`."""
    seen = {q for q in data.test if passage_hash(q) in passages}
    if not seen:
        return data
    if len(seen) == len(data.test):
        raise UsageError(
            f"The run has seen every passage of {data.name} in training or selection.",
            "Evaluate it on other data.",
        )
    data = data.without(seen, "a passage that the run has seen in training or selection")
    return data._replace(sha256=_hash(data.test))


def passage_hash(question: Question) -> str:
    """A passage, known again whatever its spaces and line breaks: 16 hexadecimal digits."""
    return hashlib.sha256(_passage(question).encode()).hexdigest()[:16]


def _passage(question: Question) -> str:
    return " ".join(question.context.split())  # a stray space must not put one passage into two splits


def _hash(questions: Iterable[Question]) -> str:
    return hashlib.sha256(json.dumps(list(questions)).encode()).hexdigest()


def _deal(questions: list[Question], seed: int, shares: Sequence[float]) -> list[list[Question]]:
    """Deal passages out into one split for each share; questions keep their order.

    Passages are ordered by a hash of seed and text, so the order of the file plays no role.
    """

    def place(text: str) -> bytes:
        return hashlib.sha256(f"{seed}\n{text}".encode()).digest()

    order = sorted({_passage(q) for q in questions}, key=place)
    if len(order) < len(shares):
        raise UsageError(
            f"Too few passages ({len(order)}) to train on: train, selection and test may not share one.",
            f"Give at least {len(shares)}, or train on other data and use these for evaluation only.",
        )
    sizes = [max(1, round(share * len(order))) for share in shares[1:]]
    sizes.insert(0, len(order) - sum(sizes))
    owners = [index for index, size in enumerate(sizes) for _ in range(size)]
    owner = dict(zip(order, owners, strict=True))
    return [[q for q in questions if owner[_passage(q)] == index] for index in range(len(shares))]


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
