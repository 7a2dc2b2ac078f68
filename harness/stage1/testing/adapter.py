"""The conformance suite of adapters."""

from dataclasses import replace
from unittest import SkipTest

import torch
from torch import Tensor

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.errors import ConfigError
from stage1.plugins.interfaces import Adapter, ComponentConfig, Compressor
from stage1.plugins.tensors import Code
from stage1.testing.base import expect
from stage1.testing.component import SEED, ComponentSuite, trainable
from stage1.testing.sample import WIDTH, Batch, make_batch, make_sample, poisoned, same, through_file

CODE_DIM = 8
"""d, the width of the codes; adapters that pass codes on as they are get codes of the embeddings' width."""


class FirstDims(Compressor):
    """What stands before the adapter: the first dimensions of every embedding."""

    name = "first_dims"

    def __init__(self, embed_dim: int, dim: int) -> None:
        super().__init__(ComponentConfig(), embed_dim)
        self.dim = dim

    @property
    def code_dim(self) -> int:
        """d."""
        return self.dim

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        """Keep the first d of D dimensions."""
        return Code(embeds[..., : self.dim], mask)


class AdapterSuite(ComponentSuite):
    """Checks that an adapter keeps what `stage1.Adapter` promises, behind a token-wise compressor.

    Derive a class named Test…, give your adapter as `component = …`, and run pytest.
    """

    @property
    def component(self) -> type[Adapter]:
        """The adapter's class: the one thing to fill in."""
        raise NotImplementedError("define component: your adapter's class")

    def _bottleneck(self, seed: int = SEED) -> Bottleneck:
        """The adapter behind the compressor, neither fitted nor attached."""
        try:
            adapter, dim = self._build(CODE_DIM, WIDTH, seed=seed), CODE_DIM
        except ConfigError:
            adapter, dim = self._build(WIDTH, WIDTH, seed=seed), WIDTH
        return Bottleneck(FirstDims(WIDTH, dim), adapter).eval()

    def _started(self, seed: int = SEED) -> Bottleneck:
        """The same, attached to the table and warm-started."""
        bottleneck = self._bottleneck(seed)
        table, stats = make_sample()
        bottleneck.fit(stats, table)
        return bottleneck

    def _fitted(self, seed: int = SEED) -> Adapter:
        return self._started(seed).adapter

    def _results(
        self, made: Adapter, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> list[Tensor]:
        code = _code(made, make_batch(make_sample().table))
        return [_reconstructed(made, Code(code.vectors.to(device, dtype), code.mask.to(device)))]

    # -- what comes out ------------------------------------------------------------------------------------

    def test_shapes(self) -> None:
        """Reconstructed embeddings [B, M, D] in the code's type, finite, at any B and M."""
        made, table = self._fitted(), make_sample().table
        for lengths in ((1,), (9,), (1, 1, 1), (12, 7, 1), (5, 0)):
            code = _code(made, make_batch(table, lengths))
            reconstructed, wanted = _reconstructed(made, code), (*code.mask.shape, WIDTH)
            expect(
                reconstructed.shape == wanted,
                f"forward returned {tuple(reconstructed.shape)} for codes {tuple(code.vectors.shape)}, not "
                f"[B, M, D] = {wanted}",
            )
            expect(
                reconstructed.dtype == code.vectors.dtype,
                f"codes in {code.vectors.dtype}, embeddings in {reconstructed.dtype}; keep the type",
            )
            expect(bool(reconstructed[code.mask].isfinite().all()), "forward returned infinite values or NaN")

    def test_closed_forms(self) -> None:
        """Closed forms leave finite tensors, and the embeddings as they are."""
        bottleneck = self._bottleneck()
        table, stats = make_sample()
        weighted = replace(stats, weights=stats.shares)  # as training hands them over
        kept = table.clone(), stats.embeds.clone()
        bottleneck.fit(stats, table)
        with torch.no_grad():
            bottleneck.adapter.solve_last_layer(bottleneck.encode_rows, weighted)
        for name, value in bottleneck.adapter.state_dict().items():
            expect(
                bool(value.isfinite().all()),
                f"after warm_start and solve_last_layer, {name} holds infinite values or NaN",
            )
        expect(
            torch.equal(kept[0], table) and torch.equal(kept[1], stats.embeds),
            "the adapter writes into the embeddings that it is given; copy them first",
        )
        _reconstructed(bottleneck.adapter, _code(bottleneck.adapter, make_batch(table)))

    # -- what depends on what ------------------------------------------------------------------------------

    def test_tokenwise_promise(self) -> None:
        """Reconstructed vector i depends on code vector i alone: not on others, and not on its place."""
        made = self._fitted()
        if not made.tokenwise:
            raise SkipTest("it does not promise to treat each vector alone")
        rows = make_sample().table[:60]
        code = _code(made, Batch(torch.arange(60), rows.view(5, 12, -1), torch.ones(5, 12, dtype=torch.bool)))
        reconstructed = _reconstructed(made, code)
        others = code.vectors.flip(0, 1).clone()
        others[:, ::3] = code.vectors[:, ::3]
        expect(
            same(_reconstructed(made, code._replace(vectors=others))[:, ::3], reconstructed[:, ::3]),
            "a reconstructed vector changes when others do; set tokenwise = False, or treat each alone",
        )
        for shape in ((1, 60), (60, 1)):
            turned = code.vectors.flatten(0, 1).flip(0).view(*shape, -1)
            again = Code(turned, torch.ones(shape, dtype=torch.bool))
            expect(
                same(_reconstructed(made, again).flatten(0, 1).flip(0), reconstructed.flatten(0, 1)),
                "a reconstructed vector changes with its place in prompt or batch; set tokenwise = False",
            )

    def test_padding_invariance(self) -> None:
        """Vectors that were not sent reach nothing that is reconstructed."""
        made, table = self._fitted(), make_sample().table
        for padding in ("left", "right"):
            code = _code(made, make_batch(table, padding=padding))
            dirty = code._replace(vectors=poisoned(code.vectors, code.mask))
            expect(
                same(_reconstructed(made, dirty)[code.mask], _reconstructed(made, code)[code.mask]),
                "what is reconstructed changes with what stands in padded positions; use code.mask",
            )

    def test_batch_invariance(self) -> None:
        """A prompt is reconstructed the same alone and in a batch with longer ones."""
        made, table = self._fitted(), make_sample().table
        for padding in ("left", "right"):
            code = _code(made, make_batch(table, padding=padding))
            reconstructed = _reconstructed(made, code)
            for row, sent in enumerate(code.mask):
                alone = Code(code.vectors[row][sent][None], sent[sent][None])
                expect(
                    same(reconstructed[row][sent], _reconstructed(made, alone)[0]),
                    f"a prompt is reconstructed differently in a batch ({padding}-padded) than alone; "
                    "compute nothing across the batch, and count positions with code.mask",
                )

    # -- gradients -----------------------------------------------------------------------------------------

    def test_gradients(self) -> None:
        """Trainable parameters and codes get finite gradients, and training leaves the LLM's table alone."""
        bottleneck = self._bottleneck()
        table, stats = make_sample()
        kept = table.clone()
        bottleneck.fit(stats, table)
        made = bottleneck.adapter
        parameters = trainable(made)
        expect(
            torch.equal(kept, table),
            "a parameter shares its memory with the LLM's embeddings, which training would change; clone it",
        )
        if not parameters:
            raise SkipTest("it has nothing to train")
        code = _code(made, make_batch(table))
        vectors = code.vectors.requires_grad_()
        reconstructed = made.train()(code)
        error = (reconstructed - make_batch(table).embeds)[code.mask].square().sum()
        self._expect_gradients(made, error)
        expect(
            vectors.grad is not None and vectors.grad[code.mask].any(),
            "no gradient reaches the code, so a trained compressor would learn nothing; do not detach it",
        )

    # -- saving --------------------------------------------------------------------------------------------

    def test_save_and_load(self) -> None:
        """Parameters and buffers, with the table attached, are all there is: a loaded one does the same."""
        bottleneck, loaded = self._started(), self._bottleneck(SEED + 1)
        loaded.load_state_dict(through_file(bottleneck), strict=True)
        table = make_sample().table
        loaded.receive_table(table)
        code = _code(loaded.adapter, make_batch(table))
        expect(
            torch.equal(_reconstructed(bottleneck.adapter, code), _reconstructed(loaded.adapter, code)),
            "a loaded adapter reconstructs differently from the saved one; what __init__ and warm_start "
            "find out belongs into buffers, what receive_table derives is derived again",
        )

    def test_table_is_not_saved(self) -> None:
        """What `receive_table` derives from the table is no part of the checkpoint."""
        sizes = []
        for part in (2, 1):
            bottleneck = self._bottleneck()
            table, stats = make_sample()
            bottleneck.fit(stats, table)
            bottleneck.receive_table(table[: len(table) // part])
            sizes.append({name: value.shape for name, value in bottleneck.adapter.state_dict().items()})
        grown = [name for name, shape in sizes[0].items() if sizes[1].get(name) != shape]
        expect(
            not grown and len(sizes[0]) == len(sizes[1]),
            f"{', '.join(grown)} grows with the vocabulary and is saved; the receiver owns the table: "
            "register it with persistent=False",
        )


def _code(made: Adapter, batch: Batch) -> Code:
    """The code as it comes off the wire."""
    with torch.no_grad():
        return Bottleneck(FirstDims(WIDTH, made.code_dim), made).encode(batch.embeds, batch.mask)


def _reconstructed(made: Adapter, code: Code) -> Tensor:
    with torch.no_grad():
        reconstructed = made(code)
    expect(
        isinstance(reconstructed, Tensor),
        f"forward returned {type(reconstructed).__name__}; return the reconstructed embeddings [B, M, D]",
    )
    return torch.as_tensor(reconstructed)
