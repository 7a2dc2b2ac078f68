"""What strangers may write: bytes, texts and trees with something wrong in them."""

import copy
import json
from random import Random
from typing import Any

EVIL = (
    *("\x1b[2J", "\x1b]0;title\x07", "\u202eevil", "\x9b31m", "\0", "\r", "\t", "\n", "\x7f", "\u2028"),
    "\ufeff",
    *("\ud800", "\udcff", "\U000e0001", "\N{COMBINING ACUTE ACCENT}" * 60, "\u200d\u200b", "\ufffe", "İı"),
    *("", " ", "..", "../../up", "/etc/passwd", "~", "~nosuch", ".", "-", "--help", "CON", "a" * 300),
    *("[bold]", "[/]", "[link=x]", "{context}", "{{", "%s%n", "$(id)", "`id`", "<script>", "' or 1", "\\"),
    "\\x1b",
    *("null", "true", "nan", "-1", "0", "1e999", "9" * 400, "0x10", "2024-99-99", "!!python/none x"),
    "&a [*a]",
    *("\N{HANGUL SYLLABLE GAG}", "\N{PILE OF POO}", "שלום", "ﷺ" * 40, "a\u0300" * 50, "x" * 20_000),
)
"""Texts that a terminal, a file system, a parser or a formatter would take for more than a text."""

STRANGE: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**63, 1e308, float("nan"), float("inf"), 0.5),
    *([], {}, [[]], [None], {"": None}),
)
"""Values in place of others."""

BYTES = (
    *(b"\0", b"\xff\xfe", b"\x1b[2J", b"[" * 3000, b"{" * 3000, b"&a [*a]", b"\n", b"\r", b": ", b"- "),
    b"nan",
    *(b"-1", b"1e999", b"null", b"true", b"{}", b"[]", b"'", b'"', b"../..", b"!!python/none x", b"9" * 400),
    *(b"\xed\xa0\x80", b"\xef\xbb\xbf", "\u202e".encode(), b",,,,", b"\t\t", b"\\u0000", b"\\ud800"),
)
"""Bytes that are put where they do not belong."""


def text(random: Random, around: str = "") -> str:
    """An evil text, sometimes amid others, or another `around` an innocent one."""
    parts = [random.choice(EVIL) for _ in range(random.randint(1, 3))]
    if around and random.random() < 0.5:
        place = random.randint(0, len(around))
        return around[:place] + parts[0] + around[place:]
    return "".join(parts)


def typed(random: Random, around: str = "") -> str:
    """An evil text as a shell can pass it: without NUL, and of surrogates only those of undecodable bytes."""
    evil = text(random, around).replace("\0", "").replace("\ud800", "\udcf0")
    return evil[:5000]


def content(whole: bytes, random: Random) -> bytes:
    """`whole` with one to three changes."""
    for _ in range(random.randint(1, 3)):
        place = random.randint(0, len(whole))
        match random.randrange(6):
            case 0:
                whole = whole[:place]
            case 1:
                whole = whole[:place] + random.choice(BYTES) + whole[place:]
            case 2:
                whole = whole[:place] + whole[place + random.randint(1, 40) :]
            case 3:
                whole = whole[:place] + bytes([random.randrange(256)]) + whole[place + 1 :]
            case 4:
                whole = whole[:place] + whole[max(0, place - random.randint(1, 400)) :]
            case _:
                lines = whole.split(b"\n")
                random.shuffle(lines)
                whole = b"\n".join(lines)
    return whole


def tree(whole: Any, random: Random, *, texts_alone: bool = False) -> Any:
    """A copy of a tree of dicts and lists with one to three of its leaves or branches changed.

    `texts_alone` leaves its form as it is.
    """
    whole = copy.deepcopy(whole)
    for _ in range(random.randint(1, 3)):
        places = [_place(whole, random) for _ in range(20)]
        fitting = [(h, k) for h, k in places if h is not None and (not texts_alone or isinstance(h[k], str))]
        if not fitting:
            return whole
        holder, key = fitting[0]
        old = holder[key]
        match (
            "text" if texts_alone else random.choice(("text", "gone", "name", "inside", "strange", "strange"))
        ):
            case "text":
                holder[key] = text(random, old if isinstance(old, str) else "")
            case "gone":
                del holder[key]
            case "name" if isinstance(holder, dict):
                holder[text(random, str(key))] = holder.pop(key)
            case "inside":
                holder[key] = [old] if random.random() < 0.5 else {"x": old}
            case _:
                holder[key] = random.choice(STRANGE)
    return whole


def _place(value: Any, random: Random) -> tuple[Any, Any]:
    """A holder and one of its keys, at any depth of a tree; (None, None) in an empty one."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    if not keys:
        return None, None
    key = random.choice(keys)
    deeper = _place(value[key], random) if random.random() < 0.75 else (None, None)
    return deeper if deeper[0] is not None else (value, key)


def as_json(value: Any) -> bytes:
    """JSON of whatever `tree` made, halves of surrogate pairs and NaN included."""
    return json.dumps(value).encode()
