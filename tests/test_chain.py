"""Compressors behind compressors: what is computed, charged, saved, said and refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import SMALL, Invoke, built, refused, settings_args, small_config
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.chain import Chain
from stage1.bottleneck.checkpoint import digest
from stage1.config import validate
from stage1.data.prompts import Prompt
from stage1.errors import ConfigError, PluginError, UsageError
from stage1.evaluation.rate import rate
from stage1.experiment import evaluate_run, resume_run, train_run
from stage1.plugins import Registry, load_plugins
from stage1.plugins.interfaces import ComponentConfig, Compressor
from stage1.plugins.tensors import Code, TokenStats
from stage1.progress import Progress
from stage1.reports import publish
from stage1.reports.commands import train_command
from stage1.runs.run import Run
from test_bottleneck import saved


def linear(stats: TokenStats, *options: str, fit: bool = True) -> Bottleneck:
    return built(stats, "adapter=linear", *options, fit=fit)


def whole(stats: TokenStats) -> tuple[torch.Tensor, torch.Tensor]:
    """Every token once, as one prompt."""
    return stats.embeds[None], torch.ones(1, len(stats.ids), dtype=torch.bool)


def after_pca(*others: str) -> str:
    """PCA to six dimensions and what comes behind it."""
    return f"compressors=[{{name: pca, dim: 6}}, {', '.join(others)}]"


PCA6 = after_pca()


# -- what it computes ---------------------------------------------------------------------------------


def test_a_chain_does_what_its_stages_do_by_hand(stats: TokenStats) -> None:
    chained, alone = linear(stats, after_pca("{name: quantize, bits: 5}")), linear(stats, PCA6)
    pca, quantize = alone.compressor, load_plugins().get("compressor", "quantize")
    codes = pca(*whole(stats)).vectors
    by_hand: Any = quantize(quantize.Config(bits=5), 6)
    by_hand.fit(replace(stats, embeds=codes[0]))  # with the tokens' counts
    assert torch.equal(chained.stages[1].get_buffer("low"), by_hand.low)
    expected = by_hand(codes, whole(stats)[1])
    code = chained.encode(*whole(stats))
    assert torch.equal(code.vectors, expected.vectors)  # not rounded on the way, neither before nor behind
    reconstructed, _ = chained.reconstruct_linear(*whole(stats))
    assert torch.equal(reconstructed, pca.inverse(expected))
    chain: Any = chained.compressor
    assert (chain.name, chain.embed_dim, chain.code_dim) == ("pca+quantize", 24, 6)
    assert (chain.tokenwise, chain.changes_length, chain.wire_dtype) == (True, False, None)


def test_three_stages_in_order(toys: Registry, stats: TokenStats) -> None:
    chained = linear(stats, after_pca("{name: quantize, bits: 3}", "halve"))
    pca, quantize, halve = chained.stages
    assert [stage.embed_dim for stage in chained.stages] == [24, 6, 6]
    assert chained.compressor.code_dim == 3
    assert chained.compressor.wire_dtype == torch.bfloat16  # the last one's
    mask = whole(stats)[1]
    by_hand = halve(quantize(pca(*whole(stats)).vectors, mask).vectors, mask).vectors
    assert torch.equal(chained.encode(*whole(stats)).vectors, by_hand.bfloat16().float())


def test_a_stage_without_an_inverse_leaves_the_chain_without(toys: Registry, stats: TokenStats) -> None:
    with pytest.raises(NotImplementedError):
        linear(stats, after_pca("halve")).reconstruct_linear(*whole(stats))


def test_gradients_reach_the_first_stage(stats: TokenStats) -> None:
    chained = linear(stats, "compressors=[{name: learned_linear, dim: 6}, {name: quantize, bits: 3}]")
    loss = (chained(*whole(stats)) - stats.embeds).square().sum()
    loss.backward()
    gradient = chained.stages[0].get_parameter("weight").grad
    assert gradient is not None
    assert float(gradient.abs().sum()) > 0


def test_a_stage_that_is_not_fitted_goes_behind_any_other(toys: Registry, stats: TokenStats) -> None:
    options = ("adapter=mlp", "losses={answer_ce: 1}")
    chained = linear(stats, after_pca("pairs", "halve"), *options)
    chain = chained.compressor
    assert (chain.tokenwise, chain.changes_length, chain.code_dim) == (False, True, 3)
    reconstructed, mask = chained.reconstruct(stats.embeds[None, :7], torch.ones(1, 7, dtype=torch.bool))
    assert reconstructed.shape == (1, 4, 24)
    assert mask.tolist() == [[True] * 4]


def test_behind_a_stage_that_mixes_tokens_nothing_is_fitted(toys: Registry, stats: TokenStats) -> None:
    pairs, quantize = (toys.get("compressor", name) for name in ("pairs", "quantize"))
    chain: Any = Chain([pairs(pairs.Config(), 24), quantize(quantize.Config(), 24)])
    chain.fit(stats)
    assert chain.stages[1].low.tolist() == [0.0] * 24


# -- bits ---------------------------------------------------------------------------------------------

LENGTHS = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()


def bits(bottleneck: Bottleneck, stats: TokenStats) -> list[float]:
    embeds = stats.embeds[:20].view(4, 5, 24)
    counted: list[float] = bottleneck.code_bits(bottleneck.encode(embeds, LENGTHS)).tolist()
    return counted


def test_bits_are_those_of_the_last_code(toys: Registry, stats: TokenStats) -> None:
    vector = 6 * 4
    alone = linear(stats, after_pca("{name: quantize, bits: 4}"))
    assert bits(alone, stats) == [5 * vector, 2 * vector, 3 * vector, 0]
    sent = vector + 16
    with_rms = linear(stats, after_pca("{name: quantize, bits: 4}"), "magnitude=sent")
    assert bits(with_rms, stats) == [5 * sent, 2 * sent, 3 * sent, 0]
    then_halved = linear(stats, after_pca("{name: quantize, bits: 4}", "halve"))
    vector = 3 * 16  # in bfloat16 again; nothing is left of the rounding before it
    assert bits(then_halved, stats) == [5 * vector, 2 * vector, 3 * vector, 0]


def test_bits_behind_a_stage_that_changes_the_length(toys: Registry, stats: TokenStats) -> None:
    bottleneck = linear(stats, after_pca("quantize", "pairs"), "adapter=mlp", "losses={answer_ce: 1}")
    vector = 6 * 16 + 2
    # Five positions are three pairs; two are one; of three that start in the second pair there are two.
    assert bits(bottleneck, stats) == [3 * vector, vector, 2 * vector, 0]


def test_bits_may_depend_on_the_vectors(stats: TokenStats) -> None:
    class Signs(Compressor):
        """Rare signs cost more."""

        name = "signs"
        wire_dtype = None

        def forward(self, embeds: torch.Tensor, mask: torch.Tensor) -> Code:
            return Code(embeds[..., :1].sign(), mask)

        def bits(self, code: Code) -> torch.Tensor:
            return torch.where(code.vectors[..., 0] > 0, 0.5, 1.8)

    decoder = load_plugins().get("adapter", "linear")(ComponentConfig(), 1, 24)
    compressor = Chain([linear(stats, PCA6).compressor, Signs(ComponentConfig(), 6)])
    bottleneck = Bottleneck(compressor, decoder)
    code = bottleneck.encode(stats.embeds[:20].view(4, 5, 24), LENGTHS)
    wanted = (torch.where(code.vectors[..., 0] > 0, 0.5, 1.8) * LENGTHS).sum(1)
    assert len(set(wanted.tolist())) == 4
    torch.testing.assert_close(bottleneck.code_bits(code).float(), wanted)
    prompt = Prompt("q", "text", stats.ids.tolist(), [True] * 200, 0)
    once = TokenStats(stats.ids, torch.ones(200, dtype=torch.float64), stats.embeds)
    signs = bottleneck.encode(*whole(stats))
    per_token = rate(bottleneck, [prompt], once, stats.embeds)["bits_per_token"]
    assert per_token == pytest.approx(float(signs.bits.mean()), rel=1e-5)


# -- building, saving, loading ------------------------------------------------------------------------


def test_the_first_stage_and_the_adapter_draw_what_they_draw_alone(stats: TokenStats) -> None:
    options = ("adapter=mlp", "seed=3")
    first = "{name: random_projection, dim: 6}"
    alone, chained = (
        linear(stats, f"compressors=[{names}]", *options, fit=False)
        for names in (first, f"{first}, identity")
    )
    torch.manual_seed(3)
    projection = load_plugins().get("compressor", "random_projection")
    by_hand = projection(projection.Config(dim=6), 24).get_buffer("projection")
    for bottleneck in (alone, chained):
        assert torch.equal(bottleneck.stages[0].get_buffer("projection"), by_hand)
    for name, value in alone.adapter.state_dict().items():
        assert torch.equal(chained.adapter.state_dict()[name], value)


def test_every_stage_draws_from_a_seed_of_its_own(stats: TokenStats) -> None:
    def drawn(*names: str) -> list[torch.Tensor]:
        listed = ", ".join(f"{{name: {name}, dim: 24}}" if name != "identity" else name for name in names)
        bottleneck = linear(stats, f"compressors=[{listed}]", fit=False)
        return [b for stage in bottleneck.stages for name, b in stage.named_buffers() if name == "projection"]

    first, second, third = drawn(*["random_projection"] * 3)
    assert not torch.allclose(first, second)
    assert not torch.allclose(second, third)
    assert not torch.allclose(first, third)
    again, last = drawn("identity", "random_projection", "random_projection")  # the first draws nothing
    assert torch.equal(again, second)
    assert torch.equal(last, third)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change bottleneck.json so that its hash is right again."""
    record = json.loads((folder / "bottleneck.json").read_text())
    change(record)
    record["sha256"] = digest(record, (folder / "bottleneck.safetensors").read_bytes())
    (folder / "bottleneck.json").write_text(json.dumps(record))


