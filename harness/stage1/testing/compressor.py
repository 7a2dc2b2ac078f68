"""The conformance suite of compressors."""

import math
from unittest import SkipTest

import torch
from torch import Tensor

from stage1.bottleneck.chain import fit
from stage1.errors import ConfigError
from stage1.plugins.interfaces import Compressor
from stage1.plugins.tensors import Code, Embedded, TokenStats
from stage1.progress import SILENT
from stage1.testing.base import expect
from stage1.testing.component import SEED, VectorSuite, trainable
from stage1.testing.sample import LENGTHS, PADDINGS, WIDTH, make_batch, make_sample, through_file

DRAWN = 2**17
"""Random embeddings whose codes are counted: more than 16 bits can tell apart."""

NARROW = (1, 2, 3, 4, 8, 16, WIDTH)
"""Widths at which the bits are counted, narrowest first: few bits are soon exhausted."""


class CompressorSuite(VectorSuite):
    """Checks that a compressor keeps what `stage1.Compressor` promises.

    Derive a class named Test…, give your compressor as `component = …`, and run pytest.
    """

    def _fitted(self, seed: int = SEED, width: int = WIDTH) -> Compressor:
        return _fit(self._build(width, seed=seed), make_sample(width).stats, seed).eval()

    def _given(self, made: Compressor, prompts: Embedded) -> Code:
        return Code(*prompts)

    def _out(self, made: Compressor, given: Code) -> Code:
        code = encoded(made, given.vectors, given.mask)
        with torch.no_grad():
            return code._replace(bits=made.bits(code))

    # -- what comes out ------------------------------------------------------------------------------------

    def test_shapes(self) -> None:
        """Vectors [B, M, d] in the input's type and mask [B, M] bool, at any B and L."""
        made = self._fitted()
        for lengths in LENGTHS:
            for padding in PADDINGS:
                embeds, mask = make_batch(lengths, padding)
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
            embeds, mask = make_batch(width=width)
            found = encoded(made, embeds, mask).vectors.shape[-1]
            expect(
                found == dim,
                f"forward returned vectors of width {found}, but code_dim says {dim} (embeddings of width "
                f"{width}): the adapter is built for code_dim",
            )

    def test_inverse(self) -> None:
        """`inverse`, where there is one, returns embeddings [B, M, D]."""
        made = self._fitted()
        code = encoded(made, *make_batch())
        if (back := _inverse(made, code)) is None:
            raise SkipTest("it knows no inverse")
        wanted = (*code.vectors.shape[:2], WIDTH)
        expect(back.shape == wanted, f"inverse returned {tuple(back.shape)}, not {wanted}: [B, M, D]")
        expect(bool(back[code.mask].isfinite().all()), "inverse returned infinite values or NaN")

    # -- gradients -----------------------------------------------------------------------------------------

    def test_gradients(self) -> None:
        """Every trainable parameter gets a finite gradient, and training leaves the LLM's table alone."""
        sample = make_sample()
        before = sample.table.clone(), sample.stats.embeds.clone()
        made = _fit(self._build(WIDTH), sample.stats)
        for kept, now in zip(before, (sample.table, sample.stats.embeds), strict=True):
            expect(torch.equal(kept, now), "fit writes into the embeddings that it is given; copy them first")
        parameters = trainable(made)
        expect(
            torch.equal(before[1], sample.stats.embeds),
            "a parameter shares its memory with the LLM's embeddings, which training would change; clone it",
        )
        if not parameters:
            raise SkipTest("it has nothing to train")
        embeds, mask = make_batch()
        code = made.train()(embeds, mask)
        bits = made.bits(code)
        self._expect_gradients(made, _scalar(code) + (bits.sum() if bits.requires_grad else 0))

    def test_parameters_are_used(self) -> None:
        """Every parameter, frozen or not, has a part in what is sent, what it costs, or how it is decoded."""
        made = self._fitted()
        embeds, mask = make_batch()
        before = _everything(made, embeds, mask)
        for name, parameter in made.named_parameters():
            kept = parameter.detach().clone()
            with torch.no_grad():
                parameter.copy_(kept.flip(-1) * -3 + float(kept.abs().mean()) + 0.1)
            unmoved = all(map(torch.equal, before, _everything(made, embeds, mask)))
            expect(
                not unmoved,
                f"{name} changes neither the code nor its bits nor what inverse makes of it; drop it",
            )
            with torch.no_grad():
                parameter.copy_(kept)

    def test_needs_fit(self) -> None:
        """Where it says that there is nothing to fit, `fit` leaves it as it was built."""
        built, made = self._build(WIDTH), self._fitted()
        if made.needs_fit:
            raise SkipTest("it does not say that there is nothing to fit")
        pairs = zip(built.state_dict().values(), made.state_dict().values(), strict=True)
        expect(
            all(torch.equal(one, two) for one, two in pairs),
            "needs_fit = False, but fit changes it; behind a compressor that mixes tokens it is not called",
        )

    def test_gradient_reaches_the_embeddings(self) -> None:
        """Behind a trained compressor in a chain, that one gets its gradient through this one."""
        made = self._fitted()
        embeds, mask = make_batch()
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
        embeds, mask = make_batch()
        one, two = (_everything(compressor, embeds, mask) for compressor in (made, loaded.eval()))
        expect(
            all(map(torch.equal, one[:2], two[:2])),
            "a loaded compressor codes differently from the one that was saved; whatever fit and __init__ "
            "find out belongs into buffers that are persistent",
        )
        expect(
            all(map(torch.equal, one[2:], two[2:])),
            "a loaded compressor's inverse differs from that of the one that was saved",
        )

    # -- bits ----------------------------------------------------------------------------------------------

    def test_rates(self) -> None:
        """`rates` are options of its own with which it can be built, from few bits to many."""
        own = self._build(WIDTH).config
        rates = self.component.rates(own, WIDTH)
        if not rates:
            raise SkipTest("nothing is said to set its rate")
        costs = []
        embeds, mask = make_batch()
        for options in (rates[0], rates[len(rates) // 2], rates[-1]):
            config = self.component.Config.model_validate({**own.model_dump(), **options})
            built = self.component(config, WIDTH).eval()
            code = encoded(built, embeds, mask)
            costs.append(float(built.bits(code)[code.mask].sum()))
        expect(costs == sorted(costs), f"rates go from few bits to many, but three of them cost {costs} bits")

    def test_bits(self) -> None:
        """What each vector costs is said, [B, M], and is no less than the type it is sent in."""
        made = self._fitted()
        code = encoded(made, *make_batch())
        try:
            bits = made.bits(code)
        except NotImplementedError as error:
            raise AssertionError(str(error)) from error
        expect(
            bits.shape == code.mask.shape and bits.dtype.is_floating_point,
            f"bits returned {bits.dtype} of the shape {tuple(bits.shape)}, not floats "
            f"{tuple(code.mask.shape)}: [B, M], one for each vector",
        )
        sent = bits[code.mask]
        expect(bool((sent.isfinite() & (sent >= 0)).all()), "bits are negative, infinite or NaN")
        if made.wire_dtype is None:
            return
        expect(
            made.wire_dtype.is_floating_point,
            f"wire_dtype is {made.wire_dtype}; for codes that are no floating-point type set wire_dtype = "
            "None and define bits",
        )
        held = made.code_dim * torch.finfo(made.wire_dtype).bits
        expect(
            float(sent.min()) >= held,
            f"a vector costs {float(sent.min()):g} bits, but {made.code_dim} values of {made.wire_dtype} "
            f"have {held}; a quantiser sets wire_dtype = None",
        )
        vectors = code.vectors.to(made.wire_dtype)
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
        with torch.no_grad():
            lengths = made.bits(code)[code.mask].double()
        if float(lengths.min()) >= math.log2(DRAWN):
            raise SkipTest(
                f"{float(lengths.min()):.0f} bits a vector tell more codes apart than {DRAWN} samples show"
            )
        words, which = torch.unique(code.vectors[code.mask], dim=0, return_inverse=True)
        shortest = torch.full((len(words),), math.inf, dtype=torch.float64)
        shortest.scatter_reduce_(0, which, lengths, "amin")
        needed = float(torch.exp2(-shortest).sum())
        expect(
            needed <= 1 + 1e-4,
            f"embeddings of width {width} have {len(words)} different codes, but their bits (at most "
            f"{float(lengths.max()):g}) cannot tell them apart; charge in bits(code) all that is sent",
        )

    def _narrowest(self) -> tuple[Compressor, int]:
        for width in NARROW[:-1]:
            try:
                return self._fitted(width=width), width
            except (ConfigError, ValueError, RuntimeError):
                continue  # it needs more dimensions
        return self._fitted(), WIDTH


def _fit(made: Compressor, stats: TokenStats, seed: int = SEED) -> Compressor:
    """Fit as a run does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fit(made, stats, seed=seed, progress=SILENT)
    return made


def _everything(made: Compressor, embeds: Tensor, mask: Tensor) -> list[Tensor]:
    """What is sent, what it costs, and what it is decoded to."""
    code = encoded(made, embeds, mask)
    with torch.no_grad():
        parts = [code.vectors[code.mask], made.bits(code)[code.mask]]
        back = _inverse(made, code)
    return parts if back is None else [*parts, back[code.mask]]


def _inverse(made: Compressor, code: Code) -> Tensor | None:
    """What the compressor itself makes of a code; None where it knows no inverse."""
    try:
        return made.inverse(code)
    except NotImplementedError:
        return None


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
    vectors, kept = code.vectors, code.mask
    expect(not (made.tokenwise and made.changes_length), "changes_length needs tokenwise = False")
    expect(
        vectors.dim() == 3 and len(vectors) == len(mask),
        f"{when}, vectors have the shape {tuple(vectors.shape)}, not [B, M, d] with B = {len(mask)}",
    )
    expect(
        kept.shape == vectors.shape[:2],
        f"{when}, mask has the shape {tuple(kept.shape)}, not [B, M] = {tuple(vectors.shape[:2])}",
    )
    expect(kept.dtype == torch.bool, f"{when}, mask is {kept.dtype}, not bool")
    expect(
        vectors.dtype == torch.float32,
        f"{when}, float32 in, {vectors.dtype} out; keep the type of the embeddings",
    )
    expect(bool(vectors[kept].isfinite().all()), f"{when}, vectors hold infinite values or NaN")
    if made.changes_length:
        empty = ~mask.any(1)
        expect(not kept[empty].any(), f"{when}, vectors are sent for a prompt of which nothing crosses")
    else:
        expect(
            torch.equal(kept, mask),
            f"{when}, the code's mask is not the input's; pass it on, or set changes_length = True",
        )
