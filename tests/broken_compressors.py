"""Compressors that break one promise each, and honest ones, for the tests of the conformance suites."""

import math
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, Field, field_serializer
from torch import Tensor, nn

from pairs import halved
from stage1.bottleneck.splice import pack
from stage1.plugins.interfaces import ComponentConfig, Compressor
from stage1.plugins.tensors import Code, TokenStats, straight_through


class KeepConfig(ComponentConfig):
    keep: int = Field(8, gt=0, description="Dimensions that are kept.")


class Keep(Compressor):
    """Keeps some dimensions, centred and scaled: what each broken one below differs from."""

    name = "keep"
    Config: ClassVar[Any] = KeepConfig

    def __init__(self, config: Any, embed_dim: int) -> None:
        super().__init__(config, embed_dim)
        self.scale = nn.Parameter(torch.rand(self.kept) + 1)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(self.kept))

    @property
    def kept(self) -> int:
        return min(8, self.embed_dim)

    @property
    def code_dim(self) -> int:
        return self.kept

    def fit(self, stats: TokenStats) -> None:
        self.mean.copy_(stats.mean[: self.kept])

    def squeezed(self, embeds: Tensor) -> Tensor:
        return (embeds[..., : self.kept] - self.mean) * self.scale

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        return Code(self.squeezed(embeds), mask)


class Loose(BaseModel, extra="ignore"):
    keep: int = Field(8, description="Dimensions that are kept.")


class AcceptsAnything(Keep):
    """No option is unknown."""

    Config = Loose


class Forgetful(ComponentConfig):
    keep: int = Field(8, description="Dimensions that are kept.")

    @field_serializer("keep")
    def _halved(self, keep: int) -> int:
        return keep // 2


class SavesOtherOptions(Keep):
    """Half of what was asked for is read back."""

    Config = Forgetful


class Silent(ComponentConfig):
    keep: int = 8


class HidesOptions(Keep):
    """What does `keep` mean?"""

    Config = Silent


class DrawsElsewhere(Keep):
    """The run's seed seeds torch's default generator, while fitting too, and no other."""

    def fit(self, stats: TokenStats) -> None:
        super().fit(stats)
        self.mean.add_(0.01 * np.random.default_rng().random())


class KeepsTensorsAside(Keep):
    """A tensor in a list is no buffer."""

    def __init__(self, config: Any, embed_dim: int) -> None:
        super().__init__(config, embed_dim)
        self.seen = {"rows": [torch.zeros(2)]}


class MakesTensorsOnTheCpu(Keep):
    """What a vector costs stays behind."""

    def bits(self, code: Code) -> Tensor:
        return torch.full(code.mask.shape, 16.0 * self.kept)


class ReturnsFloat32(Keep):
    """Whatever came in."""

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        return Code(self.squeezed(embeds).float(), mask)


class DropsTheMask(Keep):
    """Padding is sent as well."""

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        return super().forward(embeds, mask)._replace(mask=torch.ones_like(mask))


class GrowsInFit(Keep):
    """The adapter has been built by then."""

    fitted = False

    @property
    def code_dim(self) -> int:
        return self.kept if self.fitted else 4

    def fit(self, stats: TokenStats) -> None:
        super().fit(stats)
        self.fitted = True


class WrongInverse(Keep):
    """The code is no embedding."""

    def inverse(self, code: Code) -> Tensor:
        return code.vectors


class MixesPositions(Keep):
    """It says that it treats each token alone."""

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        whole = (embeds * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None].clamp(min=1)
        return Code(self.squeezed(embeds + 0.1 * whole), mask)


class CountsPositions(Keep):
    """A token's code depends on where it stands."""

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        place = mask.cumsum(1)[..., None].to(embeds.dtype)
        return Code(self.squeezed(embeds) + 0.1 * place, mask)


class ReadsPadding(MixesPositions):
    """It admits that it mixes positions, and mixes in those that nobody sends."""

    tokenwise = False

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        return Code(self.squeezed(embeds + 0.1 * embeds.mean(1, keepdim=True)), mask)


class LooksAtTheBatch(Keep):
    """Normalised over the prompts that happen to come together."""

    tokenwise = False

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        squeezed = self.squeezed(embeds)
        return Code(squeezed / (1e-3 + squeezed[mask].square().mean().sqrt()), mask)


class TrainsTheTable(Keep):
    """Its parameter is the LLM's embeddings themselves."""

    def __init__(self, config: Any, embed_dim: int) -> None:
        super().__init__(config, embed_dim)
        self.rows = nn.Parameter(torch.zeros(512, embed_dim))

    def fit(self, stats: TokenStats) -> None:
        super().fit(stats)
        self.rows.data = stats.embeds

    def squeezed(self, embeds: Tensor) -> Tensor:
        return super().squeezed(embeds) + self.rows.mean()


class CentresInPlace(Keep):
    """The table is off centre no more."""

    def fit(self, stats: TokenStats) -> None:
        super().fit(stats)
        stats.embeds.sub_(stats.mean)


class StopsTheGradient(Keep):
    """Nothing in front of it in a chain can learn."""

    def squeezed(self, embeds: Tensor) -> Tensor:
        return super().squeezed(embeds.detach())


class ForgetsABuffer(Keep):
    """A number on the module is saved by nobody."""

    shift = 0.0

    def fit(self, stats: TokenStats) -> None:
        super().fit(stats)
        self.shift = float(stats.embeds.max())

    def squeezed(self, embeds: Tensor) -> Tensor:
        return super().squeezed(embeds) + self.shift


