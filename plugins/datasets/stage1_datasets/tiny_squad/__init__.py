"""Reading-comprehension passages in SQuAD's schema, invented by a generator: nothing to download."""

from collections.abc import Iterable, Sequence
from functools import cache
from math import ceil

import stage1
from stage1_datasets.tiny_squad.generator import QUESTIONS_PER_PASSAGE, Answers, Record, Split, tiny_squad

__all__ = ["Answers", "Record", "Split", "TinySquad", "tiny_squad"]

TEST_QUESTIONS = 1_200


class TinySquad(stage1.Dataset):
    """Passages about invented subjects that the embedded model can read; generated, always the same."""

    name = "tiny-squad"
    splits = ("train", "selection", "test")

    def records(self, split: Split, at_least: int | None) -> Iterable[Record]:
        count = TEST_QUESTIONS if split == "test" or at_least is None else at_least
        return _made(split, ceil(count / QUESTIONS_PER_PASSAGE))


@cache
def _made(split: Split, passages: int) -> Sequence[Record]:
    """The same for every run of a process, as those of a sweep."""
    return list(tiny_squad(split, passages))


@stage1.hookimpl
def stage1_datasets() -> type[stage1.Dataset]:
    return TinySquad
