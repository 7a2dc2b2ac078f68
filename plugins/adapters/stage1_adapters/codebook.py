"""Nearest neighbour among the vocabulary's own codes."""

import torch
from torch import Tensor

from stage1 import Adapter, Code, ComponentConfig, Encode, hookimpl

CHUNK = 2048
"""Codes searched at a time: the score matrix is [CHUNK, V]."""

CANDIDATES = 8
"""Tokens whose distance is computed exactly after the fast search by matrix product."""


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
        self.codes: Tensor
        self.table: Tensor
        self.register_buffer("codes", torch.zeros(0, code_dim), persistent=False)  # [V, d]
        self.register_buffer("table", torch.zeros(0, embed_dim), persistent=False)  # [V, D]

    def receive_table(self, encode: Encode, table: Tensor) -> None:
        self.codes = torch.cat([encode(rows.float()) for rows in torch.split(table, CHUNK)])
        self.table = table

    def forward(self, code: Code) -> Tensor:
        vectors = code.vectors.flatten(0, 1)  # [B * M, d]
        ids = torch.cat([self._nearest(chunk) for chunk in torch.split(vectors, CHUNK)])
        return self.table[ids].to(code.vectors.dtype).view(*code.vectors.shape[:2], -1)

    def _nearest(self, vectors: Tensor) -> Tensor:
        """Ids [N] of the tokens with the nearest codes; of equal codes the lowest id."""
        # ‖z − c‖² = ‖z‖² − 2 z·c + ‖c‖², where ‖z‖² does not matter. Rounding can swap near neighbours.
        scores = self.codes.square().sum(1) - 2 * vectors @ self.codes.T  # [N, V]
        candidates = scores.topk(min(CANDIDATES, len(self.codes)), largest=False).indices.sort().values
        distances = (self.codes[candidates] - vectors[:, None]).square().sum(2)  # [N, CANDIDATES]
        return candidates.gather(1, distances.argmin(1, keepdim=True)).squeeze(1)


@hookimpl
def stage1_adapters() -> type[Adapter]:
    return Codebook
