"""A linear map, trained."""

import torch
from torch import Tensor, nn

from stage1 import Code, Compressor, SizeConfig, TokenStats, hookimpl
from stage1_compressors.pca import PCA


class LearnedLinear(Compressor):
    """z = W (e − ē) + b, started at exact PCA and trained by gradient together with the adapter.

    PCA keeps the directions that vary most; which directions the LLM needs is for the losses to say. ē is the
    mean embedding of the training prompts and stays fixed; b starts at zero. The inverse is the Moore–Penrose
    pseudo-inverse: among all vectors with this code the one nearest to ē.
    """

    name = "learned_linear"
    Config = SizeConfig

    def __init__(self, config: SizeConfig, embed_dim: int) -> None:
        super().__init__(config, embed_dim)
        dim = config.width(embed_dim)
        self.weight = nn.Parameter(torch.zeros(dim, embed_dim))  # [d, D]
        self.bias = nn.Parameter(torch.zeros(dim))  # [d]
        self.mean = nn.Buffer(torch.zeros(embed_dim))  # [D]

    @property
    def code_dim(self) -> int:
        return len(self.weight)

    @torch.no_grad()
    def fit(self, stats: TokenStats) -> None:
        pca = PCA(self.config, self.embed_dim).to(self.weight.device)
        pca.fit(stats)
        self.mean.copy_(pca.mean)
        self.weight.copy_(pca.components)
        self.bias.zero_()

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        return Code((embeds - self.mean) @ self.weight.T + self.bias, mask)

    def inverse(self, code: Code) -> Tensor:
        weight = self.weight.double()
        # W⁺ = Wᵀ (W Wᵀ)⁺: a decomposition of [d, d] instead of [d, D].
        decoder: Tensor = torch.linalg.pinv(weight @ weight.T, hermitian=True) @ weight  # [d, D]
        return (code.vectors - self.bias) @ decoder.to(code.vectors.dtype) + self.mean


@hookimpl
def stage1_compressors() -> type[Compressor]:
    return LearnedLinear
