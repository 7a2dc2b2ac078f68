"""YAML and JSON that others wrote, read within bounds: a small file must not become a large tree."""

import json
from typing import Any

import yaml

DEEPEST = 50
"""Levels of nesting in settings and records."""

MOST_NODES = 100_000
"""Values in a YAML file, every alias counted as all that it stands for."""

LARGEST = 1 << 20
"""Characters of a YAML text."""


class OutOfBoundsError(ValueError):
    """The text is too large, too deep, or stands for too much."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which stops where nesting gets deep."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise OutOfBoundsError(f"it is nested more than {DEEPEST} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def load_yaml(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        OutOfBoundsError: it is larger than `LARGEST`, deeper than `DEEPEST`, or stands for more than
            `MOST_NODES` values.
        yaml.YAMLError, ValueError: it is not YAML, or holds a value that cannot be.
    """
    if len(text) > LARGEST:
        raise OutOfBoundsError(f"it is longer than {LARGEST:,} characters")
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _count(root, {})
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values `node` stands for; `known` is what is said of the nodes seen, 0 of those above."""
    if id(node) in known:
        if not known[id(node)]:
            raise OutOfBoundsError("it contains itself")
        return known[id(node)]
    known[id(node)] = 0
    parts = node.value if isinstance(node, yaml.CollectionNode) else []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in parts for part in pair]
    total = 1 + sum(_count(part, known) for part in parts)
    if total > MOST_NODES:
        raise OutOfBoundsError(f"its aliases stand for more than {MOST_NODES:,} values")
    known[id(node)] = total
    return total


def load_json(text: str | bytes) -> Any:
    """The value of a JSON text, whose numbers are finite.

    Raises:
        ValueError: it is no JSON, or (`OutOfBoundsError`) nested deeper than `DEEPEST`.
    """
    return read_json(text, parse_constant=_refuse_constant)


def read_json(text: str | bytes, **options: Any) -> Any:
    """The value of a JSON text as `json.loads` reads it with these `options`, within bounds.

    Raises:
        ValueError: as `load_json`; numbers need not be finite.
    """
    try:
        value = json.loads(text, **options)
    except RecursionError:
        raise OutOfBoundsError(f"it is nested more than {DEEPEST} levels deep") from None
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return value
    raise OutOfBoundsError(f"it is nested more than {DEEPEST} levels deep")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")
