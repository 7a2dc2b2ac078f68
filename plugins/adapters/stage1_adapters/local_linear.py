"""A least-squares decoder for each neighbourhood of codes."""

import torch
from pydantic import Field
from torch import Tensor, nn

from stage1 import Adapter, Code, ComponentConfig, Encode, TokenStats, hookimpl, least_squares

RIDGE = 1e-4
"""Share of a leaf's mean variance that is added to every direction's, so that few tokens do no harm."""

NOTHING_ABOVE = torch.finfo(torch.bfloat16).max
"""The threshold of a node whose codes are all equal: they go to the left, and no others come."""


class LocalLinearConfig(ComponentConfig):
    """Options of `local_linear`."""

    depth: int = Field(
        6, ge=0, le=16, description="Splits on the way to a linear decoder; there are 2^depth."
    )


class LocalLinear(Adapter):
    """ê = z Aₖ + bₖ, where k is the leaf of a tree of thresholds to which z belongs.

    A piecewise linear decoder: a k-d tree (Bentley, 1975) halves the codes at the median of the dimension in
    which they vary most, each token counting as the square root of its share, and every leaf has its weighted
    least squares. All of it is a closed form; gradient steps may follow. With depth 0 it is `linear`.

    A leaf with at most d + 1 tokens gives them back as they were, and of more tokens the frequent ones.
    2^depth × (d + 1) × D numbers, `size` in the results, therefore tell how much of the table the decoder
    knows by heart, and belong beside its F1.
    """

    name = "local_linear"
    Config = LocalLinearConfig

    def __init__(self, config: LocalLinearConfig, code_dim: int, embed_dim: int) -> None:
        super().__init__(config, code_dim, embed_dim)
        leaves = 2**config.depth
        self.weight = nn.Parameter(torch.zeros(leaves, code_dim, embed_dim))  # [K, d, D]
        self.bias = nn.Parameter(torch.zeros(leaves, embed_dim))  # [K, D]
        self.dims: Tensor
        self.thresholds: Tensor
        self.register_buffer(
            "dims", torch.zeros(leaves - 1, dtype=torch.long)
        )  # [K − 1] of each node, root first
        self.register_buffer("thresholds", torch.zeros(leaves - 1))  # [K − 1]: what is above it goes right

    def warm_start(self, encode: Encode, stats: TokenStats) -> None:
        self.solve_last_layer(encode, stats)

    @torch.no_grad()
    def solve_last_layer(self, encode: Encode, stats: TokenStats) -> None:
        codes, shares = encode(stats.embeds).float(), stats.shares
        leaves = self._grown(codes, shares.sqrt().float())
        for leaf in torch.unique(leaves).tolist():
            inside = leaves == leaf
            own, targets, weights = codes[inside], stats.embeds[inside], shares[inside]
            weights = weights / weights.sum()
            self.weight[leaf], self.bias[leaf] = 0, weights @ targets.double()  # where all codes are equal
            if bool((own != own[0]).any()):
                weight, bias = least_squares(own, targets, weights, RIDGE)
                self.weight[leaf], self.bias[leaf] = weight, bias

    def _grown(self, codes: Tensor, weights: Tensor) -> Tensor:
        """The leaf [N] of each of `codes` [N, d] in a tree that is made for them."""
        nodes = torch.zeros(len(codes), dtype=torch.long, device=codes.device)
        for node in range(len(self.dims)):  # a node's children are 2 node + 1 and 2 node + 2
            rows = (nodes == node).nonzero().squeeze(1)
            dim, threshold = _split(codes[rows], weights[rows])
            self.dims[node], self.thresholds[node] = dim, threshold
            nodes[rows] = 2 * node + 1 + (codes[rows, dim] > threshold)
        return nodes - len(self.dims)

    def _leaves(self, codes: Tensor) -> Tensor:
        nodes = torch.zeros(len(codes), dtype=torch.long, device=codes.device)
        for _ in range(self.config.depth):
            values = codes.gather(1, self.dims[nodes][:, None]).squeeze(1)
            nodes = 2 * nodes + 1 + (values > self.thresholds[nodes])
        return nodes - len(self.dims)

    def forward(self, code: Code) -> Tensor:
        codes = code.vectors.flatten(0, 1)  # [N, d]
        order = self._leaves(codes.detach()).sort(stable=True)
        present, counts = torch.unique_consecutive(order.values, return_counts=True)
        parts = torch.split(codes[order.indices], counts.tolist())
        # Unbound at once: the gradient of one leaf by itself would be as large as that of all.
        weights, biases = self.weight.unbind(), self.bias.unbind()
        decoded = [
            part @ weights[leaf] + biases[leaf] for part, leaf in zip(parts, present.tolist(), strict=True)
        ]
        return torch.cat(decoded)[order.indices.argsort()].view(*code.vectors.shape[:2], -1)


def _split(codes: Tensor, weights: Tensor) -> tuple[int, float]:
    """The dimension in which `codes` [N, d] vary most, and their weighted median there: some are above it."""
    if not len(codes) or bool((codes == codes[0]).all()):
        return 0, NOTHING_ABOVE
    centred = codes - weights @ codes / weights.sum()
    dim = int((weights @ centred.square()).argmax())
    values, order = codes[:, dim].sort(stable=True)
    half = int(torch.searchsorted(weights[order].cumsum(0), weights.sum() / 2))
    return dim, min(float(values[half]), float(values[values < values[-1]][-1]))


@hookimpl
def stage1_adapters() -> type[Adapter]:
    return LocalLinear
