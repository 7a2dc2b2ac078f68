"""Nearest neighbour among the vocabulary's own codes."""

import torch
from torch import Tensor, nn

from stage1 import Adapter, Code, ComponentConfig, Encode, hookimpl, nearest_rows

CHUNK = 2048
"""Rows of the table encoded at a time."""


class Codebook(Adapter):
    """Each code decodes to the vocabulary token whose own code is nearest.

    The receiver owns the LLM's embedding table too, so this is allowed, and it is exact as long as the
    codes of the vocabulary stay distinct: the bound for every trained adapter behind a token-wise
    compressor. No training, nothing stored in the checkpoint.
    """

    name = "codebook"
    needs_tokenwise = True

    def __init__(self, config: ComponentConfig, code_dim: int, embed_dim: int) -> None:
        super().__init__(config, code_dim, embed_dim)
        self.codes: Tensor = nn.Buffer(torch.zeros(0, code_dim), persistent=False)  # [V, d]
        self.table: Tensor = nn.Buffer(torch.zeros(0, embed_dim), persistent=False)  # [V, D]

    def receive_table(self, encode: Encode, table: Tensor) -> None:
        self.codes = torch.cat([encode(rows.float()) for rows in torch.split(table, CHUNK)])
        self.table = table

    def forward(self, code: Code) -> Tensor:
        ids, _ = nearest_rows(code.vectors.flatten(0, 1), self.codes)  # [B * M, 1]
        return self.table[ids].to(code.vectors.dtype).view(*code.vectors.shape[:2], -1)


@hookimpl
def stage1_adapters() -> type[Adapter]:
    return Codebook