def test_a_saved_chain_is_loaded_as_it_was(toys: Registry, stats: TokenStats, tmp_path: Path) -> None:
    bottleneck = linear(stats, after_pca("{name: quantize, bits: 3}", "halve", "halve"))
    folder = saved(bottleneck, stats, tmp_path)
    record = json.loads((folder / "bottleneck.json").read_text())
    made = [(part["name"], part["distribution"], part["config"]) for part in record["compressors"]]
    assert made[0][:2] == ("pca", "stage1")
    assert made[1] == ("quantize", "stage1", {"bits": 3, "group": None})
    assert made[2:] == [("halve", "toys", {})] * 2
    loaded = Bottleneck.from_pretrained(folder, table=stats.embeds)
    assert torch.equal(loaded(*whole(stats)), bottleneck(*whole(stats)))
    assert bits(loaded, stats) == bits(bottleneck, stats)


def test_a_missing_package_of_a_link_is_named(stats: TokenStats, tmp_path: Path) -> None:
    folder = saved(linear(stats, after_pca("{name: quantize, bits: 3}")), stats, tmp_path)
    rewrite(folder, lambda record: record["compressors"][1].update(distribution="stage1-gone", version="3"))
    with pytest.raises(
        UsageError, match=r"'quantize' of package 'stage1-gone'.*\npip install stage1-gone==3"
    ):
        Bottleneck.from_pretrained(folder, table=stats.embeds)


