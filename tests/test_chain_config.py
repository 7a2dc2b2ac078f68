"""Chains as they are written: options, files, flags, the schema, sweeps, and what is refused."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chain_toys import TOYS, installed
from conftest import Result
from plugin_sites import Site, configured, issues
from stage1.cli.options import flags_given
from stage1.config import RunConfig, merge, overlay, validate
from stage1.errors import ConfigError, UsageError
from stage1.plugins import Registry, config_schema, fully_resolved, resolve
from stage1.runs.run import Run
from stage1.sweep.grid import Axis, plan

Invoke = Callable[..., Result]


@pytest.fixture
def toys(site: Site) -> Iterator[Registry]:
    yield from installed(site)


# -- names and options --------------------------------------------------------------------------------


def test_everything_wrong_in_a_chain_is_found_at_once(toys: Registry) -> None:
    config = configured(
        compressor="pca",
        chain={"step": None, "steps": {"bit": 3}, "halve": {"by": 2}, "residual": {}},
    )
    found = issues(config, toys)
    assert set(found) == {"chain.step", "chain.steps.bit", "chain.halve.by", "chain.residual"}
    assert "'steps'?" in found["chain.step"]
    assert "'bits'?" in found["chain.steps.bit"]
    assert "adapter" in found["chain.residual"]


@pytest.mark.parametrize(
    ("first", "chain", "path", "already"),
    [
        ("pca", {"pca": None}, "chain.pca", "'pca'"),
        ("pca", {"stage1:pca": None}, "chain.stage1:pca", "'pca'"),
        ("pca", {"steps": None, "toys:steps": None}, "chain.toys:steps", "'steps'"),
    ],
)
def test_a_compressor_comes_once(
    toys: Registry, first: str, chain: dict[str, None], path: str, already: str
) -> None:
    found = issues(configured(compressor=first, chain=chain), toys)
    assert set(found) == {path}
    assert f"goes through {already} already" in found[path]
    assert "halve" in found[path]


@pytest.mark.parametrize(
    ("first", "chain"),
    [("pca", {"pairs": None}), ("pairs", {"halve": None}), ("pca", {"pairs": None, "halve": None})],
)
def test_combinations_are_checked_with_the_whole_chain(
    toys: Registry, first: str, chain: dict[str, None]
) -> None:
    config = configured("magnitude=sent", compressor=first, chain=chain, adapter="codebook")
    found = issues(config, toys)
    assert set(found) == {"adapter", "losses.recon", "magnitude"}
    assert "'pairs' does not" in found["adapter"]
    assert all("'pairs' changes the length" in found[path] for path in ("losses.recon", "magnitude"))


def test_a_link_that_is_fitted_needs_token_wise_compressors_before_it(toys: Registry) -> None:
    losses = {"answer_ce": 1}
    config = configured(
        compressor="pairs", chain={"halve": None, "steps": None}, adapter="mlp", losses=losses
    )
    found = issues(config, toys)
    assert set(found) == {"chain.steps"}
    assert "Put it before 'pairs'" in found["chain.steps"]
    assert "identity" in found["chain.steps"]
    assert "random_projection" in found["chain.steps"]
    assert "learned_linear" not in found["chain.steps"]
    turned = configured(compressor="steps", chain={"pairs": None}, adapter="mlp", losses=losses)
    assert list(resolve(turned, toys).chain) == ["pairs"]


def test_the_resolved_configuration_spells_the_chain_out(toys: Registry) -> None:
    config = configured(compressor="pca", chain={"toys:steps": None, "random_projection": {"dim": 3}})
    resolved = resolve(config, toys)
    again = fully_resolved(config, resolved)
    assert again.chain == {
        "toys:steps": {"bits": 4},
        "random_projection": {"ratio": 8.0, "dim": 3, "kind": "gaussian"},
    }
    assert list(again.chain) == ["toys:steps", "random_projection"]
    assert again.compressors == ("pca", "toys:steps", "random_projection")
    read = validate(json.loads(again.model_dump_json()))
    assert read == again
    assert resolve(read, toys) == resolved


# -- the configuration --------------------------------------------------------------------------------

FILE = {"compressor": {"name": "pca", "dim": 4}, "chain": {"steps": {"bits": 3}, "halve": None}}


def test_flags_name_the_whole_route_and_keep_the_options_of_what_they_name_again() -> None:
    def given(*compressors: str, settings: tuple[str, ...] = ()) -> RunConfig:
        return validate(merge(FILE, flags_given(compressors=list(compressors)), settings))

    assert given().chain == {"steps": {"bits": 3}, "halve": {}}
    assert given("pca").chain == {}
    assert given("pca").compressor.options == {"dim": 4}
    turned = given("pca", "other", "steps")
    assert list(turned.chain.items()) == [("other", {}), ("steps", {"bits": 3})]
    another = given("identity", "steps")
    assert (another.compressor.options, another.chain) == ({}, {"steps": {"bits": 3}})
    more = given("pca", "steps", settings=("chain.steps.bits=8", "chain.last=null"))
    assert list(more.chain.items()) == [("steps", {"bits": 8}), ("last", {})]
    assert FILE["chain"] == {"steps": {"bits": 3}, "halve": None}


def test_a_chain_in_a_file_replaces_the_one_beneath_it() -> None:
    over = overlay(FILE, {"chain": {"other": {"x": 1}}})
    assert validate(over).chain == {"other": {"x": 1}}
    assert validate(overlay(FILE, {"adapter": "mlp"})).chain == {"steps": {"bits": 3}, "halve": {}}


def test_the_order_survives_the_file(tmp_path: Path) -> None:
    config = validate({"chain": {"z": None, "a": {"x": [1]}, "m": {}}})
    run = Run(tmp_path)
    run.write_config(config)
    assert run.config == config
    assert list(run.config.chain) == ["z", "a", "m"]


def test_a_run_from_before_there_were_chains(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("compressor: {name: pca, dim: 4}\n")
    assert Run(tmp_path).config.compressors == ("pca",)


@pytest.mark.parametrize(
    ("tree", "path", "words"),
    [
        ({"compressor": ["pca", "steps"]}, "compressor", ["chain: {NAME", "['pca', 'steps']"]),
        ({"chain": ["steps"]}, "chain", ["settings by name"]),
        ({"chain": "steps"}, "chain", ["settings by name"]),
        ({"chain": {"steps": 4}}, "chain.steps", ["settings by name"]),
    ],
)
def test_a_chain_that_is_none(tree: dict[str, Any], path: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(merge(tree, {}, []))
    [issue] = caught.value.issues
    assert issue.path == path
    assert all(word in issue.message for word in words), issue.message


DOCUMENTS: list[tuple[dict[str, Any], bool]] = [
    ({"chain": {}}, True),
    ({"chain": {"steps": None, "halve": {}}}, True),
    ({"chain": {"toys:steps": {"bits": 3}}}, True),
    ({"chain": {"steps": {"bits": 1}}}, False),
    ({"chain": {"steps": {"bit": 3}}}, False),
    ({"chain": {"residual": {}}}, False),
    ({"chain": {"rich": None}}, False),  # an option is missing
    ({"chain": {"rich": {"must": 3}}}, True),
    ({"chain": ["steps"]}, False),
    ({"chain": {"steps": 4}}, False),
    ({"compressor": ["pca", "steps"]}, False),
]


@pytest.mark.parametrize(("document", "valid"), DOCUMENTS, ids=[json.dumps(d) for d, _ in DOCUMENTS])
def test_the_schema_knows_chains(rich: Registry, site: Site, document: dict[str, Any], valid: bool) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    site.install("toys", {"point": TOYS})
    registry = site.load()
    schema = config_schema(registry)
    assert jsonschema.Draft202012Validator(schema).is_valid(document) == valid
    try:
        resolve(validate(merge(document, {}, [])), registry)
    except ConfigError:
        assert not valid
    else:
        assert valid
    field = schema["properties"]["chain"]
    assert field["description"]
    assert set(registry.names("compressor")) <= set(field["properties"])


# -- commands -----------------------------------------------------------------------------------------


def test_the_command_line_shows_the_chain(toys: Registry, invoke: Invoke) -> None:
    flags = ("--compressor", "pca", "--compressor", "steps", "--compressor", "halve")
    shown = invoke("config", "show", *flags, "--set", "chain.steps.bits=6", "--json")
    assert shown.code == 0, shown.err
    tree = json.loads(shown.out)
    assert tree["compressor"] == {"name": "pca", "ratio": 8.0, "dim": None}
    assert list(tree["chain"].items()) == [("steps", {"bits": 6}), ("halve", {})]


@pytest.mark.parametrize("command", [("train",), ("config", "show"), ("diagnose",)])
@pytest.mark.parametrize(
    ("compressors", "words"),
    [
        (("pca", "pca"), ["pca is given twice", "once"]),
        (("identity", "pca", "pca"), ["pca is given twice", "once"]),
        (("pca", "idenitty"), ["chain.idenitty", "'identity'?"]),
        (("pca", "stage1:pca"), ["chain.stage1:pca", "'pca' already"]),
    ],
)
def test_flags_that_make_no_chain(
    invoke: Invoke, tmp_path: Path, command: tuple[str, ...], compressors: tuple[str, ...], words: list[str]
) -> None:
    result = invoke(*command, *(part for name in compressors for part in ("--compressor", name)))
    assert result.code == 2
    assert all(word in result.err for word in words), result.err
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


# -- sweeps -------------------------------------------------------------------------------------------


def test_a_sweep_over_the_first_compressor_leaves_the_chain(toys: Registry, tmp_path: Path) -> None:
    file = {"chain": {"steps": {"bits": 3}}}
    axes = [Axis.parse("compressor=pca,identity"), Axis.parse("chain.steps.bits=4,8")]
    made = [cell.config for cell in plan(file, [], axes, [0], tmp_path)]
    assert [(c.compressor.name, c.chain["steps"]["bits"]) for c in made] == [
        *(("pca", 4), ("pca", 8)),
        *(("identity", 4), ("identity", 8)),
    ]


def test_a_sweep_over_chains(toys: Registry, tmp_path: Path) -> None:
    axis = Axis.parse("chain={},{steps: {bits: 8}},{steps: null, halve: null}")
    cells = plan({"chain": {"steps": {"bits": 3}}}, [], [axis], [0], tmp_path)
    assert [cell.config.chain for cell in cells] == [
        {},
        {"steps": {"bits": 8}},
        {"steps": {"bits": 3}, "halve": {}},
    ]
    assert len({cell.run.path for cell in cells}) == 3
    with pytest.raises(ConfigError, match="settings by name"):
        plan({"chain": {"steps": None}}, [], [Axis.parse("chain=3")], [0], tmp_path)


def test_a_sweep_does_not_go_on_with_a_run_whose_chain_has_another_order(
    toys: Registry, tmp_path: Path
) -> None:
    (cell,) = plan({"chain": {"steps": None, "halve": None}}, [], [], [0], tmp_path)
    cell.run.path.mkdir()
    cell.run.write_config(cell.config)
    plan({"chain": {"steps": None, "halve": None}}, [], [], [0], tmp_path)
    with pytest.raises(UsageError, match="a run with other settings"):
        plan({"chain": {"halve": None, "steps": None}}, [], [], [0], tmp_path)
