"""Write docs/plugins-reference.md: every hook, interface, tuple, check and error, read from their sources.

python tools/make_docs.py
"""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import stage1
from stage1 import errors, testing
from stage1.bottleneck import bottleneck
from stage1.bottleneck import statistics as tokens
from stage1.llm import chunked
from stage1.plugins import hooks as specifications
from stage1.plugins import interfaces, models, tensors
from stage1.testing.base import TO_FILL, Suite

TARGET = Path(__file__).resolve().parent.parent / "docs" / "plugins-reference.md"

INNER = {"model_config"}
"""Public names that say something to pydantic alone."""

ERRORS = {"Stage1Error", "UsageError", "ConfigIssue", "path", "message", "ConfigError"}
TRAINED = {"Bottleneck", "from_pretrained", "stages", "encode", "decode", "forward"}

PARTS: list[tuple[str, ModuleType, set[str]]] = [
    ("Hooks", specifications, {name for name in vars(specifications) if name.startswith("stage1_")}),
    ("Interfaces", interfaces, set()),
    ("Models", models, set()),
    ("What crosses between them", tensors, set()),
    ("Losses over a vocabulary", chunked, set()),
    ("Least squares", tokens, {"least_squares"}),
    ("Errors that a plugin may raise", errors, ERRORS),
    ("A trained bottleneck", bottleneck, TRAINED),
]
"""Title, module, and which of its and its classes' names; without any, all that are public."""


class Entry(NamedTuple):
    """Something with a name."""

    name: str
    shown: str  # as one would write it
    doc: str
    entries: list["Entry"]  # its public members


