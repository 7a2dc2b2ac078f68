"""Compressors to chain: a quantiser, one that changes the length, one without an inverse, one that raises."""

from plugin_sites import Site
from stage1.plugins import Registry, load_plugins

TOYS = '''
    import torch
    from pydantic import Field
    from stage1 import Code, Compressor, ComponentConfig, hookimpl, straight_through

    class StepsConfig(ComponentConfig):
        bits: int = Field(4, ge=2, description="Bits of a value.")

    class Steps(Compressor):
        """Rounds to equal steps of a scale per dimension; half a float beside every vector."""
        name = "steps"
        Config = StepsConfig
        wire_dtype = None

        def __init__(self, config, embed_dim):
            super().__init__(config, embed_dim)
            self.register_buffer("scale", torch.ones(embed_dim))
            self.register_buffer("mean", torch.zeros(embed_dim))

        def fit(self, stats):
            self.scale.copy_(stats.embeds.abs().amax(0))
            self.mean.copy_(stats.mean)

        def forward(self, embeds, mask):
            step = self.scale / (2 ** (self.config.bits - 1) - 1)
            rounded = (embeds / step).round() * step
            return Code(straight_through(rounded, embeds), mask)

        def bits(self, code):
            return torch.full(code.mask.shape, self.embed_dim * self.config.bits + 16.0)

        def inverse(self, code):
            return code.vectors

    class Pairs(Compressor):
        """The mean of every two neighbours; two bits beside each."""
        name = "pairs"
        needs_fit = False
        tokenwise = False
        changes_length = True

        def forward(self, embeds, mask):
            if mask.shape[1] % 2:
                embeds = torch.nn.functional.pad(embeds, (0, 0, 0, 1))
                mask = torch.nn.functional.pad(mask, (0, 1))
            two, kept = embeds.unflatten(1, (-1, 2)), mask.unflatten(1, (-1, 2))
            sums = (two * kept[..., None]).sum(2)
            count = kept.sum(2)
            vectors = sums / count.clamp(min=1)[..., None]
            return Code(vectors, count > 0)

        def bits(self, code):
            return super().bits(code) + 2

    class Halve(Compressor):
        """Sends the first half of the dimensions."""
        name = "halve"
        needs_fit = False

        @property
        def code_dim(self):
            return self.embed_dim // 2

        def forward(self, embeds, mask):
            return Code(embeds[..., : self.code_dim], mask)

    class Faulty(Compressor):
        """Raises."""
        name = "faulty"

        def forward(self, embeds, mask):
            raise ArithmeticError("too many bits")

    @hookimpl
    def stage1_compressors():
        return [Steps, Pairs, Halve, Faulty]
'''


def installed(site: Site) -> Registry:
    """The installed plugins and a package `toys`, for this process's commands too."""
    site.install("toys", {"point": TOYS})
    return load_plugins()
