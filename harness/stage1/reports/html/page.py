"""The page: templates, style and script become one file that needs no network and runs nobody else's code.

What models, data sets, plugins and paths bring is foreign text. It is made visible and escaped here and
nowhere else: all that a template shows goes through `_visible` and Jinja's autoescaping, the questions go
through `embedded`. Were anything to come through, it would not run: the page's content security policy names
its one script and its one style by their hashes.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from stage1 import __version__
from stage1.text import visible_lines

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, values: Mapping[str, Any]) -> str:
    """The page that `template` makes of `values`; what is to be markup in them is `Markup` already."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embedded"] = embedded
    environment.filters["number"] = number
    style, script = _file("figure.css") + _file("report.css"), _file("report.js")
    policy = f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src {_hash(style)}; "
    return environment.get_template(template).render(
        **values,
        version=__version__,
        policy=f"{policy}script-src {_hash(script)}",
        style=Markup(style),  # noqa: S704 - files of this package
        script=Markup(script),  # noqa: S704
    )


def embedded(value: Any) -> Markup:
    """`value` as JSON inside of a <script> element, which nothing in it can end."""
    compact = partial(json.dumps, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return htmlsafe_json_dumps(_all_visible(value), dumps=compact)


def number(value: float | None, digits: int = 1, sign: str = "") -> str:
    """A number as it is shown; nothing where there is none."""
    return "" if value is None else f"{value:{sign}.{digits}f}"


def _visible(value: Any) -> Any:
    return visible_lines(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _all_visible(value: Any) -> Any:
    if isinstance(value, str):
        return visible_lines(value)
    if isinstance(value, Mapping):
        return {visible_lines(key): _all_visible(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_all_visible(inner) for inner in value]
    return value


def _file(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a content security policy names an inline element by its text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
