"""The words of tiny-squad: invented names, and the ordinary values a fact can have.

A name is one token of the tiny model's vocabulary, so the lexicon is closed: 1,200 names, spelt by a fixed
syllable stream, in three pools that differ in their endings. People and places therefore look different, as
they do in English, but which person or place answers a question can only be read in the passage.
"""

import hashlib
import random
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

T = TypeVar("T")

NAMES_PER_POOL = 400
_ONSETS = (
    *("b", "br", "d", "dr", "f", "g", "gr", "h", "j", "k", "kr"),
    *("l", "m", "n", "p", "r", "s", "t", "tr", "v", "z"),
)
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "", "l", "m", "n", "r", "s")
_ENDINGS = {
    "person": ("dric", "lio", "mira", "neth", "rand", "sko", "tavi", "wyn"),
    "place": ("burgh", "dova", "gard", "hesk", "lund", "mora", "stad", "vale"),
    "thing": ("bax", "dyne", "loq", "phon", "rix", "tane", "vex", "zor"),
}

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
YEARS = tuple(str(year) for year in range(1200, 1900))
NUMBERS = tuple(str(number) for number in range(11, 200))

NOUNS: dict[str, tuple[str, ...]] = {
    "goods": (
        "copper", "wool", "salt", "amber", "glass", "silk", "timber", "honey", "pottery", "silver",
        "wine", "cheese", "paper", "leather", "linen", "coal", "marble", "sugar", "olives", "pearls",
        "saffron", "barley",
    ),
    "profession": (
        "painter", "poet", "lawyer", "surgeon", "sculptor", "composer", "geologist", "printer",
        "botanist", "astronomer", "architect", "philosopher", "engineer", "sailor", "merchant",
        "chemist", "historian", "actor", "farmer", "judge", "singer", "clockmaker",
    ),
    "science": (
        "astronomy", "medicine", "botany", "geometry", "optics", "chemistry", "grammar", "law", "music",
        "navigation", "metallurgy", "zoology", "theology", "history", "logic", "anatomy", "mechanics",
        "agriculture", "geography", "acoustics",
    ),
    "material": (
        "granite", "iron", "oak", "brick", "limestone", "steel", "cedar", "basalt", "bronze",
        "sandstone", "concrete", "slate", "clay", "pine", "quartz", "flint",
    ),
    "fish": (
        "trout", "salmon", "eels", "carp", "pike", "perch", "sturgeon", "crayfish", "otters", "herons",
        "catfish", "turtles", "beavers", "frogs", "swans", "barbel",
    ),
    "topic": (
        "war", "love", "winter", "exile", "hunger", "gardens", "dreams", "justice", "friendship",
        "storms", "childhood", "revenge", "ghosts", "farming", "travel", "horses", "memory", "betrayal",
        "stars", "kings",
    ),
    "weather": (
        "rain", "fog", "snow", "hail", "thunder", "frost", "heat", "dust", "darkness", "floods", "mud",
        "wind",
    ),
}  # fmt: skip


def stream(*parts: object) -> random.Random:
    """A random stream named by ``parts``: the same on every machine, in every process."""
    return random.Random(digest(*parts))  # noqa: S311 - data, not secrets


def digest(*parts: object) -> int:
    """A stable hash; Python's own differs from process to process."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "big")


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """One of ``items``. Python promises only ``random()`` itself to stay the same between versions."""
    return items[int(rng.random() * len(items))]


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    """The items in random order, again by nothing but ``random()``."""
    keys = [rng.random() for _ in items]
    return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)]


@cache
def names(pool: str) -> tuple[str, ...]:
    """The names of one pool: ``person``, ``place`` or ``thing``."""
    rng = stream("tiny-squad names", pool)
    found: dict[str, None] = {}
    while len(found) < NAMES_PER_POOL:
        syllables = "".join(pick(rng, part) for part in (_ONSETS, _VOWELS, _CODAS))
        found[(syllables + pick(rng, _ENDINGS[pool])).capitalize()] = None
    return tuple(found)


def all_names() -> tuple[str, ...]:
    """Every name of the lexicon; the pools' endings keep them distinct."""
    return tuple(name for pool in _ENDINGS for name in names(pool))


def value(rng: random.Random, pool: str) -> str:
    """One possible answer from a pool: a name, a noun, a year, a date, or a number with its unit."""
    if pool in _ENDINGS:
        return pick(rng, names(pool))
    if pool in NOUNS:
        return pick(rng, NOUNS[pool])
    if pool == "year":
        return pick(rng, YEARS)
    if pool == "date":
        return f"{pick(rng, MONTHS)} {pick(rng, YEARS)}"
    return f"{pick(rng, NUMBERS)} {pool}"  # the pool is the unit
