"""Reading-comprehension passages in SQuAD's schema, invented by a generator: nothing to download."""

from stage1.data.tiny_squad.generator import Answers, Record, Split, tiny_squad

__all__ = ["Answers", "Record", "Split", "tiny_squad"]
