"""The tuples that cross module borders, with the shapes of what they hold.

B prompts, L positions of a prompt, M vectors of its code, d dimensions of a code vector,
D width of the LLM's embeddings, V entries of its vocabulary, U distinct tokens in use.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

_UNCOUNTED = torch.zeros(())
"""The bits of a code that the harness has not counted yet."""


class Code(NamedTuple):
    """What travels on the wire."""

    vectors: Tensor  # [B, M, d]
    mask: Tensor  # [B, M] bool: which vectors are sent
    bits: Tensor = _UNCOUNTED  # [B, M] what each vector costs; the harness fills it in from `Compressor.bits`


def straight_through(rounded: Tensor, original: Tensor) -> Tensor:
    """`rounded` with the gradient of `original`, both [...]: as if nothing had been rounded.

    Rounding has a gradient of zero almost everywhere, so nothing in front of it would learn (straight-through
    estimator: Bengio, Léonard and Courville, 2013). The values are exactly those of `rounded`.
    """
    return rounded.detach() + (original - original.detach())


@dataclass(frozen=True)
class TokenStats:
    """A corpus as the bottleneck sees it: which tokens, and how often.

    Embeddings enter the bottleneck before any context exists, so for a token-wise component a corpus of
    10,000 prompts is a histogram over the vocabulary. All moments are weighted and in float64.
    """

    ids: Tensor  # [U] vocabulary ids, ascending
    weights: Tensor  # [U] float64, > 0: how often each crosses, or what else makes one count more
    embeds: Tensor  # [U, D] their rows of the embedding table
    estimate: Callable[[int], Tensor] | None = None  # of `sensitivity`; None: no LLM is at hand

    def sensitivity(self, prompts: int) -> Tensor:
        """[D, D] float64: G = E[g gᵀ], the Fisher information of the LLM's next tokens about an embedding.

        An error δ of an embedding costs about ½ δᵀ G δ in KL divergence of what the LLM says. Estimated on so
        many training prompts when it is asked for, by a compressor that `needs_llm`; of embeddings, not of
        the codes of a compressor in front.
        """
        if self.estimate is None:
            raise ValueError("What asks for the sensitivity says needs_llm = True, and stands first.")
        return self.estimate(prompts)

    @property
    def shares(self) -> Tensor:
        """[U] float64: each token's share of all positions; sums to 1."""
        return self.weights / self.weights.sum()

    @cached_property
    def mean(self) -> Tensor:
        """[D] float64: the mean embedding."""
        return weighted_mean(self.shares, self.embeds)

    def covariance(self) -> Tensor:
        """[D, D] float64: the exact covariance over all positions, no sampling."""
        return weighted_cross_moment(self.embeds, self.embeds, self.shares)

    def principal_components(self) -> tuple[Tensor, Tensor]:
        """Variances [D] from large to small and directions [D, D], one a row, orthonormal; float64.

        An eigenvector's sign is arbitrary: its largest entry is positive here, on every machine.
        """
        variances, directions = torch.linalg.eigh(self.covariance())  # ascending, a direction a column
        directions = directions.flip(1).T
        peaks = directions.gather(1, directions.abs().argmax(1, keepdim=True))
        return variances.flip(0), directions * peaks.sign()

    @cached_property
    def variance(self) -> float:
        """Mean over dimensions of the variance: the unit of `recon` (0 perfect, 1 always the mean)."""
        spread = torch.zeros_like(self.mean)
        for rows, share in zip(torch.split(self.embeds, CHUNK), torch.split(self.shares, CHUNK), strict=True):
            spread += share @ (rows.double() - self.mean).square()
        return float(spread.mean())

    @property
    def scale(self) -> float:
        """Standard deviation, the root of `variance`; never zero, so that it may be divided by."""
        deviation: float = max(self.variance, 1e-30) ** 0.5
        return deviation