def test_weights_are_taken_over_from_the_same_chain_alone(
    toys: Registry, stats: TokenStats, tmp_path: Path
) -> None:
    trained = linear(stats, after_pca("{name: quantize, bits: 3}"))
    folder = saved(trained, stats, tmp_path)
    same = linear(stats, after_pca("{name: quantize, bits: 3}"), fit=False)
    same.start_from(folder, stats.embeds)
    assert torch.equal(same(*whole(stats)), trained(*whole(stats)))
    for other in (
        PCA6,
        after_pca("{name: quantize, bits: 4}"),
        after_pca("halve"),
        after_pca("quantize", "quantize"),
    ):
        with pytest.raises(ConfigError, match=r"^compressors: .*'quantize'.* you ask for") as caught:
            linear(stats, other, fit=False).start_from(folder, stats.embeds)
        assert {issue.path for issue in caught.value.issues} <= {"compressors", "adapter"}


def test_a_link_that_does_not_fit_the_code_says_which_it_is(stats: TokenStats) -> None:
    with pytest.raises(ConfigError, match=r"^random_projection\.dim: 7 is larger .* 1 to 6"):
        linear(stats, after_pca("{name: random_projection, dim: 7}"))


# -- whole runs ----------------------------------------------------------------------------------------

FEW = (*SMALL, "data.train=100", "train.steps=6", "train.check_every=3", "train.save_every=3", "eval.limit=8")


