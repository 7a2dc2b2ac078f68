"""Residual vector quantisation: a vector as the sum of a few codewords."""

import warnings

import torch
from pydantic import Field
from torch import Tensor, nn

from stage1 import (
    Code,
    ComponentConfig,
    Compressor,
    ConfigError,
    ConfigIssue,
    TokenStats,
    hookimpl,
    nearest_rows,
)

ITERATIONS = 25
"""Steps of k-means at most."""


class RVQConfig(ComponentConfig):
    """Options of `rvq`: a vector costs stages × groups × bits."""

    stages: int = Field(4, ge=1, description="Codewords that are added up, each for what those before leave.")
    groups: int = Field(1, ge=1, description="Slices of the vector, each with codebooks of its own.")
    bits: int = Field(8, ge=1, le=14, description="log2 of a codebook's size, and what one index costs.")


class RVQ(Compressor):
    """Sends the index of the nearest codeword, then that of the nearest to what is left, and so on.

    Multi-stage vector quantisation (Juang and Gray, 1982), as in neural audio codecs (SoundStream,
    arXiv:2107.03312); with one stage and several groups product quantisation (Jégou, Douze and Schmid, 2011).
    Codebooks start at count-weighted k-means over the training prompts' distinct tokens, which moves a
    codeword that nothing is nearest to, to where the error is largest. They are then trained together with
    the adapter: the gradient reaches the codewords that were chosen, and passes straight through the choice
    to a trained compressor in front (van den Oord et al., arXiv:1711.00937).

    The vectors of its code are the sums, which the receiver looks up.

    Raises:
        ConfigError: there are more groups than values.
    """

    name = "rvq"
    Config = RVQConfig
    wire_dtype = None  # indices cross, not numbers of any type

    def __init__(self, config: RVQConfig, embed_dim: int) -> None:
        super().__init__(config, embed_dim)
        if config.groups > embed_dim:
            message = (
                f"{config.groups} groups are more than a vector's {embed_dim} values; "
                f"choose 1 to {embed_dim}."
            )
            raise ConfigError([ConfigIssue("compressor.groups", message)])
        # In units of `scale`, so that one learning rate does for all models; the groups' side by side.
        self.codebooks = nn.Parameter(torch.zeros(config.stages, 2**config.bits, embed_dim))  # [S, K, d]
        self.scale = nn.Buffer(torch.ones(()))

    @classmethod
    def rates(cls, config: RVQConfig, embed_dim: int) -> list[dict[str, int]]:
        """One stage with more and more codewords, then more stages with as many as were asked for."""
        coarse = [{"stages": 1, "bits": bits} for bits in range(1, config.bits)]
        return [*coarse, *({"stages": stages, "bits": config.bits} for stages in range(1, 17))]

    def fit(self, stats: TokenStats, *, seed: int = 0) -> None:
        self.scale.fill_(stats.scale)
        rest = (stats.embeds / self.scale).cpu()  # [U, d] what the stages so far leave
        with torch.no_grad():
            for book in self.codebooks:
                for rows, words in zip(self._sliced(rest), self._sliced(book), strict=True):
                    centres, which = _kmeans(rows, stats.shares.cpu(), len(words), seed)
                    words[: len(centres)] = centres
                    rows -= centres[which]

    def symbols(self, embeds: Tensor, mask: Tensor) -> Tensor:
        return self._encode(embeds)[0]

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        _, received = self._encode(embeds)
        return Code(received + (embeds - embeds.detach()), mask)

    def bits(self, code: Code) -> Tensor:
        whole = float(self.config.stages * self.config.groups * self.config.bits)
        return torch.full(code.mask.shape, whole, device=code.mask.device)

    def inverse(self, code: Code) -> Tensor:
        return code.vectors

    def _encode(self, embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Indices [B, L, S · G] and the sum of the codewords that they name [B, L, d]."""
        books = self.codebooks.float() * self.scale.float()
        received = torch.zeros_like(embeds, dtype=torch.float32).flatten(0, -2)  # [N, d]
        wanted = embeds.detach().float().flatten(0, -2)
        indices = []
        for book in books:
            rest, chosen = wanted - received.detach(), []
            for rows, words in zip(self._sliced(rest), self._sliced(book), strict=True):
                index = nearest_rows(rows, words.detach())[0].squeeze(1)
                indices.append(index)
                chosen.append(words[index])
            received = received + torch.cat(chosen, dim=1)
        return torch.stack(indices, dim=1).view(*embeds.shape[:-1], -1), received.to(embeds.dtype).view_as(
            embeds
        )

    def _sliced(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """The groups' slices of `vectors` [..., d], as equal in width as can be."""
        return vectors.tensor_split(self.config.groups, dim=-1)


def _kmeans(rows: Tensor, shares: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """At most `count` centres [K, d] of `rows` [U, d], weighted by `shares` [U], and each row's own [U]."""
    if len(rows) <= count:
        return rows.clone(), torch.arange(len(rows))
    # They take a second to load, which only fitting should cost.
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    kmeans = KMeans(count, n_init=1, max_iter=ITERATIONS, random_state=seed)
    with (
        threadpool_limits(1),
        warnings.catch_warnings(),
    ):  # threads' order of adding would show in the last digits
        warnings.simplefilter("ignore")  # fewer distinct rows than centres are no harm
        kmeans.fit(rows.numpy(), sample_weight=shares.numpy())
    return torch.from_numpy(kmeans.cluster_centers_), torch.from_numpy(kmeans.labels_).long()


@hookimpl
def stage1_compressors() -> type[Compressor]:
    return RVQ
