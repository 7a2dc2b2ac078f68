"""No compression: the control that must cost nothing but the wire's rounding."""

from torch import Tensor

from stage1 import Code, Compressor, hookimpl


class Identity(Compressor):
    """Sends every embedding as it is, in bfloat16: exact for a model stored in bfloat16."""

    name = "identity"
    needs_fit = False

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        return Code(embeds, mask)

    def inverse(self, code: Code) -> Tensor:
        return code.vectors


@hookimpl
def stage1_compressors() -> type[Compressor]:
    return Identity