def test_a_whole_run_with_a_chain(invoke: Invoke) -> None:
    flags = ("--compressor", "learned_linear", "--compressor", "quantize", "--adapter", "linear")
    few = settings_args([*FEW, "compressor.ratio=4", "quantize.bits=6"])
    results = json.loads(invoke("train", *flags, "--no-keep-special", *few, "--json").printed)
    (path,) = Path("runs").iterdir()
    run = Run(path)
    assert path.name.endswith("-learned_linear+quantize-linear-1")
    width = Bottleneck.from_pretrained(path).compressor.embed_dim
    assert results["rate"]["bits_per_token"] == width / 4 * 6  # every token of a prompt crosses
    assert "linear" in {row["row"] for row in results["rows"]}
    plugins = run.read_manifest()["plugins"]
    assert {part: plugins[part]["name"] for part in plugins} == {
        "compressors.0": "learned_linear",
        "compressors.1": "quantize",
        "adapter": "linear",
        "losses.recon": "recon",
    }
    assert json.loads(invoke("eval", str(path), "--json").printed)["rows"] == results["rows"]
    command = train_command(run.config, load_plugins())
    assert "--compressor learned_linear --compressor quantize" in command
    card = publish.published(run, "me/it")["README.md"].decode()
    assert "# learned_linear+quantize → linear" in card
    begun = ("train", "--init", str(path), "--output")
    assert invoke(*begun, "two", "--no-eval", "--set", "train.steps=1").printed
    assert Run(Path("two")).config.compressors == run.config.compressors
    other = invoke(*begun, "three", "--compressor", "learned_linear")
    refused(other, "compressors: ")
    assert not Path("three").exists()


def test_a_run_is_resumed_with_its_own_chain_alone(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write_config(validate({"compressors": ["a", "b"]}))
    assert resume_run(run, run.config) == run.config
    others: list[Any] = [["a"], ["b", "a"], ["a", {"name": "b", "x": 1}], ["a", "b", "b"]]
    for compressors in others:
        with pytest.raises(ConfigError, match=r"^compressors: .* start a new run"):
            resume_run(run, validate({"compressors": compressors}))


def test_a_link_that_raises_is_named_with_its_package(toys: Registry, tmp_path: Path) -> None:
    config = small_config(*FEW, "compressors=[pca, faulty]", "adapter=linear", f"output={tmp_path / 'run'}")
    with pytest.raises(PluginError, match=r"'faulty' of toys 1\.2 raised ArithmeticError: too many bits"):
        train_run(config, Progress(), with_evaluation=False)


def test_rules_that_do_not_go_with_a_chain_are_refused_at_evaluation(toys: Registry, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write_config(validate({"compressors": ["pca", "pairs"], "losses": {"answer_ce": 1}}))
    (tmp_path / "bottleneck.json").write_text("{}")  # trained, as far as anyone asks before this
    with pytest.raises(ConfigError, match=r"^magnitude: .*'pairs' changes the length"):
        evaluate_run(run, {"magnitude": "sent"}, Progress())
