"""What a plugin author fills in: one class, one method.

The base owns the life cycle (seeding, fitting, saving, loading, moving between devices); a component
fills in `forward`. Every component has a nested `Config`, a pydantic model whose field descriptions are
its documentation: `--set compressor.dim=64` reaches the field `dim`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from stage1.errors import ConfigError, ConfigIssue
from stage1.plugins.tensors import Code, LossInputs, TokenStats

Split = Literal["train", "selection", "test"]
"""Questions to train on, to choose the best checkpoint with, and to report."""

Encode = Callable[[Tensor], Tensor]
"""A fitted compressor as an adapter sees it: rows [U, D] in, codes [U, d] as the wire delivers them out."""


class ComponentConfig(BaseModel):
    """Base of every component's options; an unknown option is an error."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class SizeConfig(ComponentConfig):
    """Options of a compressor that keeps `dim` numbers of each vector."""

    ratio: float = Field(8.0, ge=1, description="Width of the LLM's embeddings divided by the code's.")
    dim: int | None = Field(
        None, gt=0, description="Width of the code (dimensions); overrides `ratio` when it is given."
    )

    def width(self, embed_dim: int) -> int:
        """The code's width for embeddings of width `embed_dim`.

        Raises:
            ConfigError: `dim` is larger than `embed_dim`.
        """
        if self.dim is not None and self.dim > embed_dim:
            message = f"{self.dim} is larger than the width of what is compressed; choose 1 to {embed_dim}."
            raise ConfigError([ConfigIssue("compressor.dim", message)])
        return self.dim or max(1, round(embed_dim / self.ratio))

    def achieved(self, embed_dim: int) -> float:
        """The ratio that comes of it: `ratio` itself, where a whole width changes it by no more than 2 %."""
        ratio = embed_dim / self.width(embed_dim)
        return self.ratio if self.dim is None and abs(ratio / self.ratio - 1) <= 0.02 else round(ratio, 1)


class Component(nn.Module, ABC):
    """What the three families share."""

    name: ClassVar[str]
    """What the user types."""

    Config: ClassVar[type[BaseModel]] = ComponentConfig
    """The component's options."""

    tokenwise: bool = True
    """The promise that output *i* depends on input *i* alone. It unlocks the fast path. Set on the class."""

    config: Any
    """The validated options, an instance of `Config`."""


