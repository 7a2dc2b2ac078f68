"""Gold answers in every form that files give them, the text of a Python or JSON structure included.

pandas and `datasets` write what is no text into a CSV cell as Python shows it: `{'text': array(['x'],
dtype=object)}`. Taken for a plain answer, such a cell would be one gold answer that no prediction can match.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stage1.bounded import read_json

_STRUCTURE = re.compile(
    r"""\s*(?:(?:np\.)?array\(|\{\s*(?:["']|\}\s*$)|\[\s*(?:\[?\s*["'{]|np\.\w+\(|array\(|\]\s*$))"""
)
"""How a cell begins that holds a structure; an answer such as `[sic]` does not."""
_RECORD = re.compile(r"""\s*\{\s*["']\w+["']\s*:""")
"""How the text of a dict begins: inside a list, everything else is an answer."""
_LITERALS = (tokenize.STRING, tokenize.NUMBER, tokenize.NAME)
_CONSTANTS = {"nan": None, "null": None, "None": None, "true": True, "false": False, "inf": None}


def gold_answers(value: Any) -> tuple[str, ...] | None:
    """The texts of an `answers` field, empty ones included, in their order.

    None: it holds no answer. No texts at all: it says that there is none, as `{"text": []}` does, the Hub's
    way to mark a question as unanswerable.

    Known forms: `{"text": […]}` as on the Hub, `[{"text": …}, …]` as in SQuAD's own files, a list of texts,
    one text, TriviaQA's `{"value": …, "aliases": […]}`, and the text of any of these.

    Raises:
        ValueError: an answer is no text, or the text of a structure that cannot be read.
    """
    if isinstance(value, str) and _STRUCTURE.match(value):
        value = read_structure(value)
    texts = list(_texts(value))
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("an answer that is not a text")
    return tuple(texts) if texts or isinstance(value, Mapping) else None


def _texts(value: Any) -> Iterator[Any]:
    """Every answer in `value`; what is None is none."""
    if isinstance(value, Mapping):
        known = {str(key).lower(): inner for key, inner in value.items()}
        if "text" in known:
            yield from _listed(known["text"])
        elif "value" in known:  # TriviaQA
            texts = [*_listed(known["value"]), *_listed(known.get("aliases"))]
            yield from dict.fromkeys(texts) if all(isinstance(text, str) for text in texts) else texts
        elif value:
            raise ValueError("answers without the field 'text'")
    elif isinstance(value, list | tuple):
        for item in value:
            if isinstance(item, str) and _RECORD.match(item):
                item = read_structure(item)
            yield from _texts(item) if isinstance(item, Mapping) else _listed(item)
    else:
        yield from _listed(value)


def _listed(value: Any) -> Sequence[Any]:
    items = list(value) if isinstance(value, list | tuple) else [value]
    return [item for item in items if item is not None]


def read_structure(text: str) -> Any:
    """What the text of a list or dict says, as JSON, Python or numpy writes it; no code is run.

    numpy separates by spaces (`['x' 'y']`), which Python would read as the one text `xy`.

    Raises:
        ValueError: it is none, or not whole (numpy shortens long arrays to `…`).
    """
    try:
        return read_json(text)
    except ValueError:
        pass
    try:
        return _value(ast.parse(_with_commas(text), mode="eval").body)
    except (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError, TypeError):
        raise ValueError("answers that cannot be read") from None


def _with_commas(text: str) -> str:
    """`text` as one line of Python, with a comma wherever two values stand side by side."""
    parts: list[str] = []
    closed = False  # the last token ended a value
    skipped = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text.strip(), newline="\n").readline):
        if token.type in skipped:
            continue
        opens = token.type in _LITERALS or token.string in ("[", "{", "-")
        if closed and opens:
            parts.append(",")
        parts.append(token.string)
        name = token.type == tokenize.NAME and token.string not in _CONSTANTS
        closed = (token.type in _LITERALS and not name) or token.string in ("]", "}", ")")
    return " ".join(parts)


def _value(node: ast.expr) -> Any:
    """The value of a literal; `array(x, dtype=…)`, `np.str_(x)` and the like are their first argument."""
    match node:
        case ast.Constant(value=str() | int() | float() | bool() | None as value):
            return value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {str(_value(key)): _value(inner) for key, inner in zip(keys, values, strict=True) if key}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.Call(func=ast.Name(id="array") | ast.Attribute(value=ast.Name(id="np")), args=[first, *_]):
            return _value(first)
    raise ValueError("no literal")