class Source:
    """A module's public names, in the order in which it defines them."""

    def __init__(self, module: ModuleType) -> None:
        self.name = module.__name__
        text = inspect.getsource(module)
        self.tree, self.lines = ast.parse(text), text.encode().split(b"\n")
        self.members: dict[str, set[str]] = {}  # class → names that it has, those of its bases among them

    def entries(self, only: set[str]) -> list[Entry]:
        """What is public, or what is named.

        Raises:
            ValueError: something has no documentation.
        """
        return list(self._body(self.tree.body, only, self.name, set()))

    def _body(self, body: list[ast.stmt], only: set[str], owner: str, known: set[str]) -> Iterator[Entry]:
        for node, after in zip(body, [*body[1:], None], strict=True):
            match node:
                case ast.ClassDef():
                    found = self._class(node, only)
                case ast.FunctionDef():
                    found = _function(node, method=owner != self.name)
                case ast.Assign(targets=[ast.Name()]) | ast.AnnAssign(target=ast.Name()):
                    found = self._value(node, after)
                case _:
                    continue
            if found is None or found.name.startswith("_") or found.name in INNER:
                continue
            if only and found.name not in only:
                continue
            if found.doc:
                yield found
            elif found.name not in known:  # what overrides means what its base says
                raise ValueError(f"{owner}.{found.name} has no documentation")

    def _class(self, node: ast.ClassDef, only: set[str]) -> Entry | None:
        if node.name.startswith("_") or (only and node.name not in only):
            return None
        bases = [ast.unparse(base) for base in node.bases]
        doc = ast.get_docstring(node) or ""
        known = {name for base in bases for name in self.members.get(base, ())}
        told = re.findall(r"^    ([\w, ]+): ", doc, re.M)  # in its list of attributes
        mentioned = {name for names in told for name in names.split(", ")} | set(re.findall(r"`(\w+)`", doc))
        entries = [
            *(entry for entry in self._attributes(node) if not only or entry.name in only),
            *self._body(node.body, only, f"{self.name}.{node.name}", known | mentioned),
        ]
        self.members[node.name] = known | {entry.name for entry in entries} | mentioned
        made = next((m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"), None)
        shown = f"{node.name}({', '.join(bases)})" if bases else node.name
        if made is not None and doc:
            doc += f"\n\nMade with `({_arguments(made, method=True)})`."
        return Entry(node.name, shown, doc, entries)

    def _attributes(self, node: ast.ClassDef) -> Iterator[Entry]:
        """What the constructor sets, where a comment says what it is."""
        for inner in ast.walk(node):
            match inner:
                case ast.Assign(targets=[ast.Attribute(value=ast.Name("self"), attr=name)]):
                    if (comment := self._comment(inner)) and not name.startswith("_"):
                        yield Entry(name, name, comment, [])

    def _value(self, node: ast.Assign | ast.AnnAssign, after: ast.stmt | None) -> Entry:
        """A constant or a field: described below, beside, or in its `Field`."""
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        name, default, doc = ast.unparse(target), node.value, self._comment(node)
        match node.value:
            case ast.Call(func=ast.Name("Field"), args=[default, *_], keywords=keywords):
                doc = next(ast.literal_eval(word.value) for word in keywords if word.arg == "description")
        match after:
            case ast.Expr(value=ast.Constant(value=str() as text)):
                doc = inspect.cleandoc(text)
        kind = f": {ast.unparse(node.annotation)}" if isinstance(node, ast.AnnAssign) else ""
        return Entry(name, f"{name}{kind}" + (f" = {ast.unparse(default)}" if default else ""), doc, [])

    def _comment(self, node: ast.stmt) -> str:
        """What stands behind a statement on its line."""
        behind = self.lines[(node.end_lineno or 0) - 1][node.end_col_offset :].decode().strip()
        return behind.removeprefix("#").partition("# noqa")[0].strip() if behind.startswith("#") else ""


def _function(node: ast.FunctionDef, *, method: bool) -> Entry:
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    arguments = f"({_arguments(node, method=method)})"
    if decorators & {"property", "cached_property"}:
        arguments = ""
    return Entry(node.name, f"{node.name}{arguments}{returns}", ast.get_docstring(node) or "", [])


def _arguments(node: ast.FunctionDef, *, method: bool) -> str:
    taken = ast.parse(ast.unparse(node)).body[0]
    assert isinstance(taken, ast.FunctionDef)
    if method:
        taken.args.args = taken.args.args[1:]  # self, or cls
    return ast.unparse(taken.args)


def _markdown(doc: str) -> str:
    """A docstring whose sections (`Args:`) are lists."""
    doc = re.sub(r"^(Args|Attributes|Raises):\n", r"*\1*\n\n", doc, flags=re.M)
    doc = re.sub(r"^ {8}", "  ", doc, flags=re.M)
    return re.sub(r"^ {4}(?! )(.+?): ", r"- `\1`: ", doc, flags=re.M)


def _shown(entry: Entry, level: str) -> Iterator[str]:
    yield f"{level} `{entry.shown}`\n" if level else f"**`{entry.shown}`**  "
    yield f"{_markdown(entry.doc)}\n".lstrip("\n")
    for inner in entry.entries:
        yield from _shown(inner, "")


def suites() -> dict[str, type[Suite]]:
    """The conformance suites by name."""
    return {name: value for name, value in vars(testing).items() if isinstance(value, type(Suite))}


def _suites() -> Iterator[str]:
    yield "## Conformance suites\n"
    yield f"`stage1.testing`. {testing.__doc__}\n"
    for name, suite in suites().items():
        yield f"### `{name}`\n"
        yield f"{inspect.getdoc(suite)}\n"
        yield "| fill in | |"
        yield "|---|---|"
        for wanted in TO_FILL:
            if hasattr(suite, wanted):
                yield f"| `{wanted}` | {_first_line(getattr(suite, wanted))} |"
        yield "\n| check | |"
        yield "|---|---|"
        for check in suite.checks():
            yield f"| `{check}` | {_first_line(getattr(suite, check))} |"
        yield ""


def _first_line(documented: object) -> str:
    line = (inspect.getdoc(documented) or "").partition("\n")[0]
    if not line:
        raise ValueError(f"{documented} has no documentation")
    return line.replace("|", r"\|")


def reference() -> str:
    """The page."""
    lines = [
        "<!-- Written by tools/make_docs.py; do not edit. -->\n",
        "# Plugin reference\n",
        "Every hook, interface and check, from the code. How they are used: [plugins.md](plugins.md).\n",
        f"`from stage1 import {', '.join(name for name in stage1.__all__ if name != '__version__')}`; "
        "everything else from the module that stands beside it.\n",
    ]
    for title, module, only in PARTS:
        lines += [f"## {title}\n", f"`{module.__name__}`. {_markdown(inspect.getdoc(module) or '')}\n"]
        for entry in Source(module).entries(only):
            lines += _shown(entry, "###")
    return "\n".join([*lines, *_suites()]).rstrip() + "\n"
