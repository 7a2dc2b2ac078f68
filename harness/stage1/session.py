"""What a command works on: the model's folder, its tokenizer and embedding table, and the questions."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.config import RunConfig, merge, validate
from stage1.data.datasets import QAData, load_qa
from stage1.data.prompts import Prompt, build_prompts
from stage1.data.records import Question
from stage1.errors import ConfigError, UsageError
from stage1.llm.loading import context_length, load_table, load_tokenizer, locate, pick_device, table_sha256
from stage1.plugins import load_plugins, magnitude_clash
from stage1.progress import Progress
from stage1.runs.run import Run


@dataclass(frozen=True)
class ModelInputs:
    """The model's parts that need no weights but the embedding table."""

    config: RunConfig
    folder: Path  # the model's
    tokenizer: PreTrainedTokenizerFast
    table: Tensor  # [V, D], in the type it is stored in
    table_hash: str
    device: torch.device


@dataclass(frozen=True)
class Inputs(ModelInputs):
    """The same, with the questions."""

    data: QAData

    def prompts(self, questions: list[Question], *, with_context: bool = True) -> list[Prompt]:
        """The questions as prompts under the run's scope and length."""
        return build_prompts(
            questions,
            self.tokenizer,
            scope=self.config.scope,
            raw_anchor=self.config.raw_anchor,
            keep_special=self.config.keep_special,
            max_tokens=longest_prompt(self.config, self.folder),
            with_context=with_context,
        )


def longest_prompt(config: RunConfig, folder: Path) -> int:
    """Tokens a prompt may have, so that the answer still fits into the model's context.

    Raises:
        UsageError: the configuration asks for more than there is.
    """
    length = context_length(folder, config.model.trust_remote_code)
    room = length - config.eval.max_new_tokens
    wanted = config.data.max_prompt_tokens
    if room < 1 or (wanted is not None and wanted > room):
        raise UsageError(
            f"The model's context holds {length} tokens; {wanted or 1} for the prompt and "
            f"{config.eval.max_new_tokens} for the answer do not fit.",
            "Lower data.max_prompt_tokens or eval.max_new_tokens.",
        )
    return wanted or room


def load_model_inputs(
    config: RunConfig, progress: Progress, *, weights: Literal["table", "all"]
) -> ModelInputs:
    """Load what the configuration says of the model. `weights`: what a Hub model has to be downloaded for."""
    device = pick_device(config.device)
    folder = locate(config.model, weights=weights, progress=progress)
    tokenizer = load_tokenizer(folder, trust_remote_code=config.model.trust_remote_code)
    table = load_table(folder, config.model.trust_remote_code)
    return ModelInputs(config, folder, tokenizer, table.to(device), table_sha256(table), device)


def load_inputs(
    config: RunConfig,
    progress: Progress,
    *,
    weights: Literal["table", "all"],
    everything_is_test: bool = False,
) -> Inputs:
    """Load what the configuration names, questions included."""
    model = load_model_inputs(config, progress, weights=weights)
    with progress.task(f"Reading {config.data.name}"):
        data = load_qa(config.data, config.seed, everything_is_test=everything_is_test)
    if data.unanswerable:
        progress.note(f"{data.unanswerable} unanswerable questions were left out.")
    return Inputs(**vars(model), data=data)


def changed(run: Run, overrides: Mapping[str, Any]) -> tuple[RunConfig, RunConfig]:
    """A trained run's configuration, and the same with `overrides`."""
    run.require_trained()
    own = run.config
    config = validate(merge(own.model_dump(mode="json"), overrides, []))
    if config.magnitude != own.magnitude:
        registry = load_plugins()
        route = [(name, registry.get("compressor", name)) for name in config.compressors]
        if issues := list(magnitude_clash(config, route, registry)):
            raise ConfigError(issues)
    return own, config


def load_run(run: Run, overrides: Mapping[str, Any], progress: Progress) -> tuple[ModelInputs, Bottleneck]:
    """A trained run's model and its bottleneck, without any questions.

    Raises:
        UsageError: as `evaluate_run`.
    """
    _, config = changed(run, overrides)
    inputs = load_model_inputs(config, progress, weights="all")
    return inputs, load_bottleneck(run, inputs)


def load_bottleneck(run: Run, inputs: ModelInputs) -> Bottleneck:
    """The bottleneck of a trained run, its magnitude as the configuration of `inputs` says."""
    bottleneck = Bottleneck.from_pretrained(run.path, table=inputs.table)
    bottleneck.magnitude = inputs.config.magnitude
    return bottleneck
