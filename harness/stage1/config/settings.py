"""What can be configured: pydantic sections with their defaults and descriptions."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

SUFFICES, NEARLY = 0.85, 0.60
"""Shares of the text F1 from which reconstruction suffices, or training must look at what the LLM does."""


class _Section(BaseModel):
    # Our own numbers are finite; an infinite option of a plugin must not become null when it is written.
    model_config = ConfigDict(
        extra="forbid", validate_default=True, allow_inf_nan=False, ser_json_inf_nan="constants"
    )


class _PluginChoice(BaseModel):
    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """The plugin's own options."""
        return dict(self.model_extra or {})


class ComponentChoice(_PluginChoice):
    """A plugin's name; every other key is an option of that plugin, checked once plugins are loaded."""

    name: str = Field(description="Name of the plugin, or `distribution:name`; see `stage1 plugins list`.")


class LossChoice(_PluginChoice):
    """A loss in the objective, under its plugin's name; other keys are options of that plugin."""

    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"] = Field(
        1.0,
        description="Factor of this term in the objective; auto: 1 / running mean of its values.",
    )
    ramp: int = Field(0, ge=0, description="Steps over which the weight rises from zero.")


def named(value: Any) -> Any:
    """`pca` is short for `{name: pca}`."""
    return {"name": value} if isinstance(value, str) else value


def weighted(value: Any) -> Any:
    """`0.5`, `auto` or `0.5@ramp:200` is short for a loss's weight and ramp."""
    if isinstance(value, str):  # `0.5@ramp:200`; a bare number too: `1e-3` is a string in YAML 1.1
        weight, at, ramp = value.partition("@ramp:")
        return {"weight": weight.strip(), "ramp": ramp.strip()} if at else {"weight": value}
    if isinstance(value, int | float):
        return {"weight": value}
    return {} if value is None else value


def _losses(value: Any) -> Any:
    return {k: weighted(v) for k, v in value.items()} if isinstance(value, Mapping) else value


Choice = Annotated[ComponentChoice, BeforeValidator(named, json_schema_input_type=str | ComponentChoice)]
Losses = Annotated[
    dict[str, LossChoice],
    BeforeValidator(_losses, json_schema_input_type=dict[str, LossChoice | float | str | None]),
]


class ModelConfig(_Section):
    """The frozen LLM."""

    name: str = Field(
        "tiny",
        description="A model plugin (`tiny` is embedded), a folder, a GGUF file, or a Hugging Face Hub id.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.")
    trust_remote_code: bool = Field(
        False,
        description="Run Python code that the model's folder brings; only typed, never from a file.",
    )


class FieldNames(_Section):
    """What a file or Hub data set calls its columns; a dotted path leads into nested ones."""

    id: str | None = Field(None, description="Column of the id; default: `id`, or another known name.")
    title: str | None = Field(None, description="Column of the title; default: `title`.")
    context: str | None = Field(None, description="Column of the passage; default: `context`.")
    question: str | None = Field(None, description="Column of the question; default: `question`.")
    answer: str | None = Field(None, description="Column of the answers; default: `answers` or `answer`.")


_TRAIN_AND_TEST = (
    re.compile(r"train=(?P<train_from>.+?),test=(?P<name>.+)", re.DOTALL),
    re.compile(r"test=(?P<name>.+?),train=(?P<train_from>.+)", re.DOTALL),
)


class DataConfig(_Section):
    """Questions and answers."""

    name: str = Field(
        "tiny-squad",
        description="What is asked: a data set (`stage1 plugins list`), a file, or owner/name on the Hub. "
        "`train=A,test=B` sets `train_from` too.",
    )
    train_from: str | None = Field(
        None,
        description="Where training and selection questions come from, as `name`; default: `name` itself, "
        "whose passages are dealt out where it has no splits of its own.",
    )
    config: str | None = Field(None, description="Configuration of a Hub data set; default: its only one.")
    split: str | None = Field(
        None, description="Split of a Hub data set that is asked; default: its validation or test split."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a Hub data set.")
    fields: FieldNames = FieldNames()
    strict: bool = Field(
        False, description="Refuse data with a bad record instead of leaving the record out."
    )
    split_seed: int = Field(
        0, ge=0, lt=2**31, description="Seeds the dealing out of passages; the run's own `seed` does not."
    )
    train: int = Field(10_000, gt=0, description="Training prompts at most.")
    selection: int = Field(1_000, gt=0, description="Prompts that choose the best checkpoint, at most.")
    gold: Literal["all", "first"] = Field("all", description="Which gold answers count as right.")
    max_prompt_tokens: int | None = Field(
        None, gt=0, description="Longest prompt (tokens); default: what the model's context leaves."
    )

    @model_validator(mode="before")
    @classmethod
    def _train_and_test(cls, tree: Any) -> Any:
        """`name: train=A,test=B` is short for both names."""
        name = tree.get("name") if isinstance(tree, Mapping) else None
        for form in _TRAIN_AND_TEST:
            if isinstance(name, str) and (match := form.fullmatch(name)):
                return {**tree, **match.groupdict()}
        return tree


class PromptConfig(_Section):
    """How a question is put to the LLM; `stage1 protocols` lists ready-made ways."""

    template: str = Field(
        "Context: {context}\nQuestion: {question}\nAnswer:",
        description="Text around {context} and {question}.",
    )
    instruction: str = Field("", description="Text in front of everything; in a chat, the system message.")
    shots: int = Field(0, ge=0, description="Examples with their answers in front of every question.")
    shots_cross: bool = Field(False, description="The examples cross the bottleneck too.")
    shots_seed: int = Field(0, ge=0, lt=2**31, description="Draws the examples from the training split.")
    chat: bool = Field(False, description="Ask through the tokenizer's chat template, examples as turns.")
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        ["\n"], description="Texts that end an answer, beside the model's own end."
    )
    truncate: Literal["context", "right"] = Field(
        "context", description="What a prompt that is too long loses: its context's end, or its own."
    )

    @field_validator("template")
    @classmethod
    def _has_both_fields(cls, template: str) -> str:
        try:
            fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
        except ValueError as error:
            raise ValueError(f"not a template: {error}; write {{{{ for a brace") from None
        if sorted(fields) != ["context", "question"]:
            raise ValueError("a template names {context} and {question} once each, and nothing else")
        return template


