"""No adapter: the code is the embedding."""

from torch import Tensor

from stage1 import Adapter, Code, ComponentConfig, hookimpl
from stage1.errors import ConfigError, ConfigIssue


class Identity(Adapter):
    """Passes the code on unchanged; only for compressors that keep the embedding's width."""

    name = "identity"

    def __init__(self, config: ComponentConfig, code_dim: int, embed_dim: int) -> None:
        super().__init__(config, code_dim, embed_dim)
        if code_dim != embed_dim:
            message = (
                f"identity passes the code on as it is, but codes have {code_dim} dimensions and embeddings "
                f"{embed_dim}; choose an adapter that decodes, such as linear, or --compressor identity."
            )
            raise ConfigError([ConfigIssue("adapter.name", message)])

    def forward(self, code: Code) -> Tensor:
        return code.vectors


@hookimpl
def stage1_adapters() -> type[Adapter]:
    return Identity