CHUNK = 4096
"""Rows converted to float64 at a time: a float64 copy of a large table would not fit where the table does."""


class Derived(NamedTuple):
    """Rows that are computed from others, some at a time: all together they might not fit into the memory."""

    rows: Tensor  # [U, d]
    function: Callable[[Tensor], Tensor]  # [N, d] → [N, H]


def _chunks(rows: Tensor | Derived) -> Iterator[Tensor]:
    """Some rows at a time, in float64."""
    if isinstance(rows, Derived):
        return (rows.function(part).double() for part in torch.split(rows.rows, CHUNK))
    return (part.double() for part in torch.split(rows, CHUNK))


def weighted_mean(shares: Tensor, rows: Tensor | Derived) -> Tensor:
    """[D] float64: Σᵢ sᵢ rᵢ for `shares` [U] summing to 1 and `rows` [U, D] of any dtype."""
    parts = zip(torch.split(shares, CHUNK), _chunks(rows), strict=True)
    return torch.stack([share @ part for share, part in parts]).sum(0)


def weighted_cross_moment(left: Tensor | Derived, right: Tensor | Derived, shares: Tensor) -> Tensor:
    """Σᵢ sᵢ (lᵢ − l̄)(rᵢ − r̄)ᵀ in float64.

    `left` [U, a] and `right` [U, b] of any dtype, `shares` [U] summing to 1; returns [a, b].
    """
    left_mean, right_mean = weighted_mean(shares, left), weighted_mean(shares, right)
    total = torch.zeros(len(left_mean), len(right_mean), dtype=torch.float64, device=shares.device)
    for a, b, share in zip(_chunks(left), _chunks(right), torch.split(shares, CHUNK), strict=True):
        total.addmm_(((a - left_mean) * share[:, None]).T, b - right_mean)
    return total


class Embedded(NamedTuple):
    """Prompts as the LLM receives them."""

    embeds: Tensor  # [B, L, D]
    attention: Tensor  # [B, L] bool: all positions but padding


class Answers(NamedTuple):
    """Gold continuations, for losses that say they are `teacher_forced`."""

    ids: Tensor  # [B, A] right-padded
    embeds: Tensor  # [B, A, D] their rows of the embedding table, raw
    mask: Tensor  # [B, A] bool: not padding


@dataclass(frozen=True)
class States:
    """What the frozen LLM makes of a batch of prompts, before any logit is computed."""

    last: Tensor | None  # [B, M + A, D] after the final norm: what the LLM's head turns into logits
    layers: Mapping[int, Tensor]  # layer k (1 is the first) → its output [B, M, D] on the prompts
    lengths: Tensor  # [B] positions of each prompt; its answer follows directly, padding comes last
    answer_length: int = 0  # A

    @property
    def prompt(self) -> Tensor:
        """[B, M, D] last states at the prompt's positions; position i predicts token i + 1."""
        return self._last[:, : self._last.shape[1] - self.answer_length]

    @property
    def answering(self) -> Tensor:
        """[B, A, D] last states at the positions that predict the answer's tokens."""
        return self._from_the_end(self.answer_length)

    @property
    def final(self) -> Tensor:
        """[B, D] last state at each prompt's end: it predicts the answer's first token."""
        return self._from_the_end(1)[:, 0]

    def _from_the_end(self, positions: int) -> Tensor:
        places = self.lengths[:, None] - 1 + torch.arange(positions, device=self.lengths.device)
        return torch.take_along_dim(self._last, places[..., None], dim=1)

    @property
    def _last(self) -> Tensor:
        if self.last is None:
            raise ValueError("The loss that reads the last states must not name `layers`.")
        return self.last


