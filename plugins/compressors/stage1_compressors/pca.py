"""Principal component analysis, exact."""

import torch
from torch import Tensor, nn

from stage1 import Code, Compressor, SizeConfig, TokenStats, hookimpl


class PCA(Compressor):
    """The directions in which the prompts' token embeddings vary most.

    Exact: one eigendecomposition of the count-weighted covariance of the embedding table's rows in use,
    in float64. Nothing is sampled, and the explained variance is a share of the true total. Among all
    linear codes of this width it has the least mean squared error (Eckart and Young, 1936).
    """

    name = "pca"
    Config = SizeConfig

    def __init__(self, config: SizeConfig, embed_dim: int) -> None:
        super().__init__(config, embed_dim)
        dim = config.width(embed_dim)
        self.mean = nn.Buffer(torch.zeros(embed_dim))  # [D]
        self.components = nn.Buffer(torch.zeros(dim, embed_dim))  # [d, D] orthonormal rows
        self.explained_variance = nn.Buffer(torch.zeros(dim))  # [d] share of the true total

    @property
    def code_dim(self) -> int:
        return len(self.components)

    def fit(self, stats: TokenStats) -> None:
        variances, directions = stats.principal_components()
        self.mean.copy_(stats.mean)
        self.components.copy_(directions[: self.code_dim])
        self.explained_variance.copy_((variances.clamp(min=0) / variances.sum())[: self.code_dim])

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        return Code((embeds - self.mean) @ self.components.T, mask)

    def inverse(self, code: Code) -> Tensor:
        return code.vectors @ self.components + self.mean


@hookimpl
def stage1_compressors() -> type[Compressor]:
    return PCA
