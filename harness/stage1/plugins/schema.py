"""What can be configured, for people (`stage1 plugins show`) and for editors (`stage1 config schema`)."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel

from stage1.config import DEFAULTS, RunConfig
from stage1.config.presets import PRESETS
from stage1.plugins.registry import Registry

LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "pattern": "matches {}",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
}
"""JSON Schema's keywords in words."""

RAMPED = {"type": "string", "pattern": r"^(auto|[0-9.]+(e-?[0-9]+)?)@ramp:[0-9]+$"}
"""The short form of a loss's weight that rises: `0.5@ramp:200`."""


class Option(NamedTuple):
    """One option of a component."""

    name: str
    type: str
    default: str
    constraints: str
    description: str  # with the unit


def docs(config: type[BaseModel]) -> list[Option]:
    """The options that `config` declares, a component's `Config` for example, in their order."""
    schema = config.model_json_schema()
    definitions = schema.get("$defs", {})
    body = _follow(schema, definitions)
    return [
        Option(
            name,
            _type(field, definitions),
            _default(field, required=name in body.get("required", [])),
            ", ".join(_limits(field)),
            field.get("description", ""),
        )
        for name, field in body.get("properties", {}).items()
    ]


def _follow(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """What a reference stands for: an enumeration, a nested model, a model that contains itself."""
    if "$ref" not in schema:
        return schema
    found: dict[str, Any] = definitions[schema["$ref"].rpartition("/")[2]]
    return found


def _type(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    field = _follow(field, definitions)
    if members := field.get("anyOf") or field.get("oneOf"):
        return " | ".join(_type(member, definitions) for member in members)
    if "enum" in field or "const" in field:
        return " | ".join(map(_plain, field.get("enum", [field.get("const")])))
    if field.get("type") == "array" and "items" in field:
        return f"list of {_type(field['items'], definitions)}"
    return str(field.get("type", "any"))


def _default(field: dict[str, Any], *, required: bool) -> str:
    if required:
        return "(required)"
    return _plain(field["default"]) if "default" in field else "(computed)"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _limits(field: dict[str, Any]) -> list[str]:
    own = [text.format(field[key]) for key, text in LIMITS.items() if key in field]
    return own + [limit for member in field.get("anyOf", []) for limit in _limits(member)]


def config_schema(registry: Registry) -> dict[str, Any]:
    """The JSON Schema of a configuration file, with the options of every installed plugin."""
    schema = RunConfig.model_json_schema()
    definitions, settings = schema["$defs"], schema["properties"]
    common = definitions["LossChoice"]["properties"]  # weight and ramp
    del definitions["ComponentChoice"], definitions["LossChoice"]
    choices: dict[str, list[dict[str, Any]]] = {}
    for kind, default in DEFAULTS.items():
        bare, full = [], []
        for names, options in _plugins(registry, kind, definitions):
            if "required" not in options:
                bare += names  # the name alone is enough where every option has a default
            if default not in names:
                options["required"] = ["name", *options.get("required", [])]
            full.append({**options, "properties": {"name": {"enum": names}, **options["properties"]}})
        choices[kind] = [{"type": "string", "enum": bare}, *full]
    settings["adapter"] = {**settings["adapter"], "anyOf": choices["adapter"]}
    settings["compressors"]["items"] = {"anyOf": choices["compressor"]}
    one = {"description": "Short for a list of one compressor.", "anyOf": choices["compressor"]}
    presets = {
        kind: {"description": f"A {kind} to start from.", "enum": [preset.name for preset in some.all()]}
        for kind, some in PRESETS.items()
    }
    settings = schema["properties"] = {**presets, "compressor": one, **settings}
    schema["not"] = {"required": ["compressor", "compressors"]}
    terms: dict[str, Any] = {}
    for names, options in _plugins(registry, "loss", definitions):
        short = [] if "required" in options else [{"type": "null"}, common["weight"], RAMPED]
        term = {"anyOf": [*short, {**options, "properties": {**common, **options["properties"]}}]}
        terms |= dict.fromkeys(names, term)
    for section in (settings, definitions["Phase"]["properties"]):
        section["losses"] = {**_by_name(section["losses"], terms), "minProperties": 1}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _by_name(said: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of plugins by name, in place of the general one that is `said`."""
    return {
        **{key: said[key] for key in ("title", "description", "default") if key in said},
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _plugins(
    registry: Registry, kind: str, definitions: dict[str, Any]
) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Each plugin's names and the schema of its options, whose `$defs` are moved to `definitions`."""
    for record in registry.components:
        if record.kind != kind or record.cls is None:
            continue
        prefix = f"{kind}.{record.qualified}."  # so that two plugins may both define a model `Size`
        schema = record.cls.Config.model_json_schema(ref_template=f"#/$defs/{prefix}{{model}}")
        definitions |= {prefix + name: value for name, value in schema.get("$defs", {}).items()}
        body = _follow(schema, definitions)
        options = {
            "title": record.name,
            "description": record.summary,
            "type": "object",
            "properties": body.get("properties", {}),
            "additionalProperties": False,
        }
        if body.get("required"):
            options["required"] = body["required"]
        yield list(dict.fromkeys([record.name, record.qualified])), options
