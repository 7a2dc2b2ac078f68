"""Random projection: what a code costs that knows nothing of the embeddings."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stage1 import Code, Compressor, SizeConfig, hookimpl


class RandomProjectionConfig(SizeConfig):
    """Options of `random_projection`."""

    kind: Literal["gaussian", "sparse"] = Field(
        "gaussian", description="Orthonormal Gaussian directions, or a very sparse matrix of signs."
    )


class RandomProjection(Compressor):
    """A linear map drawn at random under the run's seed; it looks at no data.

    `gaussian`: a Gaussian matrix with orthonormalised rows (Johnson and Lindenstrauss, 1984).
    `sparse`: entries ±√(s/d) with probability 1/(2s) each, else 0, with s = √D (Li, Hastie and Church,
    2006). The inverse is the Moore–Penrose pseudo-inverse.
    """

    name = "random_projection"
    Config = RandomProjectionConfig
    needs_fit = False

    def __init__(self, config: RandomProjectionConfig, embed_dim: int) -> None:
        super().__init__(config, embed_dim)
        dim = config.width(embed_dim)
        draw = _orthonormal if config.kind == "gaussian" else _very_sparse
        projection = draw(dim, embed_dim)
        self.projection = nn.Buffer(projection.float())  # [d, D]
        self.decoder = nn.Buffer(torch.linalg.pinv(projection).T.float().contiguous())  # [d, D]

    @property
    def code_dim(self) -> int:
        return len(self.projection)

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        return Code(embeds @ self.projection.T, mask)

    def inverse(self, code: Code) -> Tensor:
        return code.vectors @ self.decoder


def _orthonormal(dim: int, embed_dim: int) -> Tensor:
    orthonormal: Tensor = torch.linalg.qr(torch.randn(embed_dim, dim, dtype=torch.float64)).Q
    return orthonormal.T


def _very_sparse(dim: int, embed_dim: int) -> Tensor:
    sparsity = math.sqrt(embed_dim)
    uniform = torch.rand(dim, embed_dim, dtype=torch.float64)
    signs = (uniform < 0.5 / sparsity).double() - (uniform > 1 - 0.5 / sparsity).double()
    return signs * math.sqrt(sparsity / dim)


@hookimpl
def stage1_compressors() -> type[Compressor]:
    return RandomProjection
