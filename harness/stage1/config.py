"""The configuration of a run. Imports no torch: `stage1 config show` and every usage error stay instant.

Precedence, lowest first: the defaults below, a recipe, a YAML file, the command line's flags,
`--set key=value`.
"""

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from stage1.errors import ConfigError, UsageError
from stage1.issues import issues_of


class _Section(BaseModel):
    # Our own numbers are finite; an infinite option of a plugin must not become null when it is written.
    model_config = ConfigDict(
        extra="forbid", validate_default=True, allow_inf_nan=False, ser_json_inf_nan="constants"
    )


class ComponentChoice(BaseModel):
    """A plugin's name; every other key is an option of that plugin, checked once plugins are loaded."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(description="Name of the plugin, or `distribution:name`; see `stage1 plugins list`.")

    @property
    def options(self) -> dict[str, Any]:
        """The plugin's own options."""
        return dict(self.model_extra or {})


class LossChoice(BaseModel):
    """A loss in the objective, under its plugin's name; other keys are options of that plugin."""

    model_config = ConfigDict(extra="allow")

    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"] = Field(
        1.0,
        description="Factor of this term in the objective; auto: 1 / running mean of its values.",
    )
    ramp: int = Field(0, ge=0, description="Steps over which the weight rises from zero.")

    @property
    def options(self) -> dict[str, Any]:
        """The plugin's own options."""
        return dict(self.model_extra or {})


