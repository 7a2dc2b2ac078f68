"""What pydantic finds wrong, in our words: every issue with its path, the nearest name and the choices."""

from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from stage1.errors import ConfigError, ConfigIssue, suggest

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], given: Any, prefix: str = "") -> Model:
    """`given` as a `model`.

    Raises:
        ConfigError: with every issue found, its path behind `prefix`.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise ConfigError(issues_of(error, model, prefix)) from None


def issues_of(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[ConfigIssue]:
    """Pydantic's findings in our words, one a path; an unknown name gets the nearest and the choices."""
    found: dict[str, list[str]] = {}
    for item in error.errors(include_url=False, include_context=False):
        location, types = _locate(model, item)
        messages = found.setdefault(".".join([prefix, *location] if prefix else location), [])
        messages.append(_message(item, types))
    # Where several types are allowed, each says why the value is not one of its own.
    return [ConfigIssue(path, " Or: ".join(dict.fromkeys(messages))) for path, messages in found.items()]


def _message(item: ErrorDetails, types: list[Any]) -> str:
    given = item["input"]
    if item["type"] == "extra_forbidden":
        return f"unknown option. {suggest(str(item['loc'][-1]), _fields(types))}"
    if item["type"] == "literal_error" and isinstance(given, str):
        choices = [str(arg) for kind in types if get_origin(kind) is Literal for arg in get_args(kind)]
        return f"{given!r} is not one of the choices. {suggest(given, choices)}"
    if item["type"] in ("model_type", "dict_type"):
        return f"Input should be settings by name, not {given!r}."
    text = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").rstrip(".")
    text = text[:1].upper() + text[1:]
    # A missing key, or a check of the whole, has all of its surroundings for an input: not worth printing.
    return f"{text}." if isinstance(given, dict) else f"{text} (given: {given!r})."


def _locate(model: type[BaseModel], item: ErrorDetails) -> tuple[list[str], list[Any]]:
    """The path as `--set` takes it, and the types allowed there; for an unknown key, those of its parent.

    Pydantic's location also names each member of a union that it tried, which the user never typed.
    """
    location = item["loc"]
    last = [location[-1]] if item["type"] == "extra_forbidden" else []
    path, types = [], _members(model)
    for part in location[: len(location) - len(last)]:
        inner = [member for kind in types for member in _step(kind, part)]
        if inner:
            types = inner
        if inner or (len(types) == 1 and part != "[key]"):
            path.append(part)
    return [str(part) for part in path + last], types


def _members(annotation: Any) -> list[Any]:
    """The types a value may have: a union's members, without None, which pydantic never names."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for member in get_args(annotation) for kind in _members(member)]
    return [] if annotation is type(None) else [annotation]


def _step(kind: Any, part: int | str) -> list[Any]:
    """The types allowed at field, key or index `part` of a value of type `kind`; none if there is no such."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = kind.model_fields.items()
        return [
            t for name, field in fields if part in (name, field.alias) for t in _members(field.annotation)
        ]
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _members(arguments[1])
    return [t for argument in arguments for t in _members(argument)] if isinstance(part, int) else []


def _fields(types: list[Any]) -> list[str]:
    models = [kind for kind in types if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return [field.alias or name for kind in models for name, field in kind.model_fields.items()]
