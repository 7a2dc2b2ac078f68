"""The built-in compressors, adapters and losses, each against what its name promises."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import built, small_config
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.errors import ConfigError
from stage1.plugins import load_plugins, resolve
from stage1.plugins.tensors import LossInputs, TokenStats

EVERY = torch.ones(1, 200, dtype=torch.bool)
"""All of the 200 tokens of `stats` cross."""


def build(compressor: str, adapter: str, stats: TokenStats, *options: str) -> Bottleneck:
    return built(stats, f"compressor={compressor}", f"adapter={adapter}", *options)


def recon(bottleneck: Bottleneck, stats: TokenStats) -> float:
    reconstructed = bottleneck(stats.embeds[None], EVERY)[0].detach()
    return float(stats.shares @ (reconstructed - stats.embeds).double().square().mean(1)) / stats.variance


def test_a_code_comes_off_the_wire_as_bfloat16(stats: TokenStats) -> None:
    code = build("pca", "linear", stats).encode(stats.embeds[None], EVERY)
    assert torch.equal(code.vectors, code.vectors.bfloat16().float())
    assert code.bits.shape == code.mask.shape == (1, 200)


def test_pca_inverse_is_the_best_of_all_linear_decoders(stats: TokenStats) -> None:
    pca = build("pca", "linear", stats, "compressor.dim=6")
    error = recon(pca, stats)
    eigenvalues = torch.linalg.eigvalsh(stats.covariance())
    optimum = float(eigenvalues[:-6].sum() / eigenvalues.sum())
    assert error == pytest.approx(optimum, rel=1e-2)  # Eckart and Young, up to the wire's rounding
    assert recon(build("random_projection", "linear", stats, "compressor.dim=6"), stats) > error


def test_pca_explains_a_share_of_the_true_total(stats: TokenStats) -> None:
    few: Any = build("pca", "linear", stats, "compressor.dim=3").compressor
    every: Any = build("pca", "linear", stats, "compressor.dim=24").compressor
    assert float(every.explained_variance.sum()) == pytest.approx(1, abs=1e-6)
    assert float(few.explained_variance.sum()) == pytest.approx(
        float(every.explained_variance[:3].sum()), abs=1e-6
    )


@pytest.mark.parametrize("kind", ["gaussian", "sparse"])
def test_random_projection_is_seeded_and_its_inverse_a_projection(kind: str, stats: TokenStats) -> None:
    options = (f"compressor.kind={kind}", "compressor.dim=8")
    one: Any = build("random_projection", "linear", stats, *options)
    two: Any = build("random_projection", "mlp", stats, *options)
    assert torch.equal(one.compressor.projection, two.compressor.projection)  # not the adapter's business
    other: Any = build("random_projection", "linear", stats, *options, "seed=1")
    assert not torch.equal(one.compressor.projection, other.compressor.projection)
    back, _ = one.reconstruct_linear(stats.embeds[None], EVERY)
    again, _ = one.reconstruct_linear(back, EVERY)
    torch.testing.assert_close(again, back, rtol=0.05, atol=float(back.abs().max()) * 0.02)
    if kind == "gaussian":
        gram = one.compressor.projection @ one.compressor.projection.T
        torch.testing.assert_close(gram, torch.eye(8), rtol=0, atol=1e-6)


def test_residual_starts_at_the_linear_optimum(stats: TokenStats) -> None:
    linear, residual = (build("pca", name, stats, "compressor.dim=6") for name in ("linear", "residual"))
    assert torch.equal(linear(stats.embeds[None], EVERY), residual(stats.embeds[None], EVERY))
    assert all(parameter.requires_grad for parameter in linear.adapter.parameters())
    trained = {name for name, parameter in residual.named_parameters() if parameter.requires_grad}
    assert trained
    assert not any(name.startswith("adapter.linear.") for name in trained)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 120.0])
def test_mlp_starts_at_the_embeddings_own_scale(scale: float, stats: TokenStats) -> None:
    scaled = TokenStats(stats.ids, stats.weights, stats.embeds * scale)
    assert 0.5 < recon(build("pca", "mlp", scaled), scaled) < 2


def test_codebook_is_exact_while_codes_are_distinct(stats: TokenStats) -> None:
    bottleneck = build("pca", "codebook", stats, "compressor.dim=6")
    assert recon(bottleneck, stats) == 0
    assert not bottleneck.state_dict().keys() & {"adapter.table", "adapter.codes"}


def test_snap_takes_the_tables_row_where_it_is_clearly_the_nearest(stats: TokenStats) -> None:

    def reconstructed(adapter: str, *options: str, training: bool = False) -> Tensor:
        bottleneck = build("pca", adapter, stats, "compressor.dim=12", *options).train(training)
        vectors: Tensor = bottleneck(stats.embeds[None], EVERY)[0].detach()
        return vectors

    plain, always = reconstructed("residual"), reconstructed("snap", "adapter.margin=1")
    distances = torch.cdist(plain, stats.embeds)
    assert torch.equal(always, stats.embeds[distances.argmin(1)])
    nearest, second = distances.sort(dim=1).values[:, :2].T
    clear = nearest < 0.7 * second
    assert 0 < int(clear.sum()) < len(clear)
    sometimes = reconstructed("snap", "adapter.margin=0.7")
    assert torch.equal(sometimes[clear], always[clear])
    assert torch.equal(sometimes[~clear], plain[~clear])
    assert torch.equal(reconstructed("snap", training=True), plain)


def test_local_linear_solves_each_leaf_for_itself(stats: TokenStats) -> None:
    bottleneck = build("pca", "local_linear", stats, "compressor.dim=6", "adapter.leaves=7")
    codes = bottleneck.encode(stats.embeds[None], EVERY).vectors[0]
    reconstructed = bottleneck(stats.embeds[None], EVERY)[0].detach()

    def check(inside: Tensor, leaves: int) -> None:
        own, shares = codes[inside].double(), stats.shares[inside]
        if leaves == 1:
            root = shares.sqrt()[:, None]
            known = torch.cat([own, torch.ones(len(own), 1)], 1)
            solved = torch.linalg.lstsq(known * root, stats.embeds[inside].double() * root).solution
            torch.testing.assert_close(reconstructed[inside].double(), known @ solved, rtol=0, atol=0.02)
            return
        weights = shares.sqrt()[:, None]
        spread = (weights * (own - (weights * own).sum(0) / weights.sum()).square()).sum(0)
        values = own[:, spread.argmax()]
        left = {7: 4, 4: 2, 3: 2, 2: 1}[leaves]  # the tree's last level is filled from the left
        share = left / leaves * weights.sum()
        below = next(v for v in torch.unique(values) if weights[values <= v].sum() >= share)
        check(inside[values <= below], left)
        check(inside[values > below], leaves - left)

    check(torch.arange(len(stats.ids)), 7)


def test_local_linear_without_a_split_is_linear_and_with_more_knows_more(stats: TokenStats) -> None:
    errors = {
        leaves: recon(
            build("pca", "local_linear", stats, "compressor.dim=6", f"adapter.leaves={leaves}"), stats
        )
        for leaves in (1, 5, 16, 500)
    }
    linear = recon(build("pca", "linear", stats, "compressor.dim=6"), stats)
    assert errors[1] == pytest.approx(linear, rel=1e-3)
    assert errors[500] < 1e-6 < errors[16] < errors[5] < errors[1]  # more leaves than tokens: by heart


def test_local_linear_gives_equal_codes_their_mean(stats: TokenStats) -> None:
    twins = TokenStats(stats.ids, stats.weights, stats.embeds[:1].expand(len(stats.ids), -1).clone())
    bottleneck = build("pca", "local_linear", twins, "compressor.dim=6", "adapter.leaves=3")
    others = torch.stack([stats.embeds[0], 100 * stats.embeds[3]])
    reconstructed = bottleneck(others[None], torch.ones(1, 2, dtype=torch.bool))[0]
    torch.testing.assert_close(reconstructed, twins.embeds[:2], rtol=1e-3, atol=1e-4)


def test_codebook_gives_the_first_of_equal_codes(stats: TokenStats) -> None:
    twins = TokenStats(stats.ids, stats.weights, stats.embeds.clone())
    twins.embeds[150] = twins.embeds[20]
    bottleneck = build("pca", "codebook", twins, "compressor.dim=6")
    reconstructed = bottleneck(twins.embeds[None, [150, 20, 3]], torch.ones(1, 3, dtype=torch.bool))
    assert torch.equal(reconstructed[0], twins.embeds[[20, 20, 3]])


@given(
    rows=st.integers(1, 40),
    scale=st.floats(1e-4, 1e3),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
def test_identity_code_survives_the_round_trip(rows: int, scale: float, seed: int) -> None:
    embeds = torch.randn(1, rows, 24, generator=torch.Generator().manual_seed(seed)) * scale
    embeds = embeds.bfloat16().float()  # as a bfloat16 model stores them
    config = small_config("compressor=identity", "adapter=identity")
    bottleneck = Bottleneck.build(resolve(config, load_plugins()), "free", 24, 0)
    mask = torch.ones(1, rows, dtype=torch.bool)
    assert torch.equal(bottleneck(embeds, mask), embeds)
    bits = bottleneck.code_bits(bottleneck.encode(embeds, mask))
    assert bits.tolist() == [rows * 24 * 16]


def test_identity_adapter_is_refused_behind_a_narrow_code(stats: TokenStats) -> None:
    with pytest.raises(ConfigError, match=r"adapter\.name: .*--compressor identity"):
        build("pca", "identity", stats)


@pytest.mark.parametrize("dim", [25, 10**6])
def test_a_code_wider_than_the_model_is_refused(dim: int, stats: TokenStats) -> None:
    with pytest.raises(ConfigError, match=f"compressor.dim: {dim} is larger .* 1 to 24"):
        build("pca", "linear", stats, f"compressor.dim={dim}")


def test_losses_are_zero_when_perfect_and_recon_is_one_at_the_mean(stats: TokenStats) -> None:
    registry = load_plugins()
    recon_loss, cosine_loss = (registry.get("loss", n)(None) for n in ("recon", "cosine"))
    weights = stats.shares[None].float()
    perfect = LossInputs(stats.embeds[None], stats.embeds[None], weights, stats.ids[None], stats.variance)
    assert float(recon_loss(perfect)) == 0
    assert float(cosine_loss(perfect)) == pytest.approx(0, abs=1e-6)
    mean = stats.mean.float().expand(1, 200, 24)
    constant = LossInputs(stats.embeds[None], mean, weights, stats.ids[None], stats.variance)
    assert float(recon_loss(constant)) == pytest.approx(1, rel=1e-5)
    opposite = LossInputs(stats.embeds[None], -stats.embeds[None], weights, stats.ids[None], stats.variance)
    assert float(cosine_loss(opposite)) == pytest.approx(2, rel=1e-5)


def test_recon_does_not_depend_on_the_scale_of_the_model(stats: TokenStats) -> None:
    errors = []
    for scale in (0.01, 1.0, 50.0):
        scaled = TokenStats(stats.ids, stats.weights, stats.embeds * scale)
        errors.append(recon(build("pca", "linear", scaled, "compressor.dim=6"), scaled))
    assert errors == pytest.approx([errors[0]] * 3, rel=1e-2)


def test_learned_linear_starts_as_pca(stats: TokenStats) -> None:
    pca, learned = (build(name, "linear", stats, "compressor.dim=6") for name in ("pca", "learned_linear"))
    embeds = stats.embeds[None]
    assert torch.equal(pca.encode(embeds, EVERY).vectors, learned.encode(embeds, EVERY).vectors)
    inverse, ours = (one.reconstruct_linear(embeds, EVERY)[0].detach() for one in (pca, learned))
    torch.testing.assert_close(ours, inverse, rtol=0, atol=1e-6)
    assert {name for name, _ in learned.compressor.named_parameters()} == {"weight", "bias"}


def test_learned_linear_inverse_is_right_after_training(stats: TokenStats) -> None:
    """It gives back the code, and of all vectors with that code the one nearest to the mean embedding."""
    learned = build("learned_linear", "linear", stats, "compressor.dim=6")
    compressor: Any = learned.compressor
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        (learned(stats.embeds[None], EVERY) - stats.embeds).square().sum(-1).mean().backward()
        optimizer.step()
    with torch.no_grad():
        compressor.weight += 0.3 * torch.randn(6, 24, generator=torch.Generator().manual_seed(2))
        compressor.bias += 0.1
        code = compressor(stats.embeds[None], EVERY)
        back = compressor.inverse(code)
        torch.testing.assert_close(compressor(back, EVERY).vectors, code.vectors, rtol=1e-4, atol=1e-5)
        away = (back[0] - compressor.mean).double()
        weight = compressor.weight.double()
        in_rows = away @ torch.linalg.pinv(weight) @ weight  # the part of it in the row space
    torch.testing.assert_close(in_rows, away, rtol=1e-4, atol=1e-5)


def test_linear_solves_again_what_training_has_moved(stats: TokenStats) -> None:
    bottleneck = build("pca", "linear", stats, "compressor.dim=6")
    adapter: Any = bottleneck.adapter
    start = adapter.weight.detach().clone()
    with torch.no_grad():
        adapter.weight.zero_()
    adapter.solve_last_layer(bottleneck.encode_rows, stats)
    torch.testing.assert_close(adapter.weight.detach(), start, rtol=1e-5, atol=1e-6)
    assert adapter.weight.requires_grad
