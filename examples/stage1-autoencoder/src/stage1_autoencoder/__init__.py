"""A compressor that turns every few tokens into one vector: a convolutional encoder."""

import torch
from pydantic import Field
from torch import Tensor, nn

from stage1 import Code, Compressor, SizeConfig, TokenStats, hookimpl


class ConvAutoencoderConfig(SizeConfig):
    """Options of `conv_autoencoder`."""

    ratio: float = Field(1.0, ge=1, description="Width of the LLM's embeddings divided by the code's.")
    tokens: int = Field(2, ge=2, description="Tokens that become one vector.")
    context: int = Field(3, ge=1, description="Tokens to each side that a token is mixed with before.")


class ConvAutoencoder(Compressor):
    """A convolution over neighbours, then one that strides over every `tokens` tokens. Trained.

    The encoder half of a convolutional autoencoder; the adapter is its decoder and the LLM, which reads a
    prompt of fewer vectors, says whether enough is left. It starts as the mean of the tokens, projected to
    their principal directions where the code is narrower; mixing with neighbours starts at nothing. Each
    prompt is cut from its first crossing token on; the last vector may stand for fewer tokens.

    Options: `tokens`, `context`, and `ratio` or `dim` for the width.
    """

    name = "conv_autoencoder"
    Config = ConvAutoencoderConfig
    tokenwise = False
    changes_length = True

    def __init__(self, config: ConvAutoencoderConfig, embed_dim: int) -> None:
        super().__init__(config, embed_dim)
        dim, width = config.width(embed_dim), 2 * config.context + 1
        self.mix = nn.Conv1d(embed_dim, embed_dim, width, padding=config.context, groups=embed_dim)
        self.gate = nn.Parameter(torch.full((embed_dim, 1), 1e-3))  # [D, 1]
        self.pool = nn.Conv1d(embed_dim, dim, config.tokens, stride=config.tokens)
        self.mean = nn.Buffer(torch.zeros(embed_dim))  # [D]
        self.scale = nn.Buffer(torch.ones(()))

    @property
    def code_dim(self) -> int:
        return self.pool.out_channels

    @torch.no_grad()
    def fit(self, stats: TokenStats) -> None:
        self.mean.copy_(stats.mean)
        self.scale.fill_(stats.scale)
        rows = torch.eye(self.embed_dim)
        if self.code_dim < self.embed_dim:
            rows = stats.principal_components()[1][: self.code_dim]
        self.pool.weight.copy_(rows[..., None].expand_as(self.pool.weight) / self.config.tokens)
        torch.nn.init.zeros_(torch.as_tensor(self.pool.bias))

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        # What crosses moves to the front of each prompt, whatever stands between or before.
        order = mask.int().argsort(dim=1, descending=True, stable=True)
        mask = mask.gather(1, order)
        tokens = embeds.gather(1, order[..., None].expand_as(embeds))
        missing = -mask.shape[1] % self.config.tokens
        tokens = nn.functional.pad(tokens, (0, 0, 0, missing))
        mask = nn.functional.pad(mask, (0, missing))

        values = ((tokens - self.mean) / self.scale).mT.where(mask[:, None], 0)  # [B, D, L]
        values = values + self.gate * nn.functional.gelu(self.mix(values))
        vectors = self.pool(values.where(mask[:, None], 0)).mT  # [B, M, d]
        return Code(vectors, mask[:, :: self.config.tokens])


@hookimpl
def stage1_compressors() -> type[Compressor]:
    return ConvAutoencoder
