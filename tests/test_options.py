"""Options for people (`plugins show`) and for editors (`config schema`)."""

import json
from typing import Any

import pytest

from stage1.config import RunConfig, merge, validate
from stage1.errors import UsageError
from stage1.plugins import Registry, config_schema, docs, resolve


def test_docs_of_options_of_every_sort(rich: Registry) -> None:
    every = {option.name: option for option in docs(rich.get("compressor", "rich").Config)}
    assert every["dim"].description.startswith("Width of the code (dimensions)")
    assert {name: option[1:4] for name, option in every.items()} == {
        "ratio": ("number", "8.0", "≥ 1"),
        "dim": ("integer | null", "null", "> 0"),
        "must": ("integer", "(required)", "≥ 2, < 9"),
        "colour": ("red | blue", "red", ""),
        "size": ("object", '{"width": 3}', ""),
        "steps": ("list of number", "(computed)", "at least 1 items"),
        "folder": ("string | null", "null", ""),
        "kind": ("a | b | null", "a", ""),
        "lambda": ("number", "0.5", ""),
        "free": ("any", "null", ""),
    }


# -- the JSON Schema ----------------------------------------------------------------------------------

DOCUMENTS: list[dict[str, Any]] = [
    {},
    {"compressor": "pca"},
    {"compressor": "stage1:pca", "adapter": "stage1:mlp"},
    {"compressor": "a-pca:pca"},  # an option is missing
    {"compressor": "rich"},  # an option is missing
    {"compressor": {"name": "rich"}},
    {"compressor": {"name": "rich", "must": 3}},
    {"compressor": {"name": "a-pca:pca", "must": 3, "colour": "blue", "size": {"width": 1}}},
    {"compressor": {"name": "rich", "must": 3, "size": {"widht": 1}}},
    {"compressor": {"name": "rich", "must": 9}},
    {"compressor": {"name": "rich", "must": 3, "lambda": 1}},
    {"compressor": {"name": "rich", "must": 3, "lam": 1}},
    {"compressor": {"name": "rich", "must": 3, "twice": 6}},
    {"compressor": {"name": "rich", "must": 3, "steps": []}},
    {"compressor": "nothing"},
    {"compressor": {"name": "nothing"}},
    {"compressor": {"name": "pca", "dim": 4}},
    {"compressor": {"dim": 4}},  # the default's
    {"compressor": {"name": "pca", "dim": 0}},
    {"compressor": {"name": "pca", "dimm": 4}},
    {"compressor": {"name": "identity", "dim": 4}},
    {"compressors": ["pca"]},
    {"compressors": ["pca", "pca", {"name": "rich", "must": 3}]},
    {"compressors": [{"dim": 4}, {"name": "stage1:identity"}]},
    {"compressors": ["pca", "rich"]},  # an option is missing
    {"compressors": ["pca", {"name": "rich", "must": 1}]},
    {"compressors": ["pca", {"name": "identity", "dim": 4}]},
    {"compressors": ["pca", "residual"]},
    {"compressors": []},
    {"compressors": "pca"},
    {"compressors": {"pca": {"dim": 4}}},
    {"compressor": ["pca", "identity"]},
    {"compressor": "pca", "compressors": ["pca"]},
    {"chain": {"pca": {}}},
    {"adapter": {"depth": 2}},
    {"adapter": {"name": "mlp", "depth": 0}},
    {"adapter": 3},
    {"losses": {"recon": 1, "cosine": 0.1}},
    {"losses": {"recon": None, "stage1:cosine": {"weight": 2}}},
    {"losses": {"recon": {}}},
    {"losses": {"recon": 0}},
    {"losses": {"recon": {"weight": -1}}},
    {"losses": {"recon": {"wieght": 1}}},
    {"losses": {"nothing": 1}},
    {"losses": {"recon": "auto", "cosine": "0.5@ramp:200"}},
    {"losses": {"recon": {"weight": "auto", "ramp": 20}}},
    {"losses": {"recon": "often"}},
    {"losses": {"recon": "auto@ramp:soon"}},
    {"losses": {"recon": {"ramp": -1}}},
    {"then": {"losses": {"recon": "auto"}, "below": 0.9, "train": {"steps": 3}}},
    {"then": {"losses": {"nothing": 1}}},
    {"then": {"losses": {}}},
    {"then": {"losses": {"recon": 1}, "below": 0}},
    {"then": {"losses": {"recon": 1}, "train": {"stpes": 3}}},
    {"then": {"below": 0.9}},
    {"then": None},
    {"init": "runs/one", "keep_special": False},
    {"init": 3},
    {"train": {"check_questions": 0}},
    {"losses": {}},
    {"losses": "recon"},
    {"model": "tiny", "data": "squad"},
    {"model": {"name": "tiny", "revision": None}},
    {"model": {"nam": "tiny"}},
    {"eval": {"batch_size": "auto"}},
    {"eval": {"batch_size": 0}},
    {"device": "cuda:1"},
    {"device": "gpu"},
    {"magnitude": "sent", "seed": -1},
    {"unknown": 1},
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=json.dumps)
def test_the_schema_accepts_what_validation_accepts(rich: Registry, document: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    try:
        resolve(validate(merge(document, {}, [])), rich)
        valid = True
    except UsageError:
        valid = False
    checker = jsonschema.Draft202012Validator(config_schema(rich))
    assert (
        [error.message for error in checker.iter_errors(document)] == []
        if valid
        else not checker.is_valid(document)
    )


def test_the_schema_is_one_and_knows_every_plugins_options(rich: Registry) -> None:
    schema = config_schema(rich)
    text = json.dumps(schema)
    references = {part.partition('"')[0] for part in text.split('"$ref": "#/$defs/')[1:]}
    assert references <= set(schema["$defs"])
    assert (
        schema["properties"]["compressors"]["items"]["anyOf"] == schema["properties"]["compressor"]["anyOf"]
    )
    for kind in ("compressor", "adapter"):
        names, *plugins = schema["properties"][kind]["anyOf"]
        by_name = {name: plugin for plugin in plugins for name in plugin["properties"]["name"]["enum"]}
        assert set(rich.names(kind)) <= set(by_name)
        for name, plugin in by_name.items():
            options = rich.get(kind, name).Config.model_json_schema()["properties"]
            assert set(plugin["properties"]) == {"name", *options}
            assert plugin["additionalProperties"] is False
            assert (name in names["enum"]) == (not set(plugin.get("required", [])) - {"name"})
    assert set(rich.names("loss")) <= set(schema["properties"]["losses"]["properties"])
    assert RunConfig.model_json_schema()["properties"]["seed"] == schema["properties"]["seed"]
