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

    leaves: int = Field(64, ge=1, le=2**16, description="Linear decoders, each for a part of the codes.")


class LocalLinear(Adapter):
    """ê = z Aₖ + bₖ, where k is the leaf of a tree of thresholds to which z belongs.

    A piecewise linear decoder: a k-d tree (Bentley, 1975) divides the codes in the dimension in which they
    vary most, so that all leaves hold about as much, each token counting as the square root of its share; and
    every leaf has its weighted least squares. All of it is a closed form; gradient steps may follow. With one
    leaf it is `linear`.

    A leaf with at most d + 1 tokens gives them back as they were, and of more tokens the frequent ones.
    leaves × (d + 1) × D numbers, `size` in the results, therefore tell how much of the table the decoder
    knows by heart, and belong beside its F1.
    """

    name = "local_linear"
    Config = LocalLinearConfig

    def __init__(self, config: LocalLinearConfig, code_dim: int, embed_dim: int) -> None:
        super().__init__(config, code_dim, embed_dim)
        leaves = config.leaves
        self.weight = nn.Parameter(torch.zeros(leaves, code_dim, embed_dim))  # [K, d, D]
        self.bias = nn.Parameter(torch.zeros(leaves, embed_dim))  # [K, D]
        self.dims = nn.Buffer(torch.zeros(leaves - 1, dtype=torch.long))  # [K − 1] each node's
        self.thresholds = nn.Buffer(torch.zeros(leaves - 1))  # [K − 1]: what is above it goes right

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
        size = [1] * (2 * len(self.dims) + 1)  # leaves of a node; its children are 2 node + 1 and 2 node + 2
        for node in reversed(range(len(self.dims))):
            size[node] = size[2 * node + 1] + size[2 * node + 2]
        for node in range(len(self.dims)):
            rows = (nodes == node).nonzero().squeeze(1)
            dim, threshold = _split(codes[rows], weights[rows], size[2 * node + 1] / size[node])
            self.dims[node], self.thresholds[node] = dim, threshold
            nodes[rows] = 2 * node + 1 + (codes[rows, dim] > threshold)
        return nodes - len(self.dims)

    def _leaves(self, codes: Tensor) -> Tensor:
        nodes = torch.zeros(len(codes), dtype=torch.long, device=codes.device)
        for _ in range(len(self.dims).bit_length()):
            inner = nodes < len(self.dims)  # behind the nodes come the leaves, of the last two levels
            at = nodes[inner]
            values = codes[inner].gather(1, self.dims[at][:, None]).squeeze(1)
            nodes[inner] = 2 * at + 1 + (values > self.thresholds[at])
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


def _split(codes: Tensor, weights: Tensor, left: float) -> tuple[int, float]:
    """The dimension in which `codes` [N, d] vary most, and the value there that a share `left` is not above.

    At least one of them is above, and one is not.
    """
    if not len(codes) or bool((codes == codes[0]).all()):
        return 0, NOTHING_ABOVE
    centred = codes - weights @ codes / weights.sum()
    dim = int((weights @ centred.square()).argmax())
    values, order = codes[:, dim].sort(stable=True)
    place = int(torch.searchsorted(weights[order].cumsum(0), left * weights.sum()))
    return dim, min(float(values[place]), float(values[values < values[-1]][-1]))


@hookimpl
def stage1_adapters() -> type[Adapter]:
    return LocalLinear
