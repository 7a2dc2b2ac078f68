"""Groups of options, each a class whose fields are the options, which several commands share.

A command takes such a class as a parameter, see `grouped`; the object that it is given knows which settings
were typed (`given`). A field's `Setting` says which one it is.
"""

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, fields
from functools import wraps
from inspect import Parameter, get_annotations, isclass, signature
from typing import Annotated, Any, NamedTuple, get_args

from typer.models import OptionInfo


class Setting(NamedTuple):
    """The setting that an option stands for, by its dotted path, and how the option's text is read."""

    path: str
    read: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True)
class Options:
    """A group of options."""

    def given(self) -> dict[str, Any]:
        """Dotted path → value of the settings that the user typed.

        Raises:
            UsageError: what was typed cannot be read.
        """
        found = {}
        for field in fields(self):
            for mark in getattr(field.type, "__metadata__", ()):
                value = getattr(self, field.name)
                if isinstance(mark, Setting) and value is not None and value != []:
                    found[mark.path] = mark.read(value)
        return found


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """`command` as typer takes it: in place of a parameter that is a group, an option for each field.

    Help lists the options of a class under the first line of its documentation.
    """
    own = signature(command, eval_str=True)
    groups: dict[str, type[Options]] = {
        name: parameter.annotation
        for name, parameter in own.parameters.items()
        if isclass(parameter.annotation) and issubclass(parameter.annotation, Options)
    }

    @wraps(command)
    def called(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    listed = {}
    for name, parameter in own.parameters.items():
        for one in _options(groups[name]) if name in groups else (parameter,):
            listed[one.name] = one.replace(kind=Parameter.KEYWORD_ONLY)
    called.__signature__ = own.replace(parameters=list(listed.values()))  # type: ignore[attr-defined]
    called.__annotations__ = {name: one.annotation for name, one in listed.items()}
    return called


def _options(group: type[Options]) -> Iterator[Parameter]:
    homes = {name: cls for cls in group.__mro__[::-1] for name in get_annotations(cls)}
    for field in fields(group):
        kind, option, *marks = (copy(part) for part in get_args(field.type))
        if isinstance(option, OptionInfo):
            option.rich_help_panel = (homes[field.name].__doc__ or "").splitlines()[0].rstrip(".")
        yield Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=Annotated[kind, option, *marks],
        )
