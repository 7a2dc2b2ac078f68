"""Adapters and losses that break one promise each, for the tests of the conformance suites."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from broken_compressors import KeepConfig
from stage1.plugins.interfaces import Adapter, Encode, Loss
from stage1.plugins.tensors import Code, LossInputs, TokenStats


class Decode(Adapter):
    """A matrix and the table's mean: what each broken one below differs from."""

    name = "decode"
    Config: ClassVar[Any] = KeepConfig

    def __init__(self, config: Any, code_dim: int, embed_dim: int) -> None:
        super().__init__(config, code_dim, embed_dim)
        self.weight = nn.Parameter(torch.randn(code_dim, embed_dim))
        self.mean: Tensor
        self.centre: Tensor
        self.register_buffer("mean", torch.zeros(embed_dim))
        self.register_buffer("centre", torch.zeros(embed_dim), persistent=False)

    def warm_start(self, encode: Encode, stats: TokenStats) -> None:
        self.mean.copy_(stats.mean)

    def receive_table(self, encode: Encode, table: Tensor) -> None:
        self.centre = table.mean(0)

    def decoded(self, vectors: Tensor) -> Tensor:
        return vectors @ self.weight + self.mean + self.centre

    def forward(self, code: Code) -> Tensor:
        return self.decoded(code.vectors)


class ReturnsTheCode(Decode):
    """Not what the LLM reads."""

    def forward(self, code: Code) -> Tensor:
        return super().forward(code)[..., :-1]


class DividesByZero(Decode):
    """The last layer has no solution."""

    def solve_last_layer(self, encode: Encode, stats: TokenStats) -> None:
        self.weight.fill_(float("nan"))


class CentresTheTable(Decode):
    """The LLM's own rows are moved."""

    def receive_table(self, encode: Encode, table: Tensor) -> None:
        super().receive_table(encode, table)
        table.sub_(self.centre)


class SmoothsPadding(Decode):
    """It admits that it looks around, and looks at what was not sent."""

    tokenwise = False

    def forward(self, code: Code) -> Tensor:
        return self.decoded(code.vectors + 0.1 * code.vectors.mean(1, keepdim=True))


class DetachesTheCode(Decode):
    """A trained compressor learns nothing."""

    def forward(self, code: Code) -> Tensor:
        return self.decoded(code.vectors.detach())


class FrozenByMistake(Decode):
    """Its weight is never trained."""

    def decoded(self, vectors: Tensor) -> Tensor:
        return vectors @ self.weight.detach() + self.mean


class ForgetsItsStart(Decode):
    """A number on the module is saved by nobody."""

    shift = 0.0

    def warm_start(self, encode: Encode, stats: TokenStats) -> None:
        self.shift = float(stats.embeds.max())

    def decoded(self, vectors: Tensor) -> Tensor:
        return super().decoded(vectors) + self.shift


class SavesTheTable(Decode):
    """Every checkpoint holds the vocabulary."""

    def __init__(self, config: Any, code_dim: int, embed_dim: int) -> None:
        super().__init__(config, code_dim, embed_dim)
        self.table: Tensor
        self.register_buffer("table", torch.zeros(0, embed_dim))

    def receive_table(self, encode: Encode, table: Tensor) -> None:
        super().receive_table(encode, table)
        self.table = table


BROKEN_ADAPTERS: list[tuple[type[Adapter], str, str]] = [
    (ReturnsTheCode, "shapes gradients", "forward returned (1, 1, 31) for codes (1, 1, 8)"),
    (DividesByZero, "closed_forms", "after warm_start and solve_last_layer, weight holds"),
    (CentresTheTable, "closed_forms gradients", "writes into the embeddings"),
    (SmoothsPadding, "padding_invariance batch_invariance", "what stands in padded positions"),
    (DetachesTheCode, "gradients", "no gradient reaches the code"),
    (FrozenByMistake, "gradients", "no gradient reaches weight"),
    (ForgetsItsStart, "save_and_load", "reconstructs differently"),
    (SavesTheTable, "table_is_not_saved save_and_load", "table grows with the vocabulary"),
]


class Squared(Loss):
    """Mean squared error: what each broken one below differs from."""

    name = "squared"
    tokenwise = True
    Config: ClassVar[Any] = KeepConfig

    def error(self, inputs: LossInputs) -> Tensor:
        return (inputs.reconstruction - inputs.original).square().mean(-1)

    def forward(self, inputs: LossInputs) -> Tensor:
        return inputs.mean(self.error(inputs)) / inputs.variance


class Reward(Squared):
    """Higher is better."""

    def forward(self, inputs: LossInputs) -> Tensor:
        return -super().forward(inputs)


class OneEach(Squared):
    """A value for each prompt."""

    def forward(self, inputs: LossInputs) -> Tensor:
        return super().forward(inputs)[None]