class CheapFloats(Keep):
    """bfloat16 for a quarter of its price."""

    def bits(self, code: Code) -> Tensor:
        return super().bits(code) / 4


class FourBits(Keep):
    """Honest: sixteen levels of each value."""

    wire_dtype = None
    levels = 16
    side = 0

    def squeezed(self, embeds: Tensor) -> Tensor:
        whole = super().squeezed(embeds)
        half = self.levels // 2
        return straight_through((whole * 8 * half).round().clamp(-half, half - 1) / (8 * half), whole)

    def bits(self, code: Code) -> Tensor:
        return torch.full(code.mask.shape, 4.0 * self.kept + self.side, device=code.mask.device)


class EightBitsForFour(FourBits):
    """256 levels under the name of sixteen."""

    levels = 256


class NegativeBits(FourBits):
    """It pays for nothing and gets something back."""

    side = -500


class EntropyCoded(FourBits):
    """Honest: a level costs −log₂ of its probability, which is learned together with the levels."""

    def __init__(self, config: Any, embed_dim: int) -> None:
        super().__init__(config, embed_dim)
        self.logits = nn.Parameter(torch.randn(self.levels))

    def bits(self, code: Code) -> Tensor:
        index = (code.vectors * 64).round().long() + 8
        return -(self.logits.log_softmax(0)[index] / math.log(2)).sum(-1)


class MadeUpProbabilities(EntropyCoded):
    """The probabilities sum to two."""

    def bits(self, code: Code) -> Tensor:
        return (super().bits(code) - self.kept).clamp(min=0)


class TrainsInFit(Keep):
    """Honest: fits a decoder by gradient, and freezes it for `inverse`."""

    freezes = True

    def __init__(self, config: Any, embed_dim: int) -> None:
        super().__init__(config, embed_dim)
        self.decoder = nn.Linear(self.kept, embed_dim)

    def fit(self, stats: TokenStats) -> None:
        super().fit(stats)
        error = (self.decoder(self.squeezed(stats.embeds)) - stats.embeds).square().mean()
        error.backward()
        with torch.no_grad():
            for parameter in self.decoder.parameters():
                parameter.sub_(torch.as_tensor(parameter.grad))
        if self.freezes:
            self.decoder.requires_grad_(False)

    def inverse(self, code: Code) -> Tensor:
        embeds: Tensor = self.decoder(code.vectors)
        return embeds


class LeavesGradients(TrainsInFit):
    """Of its own training; that of the run will never reach the decoder."""

    freezes = False


class NeverDecodes(TrainsInFit):
    """The frozen decoder is saved with every run, and used in none."""

    def inverse(self, code: Code) -> Tensor:
        raise NotImplementedError


class FitsAllTheSame(Keep):
    """It says that there is nothing to fit."""

    needs_fit = False


class ListsRatesBackwards(Keep):
    """The rate that costs most comes first."""

    @classmethod
    def rates(cls, config: Any, embed_dim: int) -> list[dict[str, int]]:
        return [{"keep": 8}, {"keep": 4}]

    @property
    def kept(self) -> int:
        return min(int(self.config.keep), self.embed_dim)


class Halves(Keep):
    """Honest: the mean of every two tokens of a prompt."""

    tokenwise = False
    changes_length = True

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        return halved(*pack(self.squeezed(embeds), mask))


BROKEN_COMPRESSORS: list[tuple[type[Compressor], str, str]] = [
    (AcceptsAnything, "options_are_checked", "unknown option is accepted"),
    (SavesOtherOptions, "options_are_checked", "do not survive being saved: {'keep': 4}"),
    (HidesOptions, "options_are_documented", "'keep' has no description"),
    (DrawsElsewhere, "determinism", "mean differs between two runs with one seed"),
    (KeepsTensorsAside, "tensors_are_registered", "seen holds a tensor"),
    (MakesTensorsOnTheCpu, "device_moves", "a tensor on cpu"),
    (ReturnsFloat32, "bf16", "bfloat16 in, torch.float32 out"),
    (DropsTheMask, "shapes padding_invariance batch_invariance", "the code's mask is not the input's"),
    (GrowsInFit, "code_dim save_and_load", "4 before fit and 8 after"),
    (WrongInverse, "inverse", "(3, 12, 8), not (3, 12, 32)"),
    (MixesPositions, "tokenwise_promise", "changes when other tokens do"),
    (CountsPositions, "tokenwise_promise", "changes with its place"),
    (ReadsPadding, "padding_invariance batch_invariance", "what stands in padded positions"),
    (LooksAtTheBatch, "batch_invariance", "nothing across the batch"),
    (TrainsTheTable, "gradients", "shares its memory"),
    (CentresInPlace, "gradients", "fit writes into the embeddings"),
    (StopsTheGradient, "gradient_reaches_the_embeddings", "do not detach"),
    (LeavesGradients, "gradients", "no gradient reaches decoder.weight"),
    (NeverDecodes, "parameters_are_used", "decoder.weight changes neither"),
    (FitsAllTheSame, "needs_fit", "fit changes it"),
    (ForgetsABuffer, "save_and_load", "codes differently from the one that was saved"),
    (CheapFloats, "bits", "a vector costs 32 bits, but 8 values of torch.bfloat16 have 128"),
    (NegativeBits, "bits bits_are_honest", "bits are negative"),
    (ListsRatesBackwards, "rates", "three of them cost"),
    (EightBitsForFour, "bits_are_honest", "cannot tell them apart"),
    (MadeUpProbabilities, "bits_are_honest", "cannot tell them apart"),
]
