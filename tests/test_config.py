"""The run configuration: precedence, short forms, and what a user reads when something is wrong."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from stage1.cli.groups import Setting
from stage1.cli.options import SeededRunOptions
from stage1.config import (
    ComponentChoice,
    DataConfig,
    EvalConfig,
    FieldNames,
    LossChoice,
    ModelConfig,
    Phase,
    PromptConfig,
    RunConfig,
    TrainConfig,
    flat,
    merge,
    parse_loss,
    parse_setting,
    read_yaml,
    validate,
)
from stage1.config.messages import issues_of
from stage1.errors import ConfigError, UsageError


def issues(tree: dict[Any, Any]) -> dict[str, str]:
    """Path → message of everything that is wrong with `tree`."""
    with pytest.raises(ConfigError) as caught:
        validate(tree)
    found = {issue.path: issue.message for issue in caught.value.issues}
    assert len(found) == len(caught.value.issues), "one issue a path"
    return found


def configured(file: dict[str, Any], flags: dict[str, Any], *settings: str) -> RunConfig:
    return validate(merge(file, flags, settings))


# -- importing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import stage1.config as c; c.RunConfig().to_yaml()", ["torch", "transformers", "stage1.plugins"]),
        ("import stage1.cli", ["torch", "stage1.plugins", "pydantic", "yaml"]),
        ("from stage1.config.presets import RECIPES; [r.settings for r in RECIPES.all()]", ["torch"]),
        ("import stage1.data.datasets, stage1.evaluation.squad", ["torch"]),
        (
            "import typer.testing as t, stage1.cli as c; "
            "assert ' train ' in t.CliRunner().invoke(c.app, ['--help']).output",
            ["torch", "transformers", "lm_eval", "datasets", "stage1_compressors", "stage1_adapters"],
        ),
    ],
)
def test_nothing_heavy_is_imported(code: str, heavy: list[str]) -> None:
    code += f"; import sys; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# -- precedence ---------------------------------------------------------------------------------------


def test_defaults_are_overridden_by_file_then_flags_then_set() -> None:
    file = {"seed": 1, "train": {"steps": 1, "lr": 0.1, "clip": 9.0}, "scope": "context"}
    config = configured(file, {"seed": 2, "train.steps": 2}, "train.steps=3", "seed=3")
    assert (config.seed, config.train.steps) == (3, 3)
    assert configured(file, {"seed": 2}).seed == 2
    assert (config.train.lr, config.train.clip, config.scope) == (0.1, 9.0, "context")
    assert config.train.warmup == RunConfig().train.warmup


def test_every_flag_stands_for_a_setting() -> None:
    known = {*flat(RunConfig().model_dump(mode="json")), "losses", "compressors", "compressor.ratio"}
    paths = [
        mark.path
        for field in fields(SeededRunOptions)
        for mark in get_args(field.type)
        if isinstance(mark, Setting)
    ]
    assert len(set(paths)) == len(paths) > 20
    assert set(paths) <= known | {"compressor.dim"}


def test_the_sources_stay_as_they_are() -> None:
    file: dict[str, Any] = {"losses": {"recon": {"weight": 2.0}}, "compressor": {"name": "pca"}}
    flags = {"losses": {"cosine": {"weight": 1.0}}}
    merge(file, {}, ["losses.recon.weight=5", "compressor.dim=3"])
    merge(file, flags, ["losses.cosine.weight=5"])
    assert file == {"losses": {"recon": {"weight": 2.0}}, "compressor": {"name": "pca"}}
    assert flags == {"losses": {"cosine": {"weight": 1.0}}}


@pytest.mark.parametrize("section", ["adapter", "model", "data"])
def test_a_bare_name_is_short_for_a_section_with_a_name(section: str) -> None:
    short, full = validate({section: "thing"}), validate({section: {"name": "thing"}})
    assert short == full
    assert getattr(short, section).name == "thing"


def test_set_reaches_into_a_section_that_the_file_gives_by_name_alone() -> None:
    config = configured(
        {"compressor": "random_projection", "data": "squad"}, {}, "compressor.dim=4", "data.train=7"
    )
    assert (config.compressors[0].name, config.compressors[0].options) == ("random_projection", {"dim": 4})
    assert (config.data.name, config.data.train) == ("squad", 7)


def test_options_alone_belong_to_the_default_plugin() -> None:
    config = configured({"adapter": {"depth": 2}}, {}, "compressor.dim=4")
    assert (config.compressors[0].name, config.compressors[0].options) == ("pca", {"dim": 4})
    assert (config.adapter.name, config.adapter.options) == ("residual", {"depth": 2})


def test_a_flag_that_names_another_plugin_drops_the_replaced_ones_options() -> None:
    file = {"compressor": {"name": "pca", "dim": 4}, "adapter": {"depth": 2}}
    other = configured(file, {"compressor.name": "identity", "adapter.name": "mlp"})
    assert (other.compressors[0].options, other.adapter.options) == ({}, {})
    same = configured(file, {"compressor.name": "pca", "adapter.name": "residual"})
    assert (same.compressors[0].options, same.adapter.options) == ({"dim": 4}, {"depth": 2})


def test_a_section_that_is_no_section_is_replaced_by_a_flag_that_names_the_plugin() -> None:
    assert configured({"compressor": [1]}, {"compressor.name": "pca"}).compressor_names == ["pca"]


def test_an_empty_section_leaves_the_defaults() -> None:
    tree = yaml.safe_load("train:\n  # lr: 1\ncompressor:\noutput:\nlosses:\n")
    assert validate(merge(tree, {}, [])) == RunConfig()


# -- losses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "weight"), [(0.5, 0.5), ("0.5", 0.5), ("5e-1", 0.5), ({"weight": 0.5}, 0.5), (None, 1.0)]
)
def test_a_loss_may_be_given_by_its_weight_alone(value: Any, weight: float) -> None:
    assert validate({"losses": {"cosine": value}}).losses == {"cosine": LossChoice(weight=weight)}


def test_losses_of_a_flag_replace_the_objective_and_set_adds_to_it() -> None:
    file = {"losses": {"recon": 2}}
    assert set(configured(file, {"losses": {"cosine": {"weight": 1.0}}}).losses) == {"cosine"}
    added = configured(file, {}, "losses.cosine=0.1", "losses.recon.eps=3").losses
    assert {name: loss.weight for name, loss in added.items()} == {"recon": 2.0, "cosine": 0.1}
    assert added["recon"].options == {"eps": 3}
    default = configured({}, {}, "losses.cosine=0.1").losses
    assert {name: loss.weight for name, loss in default.items()} == {"recon": 1.0, "cosine": 0.1}


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("recon", ("recon", {"weight": 1.0})),
        ("cosine=0.1", ("cosine", {"weight": 0.1})),
        ("other-pkg:mse=1e-3", ("other-pkg:mse", {"weight": 1e-3})),
        ("kl=auto", ("kl", {"weight": "auto"})),
        ("kl=0.5@ramp:200", ("kl", {"weight": 0.5, "ramp": 200})),
        ("kl=auto@ramp:20", ("kl", {"weight": "auto", "ramp": 20})),
    ],
)
def test_parse_loss(text: str, parsed: tuple[str, dict[str, Any]]) -> None:
    assert parse_loss(text) == parsed


@pytest.mark.parametrize("text", ["recon=", "recon=much", "=1", "", " =2"])
def test_parse_loss_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="NAME=WEIGHT"):
        parse_loss(text)


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", ".inf", "much"])
def test_a_weight_is_a_positive_finite_number(weight: str) -> None:
    assert set(issues({"losses": {"recon": yaml.safe_load(weight)}})) == {"losses.recon.weight"}


# -- --set --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("compressor.dim=64", ["compressor", "dim"], 64),
        ("raw_anchor=true", ["raw_anchor"], True),
        ("eval.limit=null", ["eval", "limit"], None),
        ("eval.limit=", ["eval", "limit"], None),
        ("a.b=[1, x]", ["a", "b"], [1, "x"]),
        ("a=b=c", ["a"], "b=c"),
        (" a . b =1", ["a", "b"], 1),
        ("a=[1", ["a"], "[1"),  # not YAML: taken as it is
        ("output=2024-99-99", ["output"], "2024-99-99"),  # looks like a date and is none
    ],
)
def test_parse_setting(text: str, path: list[str], value: Any) -> None:
    assert parse_setting(text) == (path, value)


@pytest.mark.parametrize("text", ["", "a", "=1", "a.=1", ".a=1", "a..b=1"])
def test_parse_setting_refuses_what_is_no_key_value(text: str) -> None:
    with pytest.raises(UsageError, match="KEY=VALUE"):
        parse_setting(text)


@settings(deadline=None)
@given(st.text())
def test_parse_setting_takes_any_text(text: str) -> None:
    path, _ = parse_setting(f"a.b={text}")
    assert path == ["a", "b"]


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_parse_setting_reads_back_what_yaml_writes(value: Any) -> None:
    assert parse_setting(f"x={yaml.safe_dump(value, default_flow_style=True)}") == (["x"], value)


def test_set_refuses_to_go_below_a_value() -> None:
    with pytest.raises(UsageError, match=r"--set seed\.x: seed holds a value"):
        merge({"seed": 3}, {}, ["seed.x=1"])


def test_numbers_in_yaml_1_1_notation_that_are_strings_there_are_read_as_numbers() -> None:
    assert configured({}, {}, "train.lr=1e-3").train.lr == 1e-3


# -- YAML files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train: {lr: 1", r"c\.yaml is not valid YAML at line 1, column 14"),
        (b"seed: 1\n\tlr: 2\n", r"c\.yaml is not valid YAML at line 2, column 1"),
        (b"\xff\xfe\x00x", r"c\.yaml is not valid YAML"),
        (b"seed: \x01", r"c\.yaml is not valid YAML"),
        (b"output: 2024-99-99", r"c\.yaml is not valid YAML: month must be in 1\.\.12"),
        (b"x: !!python/object/apply:os.getcwd []", r"c\.yaml is not valid YAML at line 1"),
        (b"- 1\n- 2\n", r"c\.yaml holds a list"),
        (b"pca", r"c\.yaml holds a str"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_yaml(tmp_path / "c.yaml")
    assert len(str(caught.value).splitlines()) == 2
    assert "stage1 config show" in caught.value.remedy


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_yaml(tmp_path / "missing.yaml")
    with pytest.raises(UsageError, match="Is a directory"):
        read_yaml(tmp_path)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing here yet\n")
    assert validate(read_yaml(tmp_path / "c.yaml")) == RunConfig()


names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
options = st.dictionaries(names, scalars | st.lists(scalars, max_size=3), max_size=3)
reserved = {"name", "weight"}


@st.composite
def run_configs(draw: st.DrawFn) -> RunConfig:
    """Any configuration that validation lets through, with options of plugins that are not installed."""

    def plugin() -> dict[str, Any]:
        given = {k: v for k, v in draw(options).items() if k not in reserved}
        return {"name": draw(st.text(min_size=1)), **given}

    place = st.text(st.characters(exclude_characters="\0"))
    positive = st.floats(min_value=1e-300, allow_infinity=False)
    weight = positive | st.just("auto")
    term = weight | st.fixed_dictionaries({"weight": weight, "ramp": st.integers(0, 10**9)})
    losses = st.dictionaries(names, term, min_size=1, max_size=3)
    changed = st.fixed_dictionaries({}, optional={"lr": positive, "steps": st.integers(0, 10**9)})
    share = st.floats(0, 1, exclude_min=True)
    then = st.none() | st.fixed_dictionaries({"losses": losses, "train": changed, "below": share})
    tree = {
        "model": draw(place | st.fixed_dictionaries({"name": place, "revision": st.none() | place})),
        "compressor": plugin(),
        "adapter": plugin(),
        "losses": draw(losses),
        "then": draw(then),
        "magnitude": draw(st.sampled_from(["free", "vocab", "sent"])),
        "train": {"lr": draw(positive), "steps": draw(st.integers(0, 10**9))},
        "eval": {
            "batch_size": draw(st.just("auto") | st.integers(1, 999)),
            "limit": draw(st.none() | st.integers(1)),
        },
        "seed": draw(st.integers(0, 2**31 - 1)),
        "device": draw(st.sampled_from(["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:12"])),
        "output": draw(st.none() | st.just("runs/été 1")),
    }
    return validate(tree)


@settings(deadline=None)
@given(run_configs())
def test_yaml_gives_the_same_configuration_back(config: RunConfig) -> None:
    assert validate(merge(yaml.safe_load(config.to_yaml()), {}, [])) == config


# -- what is wrong ------------------------------------------------------------------------------------


def test_everything_wrong_is_reported_at_once_each_with_its_path() -> None:
    found = issues(
        {
            "compresor": "pca",
            "train": {"lr": -1, "stpes": 3},
            "eval": {"limit": 0},
            "seed": "x",
            "magnitude": "sentt",
            "model": {"trust": True},
            "losses": {},
        }
    )
    paths = "compresor train.lr train.stpes eval.limit seed magnitude model.trust losses"
    assert set(found) == set(paths.split())
    assert "'compressors'?" in found["compresor"]
    assert "'steps'?" in found["train.stpes"]
    assert "warmup" in found["train.stpes"], "the choices are listed"
    assert "'sent'?" in found["magnitude"]
    assert "free, sent, vocab" in found["magnitude"]
    assert "greater than 0 (given: -1)" in found["train.lr"]
    assert "trust_remote_code" in found["model.trust"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.steps", -1),
        ("train.lr", float("inf")),
        ("train.lr", float("nan")),
        ("train.weight_decay", float("inf")),
        ("train.warmup", 1.1),
        ("train.uniform", -0.1),
        ("train.patience", 0),
        ("train.check_questions", 0),
        ("train.checkpointing", "perhaps"),
        ("keep_special", "perhaps"),
        ("init", 3),
        ("train.batch_tokens", 2.5),
        ("data.train", 0),
        ("data.max_prompt_tokens", 0),
        ("eval.batch_size", 0),
        ("eval.limit", "many"),
        ("seed", -1),
        ("seed", 2**31),
        ("device", "cuda:"),
        ("device", "cuda:0\n"),
        ("dtype", "fp16"),
        ("scope", "question"),
        ("raw_anchor", "perhaps"),
        ("output", 3),
    ],
)
def test_out_of_range(path: str, value: Any) -> None:
    section, _, key = path.partition(".")
    assert set(issues({section: {key: value} if key else value})) == {path}


@pytest.mark.parametrize("value", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:15"])
def test_devices(value: str) -> None:
    assert validate({"device": value}).device == value


def test_a_value_that_fits_no_member_of_a_union_is_one_issue_that_says_what_would_fit() -> None:
    found = issues({"eval": {"batch_size": "automatic"}, "device": "gpu"})
    assert "integer" in found["eval.batch_size"]
    assert "auto" in found["eval.batch_size"]
    assert "'cpu'?" in found["device"]


@pytest.mark.parametrize("value", [[1], 3])
@pytest.mark.parametrize("section", ["train", "adapter", "losses", "model"])
def test_a_section_that_is_no_mapping(section: str, value: Any) -> None:
    message = issues({section: value})[section]
    assert "settings by name" in message
    assert repr(value) in message


def test_options_of_plugins_are_kept_for_later() -> None:
    choice = ComponentChoice(name="pca", dim=3, options="odd", model_extra=1)
    assert choice.options == {"dim": 3, "options": "odd", "model_extra": 1}
    assert LossChoice(weight=2, eps=1).options == {"eps": 1}


def test_a_plugin_needs_a_name_and_keys_are_strings() -> None:
    assert set(issues({"compressor": {"dim": 3}})) == {"compressors.0.name"}
    strange = {3: 1, "compressor": {"name": "pca", 4: 1}, "losses": {5: 1.0}}
    assert set(issues(strange)) == {"3", "compressors.0.4", "losses.5"}


# -- issues_of, on models as plugins write them -------------------------------------------------------


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    width: int = Field(3, gt=0)


class Other(BaseModel):
    model_config = ConfigDict(extra="forbid")

    height: int = 3


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["gauss", "sparse"] | None = None
    inner: Inner = Inner()
    maybe: Inner | None = None
    either: Inner | Other | None = None
    many: list[Inner] = []
    named: dict[str, Inner] = {}
    short: int = Field(1, alias="s")
    even: int = 2

    @field_validator("even")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("must be even.")
        return value


@pytest.mark.parametrize(
    ("given_options", "path", "message"),
    [
        ({"inner": {"widht": 1}}, "c.inner.widht", "'width'?"),
        ({"inner": {"width": 0}}, "c.inner.width", "greater than 0"),
        ({"maybe": {"widht": 1}}, "c.maybe.widht", "'width'?"),
        ({"many": [{}, {"widht": 1}]}, "c.many.1.widht", "'width'?"),
        ({"many": [{}, {"width": 0}]}, "c.many.1.width", "greater than 0"),
        ({"named": {"a": {"widht": 1}}}, "c.named.a.widht", "'width'?"),
        ({"named": {"a": {"width": 0}}}, "c.named.a.width", "greater than 0"),
        ({"either": {"heigth": 1}}, "c.either.heigth", "'height'?"),
        ({"kind": "gaus"}, "c.kind", "'gauss'?"),
        ({"s": "x"}, "c.s", "integer"),
        ({"short": 2}, "c.short", "Choices: either, even, inner, kind, many, maybe, named, s."),
        ({"even": 3}, "c.even", "Must be even (given: 3)."),
    ],
)
def test_issues_of_a_plugins_options(given_options: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Options.model_validate(given_options)
    [issue] = issues_of(caught.value, Options, "c")
    assert issue.path == path
    assert message in issue.message


# -- JSON Schema --------------------------------------------------------------------------------------


def test_every_setting_is_described() -> None:
    sections = (ModelConfig, DataConfig, FieldNames, PromptConfig, TrainConfig, Phase, EvalConfig, LossChoice)
    for section in (RunConfig, *sections):
        for name, field in section.model_fields.items():
            kind = field.annotation
            own = kind.__doc__ if isinstance(kind, type) and issubclass(kind, BaseModel) else None
            assert field.description or own, f"{section.__name__}.{name}"
