"""A least-squares decoder for each neighbourhood of codes."""

import torch
from pydantic import Field
from torch import Tensor, nn

from stage1 import (
    Adapter,
    Code,
    ComponentConfig,
    Encode,
    TokenStats,
    hookimpl,
    kmeans,
    least_squares,
    nearest_rows,
)

RIDGE = 1e-4
"""Share of a cell's mean variance that is added to every direction's, so that few tokens do no harm."""


class LocalLinearConfig(ComponentConfig):
    """Options of `local_linear`."""

    cells: int = Field(
        64, ge=1, description="Neighbourhoods of codes, each with a linear decoder of its own."
    )


class LocalLinear(Adapter):
    """ê = z Aₖ + bₖ, where k is the cell whose centre is nearest to z.

    Local linear models (Kambhatla and Leen, 1997) over one code: k-means divides the codes, and each cell has
    its weighted least squares, a closed form. One cell is `linear`. A cell that holds no more than d + 1
    tokens gives them back as they were: cells × (d + 1) × D numbers, `size` in the report, tell how much of
    the table the decoder knows by heart, and belong beside its F1.
    """

    name = "local_linear"
    Config = LocalLinearConfig

    def __init__(self, config: LocalLinearConfig, code_dim: int, embed_dim: int) -> None:
        super().__init__(config, code_dim, embed_dim)
        self.seed = int(torch.randint(2**31, ()))  # components are built under the run's seed
        self.weight = nn.Parameter(torch.zeros(config.cells, code_dim, embed_dim))  # [K, d, D]
        self.bias = nn.Parameter(torch.zeros(config.cells, embed_dim))  # [K, D]
        self.centres: Tensor
        self.register_buffer("centres", torch.zeros(config.cells, code_dim))  # [K, d]

    def warm_start(self, encode: Encode, stats: TokenStats) -> None:
        self.solve_last_layer(encode, stats)

    @torch.no_grad()
    def solve_last_layer(self, encode: Encode, stats: TokenStats) -> None:
        codes = encode(stats.embeds)
        centres, cells = kmeans(codes.float().cpu(), stats.shares.cpu(), self.config.cells, self.seed)
        used, cells = torch.unique(cells.to(codes.device), return_inverse=True)
        self.centres[: len(used)] = centres[used.cpu()]
        for cell in range(len(used)):
            inside = cells == cell
            own, targets = codes[inside], stats.embeds[inside]
            shares = stats.shares[inside] / stats.shares[inside].sum()
            self.weight[cell], self.bias[cell] = 0, shares @ targets.double()  # where all codes are equal
            if bool((own != own[0]).any()):
                weight, bias = least_squares(own, targets, shares, RIDGE)
                self.weight[cell], self.bias[cell] = weight, bias
        for values in (self.centres, self.weight, self.bias):  # fewer cells: the others are the first one
            values[len(used) :] = values[0]

    def forward(self, code: Code) -> Tensor:
        codes = code.vectors.flatten(0, 1)  # [N, d]
        order = nearest_rows(codes.detach(), self.centres)[0].squeeze(1).sort(stable=True)
        present, counts = torch.unique_consecutive(order.values, return_counts=True)
        parts = torch.split(codes[order.indices], counts.tolist())
        # Unbound at once: the gradient of one cell by itself would be as large as that of all.
        weights, biases = self.weight.unbind(), self.bias.unbind()
        decoded = [
            part @ weights[cell] + biases[cell] for part, cell in zip(parts, present.tolist(), strict=True)
        ]
        return torch.cat(decoded)[order.indices.argsort()].view(*code.vectors.shape[:2], -1)


@hookimpl
def stage1_adapters() -> type[Adapter]:
    return LocalLinear