def _component(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _first_compressor(value: Any) -> Any:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        raise ValueError("One compressor goes here, those behind it into `chain: {NAME: {OPTION: VALUE}}`")
    return _component(value)


def _links(value: Any) -> Any:
    """`quantize:` alone is short for `quantize: {}`."""
    return {k: {} if v is None else v for k, v in value.items()} if isinstance(value, Mapping) else value


def _loss(value: Any) -> Any:
    if isinstance(value, str):  # `0.5@ramp:200`; a bare number too: `1e-3` is a string in YAML 1.1
        weight, at, ramp = value.partition("@ramp:")
        return {"weight": weight.strip(), "ramp": ramp.strip()} if at else {"weight": value}
    if isinstance(value, int | float):
        return {"weight": value}
    return {} if value is None else value


def _losses(value: Any) -> Any:
    return {k: _loss(v) for k, v in value.items()} if isinstance(value, Mapping) else value


Choice = Annotated[ComponentChoice, BeforeValidator(_component, json_schema_input_type=str | ComponentChoice)]
FirstChoice = Annotated[
    ComponentChoice, BeforeValidator(_first_compressor, json_schema_input_type=str | ComponentChoice)
]
Links = Annotated[
    dict[str, dict[str, Any]],
    BeforeValidator(_links, json_schema_input_type=dict[str, dict[str, Any] | None]),
]
Losses = Annotated[
    dict[str, LossChoice],
    BeforeValidator(_losses, json_schema_input_type=dict[str, LossChoice | float | str | None]),
]


class ModelConfig(_Section):
    """The frozen LLM."""

    name: str = Field("tiny", description="`tiny` (embedded), a folder, or a Hugging Face Hub id.")
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.")
    trust_remote_code: bool = Field(False, description="Run Python code that the model's folder brings.")


class DataConfig(_Section):
    """Questions and answers."""

    name: str = Field(
        "tiny-squad", description="`tiny-squad` (generated), `squad` (the Hub's rajpurkar/squad), or a file."
    )
    train: int = Field(10_000, gt=0, description="Training prompts at most.")
    selection: int = Field(1_000, gt=0, description="Prompts that choose the best checkpoint, at most.")
    max_prompt_tokens: int | None = Field(
        None, gt=0, description="Longest prompt (tokens); default: what the model's context leaves."
    )


class TrainConfig(_Section):
    """The training loop."""

    steps: int = Field(200, ge=0, description="Optimiser steps at most; 0 keeps the closed-form start.")
    batch_tokens: int = Field(4096, gt=0, description="Distinct tokens per step on the token-wise path.")
    batch_prompts: int = Field(16, gt=0, description="Prompts per step where the order of tokens matters.")
    lr: float = Field(3e-3, gt=0, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW.")
    warmup: float = Field(0.05, ge=0, le=1, description="Share of the steps with rising learning rate.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    uniform: float = Field(
        0.5, ge=0, le=1, description="Share of the weight spread evenly over the tokens in use, not by count."
    )
    check_every: int = Field(50, gt=0, description="Steps between measurements on the selection split.")
    patience: int = Field(6, gt=0, description="Measurements without improvement before training stops.")
    save_every: int = Field(100, gt=0, description="Steps between resumable states.")
    check_questions: int = Field(
        100,
        gt=0,
        description="Selection questions of a measurement where the LLM is at hand: their F1 is logged, and "
        "objectives that read the LLM are measured on them.",
    )
    checkpointing: bool = Field(
        False, description="Compute the LLM's activations twice instead of keeping them: less memory."
    )


class Phase(_Section):
    """A second phase of training, for where the first leaves too much of the LLM's F1 behind."""

    below: float = Field(
        0.85,
        gt=0,
        le=1,
        description="Share of the text row's F1 on the selection split under which the second phase is run.",
    )
    losses: Losses = Field(min_length=1, description="Terms of the second phase's objective, by plugin name.")
    train: TrainConfig = Field(
        default_factory=TrainConfig,
        description="Settings of `train` that the second phase changes; the others stay as they are.",
    )


class EvalConfig(_Section):
    """The evaluation."""

    limit: int | None = Field(600, gt=0, description="Test questions at most, spread over passages.")
    batch_size: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="Prompts per batch."
    )
    max_new_tokens: int = Field(32, gt=0, description="Longest answer (tokens).")
    resamples: int = Field(2000, gt=0, description="Bootstrap resamples behind the 95 % intervals.")


class RunConfig(_Section):
    """Everything that decides a run's result."""

    model: Annotated[ModelConfig, BeforeValidator(_component, json_schema_input_type=str | ModelConfig)] = (
        ModelConfig()
    )
    data: Annotated[DataConfig, BeforeValidator(_component, json_schema_input_type=str | DataConfig)] = (
        DataConfig()
    )
    compressor: FirstChoice = ComponentChoice(name="pca")
    chain: Links = Field(
        {}, description="Compressors that the code goes through after the first, in order: name → options."
    )
    adapter: Choice = ComponentChoice(name="residual")
    losses: Losses = Field(
        default={"recon": LossChoice()}, min_length=1, description="Terms of the objective, by plugin name."
    )
    magnitude: Literal["free", "vocab", "sent"] = Field(
        "free",
        description="Length of a rebuilt vector: as the adapter says, the vocabulary's mean RMS, or the "
        "original's RMS, transmitted and counted.",
    )
    scope: Literal["prompt", "context"] = Field("prompt", description="Which part of the prompt crosses.")
    raw_anchor: bool = Field(False, description="Leave the closing `\\nAnswer:` uncompressed.")
    keep_special: bool = Field(True, description="Special tokens (BOS) cross raw, whatever the scope.")
    init: Path | None = Field(
        None, description="Trained run whose bottleneck to start from, instead of the closed forms."
    )
    train: TrainConfig = TrainConfig()
    then: Phase | None = Field(
        None, description="Second phase, run where the first one's F1 on the selection split is too low."
    )
    eval: EvalConfig = EvalConfig()
    seed: int = Field(0, ge=0, lt=2**31, description="Seeds every source of randomness.")
    device: Literal["auto", "cpu", "cuda", "mps"] | Annotated[str, Field(pattern=r"^cuda:\d+$")] = Field(
        "auto", description="Where it runs; auto: the first GPU there is, else the CPU."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Type the LLM runs in; auto: float32 on the CPU, the model's own elsewhere."
    )
    log_with: list[Literal["tensorboard", "wandb"]] = Field(
        [], description="Experiment trackers that are told of the run, beside its own metrics.jsonl."
    )
    output: Path | None = Field(None, description="Run directory; default: a new one under `runs/`.")

    @model_validator(mode="after")
    def _complete_second_phase(self) -> "RunConfig":
        """Spell out `then.train`, so that it says everything by itself when it is written and read again."""
        if self.then is not None:
            changed = self.then.train.model_dump(exclude_unset=True)
            train = self.train.model_copy(update=changed)
            self.then = self.then.model_copy(update={"train": train})
        return self

    @property
    def compressors(self) -> tuple[str, ...]:
        """The names of all compressors, in the order in which the embeddings go through them."""
        return (self.compressor.name, *self.chain)

    def to_yaml(self) -> str:
        """The resolved configuration as YAML; `stage1 train` takes it back unchanged."""
        tree = self.model_dump(mode="json")
        # PyYAML does not read its own unescaped exotic line breaks (U+0085, U+2028) back as they were.
        printable = json.dumps(tree, ensure_ascii=False).isprintable()
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=printable)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UsageError: the file is missing, is not YAML, or holds no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read configuration {path}: {error.strerror}.", "Check the path.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2024-99-99
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}, column {where.column + 1}" if where else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise UsageError(
            f"{path} is not valid YAML{line}: {problem}.",
            "`stage1 config show` prints a valid file to start from.",
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(
            f"{path} holds a {type(content).__name__}, not settings by name.",
            "`stage1 config show` prints a valid file to start from.",
        )
    return content