class TrainConfig(_Section):
    """The training loop."""

    until: Literal["converged", "steps"] = Field(
        "converged",
        description="converged: end where a doubling of the steps lowers the error by no more than 2 %; "
        "steps: make all of them, under a falling learning rate.",
    )
    steps: int = Field(3200, ge=0, description="Optimiser steps at most; 0 keeps the closed-form start.")
    vocabulary: Literal["all", "seen"] = Field(
        "all",
        description="Tokens that a token-wise bottleneck is trained on: all that the table has, or those in "
        "the training prompts.",
    )
    batch_tokens: int = Field(1024, gt=0, description="Tokens per step on the token-wise path.")
    batch_prompts: int = Field(16, gt=0, description="Prompts per step where the order of tokens matters.")
    lr: float = Field(3e-3, gt=0, description="Peak learning rate of AdamW.")
    lr_factors: dict[Literal["compressor", "adapter"], Annotated[float, Field(ge=0)]] = Field(
        {},
        description="Part of the bottleneck → what its learning rate is multiplied by; 0 freezes it.",
    )
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW.")
    warmup: int = Field(10, ge=0, description="Steps with rising learning rate.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    uniform: float = Field(
        0.5, ge=0, le=1, description="Share of the weight spread evenly over the tokens, not by count."
    )
    check_every: int = Field(50, gt=0, description="Steps between measurements on the selection split.")
    patience: int = Field(6, gt=0, description="Measurements without improvement before training stops.")
    save_every: int = Field(100, gt=0, description="Steps between resumable states.")
    check_prompts: int = Field(
        100, gt=0, description="Selection prompts that an objective which reads the LLM is measured on."
    )
    check_questions: int | None = Field(
        None,
        gt=0,
        description="Selection questions whose F1 is logged at a measurement, where the LLM is at hand; "
        "default: as many as take a tenth of the training's arithmetic, at most 100, or none if under 8.",
    )
    checkpointing: bool = Field(
        False, description="Compute the LLM's activations twice instead of keeping them: less memory."
    )


class Phase(_Section):
    """A second phase of training, for where the first leaves too much of the LLM's F1 behind."""

    below: float = Field(
        SUFFICES,
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

    model: Annotated[ModelConfig, BeforeValidator(named, json_schema_input_type=str | ModelConfig)] = (
        ModelConfig()
    )
    data: Annotated[DataConfig, BeforeValidator(named, json_schema_input_type=str | DataConfig)] = (
        DataConfig()
    )
    prompt: PromptConfig = PromptConfig()
    compressors: list[Choice] = Field(
        default=[ComponentChoice(name="pca")],
        min_length=1,
        description="The compressors, by plugin name; the code goes through each in turn.",
    )
    adapter: Choice = ComponentChoice(name="residual")
    losses: Losses = Field(
        default={"recon": LossChoice()}, min_length=1, description="Terms of the objective, by plugin name."
    )
    magnitude: Literal["free", "vocab", "sent"] = Field(
        "free",
        description="Norm of a reconstructed vector: as the adapter says, the vocabulary's mean RMS, or the "
        "original's RMS, sent and counted.",
    )
    scope: Literal["prompt", "context"] = Field(
        "prompt", description="Part of the prompt that is compressed."
    )
    raw_anchor: bool = Field(False, description="Leave the closing `\\nAnswer:` uncompressed.")
    keep_special: bool = Field(
        True, description="Leave special tokens (BOS) uncompressed, whatever the scope."
    )
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
    log_with: list[str] = Field(
        [],
        description="Experiment trackers (`stage1 plugins list`) that are told of the run, beside its own "
        "metrics.jsonl.",
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
    def compressor_names(self) -> list[str]:
        """The names of all compressors, in the order in which the embeddings go through them."""
        return [choice.name for choice in self.compressors]

    @property
    def compressor_paths(self) -> list[str]:
        """Where `--set` finds each compressor: `compressor` is the first, the others go by their names.

        One whose name stands twice, or means something else, goes by its place: `compressors.1`.
        """
        names = self.compressor_names
        taken = {*type(self).model_fields, "compressor"}
        paths = [
            f"compressors.{i}" if name in taken or names.count(name) > 1 or "." in name else name
            for i, name in enumerate(names)
        ]
        return ["compressor", *paths[1:]]

    def to_yaml(self) -> str:
        """The resolved configuration as YAML; `stage1 train` takes it back unchanged."""
        tree = self.model_dump(mode="json")
        # PyYAML does not read its own unescaped exotic line breaks (U+0085, U+2028) back as they were.
        printable = json.dumps(tree, ensure_ascii=False).isprintable()
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=printable)
