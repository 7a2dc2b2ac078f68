"""Several compressors as they are written: files, flags, `--set`, the schema, sweeps, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import Invoke, settings_args
from plugin_sites import configured, issues
from stage1.cli.options import BottleneckParts
from stage1.config import RunConfig, merge, overlay, validate
from stage1.errors import ConfigError, UsageError
from stage1.plugins import Registry, fully_resolved, resolve
from stage1.sweeps.grid import Axis, plan


def choices(config: RunConfig) -> list[dict[str, Any]]:
    return [choice.model_dump() for choice in config.compressors]


# -- names and options --------------------------------------------------------------------------------


def test_everything_wrong_in_a_list_is_found_at_once(toys: Registry) -> None:
    config = configured(
        compressors=[
            "pca",
            "quantise",
            {"name": "quantize", "bit": 3},
            {"name": "halve", "by": 2},
            "residual",
        ],
    )
    found = issues(config, toys)
    assert set(found) == {"quantise", "quantize.bit", "halve.by", "residual"}
    assert "'quantize'?" in found["quantise"]
    assert "'bits'?" in found["quantize.bit"]
    assert "adapter" in found["residual"]


def test_issues_are_where_set_reaches_them(toys: Registry) -> None:
    wrong = [{"name": name, "wrong": 1} for name in ("quantize", "pca", "quantize", "identity")]
    config = configured(compressors=wrong)
    paths = ["compressor.wrong", "pca.wrong", "compressors.2.wrong", "identity.wrong"]
    assert list(issues(config, toys)) == paths
    for path in paths:
        with_it = validate(merge({"compressors": wrong}, {}, [f"{path}=changed"]))
        assert [c["wrong"] for c in choices(with_it)].count("changed") == 1, path


def test_an_option_of_another_compressor_is_found_for_the_user(toys: Registry) -> None:
    for option, hint in (("bits", " 'quantize' has it: --set quantize.bits=…"), ("nothing", "")):
        config = configured(f"compressor.{option}=4", compressors=["pca", "quantize"])
        (message,) = issues(config, toys).values()
        assert message == f"unknown option. Choices: dim, ratio.{hint}"
    (message,) = issues(
        configured("compressor.dim=-1", compressors=["pca", "random_projection"]), toys
    ).values()
    assert "has it" not in message  # its own, with a wrong value


@pytest.mark.parametrize("names", [["pca", "pairs"], ["pairs", "halve"], ["pca", "pairs", "halve"]])
def test_combinations_are_checked_with_all_compressors(toys: Registry, names: list[str]) -> None:
    config = configured("magnitude=sent", compressors=names, adapter="codebook")
    found = issues(config, toys)
    assert {"adapter", "magnitude"} <= set(found)
    assert "'pairs' does not" in found["adapter"]
    assert "'pairs' changes the length" in found["magnitude"]


def test_what_is_fitted_needs_token_wise_compressors_before_it(toys: Registry) -> None:
    losses = {"answer_ce": 1}
    config = configured(compressors=["pairs", "halve", "quantize"], adapter="mlp", losses=losses)
    found = issues(config, toys)
    assert set(found) == {"quantize"}
    assert "Put it before 'pairs'" in found["quantize"]
    assert "identity" in found["quantize"]
    assert "random_projection" in found["quantize"]
    assert "learned_linear" not in found["quantize"]
    turned = configured(compressors=["quantize", "pairs"], adapter="mlp", losses=losses)
    assert [c.cls.name for c in resolve(turned, toys).compressors] == ["quantize", "pairs"]


def test_the_resolved_configuration_spells_them_out(toys: Registry) -> None:
    config = configured(
        compressors=["toys:halve", "stage1:quantize", {"name": "random_projection", "dim": 3}, "pca"]
    )
    resolved = resolve(config, toys)
    again = fully_resolved(config, resolved)
    assert choices(again) == [
        {"name": "toys:halve"},
        {"name": "stage1:quantize", "bits": 8, "group": None},
        {"name": "random_projection", "ratio": 8.0, "dim": 3, "kind": "gaussian"},
        {"name": "pca", "ratio": 8.0, "dim": None},
    ]
    read = validate(json.loads(again.model_dump_json()))
    assert read == again
    assert resolve(read, toys) == resolved


# -- the configuration --------------------------------------------------------------------------------

FILE = {"compressors": [{"name": "pca", "dim": 4}, {"name": "quantize", "bits": 3}, "halve"]}


def given(*compressors: str, settings: tuple[str, ...] = (), file: dict[str, Any] = FILE) -> list[Any]:
    return choices(validate(merge(file, BottleneckParts(compressor=list(compressors)).given(), settings)))


def test_flags_name_all_compressors_and_keep_the_options_of_those_they_name_again() -> None:
    pca, quantize, halve = {"name": "pca", "dim": 4}, {"name": "quantize", "bits": 3}, {"name": "halve"}
    assert given() == [pca, quantize, halve]
    assert given("pca") == [pca]
    assert given("pca", "other", "quantize") == [pca, {"name": "other"}, quantize]
    assert given("identity", "quantize") == [{"name": "identity"}, quantize]
    assert given("pca", "pca") == [pca, {"name": "pca"}]
    assert given("quantize", file={}) == [{"name": "quantize"}]
    assert FILE["compressors"][2] == "halve"


def test_an_option_reaches_the_compressor_that_is_named_whichever_is_said_first() -> None:
    flags = {"compressor.ratio": 16.0, "compressors": ["learned_linear"]}
    for given in (flags, dict(reversed(flags.items()))):
        assert merge({}, given, [])["compressors"] == [{"name": "learned_linear", "ratio": 16.0}]


def test_settings_reach_them_by_name_and_by_place() -> None:
    changed = given(settings=("compressor.dim=2", "quantize.bits=8", "compressors.2.by=3"))
    assert changed == [
        {"name": "pca", "dim": 2},
        {"name": "quantize", "bits": 8},
        {"name": "halve", "by": 3},
    ]
    assert given("pca", "pca", settings=("compressors.1.dim=3",))[1] == {"name": "pca", "dim": 3}
    assert given(settings=("compressor=identity",))[0] == {"name": "identity"}
    assert len(given(settings=("compressor=identity",))) == 3
    assert given(settings=("compressors=[identity]",)) == [{"name": "identity"}]
    assert given(settings=("compressor.ratio=4",), file={}) == [{"name": "pca", "ratio": 4}]


@pytest.mark.parametrize(
    ("file", "settings", "words"),
    [
        ({"compressors": ["pca", "pca"]}, ["pca.dim=3"], ["several", "compressors.0 or compressors.1"]),
        (FILE, ["compressors.3.dim=3"], ["there are 3 compressors"]),
        (FILE, ["compressors.last.dim=3"], ["there are 3 compressors"]),
        (FILE, ["compressor.dim.x=3"], ["compressor.dim holds a value"]),
        ({"compressor": "pca", "compressors": ["pca"]}, [], ["both", "one list"]),
        ({"compressors": "pca"}, ["compressor.dim=3"], ["not a list", "compressors: [pca]"]),
        ({"compressors": "pca"}, [], ["compressors: ", "list"]),
        ({"compressors": []}, [], ["compressors: ", "at least 1"]),
        ({"compressors": [3]}, [], ["compressors.0: ", "settings by name"]),
        ({"compressors": ["pca", ["quantize"]]}, [], ["compressors.1: ", "settings by name"]),
        ({}, ["quantize.bits=3"], ["quantize: unknown option"]),
        ({}, ["chain.pca.dim=3"], ["chain: unknown option"]),
    ],
)
def test_what_cannot_be_meant(file: dict[str, Any], settings: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        validate(merge(file, {}, settings))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_one_compressor_is_short_for_a_list_of_one() -> None:
    assert validate({"compressor": {"name": "pca", "dim": 4}}) == validate(
        {"compressors": [{"name": "pca", "dim": 4}]}
    )


def test_compressors_in_a_file_replace_those_beneath_it() -> None:
    assert choices(validate(overlay(FILE, {"compressors": ["other"]}))) == [{"name": "other"}]
    assert choices(validate(overlay(FILE, {"compressor": "other"}))) == [{"name": "other"}]
    assert len(choices(validate(overlay(FILE, {"adapter": "mlp"})))) == 3


# -- commands -----------------------------------------------------------------------------------------


def test_the_command_line_shows_them(toys: Registry, invoke: Invoke) -> None:
    flags = ("--compressor", "pca", "--compressor", "quantize", "--compressor", "halve")
    options = settings_args(["quantize.bits=6", "compressor.ratio=2"])
    shown = invoke("config", "show", *flags, *options, "--json")
    assert json.loads(shown.printed)["compressors"] == [
        {"name": "pca", "ratio": 2, "dim": None},
        {"name": "quantize", "bits": 6, "group": None},
        {"name": "halve"},
    ]


# -- sweeps -------------------------------------------------------------------------------------------


def test_a_sweep_over_the_first_compressor_leaves_the_others(tmp_path: Path) -> None:
    file = {"compressors": ["pca", {"name": "quantize", "bits": 3}]}
    axes = [Axis.parse("compressor=pca,identity"), Axis.parse("quantize.bits=4,8")]
    made = [cell.config for cell in plan(file, [], axes, [0], tmp_path)]
    assert [(c.compressor_names, c.compressors[1].options["bits"]) for c in made] == [
        *((["pca", "quantize"], 4), (["pca", "quantize"], 8)),
        *((["identity", "quantize"], 4), (["identity", "quantize"], 8)),
    ]


def test_a_sweep_over_lists_of_compressors(toys: Registry, tmp_path: Path) -> None:
    axis = Axis.parse("compressors=[pca],[pca, {name: quantize, bits: 8}],[pca, quantize, halve]")
    cells = plan({"compressors": ["pca", {"name": "quantize", "bits": 3}]}, [], [axis], [0], tmp_path)
    assert [choices(cell.config)[1:] for cell in cells] == [
        [],
        [{"name": "quantize", "bits": 8, "group": None}],
        [{"name": "quantize", "bits": 3, "group": None}, {"name": "halve"}],
    ]
    assert len({cell.run.path for cell in cells}) == 3
    with pytest.raises(ConfigError, match="list"):
        plan({}, [], [Axis.parse("compressors=3")], [0], tmp_path)


def test_a_sweep_does_not_go_on_with_a_run_whose_compressors_have_another_order(
    toys: Registry, tmp_path: Path
) -> None:
    (cell,) = plan({"compressors": ["quantize", "halve"]}, [], [], [0], tmp_path)
    cell.run.path.mkdir()
    cell.run.write_config(cell.config)
    plan({"compressors": ["quantize", "halve"]}, [], [], [0], tmp_path)
    with pytest.raises(UsageError, match="a run with other settings"):
        plan({"compressors": ["halve", "quantize"]}, [], [], [0], tmp_path)
