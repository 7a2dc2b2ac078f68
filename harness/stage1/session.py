"""What a command works on, loaded once: the frozen LLM with its tokenizer and table, and the questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.config import DataConfig, ModelConfig, RunConfig, granted
from stage1.data.datasets import QAData, TrainedOn, load_qa, passage_hash
from stage1.data.prompts import Crossing, Prompt, PromptBuilder
from stage1.data.records import Question
from stage1.data.sources import found_anywhere as data_found_anywhere
from stage1.data.template import draw_examples
from stage1.errors import ConfigError, UsageError
from stage1.files import whole_path
from stage1.llm.configuration import config_file, context_length
from stage1.llm.hashes import model_sha256
from stage1.llm.location import found_anywhere as model_found_anywhere
from stage1.llm.location import locate
from stage1.llm.model import attention_backends, load_llm, pick_device
from stage1.llm.table import load_table, table_sha256
from stage1.llm.tokenizer import load_tokenizer
from stage1.plugins import load_plugins, magnitude_clash
from stage1.progress import Progress
from stage1.runs.run import Run


class FrozenModel:
    """One LLM and what belongs to it. The weights are loaded, and its files hashed, when first asked for.

    Args:
        settings: which one.
        dtype: type it runs in, or `auto`.
        device: where it runs, or `auto`.
        progress: told of downloads and of loading.
        weights: what a model on the Hub has to be downloaded for.

    Raises:
        UsageError: there is no such model or device, or it cannot be used.
    """

    def __init__(
        self,
        settings: ModelConfig,
        *,
        dtype: str,
        device: str,
        progress: Progress,
        weights: Literal["table", "all"] = "all",
    ) -> None:
        self.settings, self.dtype, self._progress = settings, dtype, progress
        self.device: torch.device = pick_device(device)
        self.folder: Path = locate(settings, weights=weights, progress=progress)
        trust = settings.trust_remote_code
        self.tokenizer: PreTrainedTokenizerFast = load_tokenizer(self.folder, trust_remote_code=trust)
        table = load_table(self.folder, trust)
        self.table_hash: str = table_sha256(table)
        self.table: Tensor = table.to(self.device)  # [V, D], in the type it is stored in
        self._asked_for = (settings, dtype, device, weights)

    def serves(self, config: RunConfig, weights: Literal["table", "all"]) -> bool:
        """Whether this is the model that `config` asks for, as it asks for it."""
        settings, dtype, device, own = self._asked_for
        same = (config.model, config.dtype, config.device) == (settings, dtype, device)
        return same and weights in (own, "table")

    @cached_property
    def llm(self) -> PreTrainedModel:
        """The whole model, frozen.

        Raises:
            UsageError: it cannot be used, or its embeddings are not those of the table.
        """
        with self._progress.task("Loading the LLM"):
            llm = load_llm(
                self.folder,
                dtype=self.dtype,
                device=self.device,
                trust_remote_code=self.settings.trust_remote_code,
            )
        _refuse_other_embeddings(llm, self.table)
        return llm

    @property
    def attention(self) -> dict[str, Any] | None:
        """How the LLM attends: transformers' implementation, PyTorch's backends; None if it is not loaded."""
        if "llm" not in vars(self):
            return None
        return {"implementation": self.llm.config._attn_implementation, "backends": attention_backends()}

    @cached_property
    def sha256(self) -> str:
        """A hash of every file that decides what it answers."""
        with self._progress.task("Hashing the model"):
            return model_sha256(self.folder, self.settings.trust_remote_code)

    @cached_property
    def context_length(self) -> int | None:
        """Tokens that it was made for, prompt and answer together; None where it does not say."""
        return context_length(self.folder, self.settings.trust_remote_code)


def _refuse_other_embeddings(model: PreTrainedModel, table: Tensor) -> None:
    """A model's own code may do to its embeddings what cannot be told without its weights."""
    some = torch.arange(0, len(table), max(1, len(table) // 1000), device=table.device)
    ours, rounding = table[some].float(), torch.finfo(model.dtype).eps
    if not torch.allclose(model.get_input_embeddings()(some).float(), ours, rtol=2 * rounding, atol=0):
        raise UsageError(
            f"{type(model).__name__} changes its embeddings after looking them up, in an unknown way.",
            "Use a model of the Llama family.",
        )


@dataclass(frozen=True)
class Session:
    """A configuration with the model and the questions that it names."""

    config: RunConfig
    model: FrozenModel
    progress: Progress
    questions: QAData | None = None  # None: none were asked for
    example_pool: Sequence[Question] | None = None  # where examples are drawn; None: the training split

    @classmethod
    def open(
        cls,
        config: RunConfig,
        progress: Progress,
        *,
        weights: Literal["table", "all"] = "all",
        data: Literal["splits", "none"] = "splits",
        trained_on: TrainedOn | None = None,
        example_data: DataConfig | None = None,
        before: "Session | None" = None,
    ) -> "Session":
        """Load what `config` names.

        Args:
            config: the configuration.
            progress: told what is loaded, and of what is odd.
            weights: `table` where nothing will be asked of the LLM itself.
            data: whether the questions are wanted.
            trained_on: by what the questions are known as a run's own or as others, see `load_qa`.
            example_data: where examples are drawn from where the questions have no training split.
            before: a session whose model is used on, if it is the same.

        Raises:
            UsageError: model, device or data cannot be used.
        """
        if before is not None and before.model.serves(config, weights):
            model = before.model
        else:
            model = FrozenModel(
                config.model, dtype=config.dtype, device=config.device, progress=progress, weights=weights
            )
        questions = None if data == "none" else _questions(config, progress, trained_on)
        pool = None
        if example_data is not None and config.prompt.shots and not (questions and questions.train):
            asked = {passage_hash(q) for q in questions.test} if questions else set()
            pool = [q for q in load_qa(example_data).train if passage_hash(q) not in asked]
        session = cls(config, model, progress, questions, pool)
        return session if questions is None else session._without_too_long()

    def _without_too_long(self) -> "Session":
        """The session without questions that do not fit into a prompt even without their passage."""
        data, room = self.data, self.longest_prompt
        long = self.builder().too_long([*data.train, *data.selection, *data.test], room)
        if not long:
            return self
        reason = f"too long for a prompt of {room} tokens"
        if self.config.data.strict or long.issuperset(data.test):
            raise UsageError(
                f"{data.name}: {len(long)} questions, {min(long).id!r} among them, are {reason}.",
                "Leave them out, raise data.max_prompt_tokens, or use a model with a longer context.",
            )
        data = data.without(long, f"a question {reason}")
        self.progress.note(data.notes[-1])
        return replace(self, questions=data)

    def under(self, config: RunConfig) -> "Session":
        """The same model and questions under another configuration, which must name the same."""
        return replace(self, config=config)

    @property
    def table(self) -> Tensor:
        """The embedding table [V, D]."""
        return self.model.table

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The model's tokenizer, padding on the left."""
        return self.model.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.device

    @property
    def data(self) -> QAData:
        """The questions."""
        if self.questions is None:
            raise ValueError("This session was opened without questions.")
        return self.questions

    def prompts(self, questions: Sequence[Question], *, with_context: bool = True) -> list[Prompt]:
        """The questions as the protocol puts them, within the model's length."""
        builder = self.builder(with_context=with_context)
        return builder.build(questions, self.crossing, max_tokens=self.longest_prompt)

    @property
    def crossing(self) -> Crossing:
        """What of a prompt crosses the bottleneck."""
        config = self.config
        return Crossing(config.scope, config.raw_anchor, config.keep_special, config.prompt.shots_cross)

    def answer_ids(self, questions: list[Question], prompts: list[Prompt]) -> list[list[int]]:
        """The gold continuations of prompts as token ids."""
        return self.builder().answer_ids(questions, prompts)

    def builder(self, *, with_context: bool = True) -> PromptBuilder:
        """What puts a question as the protocol says."""
        return PromptBuilder(self.config.prompt, self.tokenizer, self.examples, with_context=with_context)

    @cached_property
    def examples(self) -> list[Question]:
        """The questions that are shown with their answers, drawn from the training split.

        Where they would take more than half of the longest prompt, as many as fit are left: they are the same
        for all questions, and a context is worth more than an example.
        """
        prompt, pool = self.config.prompt, self.example_pool
        if not prompt.shots:
            return []
        drawn = draw_examples(self.data.train if pool is None else pool, prompt.shots, prompt.shots_seed)
        fitting = drawn
        while (
            fitting
            and PromptBuilder(prompt, self.tokenizer, fitting).head_tokens() > self.longest_prompt // 2
        ):
            fitting = fitting[:-1]
        if len(fitting) < len(drawn):
            self.progress.note(
                f"Only {len(fitting)} of {len(drawn)} examples are shown: more would take half of a prompt."
            )
        return fitting

    @property
    def context_length(self) -> int:
        """Tokens that prompt and answer may have together.

        Raises:
            UsageError: neither the model nor the configuration sets a limit.
        """
        if self.model.context_length is not None:
            return self.model.context_length
        if self.config.data.max_prompt_tokens is not None:
            return self.config.data.max_prompt_tokens + self.config.eval.max_new_tokens
        raise UsageError(
            f"{config_file(self.model.folder)} does not say how long a prompt may be.",
            "Say it: --set data.max_prompt_tokens=512",
        )

    @property
    def longest_prompt(self) -> int:
        """Tokens a prompt may have, so that the answer still fits into the model's context.

        Raises:
            UsageError: the configuration asks for more than there is.
        """
        length, new = self.context_length, self.config.eval.max_new_tokens
        wanted = self.config.data.max_prompt_tokens
        if length - new < (wanted or 1):
            raise UsageError(
                f"The model's context holds {length} tokens; {wanted or 1} for the prompt and {new} for the "
                "answer do not fit.",
                "Lower data.max_prompt_tokens or eval.max_new_tokens.",
            )
        return wanted or length - new

    @cached_property
    def special(self) -> Tensor:
        """[S] ids of the special tokens."""
        return torch.tensor(self.tokenizer.all_special_ids, device=self.device)

    def load_bottleneck(self, run: Run) -> Bottleneck:
        """The bottleneck of a trained run, its magnitude as this session's configuration says."""
        return Bottleneck.from_pretrained(run.path, table=self.table, magnitude=self.config.magnitude)


def _questions(config: RunConfig, progress: Progress, trained_on: TrainedOn | None) -> QAData:
    with progress.task(f"Reading {config.data.name}"):
        questions = load_qa(config.data, trained_on=trained_on)
    for note in questions.notes:
        progress.note(note)
    return questions


def found_anywhere(config: RunConfig) -> RunConfig:
    """`config` with the places of model, data and first bottleneck as whole paths.

    A run keeps them like this: from whichever folder it is asked, it finds what it was made of.

    Raises:
        UsageError, PluginError: see `Registry.model`.
    """
    data = config.data
    places = {
        "name": data_found_anywhere(data.name),
        "train_from": data.train_from and data_found_anywhere(data.train_from),
    }
    model = {"name": model_found_anywhere(config.model.name)}
    return config.model_copy(
        update={
            "model": config.model.model_copy(update=model),
            "data": data.model_copy(update=places),
            "init": config.init and whole_path(config.init),
        }
    )


def changed(run: Run, overrides: Mapping[str, Any]) -> RunConfig:
    """A trained run's configuration with `overrides` (dotted path → value).

    Raises:
        UsageError: it is not trained, an override cannot be used, or `model.trust_remote_code` must be one.
    """
    run.require_trained()
    own = run.config
    config = granted(run.settings, overrides, [])
    if config.magnitude != own.magnitude:
        registry = load_plugins()
        route = [(name, registry.get("compressor", name)) for name in config.compressor_names]
        if issues := list(magnitude_clash(config, route, registry)):
            raise ConfigError(issues)
    return config
