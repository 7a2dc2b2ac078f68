"""The conformance suite of adapters."""

from dataclasses import replace
from unittest import SkipTest

import torch
from torch import Tensor

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.errors import ConfigError
from stage1.plugins.interfaces import Adapter, ComponentConfig, Compressor
from stage1.plugins.tensors import Code, Embedded
from stage1.testing.base import expect
from stage1.testing.component import SEED, VectorSuite, trainable
from stage1.testing.sample import LENGTHS, WIDTH, make_batch, make_sample, through_file

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


class AdapterSuite(VectorSuite):
    """Checks that an adapter keeps what `stage1.Adapter` promises, behind a token-wise compressor.

    Derive a class named Test…, give your adapter as `component = …`, and run pytest.
    """

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

    def _given(self, made: Adapter, prompts: Embedded) -> Code:
        with torch.no_grad():  # as it comes off the wire
            return Bottleneck(FirstDims(WIDTH, made.code_dim), made).encode(*prompts)

    def _out(self, made: Adapter, given: Code) -> Code:
        reconstructed = _reconstructed(made, given)
        return Code(reconstructed, given.mask, torch.zeros_like(reconstructed[..., 0]))

    # -- what comes out ------------------------------------------------------------------------------------

    def test_shapes(self) -> None:
        """Reconstructed embeddings [B, M, D] in the code's type, finite, at any B and M."""
        made = self._fitted()
        for lengths in LENGTHS:
            code = self._given(made, make_batch(lengths))
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
        _reconstructed(bottleneck.adapter, self._given(bottleneck.adapter, make_batch()))

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
        code = self._given(made, make_batch())
        vectors = code.vectors.requires_grad_()
        reconstructed = made.train()(code)
        error = (reconstructed - make_batch().embeds)[code.mask].square().sum()
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
        loaded.receive_table(make_sample().table)
        code = self._given(loaded.adapter, make_batch())
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


def _reconstructed(made: Adapter, code: Code) -> Tensor:
    with torch.no_grad():
        reconstructed = made(code)
    expect(
        isinstance(reconstructed, Tensor),
        f"forward returned {type(reconstructed).__name__}; return the reconstructed embeddings [B, M, D]",
    )
    return torch.as_tensor(reconstructed)
