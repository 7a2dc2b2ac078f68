"""The least-squares decoder plus a trained correction."""

import torch
from torch import Tensor, nn

from stage1 import Adapter, Code, Derived, Encode, TokenStats, hookimpl
from stage1_adapters.linear import Linear
from stage1_adapters.mlp import MLP, MLPConfig


class Residual(Adapter):
    """ê = z A + b + MLP(z), the MLP's last layer starting at zero.

    Step 0 is therefore the linear optimum, and since the best checkpoint counts, training can only help.
    The linear part stays as it was fitted.
    """

    name = "residual"
    Config = MLPConfig

    def __init__(self, config: MLPConfig, code_dim: int, embed_dim: int) -> None:
        super().__init__(config, code_dim, embed_dim)
        self.linear = Linear(config, code_dim, embed_dim).requires_grad_(False)
        self.correction = MLP(config, code_dim, embed_dim)
        for parameter in self.correction.net[-1].parameters():
            nn.init.zeros_(parameter)

    def warm_start(self, encode: Encode, stats: TokenStats) -> None:
        self.linear.warm_start(encode, stats)
        self.correction.warm_start(encode, stats)
        self.correction.embed_mean.zero_()  # the linear part already carries the mean

    def solve_last_layer(self, encode: Encode, stats: TokenStats) -> None:
        codes, rows = encode(stats.embeds), torch.arange(len(stats.ids), device=stats.ids.device)
        # Some rows at a time: what the linear part leaves of all of them would be a second table.
        left = Derived(rows, lambda some: stats.embeds[some] - self.linear.decode(codes[some]))
        self.correction.solve(codes, left, stats.shares)

    def forward(self, code: Code) -> Tensor:
        reconstructed: Tensor = self.linear(code) + self.correction(code)
        return reconstructed


@hookimpl
def stage1_adapters() -> type[Adapter]:
    return Residual