class Compressor(Component):
    """Shrinks embeddings to a code.

    Parameters and buffers are saved with the run. The module is built on the CPU under the run's seed, so
    any random initial value is reproducible.
    """

    changes_length: bool = False
    """True if M may differ from L; such a compressor is never `tokenwise`."""

    wire_dtype: torch.dtype | None = torch.bfloat16
    """The harness rounds the code to this type before the adapter sees it and charges its bits.
    None: the code is sent as it is, and `bits` says what that costs (a quantiser)."""

    needs_fit: ClassVar[bool] = True
    """False if there is nothing to fit. `fit` sees each token's own code, which it has only behind token-wise
    compressors; what needs no fit may stand behind any other."""

    needs_llm: ClassVar[bool] = False
    """True if `fit` asks for `stats.sensitivity`: the LLM is loaded, and the compressor must stand first."""

    def __init__(self, config: Any, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.embed_dim = embed_dim  # D

    @property
    def code_dim(self) -> int:
        """d, the width of a code vector; D unless the component says otherwise."""
        return self.embed_dim

    @classmethod
    def rates(cls, config: Any, embed_dim: int) -> Sequence[Mapping[str, Any]]:
        """The options that set the rate: a mapping for each rate there is, from few bits to many. Optional.

        `stage1 frontier` searches among them, by `code_dim` or by `bits` of the compressor as it is built. A
        `SizeConfig` has one for each width; whoever rounds to 2^b levels returns `[{"bits": 1}, …]`.

        Args:
            config: the options as the user gave them, an instance of `Config`; those named here replace its.
            embed_dim: D, the width of what is compressed.
        """
        if isinstance(config, SizeConfig):
            return [{"dim": dim} for dim in range(1, embed_dim + 1)]
        return []

    def fit(self, stats: TokenStats) -> None:
        """Learn from the training prompts' tokens, before the adapter is there. Optional.

        In closed form or by gradient: gradients are on, and torch's default generator is seeded. An
        implementation may also name `seed: int = 0` (the run's, for other generators) and
        `progress: Progress = SILENT` (to show how long it takes). Parameters of which it turns off
        `requires_grad` stay as they are from then on.
        """

    @abstractmethod
    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        """Compress `embeds` [B, L, D] at the positions where `mask` [B, L] is true.

        `Code(vectors, mask)` is all that a compressor returns: one vector a position, unless it
        `changes_length`.
        """

    def bits(self, code: Code) -> Tensor:
        """What each vector of `code` costs: [B, M] bits, by default `code_dim` values of `wire_dtype`.

        `code` is as it comes off the wire. The bits may differ from vector to vector and depend on the
        vectors: an entropy coder's are −log₂ of the probability that sender and receiver give to each.
        Where they have a gradient, a loss can make the code cheaper (`inputs.code.bits`).
        """
        if self.wire_dtype is None:
            raise NotImplementedError(f"{type(self).__name__} has no wire_dtype: define bits(code).")
        whole = self.code_dim * torch.finfo(self.wire_dtype).bits
        return torch.full(code.mask.shape, float(whole), device=code.mask.device)

    def symbols(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """What a quantiser sends for each vector: [B, M, n], a number for each of n symbols. Optional.

        What the bits would be if each of the n had an ideal entropy coder of its own is then reported
        beside the rate.

        Raises:
            NotImplementedError: what it sends has no symbols to be counted.
        """
        raise NotImplementedError

    def inverse(self, code: Code) -> Tensor:
        """The best linear decoder the compressor itself knows: [B, M, d] to [B, M, D]. Optional.

        Raises:
            NotImplementedError: it knows none; the evaluation then has no `linear` row.
        """
        raise NotImplementedError


class Adapter(Component):
    """Reconstructs embeddings from a code."""

    needs_tokenwise: ClassVar[bool] = False
    """True if the adapter only works behind a token-wise compressor."""

    def __init__(self, config: Any, code_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.code_dim = code_dim  # d
        self.embed_dim = embed_dim  # D

    def warm_start(self, encode: Encode, stats: TokenStats) -> None:
        """Start from a closed form, usually the least-squares decoder of the codes. Optional."""

    def solve_last_layer(self, encode: Encode, stats: TokenStats) -> None:
        """Solve the last layer in closed form, which is linear given the rest. Optional.

        Called wherever it is tried what a training on distinct tokens comes to, at its end and whenever its
        steps have doubled, under an objective with a loss that says `least_squares` and none that is
        `contrastive`; `stats` are the tokens trained on with their weights. The result is kept only if it
        lowers the selection error, and training goes on without it.
        """

    def receive_table(self, encode: Encode, table: Tensor) -> None:
        """Called after building and after loading with what the receiver owns anyway. Optional.

        Args:
            encode: turns rows of the table into codes as they come off the wire.
            table: the LLM's own embedding table [V, D]. What is derived from it belongs in buffers
                registered with `persistent=False`: it is not part of the checkpoint.
        """

    @abstractmethod
    def forward(self, code: Code) -> Tensor:
        """Embeddings [B, M, D] from `code.vectors` [B, M, d]."""


class Loss(Component):
    """A term of the training objective.

    What a loss says of itself it says on its class. The flags imply each other: `teacher_forced` makes
    `needs_llm` true, and `needs_llm` makes `tokenwise` false.
    """

    tokenwise: bool = False
    """True if it looks at one position at a time and is `inputs.mean(…)` of what it finds: tokens may then
    come from anywhere, and training goes over distinct tokens, hundreds of times faster than over prompts."""

    contrastive: ClassVar[bool] = False
    """True if it holds positions against the others of their batch: its value depends on the batch's size,
    and on how it is worked off. With `tokenwise` each position's own part is still a weighted mean."""

    needs_llm: ClassVar[bool] = False
    """True if it reads `inputs.llm`; the LLM is loaded only then, and training goes prompt by prompt."""

    teacher_forced: ClassVar[bool] = False
    """True if it reads `inputs.llm.answers`: the gold answer's own embeddings, which no evaluation has.
    Runs trained so are marked wherever they are shown."""

    requires_same_length: ClassVar[bool] = True
    """True if it compares each position with its own reconstruction, which a compressor that changes the
    length rules out. False if it reads the code, the answers, or what `inputs.llm.compared` says alone."""

    least_squares: ClassVar[bool] = False
    """True if weighted least squares minimises it, so that training may end with
    `Adapter.solve_last_layer`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.teacher_forced:
            cls.needs_llm = True
        if cls.needs_llm:
            cls.tokenwise = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def layers(self) -> tuple[int, ...] | None:
        """Which layers' outputs (1 is the first) it reads of `inputs.llm`; None: the last states.

        Where no loss reads the last states, the LLM is run only as far as the deepest of these layers.
        """
        return None

    @abstractmethod
    def forward(self, inputs: LossInputs) -> Tensor:
        """A scalar, lower is better; the docstring says its unit (nats, or none)."""

    def denominator(self, inputs: LossInputs) -> Tensor:
        """What `forward` divides by, a scalar: the summed weights of the positions that crossed.

        A loss that averages over something else (the answer's tokens, say) returns their number. A batch
        that is worked off in parts, by several processes, or both has the parts' values for its own, each
        weighted by its denominator.
        """
        return inputs.weights.sum()


class Dataset(ABC):
    """Questions about passages, under a name that `--data` takes. It is built without arguments."""

    name: ClassVar[str]
    """What the user types."""

    splits: ClassVar[tuple[Split, ...]] = ("test",)
    """The splits it has of its own. Of `test` alone, the harness deals out all passages: 80 % train, 10 %
    selection, 10 % test; of `train` and `test`, a tenth of the training passages to selection."""

    @abstractmethod
    def records(self, split: Split, at_least: int | None) -> Iterable[Mapping[str, Any]]:
        """The questions of one of `splits`, in an order of their own that never changes.

        Each is a mapping with `id`, `context`, `question` and `answers`, a list of texts, and may have a
        `title`. What cannot be asked is left out and counted, as in a file.

        Args:
            split: one of `splits`.
            at_least: how many will be used: a generator may stop there. None: all.
        """


class Model(ABC):
    """A model that a package brings or knows where to find: a folder of transformers, or a GGUF file.

    The first line of the docstring is what `stage1 plugins list` shows.
    """

    name: ClassVar[str]
    """What the user types: `--model NAME`."""

    @abstractmethod
    def path(self) -> Path:
        """Where it lies: an absolute path. It is asked for when the model is, not before.

        Raises:
            UsageError: it is not installed here; with the command that brings it.
        """