def parse_setting(text: str) -> tuple[list[str], Any]:
    """`a.b=c` as (["a", "b"], c); c is read as YAML: 8, true, null and [1, 2] are what they look like."""
    key, equals, value = text.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or not all(path):
        raise UsageError(f"--set {text!r} is not KEY=VALUE.", "Write, for example, --set compressor.dim=64.")
    try:
        return path, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        return path, value


def format_setting(value: Any) -> str:
    """A setting's value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def parse_loss(text: str) -> tuple[str, dict[str, Any]]:
    """`cosine=0.1`, `kl=auto` or `kl=0.5@ramp:200` as name and settings; `recon` has weight 1."""
    name, equals, value = text.partition("=")
    remedy = "Write NAME, NAME=WEIGHT, NAME=auto or NAME=WEIGHT@ramp:STEPS, as in kl=0.5@ramp:200."
    if not name.strip():
        raise UsageError(f"--loss {text!r} names no loss.", remedy)
    choice = _loss(value if equals else 1.0)
    try:  # what is a number but not a valid one is told together with all that is wrong elsewhere
        if choice["weight"] != "auto":
            choice["weight"] = float(choice["weight"])
        if "ramp" in choice:
            choice["ramp"] = int(choice["ramp"])
    except ValueError:
        raise UsageError(f"--loss {text!r}: {value!r} is no weight.", remedy) from None
    return name.strip(), choice


DEFAULTS: dict[str, str] = {
    key: RunConfig.model_fields[key].default.name for key in ("compressor", "adapter")
}
"""The plugin a section means when it names none."""

DEFAULT_LOSSES: tuple[str, ...] = tuple(RunConfig.model_fields["losses"].default)
"""The terms of the objective when nothing names any."""


def _assign(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for depth, key in enumerate(path[:-1]):
        child = tree.get(key)
        if depth == 0 and key in ("model", "data", "compressor", "adapter"):
            child = _component(child)  # `compressor: pca` is short for `compressor: {name: pca}`
        elif path[:depth] in (["losses"], ["then", "losses"]):
            child = _loss(child)  # `recon: 0.1` is short for `recon: {weight: 0.1}`
        child = {} if child is None else child
        if not isinstance(child, dict):
            where = ".".join(path[: depth + 1])
            raise UsageError(
                f"--set {'.'.join(path)}: {where} holds a value, not options.",
                f"Set {where} itself, or correct the configuration file.",
            )
        tree[key] = child
        tree = child
    tree[path[-1]] = value


def overlay(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The tree `base` with what `over` says instead.

    Sections are merged key by key; losses, a chain, and a section that names its plugin, replace what was
    there.
    """
    tree = dict(base)
    for key, value in over.items():
        old = tree.get(key)
        if (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and key not in ("losses", "chain")
            and "name" not in value
        ):
            value = overlay(old, value)
        tree[key] = value
    return tree


def flat(tree: Mapping[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by their path: `{"a": {"b": 1}}` as `{"a.b": 1}`."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        leaves |= (
            flat(value, separator, f"{path}{separator}") if isinstance(value, Mapping) else {path: value}
        )
    return leaves


def merge(file: Mapping[str, Any], flags: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """One tree from a YAML file's, the flags given (dotted path → value) and the `--set` texts.

    A flag that names another plugin drops the options that the file gave to the one it replaces; losses in a
    file or a flag replace the default objective, and `--set losses.NAME…` adds to the objective there is.
    `--compressor` flags name the whole route, so one of them alone leaves no chain; a link that they name
    keeps the options that the file gave to it. `--set chain.NAME…` adds a link behind the others.
    """
    # An empty section, all of whose lines are commented out, reads as null: it leaves the defaults.
    tree: dict[str, Any] = {k: deepcopy(v) for k, v in file.items() if v is not None}
    for dotted, value in flags.items():
        section, _, key = dotted.partition(".")
        if key == "name" and section in ("compressor", "adapter"):
            old = _component(tree.get(section))
            if not isinstance(old, dict) or old.get("name", DEFAULTS[section]) != value:
                tree[section] = {}
        if dotted == "chain" and isinstance(value, Mapping) and isinstance(old := tree.get("chain"), Mapping):
            value = {name: old.get(name) if given is None else given for name, given in value.items()}
        _assign(tree, dotted.split("."), deepcopy(value))
    for text in settings:
        path, value = parse_setting(text)
        if path[0] == "losses" and len(path) > 1:
            tree.setdefault("losses", dict.fromkeys(DEFAULT_LOSSES))
        _assign(tree, path, value)
    for section, default in DEFAULTS.items():
        if isinstance(tree.get(section), dict):
            tree[section].setdefault("name", default)
    return tree


def validate(tree: Mapping[str, Any]) -> RunConfig:
    """The configuration in `tree`.

    Raises:
        ConfigError: with every issue found, each with its path and the choices.
    """
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(issues_of(error, RunConfig)) from None
