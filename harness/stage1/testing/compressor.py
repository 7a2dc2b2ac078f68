"""The conformance suite of compressors."""

import math
from unittest import SkipTest

import torch
from torch import Tensor

from stage1.errors import ConfigError
from stage1.plugins.interfaces import Compressor
from stage1.plugins.tensors import Code
from stage1.testing.base import expect
from stage1.testing.component import SEED, ComponentSuite, trainable
from stage1.testing.sample import WIDTH, make_batch, make_sample, poisoned, same, through_file

DRAWN = 2**17
"""Random embeddings whose codes are counted: more than 16 bits can tell apart."""

NARROW = (1, 2, 3, 4, 8, 16, WIDTH)
"""Widths at which the bits are counted, narrowest first: few bits are soon exhausted."""


class CompressorSuite(ComponentSuite, suite=True):
    """Checks that a compressor keeps what `stage1.Compressor` promises.

    Derive a class named Test…, return your compressor from the property `component`, and run pytest.
    """

    @property
    def component(self) -> type[Compressor]:
        """The compressor's class: the one property to fill."""
        raise NotImplementedError("define component, a property that returns your compressor's class")

    def _fitted(self, seed: int = SEED, width: int = WIDTH) -> Compressor:
        made: Compressor = self._build(width, seed=seed)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # as `Bottleneck.fit` does
            made.fit(make_sample(width).stats)
        return made.eval()

    def _results(
        self, made: Compressor, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> list[Tensor]:
        _, embeds, mask = make_batch(make_sample().table)
        with torch.no_grad():
            return list(made(embeds.to(device, dtype), mask.to(device)))

    # -- what comes out ------------------------------------------------------------------------------------

    def test_shapes(self) -> None:
        """Vectors [B, M, d] in the input's type, mask [B, M] bool and side bits [B, M], at any B and L."""
        made, table = self._fitted(), make_sample().table
        for lengths in ((1,), (9,), (1, 1, 1), (12, 7, 1), (5, 0)):
            for padding in ("left", "right"):
                _, embeds, mask = make_batch(table, lengths, padding)
                _expect_code(made, encoded(made, embeds, mask), mask, f"for prompts of lengths {lengths}")

    def test_code_dim(self) -> None:
        """`code_dim` is the width of the vectors, known before fitting, at any width of the embeddings."""
        for width in (WIDTH, 48, 64):
            built, made = self._build(width), self._fitted(width=width)
            dim = built.code_dim
            expect(isinstance(dim, int) and dim > 0, f"code_dim is {dim!r}, not a positive whole number")
            expect(
                made.code_dim == dim,
                f"code_dim is {dim} before fit and {made.code_dim} after it; adapters are built before",
            )
            _, embeds, mask = make_batch(make_sample(width).table)
            found = encoded(made, embeds, mask).vectors.shape[-1]
            expect(
                found == dim,
                f"forward returned vectors of width {found}, but code_dim says {dim} (embeddings of width "
                f"{width}): the adapter is built for code_dim and the bits are counted with it",
            )

    def test_inverse(self) -> None:
        """`inverse`, where there is one, returns embeddings [B, M, D]."""
        made = self._fitted()
        code = encoded(made, *make_batch(make_sample().table)[1:])
        try:
            back = made.inverse(code)
        except NotImplementedError:
            raise SkipTest("it knows no inverse") from None
        wanted = (*code.vectors.shape[:2], WIDTH)
        expect(back.shape == wanted, f"inverse returned {tuple(back.shape)}, not {wanted}: [B, M, D]")
        expect(bool(back[code.mask].isfinite().all()), "inverse returned infinite values or NaN")

    # -- what depends on what ------------------------------------------------------------------------------

    def test_tokenwise_promise(self) -> None:
        """Vector i depends on embedding i alone: not on other tokens, and not on its place."""
        made = self._fitted()
        if not made.tokenwise:
            raise SkipTest("it does not promise to treat each token alone")
        expect(not made.changes_length, "changes_length needs tokenwise = False")
        rows = make_sample().table[:60]
        embeds, mask = rows.view(5, 12, -1), torch.ones(5, 12, dtype=torch.bool)
        vectors = encoded(made, embeds, mask).vectors
        others = torch.where((torch.arange(12) % 3 > 0)[:, None], embeds.flip(0, 1), embeds)
        expect(
            same(encoded(made, others, mask).vectors[:, ::3], vectors[:, ::3]),
            "a vector changes when other tokens do; set tokenwise = False, or treat each token alone",
        )
        flat = vectors.flatten(0, 1)
        for shape in ((1, 60), (60, 1)):
            code = encoded(made, rows.flip(0).view(*shape, -1), torch.ones(shape, dtype=torch.bool))
            expect(
                same(code.vectors.flatten(0, 1).flip(0), flat),
                "a token's vector changes with its place in prompt or batch; set tokenwise = False",
            )

    def test_padding_invariance(self) -> None:
        """What stands in positions that do not cross reaches nothing that is sent."""
        made, table = self._fitted(), make_sample().table
        for padding in ("left", "right"):
            _, embeds, mask = make_batch(table, padding=padding)
            clean, dirty = (encoded(made, e, mask) for e in (embeds, poisoned(embeds, mask)))
            expect(
                torch.equal(clean.mask, dirty.mask)
                and same(dirty.vectors[dirty.mask], clean.vectors[clean.mask])
                and same(dirty.side_bits[dirty.mask], clean.side_bits[clean.mask]),
                "the code changes with what stands in padded positions; use the mask",
            )

    def test_batch_invariance(self) -> None:
        """A prompt's code is the same alone and in a batch with longer ones."""
        made, table = self._fitted(), make_sample().table
        for padding in ("left", "right"):
            _, embeds, mask = make_batch(table, padding=padding)
            code = encoded(made, embeds, mask)
            for row, sent, where in zip(embeds, mask, range(len(mask)), strict=True):
                alone = encoded(made, row[sent][None], torch.ones(1, int(sent.sum()), dtype=torch.bool))
                expect(
                    same(code.vectors[where][code.mask[where]], alone.vectors[alone.mask]),
                    f"a prompt has another code in a batch ({padding}-padded) than alone; compute nothing "
                    "across the batch, and count positions with the mask",
                )

    # -- gradients -----------------------------------------------------------------------------------------

    def test_gradients(self) -> None:
        """Every trainable parameter gets a finite gradient, and training leaves the LLM's table alone."""
        sample = make_sample()
        before = sample.table.clone(), sample.stats.embeds.clone()
        made: Compressor = self._build(WIDTH)
        with torch.no_grad():
            made.fit(sample.stats)
        for kept, now in zip(before, (sample.table, sample.stats.embeds), strict=True):
            expect(torch.equal(kept, now), "fit writes into the embeddings that it is given; copy them first")
        parameters = trainable(made)
        expect(
            torch.equal(before[1], sample.stats.embeds),
            "a parameter shares its memory with the LLM's embeddings, which training would change; clone it",
        )
        if not parameters:
            raise SkipTest("it has nothing to train")
        _, embeds, mask = make_batch(sample.table)
        self._expect_gradients(made, _scalar(made.train()(embeds, mask)))

    def test_gradient_reaches_the_embeddings(self) -> None:
        """Behind a trained compressor in a chain, that one gets its gradient through this one."""
        made = self._fitted()
        _, embeds, mask = make_batch(make_sample().table)
        value = _scalar(made(embeds.requires_grad_(), mask))
        if value.requires_grad:
            value.backward()  # type: ignore[no-untyped-call]
        if embeds.grad is None or not embeds.grad[mask].any():
            expect(
                made.wire_dtype is None, "no gradient reaches the embeddings; do not detach them in forward"
            )
            raise SkipTest("its code has no gradient; nothing before it in a chain can be trained")
        expect(bool(embeds.grad[mask].isfinite().all()), "the gradient is infinite or NaN")

    # -- saving --------------------------------------------------------------------------------------------

    def test_save_and_load(self) -> None:
        """Parameters and buffers are all there is to save: a new instance that loads them codes alike."""
        made = self._fitted()
        loaded: Compressor = self._build(WIDTH, seed=SEED + 1)
        loaded.load_state_dict(through_file(made), strict=True)
        _, embeds, mask = make_batch(make_sample().table)
        one, two = encoded(made, embeds, mask), encoded(loaded.eval(), embeds, mask)
        expect(
            all(map(torch.equal, one, two)),
            "a loaded compressor codes differently from the one that was saved; whatever fit and __init__ "
            "find out belongs into buffers that are persistent",
        )
        try:
            equal = torch.equal(made.inverse(one), loaded.inverse(two))
        except NotImplementedError:
            return
        expect(equal, "a loaded compressor's inverse differs from that of the one that was saved")

    # -- bits ----------------------------------------------------------------------------------------------

    def test_bits_per_value(self) -> None:
        """What a value costs is said, and is no less than the type it is sent in."""
        made = self._fitted()
        bits = made.bits_per_value
        expect(math.isfinite(bits) and bits >= 0, f"bits_per_value is {bits}")
        if made.wire_dtype is None:
            return
        expect(
            made.wire_dtype.is_floating_point,
            f"wire_dtype is {made.wire_dtype}; for codes that are no floating-point type set wire_dtype = "
            "None and define bits_per_value",
        )
        held = torch.finfo(made.wire_dtype).bits
        expect(
            bits >= held,
            f"bits_per_value is {bits}, but a {made.wire_dtype} has {held}; a quantiser sets "
            "wire_dtype = None",
        )
        vectors = encoded(made, *make_batch(make_sample().table)[1:]).vectors.to(made.wire_dtype)
        expect(bool(vectors.isfinite().all()), f"the code's values are too large for {made.wire_dtype}")

    def test_bits_are_honest(self) -> None:
        """A quantiser's codes are as few as its bits can tell apart.

        No code whose words are told apart by their bits has Σ 2^−length > 1 over its distinct words (Kraft
        and McMillan), whatever the quantiser: scalar, vector, rotated, with side bits or without.
        """
        made, width = self._narrowest()
        if made.wire_dtype is not None:
            raise SkipTest("the harness rounds its values and counts their bits")
        table = make_sample(width).table
        generator = torch.Generator().manual_seed(0)
        embeds = table.mean(0) + 2 * table.std(0) * torch.randn(DRAWN, width, generator=generator)
        shape = (DRAWN // 16, 16)
        code = encoded(made, embeds.view(*shape, width), torch.ones(shape, dtype=torch.bool))
        lengths = code.side_bits[code.mask].double() + made.code_dim * made.bits_per_value
        if float(lengths.min()) >= math.log2(DRAWN):
            raise SkipTest(
                f"{float(lengths.min()):.0f} bits a vector tell more codes apart than {DRAWN} samples show"
            )
        words, which = torch.unique(code.vectors[code.mask], dim=0, return_inverse=True)
        shortest = torch.full((len(words),), math.inf, dtype=torch.float64)
        shortest.scatter_reduce_(0, which, lengths, "amin")
        needed = float(torch.exp2(-shortest).sum())
        expect(
            needed <= 1 + 1e-9,
            f"embeddings of width {width} have {len(words)} different codes, but {made.code_dim} values of "
            f"{made.bits_per_value:g} bits and {float(code.side_bits.max()):g} side bits cannot tell them "
            "apart; raise bits_per_value, or charge what varies as side_bits",
        )

    def _narrowest(self) -> tuple[Compressor, int]:
        for width in NARROW[:-1]:
            try:
                return self._fitted(width=width), width
            except (ConfigError, ValueError, RuntimeError):
                continue  # it needs more dimensions
        return self._fitted(), WIDTH


def encoded(made: Compressor, embeds: Tensor, mask: Tensor) -> Code:
    """The code, without gradient."""
    with torch.no_grad():
        code: Code = made(embeds, mask)
    expect(isinstance(code, Code), f"forward returned {type(code).__name__}; return a stage1.Code")
    return code


def _scalar(code: Code) -> Tensor:
    """A value that all that is sent has a part in."""
    vectors = code.vectors[code.mask]
    return (vectors * torch.linspace(1, 2, vectors.numel()).view_as(vectors)).sum()


def _expect_code(made: Compressor, code: Code, mask: Tensor, when: str) -> None:
    vectors, kept, side_bits = code
    expect(
        vectors.dim() == 3 and len(vectors) == len(mask),
        f"{when}, vectors have the shape {tuple(vectors.shape)}, not [B, M, d] with B = {len(mask)}",
    )
    for name, part in (("mask", kept), ("side_bits", side_bits)):
        expect(
            part.shape == vectors.shape[:2],
            f"{when}, {name} has the shape {tuple(part.shape)}, not [B, M] = {tuple(vectors.shape[:2])}",
        )
    expect(kept.dtype == torch.bool, f"{when}, mask is {kept.dtype}, not bool")
    expect(
        vectors.dtype == torch.float32,
        f"{when}, float32 in, {vectors.dtype} out; keep the type of the embeddings",
    )
    expect(bool(vectors[kept].isfinite().all()), f"{when}, vectors hold infinite values or NaN")
    expect(
        bool((side_bits.double().isfinite() & (side_bits >= 0)).all()),
        f"{when}, side_bits are negative, infinite or NaN",
    )
    if made.changes_length:
        empty = ~mask.any(1)
        expect(not kept[empty].any(), f"{when}, vectors are sent for a prompt of which nothing crosses")
    else:
        expect(
            torch.equal(kept, mask),
            f"{when}, the code's mask is not the input's; pass it on, or set changes_length = True",
        )
