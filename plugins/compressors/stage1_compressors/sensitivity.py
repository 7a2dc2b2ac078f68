"""A basis in which distances are what the LLM makes of them."""

import torch
from pydantic import Field
from torch import Tensor, nn

from stage1 import Code, ComponentConfig, Compressor, TokenStats, hookimpl


class SensitivityConfig(ComponentConfig):
    """Options of `sensitivity`."""

    prompts: int = Field(200, gt=0, description="Training prompts whose gradients are taken, at most.")
    floor: float = Field(
        0.1, gt=0, description="Added to every direction's sensitivity, as a share of their mean."
    )


class Sensitivity(Compressor):
    """z = G^½ e: the square of an error of z is what the error of e costs the LLM, to second order.

    Put it first, and what stands behind it (PCA, k-means in `rvq`, ranges in `quantize`) is fitted in that
    metric, in the closed form that it has anyway: `compressors: [sensitivity, pca]`. G is the Fisher
    information of the LLM's next tokens about the input embeddings (`TokenStats.sensitivity`), the mean over
    all positions of a few hundred training prompts, estimated once; the cost is the KL divergence of what the
    LLM says (Amari, 1998; as for weights to be pruned: Hassibi and Stork, 1993).

    A decoder needs no metric: weighted least squares gives each output its optimum whatever it counts. Losses
    stay what they are, in the embeddings' own space. Alone it compresses nothing.
    """

    name = "sensitivity"
    Config = SensitivityConfig
    needs_llm = True

    def __init__(self, config: SensitivityConfig, embed_dim: int) -> None:
        super().__init__(config, embed_dim)
        self.root = nn.Buffer(torch.eye(embed_dim))  # [D, D] symmetric
        self.inverse_root = nn.Buffer(torch.eye(embed_dim))  # [D, D]

    def fit(self, stats: TokenStats) -> None:
        strengths, directions = torch.linalg.eigh(stats.sensitivity(self.config.prompts))  # [D], [D, D]
        # In units of their mean: how steep the loss is, is of no importance, and bfloat16 has its limits.
        scales = (strengths.clamp(min=0) / strengths.mean() + self.config.floor).sqrt()
        self.root.copy_((directions * scales) @ directions.T)
        self.inverse_root.copy_((directions / scales) @ directions.T)

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        return Code(embeds @ self.root, mask)

    def inverse(self, code: Code) -> Tensor:
        return code.vectors @ self.inverse_root


@hookimpl
def stage1_compressors() -> type[Compressor]:
    return Sensitivity