class CountsPadding(Squared):
    """Every position is alike."""

    tokenwise = False

    def forward(self, inputs: LossInputs) -> Tensor:
        return self.error(inputs).mean() / inputs.variance


class Sum(Squared):
    """Larger batches have larger losses."""

    tokenwise = False

    def forward(self, inputs: LossInputs) -> Tensor:
        crossed = inputs.weights > 0
        return (self.error(inputs) * crossed).sum() / inputs.variance


class UnitOfWeights(Squared):
    """So do heavier weights."""

    tokenwise = False

    def forward(self, inputs: LossInputs) -> Tensor:
        crossed = inputs.weights > 0
        return (self.error(inputs) * inputs.weights).sum() / crossed.sum() / inputs.variance


class Smoothness(Squared):
    """It compares neighbours, and says that it looks at each position alone."""

    def forward(self, inputs: LossInputs) -> Tensor:
        near = (inputs.weights[:, 1:] > 0) & (inputs.weights[:, :-1] > 0)
        off = inputs.reconstruction - inputs.original
        steps = (off[:, 1:] - off[:, :-1]).square().mean(-1) * near
        return super().forward(inputs) + steps.sum() / near.sum().clamp(min=1) / inputs.variance


class Root(Squared):
    """No mean over positions: the batch's root mean square."""

    def forward(self, inputs: LossInputs) -> Tensor:
        return super().forward(inputs).sqrt()


class AnyLength(Squared):
    """It does compare position with position."""

    requires_same_length = False


class NoGradient(Squared):
    """Nothing is learned from it."""

    def error(self, inputs: LossInputs) -> Tensor:
        return (inputs.reconstruction.detach() - inputs.original).square().mean(-1)


class Learns(Squared):
    """No optimiser is given its parameter."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, inputs: LossInputs) -> Tensor:
        return super().forward(inputs) * self.factor


class Remembers(Squared):
    """A resumed run does not know how often it was asked."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.count: Tensor
        self.register_buffer("count", torch.zeros(()))

    def forward(self, inputs: LossInputs) -> Tensor:
        if self.training:
            self.count += 1
        return super().forward(inputs)


class WantsTheLLMForNothing(Squared):
    """A model is loaded and run, and nobody reads what it says."""

    needs_llm = True
    tokenwise = False


class LastStates(Squared):
    """Honest: compares what the LLM makes of both prompts."""

    needs_llm = True
    tokenwise = False

    def error(self, inputs: LossInputs) -> Tensor:
        both = (inputs.llm.student.prompt, inputs.llm.teacher.prompt)
        ours, wanted = (states[inputs.llm.ordinary] for states in both)
        return (ours - wanted).square().mean()

    def forward(self, inputs: LossInputs) -> Tensor:
        return self.error(inputs)

    def denominator(self, inputs: LossInputs) -> Tensor:
        return inputs.llm.ordinary.sum()


class LLMBySurprise(LastStates):
    """It does not say that it reads the LLM."""

    needs_llm = False


class AnswersForNothing(LastStates):
    """Every run with it would be marked."""

    teacher_forced = True


class ThawsTheLLM(LastStates):
    """The head would be trained."""

    def forward(self, inputs: LossInputs) -> Tensor:
        inputs.llm.head.requires_grad_(True)  # type: ignore[attr-defined]
        return super().forward(inputs)


class NoLeastSquares(Squared):
    """Least squares does not minimise an angle."""

    least_squares = True

    def error(self, inputs: LossInputs) -> Tensor:
        return 1 - cosine_similarity(inputs.reconstruction, inputs.original, dim=-1, eps=1e-12)


BROKEN_LOSSES: list[tuple[type[Loss], str, str]] = [
    (Reward, "value", "lower has to be better"),
    (OneEach, "value bf16", "the shape (1,), not a scalar"),
    (CountsPadding, "bare_positions parts", "positions of weight 0 count"),
    (Sum, "batch_invariance parts", "average, do not sum"),
    (UnitOfWeights, "batch_invariance parts", "the unit of the weights"),
    (Smoothness, "tokenwise_promise parts", "the order of the positions"),
    (Root, "parts", "averaged with their denominators"),
    (AnyLength, "changed_length", "RuntimeError"),
    (NoGradient, "gradients", "do not detach the reconstruction"),
    (Learns, "nothing_is_kept", "factor would never be trained"),
    (Remembers, "nothing_is_kept", "count changes with use"),
    (WantsTheLLMForNothing, "needs_llm", "never read"),
    (AnswersForNothing, "needs_llm", "the answers make no difference"),
    (ThawsTheLLM, "gradients", "of the LLM, which has to stay frozen"),
    (NoLeastSquares, "least_squares", "not its minimum"),
]