class LLMOutputs:
    """What the frozen LLM says on the original and on the reconstructed prompts, each computed at most once.

    Two losses that read `student` share one forward pass; a loss that reads neither costs none. Logits are
    never held whole: losses compute them chunk by chunk from the states (`stage1.llm.chunked`).

    Attributes:
        head: last states [N, D] to logits [N, V], in the LLM's own type.
        original, reconstructed: the prompts [B, L, D] and [B, M, D], right-padded; raw positions hold the
            same in both.
        ordinary: [B, L] bool, tokens of the original prompts that are neither padding nor special.
        places: [B, L] where each position of the original prompts is in the reconstructed ones, −1 where
            nothing stands for it alone; None where the length is the same, and so is every place.
    """

    def __init__(
        self,
        forward: Callable[[Embedded, Answers | None], States],
        head: Callable[[Tensor], Tensor],
        original: Embedded,
        reconstructed: Embedded,
        ordinary: Tensor,
        answers: Answers | None = None,
        places: Tensor | None = None,
    ) -> None:
        self._forward = forward
        self.head = head
        self.original, self.reconstructed = original, reconstructed
        self.ordinary = ordinary
        self.places = places
        self._answers = answers

    @property
    def answers(self) -> Answers:
        """Gold continuations; there for a loss that says it is `teacher_forced`."""
        if self._answers is None:
            raise ValueError("A loss that reads the answers must say so: teacher_forced = True.")
        return self._answers

    @cached_property
    def compared(self) -> Tensor:
        """[B, L] bool: ordinary positions of the original prompts with a counterpart in the others.

        All of them, where the length is the same. Behind a compressor that changes it: what did not cross,
        and the last position that did, after which both have said all that crossed.
        """
        return self.ordinary if self.places is None else self.ordinary & (self.places >= 0)

    def counterparts(self, states: Tensor) -> Tensor:
        """[N, D] of the student's states [B, M, D]: those at the counterparts of the `compared` positions.

        The teacher's, in the same order, are `states[compared]`.
        """
        if self.places is None:
            return states[self.compared]
        rows = self.compared.nonzero()[:, 0]
        return states[rows, self.places[self.compared]]

    @cached_property
    def student(self) -> States:
        """The states on the reconstructed prompts; gradients reach the bottleneck."""
        return self._forward(self.reconstructed, self._answers)

    @cached_property
    def teacher(self) -> States:
        """The states on the original prompts, without gradient."""
        with torch.no_grad():
            return self._forward(self.original, self._answers)


@dataclass(frozen=True)
class LossInputs:
    """Everything a loss may look at. Training sees what evaluation sees: there is no answer in here, but in
    `llm.answers` for a loss that says it is `teacher_forced`."""

    original: Tensor  # [B, L, D]
    reconstruction: Tensor  # [B, M, D]; M = L unless the compressor changes the length
    weights: Tensor  # [B, L] how much a position counts; 0 where nothing crosses the bottleneck
    ids: Tensor  # [B, L] token ids
    variance: float  # token-weighted variance of the embeddings (`TokenStats.variance`)
    llm_outputs: LLMOutputs | None = None  # of a loss that `needs_llm`, which reads them as `llm`
    crossed: Code | None = None  # which every loss reads as `code`; inputs made by hand may lack it

    @property
    def code(self) -> Code:
        """What crossed: vectors [B, M, d] as they come off the wire, their mask, and what each costs.

        Penalties on the code itself (commitment, sparsity, rate, entropy) read it; gradients reach the
        compressor.
        """
        if self.crossed is None:
            raise ValueError("These inputs were made without a code: pass crossed=Code(…).")
        return self.crossed

    @property
    def llm(self) -> LLMOutputs:
        """What the frozen LLM says; there for a loss that says `needs_llm`."""
        if self.llm_outputs is None:
            raise ValueError("A loss that reads the LLM must say so: needs_llm = True.")
        return self.llm_outputs

    def mean(self, values: Tensor) -> Tensor:
        """Weighted mean of per-position `values` [B, L] over the positions that crossed: a scalar.

        A loss that averages over anything else says so in `Loss.denominator`.
        """
        return (values * self.weights).sum() / self.weights.sum()
