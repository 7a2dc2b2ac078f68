"""A package to begin a plugin with, from the templates beside this module.

`templates/common` and the folder of the kind together mirror the package, names of files included: all of
it is rendered before anything is written, and the package appears as a whole or not at all.
"""

import ast
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from stage1 import __version__
from stage1.errors import UsageError, suggest
from stage1.evaluation.lm_eval.catalogue import everything
from stage1.files import new_folder
from stage1.plugins import load_plugins
from stage1.progress import Progress

TEMPLATES = Path(__file__).parent / "templates"
KINDS = ("compressor", "adapter", "loss", "task")

LONGEST = 30
"""Characters of a plugin's name: lines of the generated code that hold it stay within its own limit."""


class Names(NamedTuple):
    """What a new plugin is called, where."""

    name: str  # what the user types: top_k
    kind: str
    distribution: str  # what pip installs: stage1-top-k
    package: str  # what Python imports: stage1_top_k
    class_name: str  # TopK


class Package(NamedTuple):
    """A package that was written."""

    folder: Path
    files: list[str]  # relative to `folder`, with forward slashes
    next: list[str]  # commands to go on with


def create(name: str, kind: str, parent: Path, progress: Progress) -> Package:
    """Write a package with a plugin of `kind` into a new folder below `parent`.

    `progress` is told when lm-eval's task files have to be read, to see whether a task's name is free.

    Raises:
        UsageError: the name, the kind or the folder cannot be used; nothing was written.
    """
    if kind not in KINDS:
        raise UsageError(f"Unknown kind {kind!r}.", suggest(kind, KINDS))
    names = named(name, kind)
    _refuse_taken(names, progress)
    files = render(names)
    folder = parent / names.distribution
    write(folder, files)
    return Package(folder, sorted(files), _next(names, folder))


def named(text: str, kind: str) -> Names:
    """The names of a plugin for which the user typed `text`: `topk`, `stage1-topk`, `My_TopK`.

    Raises:
        UsageError: they would be no names in Python, or none that packages can have.
    """
    name = re.sub(r"[-_.]+", "_", text.lower()).removeprefix("stage1_")
    class_name = name.title().replace("_", "")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise UsageError(
            f"{text!r} cannot be a plugin's name.",
            "Choose lower-case letters a to z, digits and _, beginning with a letter, such as top_k.",
        )
    if iskeyword(name) or iskeyword(class_name):
        raise UsageError(f"{text!r} is a keyword of Python.", f"Choose another name, such as my_{name}.")
    if len(name) > LONGEST:
        raise UsageError(f"{text!r} is too long.", f"Choose a name of at most {LONGEST} characters.")
    return Names(name, kind, f"stage1-{name.replace('_', '-')}", f"stage1_{name}", class_name)


def _refuse_taken(names: Names, progress: Progress) -> None:
    """Refuse names that something installed has."""
    another = f"Choose another name, such as my_{names.name}."
    if owner := _owner(names, progress):
        raise UsageError(f"{names.name!r} is the {names.kind} of {owner} already.", another)
    spec = find_spec(names.package)
    if spec is not None and spec.origin is not None:  # a mere folder of that name has no origin
        raise UsageError(f"A package {names.package} is installed already.", another)


def _owner(names: Names, progress: Progress) -> str | None:
    """The package whose plugin of this kind has the name."""
    registry = load_plugins()
    if names.kind == "task":
        owners = (task.source for task in everything(registry, progress) if task.name == names.name)
    else:
        wanted = (names.kind, names.name)
        owners = (str(record.owner) for record in registry.components if (record.kind, record.name) == wanted)
    return next(owners, None)


def render(names: Names) -> dict[str, str]:
    """Path → text of every file of the package.

    Raises:
        UsageError: the plugin's class would be named as something that its module imports.
    """
    environment = Environment(
        loader=FileSystemLoader([TEMPLATES / "common", TEMPLATES / names.kind]),
        autoescape=select_autoescape(),  # escapes HTML, of which there is none
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    article = "An" if names.kind == "adapter" else "A"
    values = {**names._asdict(), "article": article, "stage1_version": __version__}
    files = {}
    for template in environment.list_templates(extensions=["jinja"]):
        path = environment.from_string(template.removesuffix(".jinja")).render(values)
        files[path] = environment.get_template(template).render(values)
    for path, text in files.items():
        if path.endswith(".py") and (twice := list(_bound_twice(text))):
            problem = f"The plugin's {twice[0]} would hide the {twice[0]} that its module imports."
            raise UsageError(problem, f"Choose another name, such as my_{names.name}.")
    return files


def _bound_twice(source: str) -> Iterator[str]:
    """Names that a module imports or defines more than once."""
    bound: Counter[str] = Counter()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom):
            bound.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ClassDef):
            bound[node.name] += 1
    return (name for name, times in bound.items() if times > 1)


def write(folder: Path, files: dict[str, str]) -> None:
    """Write `files` into the new `folder`, which appears when it is whole.

    Raises:
        UsageError: it exists and is not empty, or cannot be written.
    """
    try:
        if folder.is_symlink() or folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise UsageError(f"{folder} exists already.", "Remove it, or choose another name or --output.")
        with new_folder(folder) as made:
            for path, text in files.items():
                file = made / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8", newline="\n")
            with suppress(FileNotFoundError):
                folder.rmdir()  # an empty one; Windows would not rename over it
            made.rename(folder)
    except OSError as error:
        problem = f"Cannot write {folder}: {error.strerror or error}."
        raise UsageError(problem, "Choose another --output.") from None


def _next(names: Names, folder: Path) -> list[str]:
    use = f"eval RUN --tasks {names.name}" if names.kind == "task" else f"train --{names.kind} {names.name}"
    return [
        f"cd {shlex.quote(str(folder))}",
        'pip install -e ".[test]"',
        "pytest",
        f"stage1 plugins check {names.name}",
        f"stage1 {use}",
    ]
