"""For griffe, which reads the sources for the reference: a comment behind a field is its documentation.

Shapes stand beside the fields (`vectors: Tensor  # [B, M, d]`), where whoever reads the code wants them.
"""

import ast
from pathlib import Path
from typing import Any

import griffe


class TrailingComments(griffe.Extension):
    """Makes the comment behind an attribute its docstring, where it has no other."""

    def on_attribute_instance(
        self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **_: Any
    ) -> None:
        """Called by griffe for each attribute that it finds in a source."""
        if attr.docstring is not None or not isinstance(node, ast.Assign | ast.AnnAssign):
            return
        assert isinstance(attr.filepath, Path)
        line = attr.lines_collection[attr.filepath][(node.end_lineno or 0) - 1]
        behind = line.encode()[node.end_col_offset :].decode().strip()
        comment = behind.removeprefix("#").partition("# noqa")[0].strip()
        if behind.startswith("#") and comment:
            attr.docstring = griffe.Docstring(comment, lineno=node.lineno, parent=attr)
