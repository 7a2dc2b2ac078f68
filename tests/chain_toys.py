"""Compressors to chain: one that changes the length, one without an inverse, one that raises."""

from plugin_sites import Site
from stage1.plugins import Registry, load_plugins

TOYS = '''
    import torch
    from stage1 import Code, Compressor, hookimpl

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
        return [Pairs, Halve, Faulty]
'''


def installed(site: Site) -> Registry:
    """The installed plugins and a package `toys`, for this process's commands too."""
    site.install("toys", {"point": TOYS})
    return load_plugins()
