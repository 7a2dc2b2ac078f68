"""Compressors behind compressors: what is computed, charged, saved, said and refused."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from chain_toys import installed
from conftest import SMALL, Result, settings_args, small_config
from plugin_sites import Site
from stage1.api import evaluate_run, resume_run, train_run
from stage1.bottleneck.batches import Batch
from stage1.bottleneck.bottleneck import Bottleneck, _digest
from stage1.bottleneck.chain import Chain
from stage1.config import ModelConfig, RunConfig, validate
from stage1.errors import ConfigError, PluginError, UsageError
from stage1.llm.table import table_sha256
from stage1.plugins import Registry, load_plugins, resolve
from stage1.plugins.interfaces import Compressor
from stage1.plugins.tensors import Code, TokenStats
from stage1.progress import Progress
from stage1.report import publish, report
from stage1.runs.run import Run
from stage1.training.step import Stepper

Invoke = Callable[..., Result]


@pytest.fixture
def toys(site: Site) -> Iterator[Registry]:
    yield from installed(site)


def built(stats: TokenStats, *options: str, fit: bool = True) -> Bottleneck:
    config = small_config("adapter=linear", *options)
    resolved = resolve(config, load_plugins())
    bottleneck = Bottleneck.build(resolved, config.magnitude, stats.embeds.shape[1], config.seed)
    if fit:
        bottleneck.fit(stats, stats.embeds)
    return bottleneck.eval()


def whole(stats: TokenStats) -> tuple[torch.Tensor, torch.Tensor]:
    """Every token once, as one prompt."""
    return stats.embeds[None], torch.ones(1, len(stats.ids), dtype=torch.bool)


PCA6 = ("compressor=pca", "compressor.dim=6")


# -- what it computes ---------------------------------------------------------------------------------


def test_a_chain_does_what_its_stages_do_by_hand(toys: Registry, stats: TokenStats) -> None:
    chained, alone = built(stats, *PCA6, "chain.steps.bits=5"), built(stats, *PCA6)
    pca, steps = alone.compressor, toys.get("compressor", "steps")
    codes = pca(*whole(stats)).vectors
    by_hand: Any = steps(steps.Config(bits=5), 6)
    by_hand.fit(TokenStats(stats.ids, stats.weights, codes[0]))
    expected = by_hand(codes, whole(stats)[1])
    code = chained.encode(*whole(stats))
    assert torch.equal(code.vectors, expected.vectors)  # not rounded on the way, neither before nor behind
    rebuilt, _ = chained.rebuild_linear(*whole(stats))
    assert torch.equal(rebuilt, pca.inverse(expected))
    chain: Any = chained.compressor
    assert (chain.name, chain.embed_dim, chain.code_dim) == ("pca+steps", 24, 6)
    assert (chain.tokenwise, chain.changes_length, chain.wire_dtype) == (True, False, None)


def test_a_stage_is_fitted_to_the_codes_before_it_with_the_tokens_counts(
    toys: Registry, stats: TokenStats
) -> None:
    pca, steps = built(stats, *PCA6, "chain.steps.bits=4").stages
    codes = pca(*whole(stats)).vectors[0]
    assert torch.equal(steps.scale, codes.abs().amax(0))  # type: ignore[arg-type]
    torch.testing.assert_close(steps.mean, (stats.shares @ codes.double()).float(), rtol=0, atol=1e-6)
    unweighted = codes.mean(0)
    assert not torch.allclose(steps.mean, unweighted, atol=1e-3 * float(codes.std()))  # type: ignore[arg-type]


def test_three_stages_in_order(toys: Registry, stats: TokenStats) -> None:
    chained = built(stats, *PCA6, "chain.steps.bits=3", "chain.halve=null")
    pca, steps, halve = chained.stages
    assert [stage.embed_dim for stage in chained.stages] == [24, 6, 6]
    assert chained.compressor.code_dim == 3
    assert chained.compressor.wire_dtype == torch.bfloat16  # the last one's
    mask = whole(stats)[1]
    by_hand = halve(steps(pca(*whole(stats)).vectors, mask).vectors, mask).vectors
    assert torch.equal(chained.encode(*whole(stats)).vectors, by_hand.bfloat16().float())


def test_a_stage_without_an_inverse_leaves_the_chain_without(toys: Registry, stats: TokenStats) -> None:
    with pytest.raises(NotImplementedError):
        built(stats, *PCA6, "chain.halve=null").rebuild_linear(*whole(stats))


def test_gradients_reach_the_first_stage(toys: Registry, stats: TokenStats) -> None:
    chained = built(stats, "compressor=learned_linear", "compressor.dim=6", "chain.steps.bits=3")
    loss = (chained(*whole(stats)) - stats.embeds).square().sum()
    loss.backward()
    gradient = chained.stages[0].get_parameter("weight").grad
    assert gradient is not None
    assert float(gradient.abs().sum()) > 0


def test_a_stage_that_is_not_fitted_goes_behind_any_other(toys: Registry, stats: TokenStats) -> None:
    options = ("adapter=mlp", "losses={answer_ce: 1}", "chain={pairs: null, halve: null}")
    chained = built(stats, *PCA6, *options)
    chain = chained.compressor
    assert (chain.tokenwise, chain.changes_length, chain.code_dim) == (False, True, 3)
    rebuilt, mask = chained.rebuild(stats.embeds[None, :7], torch.ones(1, 7, dtype=torch.bool))
    assert rebuilt.shape == (1, 4, 24)
    assert mask.tolist() == [[True] * 4]


def test_behind_a_stage_that_mixes_tokens_nothing_is_fitted(toys: Registry, stats: TokenStats) -> None:
    pairs, steps = (toys.get("compressor", name) for name in ("pairs", "steps"))
    chain: Any = Chain([pairs(pairs.Config(), 24), steps(steps.Config(), 24)])
    chain.fit(stats)
    assert chain.stages[1].scale.tolist() == [1.0] * 24


# -- bits ---------------------------------------------------------------------------------------------

LENGTHS = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()


def bits(bottleneck: Bottleneck, stats: TokenStats) -> list[float]:
    embeds = stats.embeds[:20].view(4, 5, 24)
    counted: list[float] = bottleneck.code_bits(bottleneck.encode(embeds, LENGTHS)).tolist()
    return counted


def test_bits_are_those_of_the_last_code_and_all_side_information(toys: Registry, stats: TokenStats) -> None:
    vector = 6 * 4 + 16  # values and the scale beside them
    assert bits(built(stats, *PCA6, "chain.steps.bits=4"), stats) == [5 * vector, 2 * vector, 3 * vector, 0]
    sent = vector + 16
    with_rms = built(stats, *PCA6, "chain.steps.bits=4", "magnitude=sent")
    assert bits(with_rms, stats) == [5 * sent, 2 * sent, 3 * sent, 0]
    then_halved = built(stats, *PCA6, "chain.steps.bits=4", "chain.halve=null")
    vector = 3 * 16 + 16  # in bfloat16 again; the scale is sent all the same
    assert bits(then_halved, stats) == [5 * vector, 2 * vector, 3 * vector, 0]


def test_side_bits_in_front_of_a_stage_that_changes_the_length(toys: Registry, stats: TokenStats) -> None:
    options = ("adapter=mlp", "losses={answer_ce: 1}", "chain={steps: null, pairs: null}")
    bottleneck = built(stats, *PCA6, *options)
    vector = 6 * 16 + 2
    # Five positions are three pairs; two are one; of three that start in the second pair there are two.
    expected = [5 * 16 + 3 * vector, 2 * 16 + vector, 3 * 16 + 2 * vector, 0]
    assert bits(bottleneck, stats) == expected
    code: Code = bottleneck.encode(stats.embeds[:20].view(4, 5, 24), LENGTHS)
    assert code.side_bits.tolist() == [[82, 2, 2], [34, 2, 2], [2, 50, 2], [2, 2, 2]]


# -- building, saving, loading ------------------------------------------------------------------------


def test_the_first_stage_and_the_adapter_draw_what_they_draw_alone(stats: TokenStats) -> None:
    registry = load_plugins()
    options = ("compressor=random_projection", "compressor.dim=6", "adapter=mlp", "seed=3")
    alone = built(stats, *options, fit=False)
    torch.manual_seed(3)
    projection = registry.get("compressor", "random_projection")
    compressor = projection(projection.Config(dim=6), 24)
    torch.manual_seed(4)
    mlp = registry.get("adapter", "mlp")
    adapter = mlp(mlp.Config(), 6, 24)
    by_hand = Bottleneck(compressor, adapter)
    assert alone.state_dict().keys() == by_hand.state_dict().keys()
    for name, value in by_hand.state_dict().items():
        assert torch.equal(alone.state_dict()[name], value)
    chained = built(stats, *options, "chain.identity=null", fit=False)
    assert torch.equal(chained.stages[0].get_buffer("projection"), compressor.get_buffer("projection"))
    for name, value in adapter.state_dict().items():
        assert torch.equal(chained.adapter.state_dict()[name], value)


def test_every_stage_draws_from_a_seed_of_its_own(stats: TokenStats, site: Site) -> None:
    twin = '''
        from stage1 import hookimpl
        from stage1_compressors.random_projection import RandomProjection
        class {0}(RandomProjection):
            """Another."""
            name = "{0}"
        @hookimpl
        def stage1_compressors():
            return {0}
    '''
    site.install("twins", {"one": twin.format("one"), "two": twin.format("two")})
    options = ("compressor.dim=24", "chain={one: {dim: 24}, two: {dim: 24}}")
    config = small_config("compressor=random_projection", *options, "adapter=linear")
    made = Bottleneck.build(resolve(config, site.load()), "free", 24, 0)
    first, second, third = (stage.get_buffer("projection") for stage in made.stages)
    assert not torch.allclose(first, second)
    assert not torch.allclose(second, third)
    assert not torch.allclose(first, third)
    other = small_config("compressor=identity", options[1], "adapter=linear")  # draws nothing
    _, again, last = Bottleneck.build(resolve(other, site.load()), "free", 24, 0).stages
    assert torch.equal(again.get_buffer("projection"), second)
    assert torch.equal(last.get_buffer("projection"), third)


def save(bottleneck: Bottleneck, stats: TokenStats, folder: Path) -> Path:
    model = ModelConfig(name="somewhere/else")
    bottleneck.save_pretrained(folder, model=model, table_hash=table_sha256(stats.embeds))
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change bottleneck.json so that its hash is right again."""
    record = json.loads((folder / "bottleneck.json").read_text())
    change(record)
    record["sha256"] = _digest(record, (folder / "bottleneck.safetensors").read_bytes())
    (folder / "bottleneck.json").write_text(json.dumps(record))


def test_a_saved_chain_is_loaded_as_it_was(toys: Registry, stats: TokenStats, tmp_path: Path) -> None:
    bottleneck = built(stats, *PCA6, "chain.steps.bits=3", "chain.halve=null")
    folder = save(bottleneck, stats, tmp_path)
    record = json.loads((folder / "bottleneck.json").read_text())
    assert (record["schema"], record["compressor"]["name"]) == (1, "pca")
    made = [(link["name"], link["distribution"], link["config"]) for link in record["chain"]]
    assert made == [("steps", "toys", {"bits": 3}), ("halve", "toys", {})]
    loaded = Bottleneck.from_pretrained(folder, table=stats.embeds)
    assert torch.equal(loaded(*whole(stats)), bottleneck(*whole(stats)))
    assert bits(loaded, stats) == bits(bottleneck, stats)


def test_a_checkpoint_from_before_there_were_chains(stats: TokenStats, tmp_path: Path) -> None:
    bottleneck = built(stats, *PCA6)
    folder = save(bottleneck, stats, tmp_path)
    assert set(load_file(folder / "bottleneck.safetensors")) == {
        *("vocab_rms", "mean_embedding", "adapter.weight", "adapter.bias"),
        *("compressor.mean", "compressor.components", "compressor.explained_variance"),
    }
    rewrite(folder, lambda record: record.pop("chain"))
    loaded = Bottleneck.from_pretrained(folder, table=stats.embeds)
    assert torch.equal(loaded(*whole(stats)), bottleneck(*whole(stats)))


def test_a_missing_package_of_a_link_is_named(toys: Registry, stats: TokenStats, tmp_path: Path) -> None:
    folder = save(built(stats, *PCA6, "chain.steps.bits=3"), stats, tmp_path)
    rewrite(folder, lambda record: record["chain"][0].update(distribution="stage1-gone", version="3"))
    with pytest.raises(UsageError, match=r"'steps' of package 'stage1-gone'.*\npip install stage1-gone==3"):
        Bottleneck.from_pretrained(folder, table=stats.embeds)


def test_weights_are_taken_over_from_the_same_chain_alone(
    toys: Registry, stats: TokenStats, tmp_path: Path
) -> None:
    trained = built(stats, *PCA6, "chain.steps.bits=3")
    folder = save(trained, stats, tmp_path)
    same = built(stats, *PCA6, "chain.steps.bits=3", fit=False)
    same.start_from(folder, stats.embeds)
    assert torch.equal(same(*whole(stats)), trained(*whole(stats)))
    for other in ("chain={}", "chain.steps.bits=4", "chain={halve: null}"):
        with pytest.raises(ConfigError, match=r"^chain: .*'steps'.* you ask for") as caught:
            built(stats, *PCA6, other, fit=False).start_from(folder, stats.embeds)
        assert {issue.path for issue in caught.value.issues} <= {"chain", "adapter"}


def test_a_link_that_does_not_fit_the_code_says_which_it_is(stats: TokenStats) -> None:
    with pytest.raises(ConfigError, match=r"^chain\.random_projection\.dim: 7 is larger .* 1 to 6"):
        built(stats, *PCA6, "chain.random_projection.dim=7")


def test_a_chain_is_a_compressor_of_its_own() -> None:
    pca = load_plugins().get("compressor", "pca")
    chain = Chain([pca(pca.Config(dim=4), 24)])
    assert isinstance(chain, Compressor)
    assert (chain.name, chain.code_dim, chain.bits_per_value) == ("pca", 4, 16)


# -- whole runs ----------------------------------------------------------------------------------------

FEW = (*SMALL, "data.train=100", "train.steps=6", "train.check_every=3", "train.save_every=3", "eval.limit=8")
CHAINED = ("compressor=learned_linear", "compressor.ratio=4", "chain.steps.bits=6", "adapter=linear")


def test_a_whole_run_with_a_chain(toys: Registry, invoke: Invoke) -> None:
    flags = ("--compressor", "learned_linear", "--compressor", "steps", "--adapter", "linear")
    few = settings_args([*FEW, "compressor.ratio=4", "chain.steps.bits=6"])
    trained = invoke("train", *flags, "--no-keep-special", *few, "--json")
    assert trained.code == 0, trained.err
    results = json.loads(trained.out)
    (path,) = Path("runs").iterdir()
    run = Run(path)
    assert path.name.endswith("-learned_linear+steps-linear-1")
    width = Bottleneck.from_pretrained(path).compressor.embed_dim
    assert results["rate"]["bits_per_token"] == width / 4 * 6 + 16  # every token of a prompt crosses
    assert "linear" in {row["row"] for row in results["rows"]}
    plugins = run.read_manifest()["plugins"]
    assert {part: plugins[part]["name"] for part in plugins} == {
        "compressor": "learned_linear",
        "chain.steps": "steps",
        "adapter": "linear",
        "losses.recon": "recon",
    }
    assert plugins["chain.steps"]["distribution"] == "toys"
    again = invoke("eval", str(path), "--json")
    assert json.loads(again.out)["rows"] == results["rows"]
    commands = list(report.next_commands(run, results))
    assert any("--compressor learned_linear --compressor steps --adapter linear" in c for c in commands)
    card = publish.model_card(run, "me/it")
    assert "# learned_linear+steps → linear" in card
    inherits = invoke("train", "--init", str(path), "--no-eval", "--output", "two", "--set", "train.steps=1")
    assert inherits.code == 0, inherits.err
    assert Run(Path("two")).config.chain == {"steps": {"bits": 6}}
    other = invoke("train", "--init", str(path), "--compressor", "learned_linear", "--output", "three")
    assert other.code == 2
    assert "chain: " in other.err
    assert not Path("three").exists()


def test_an_interrupted_chain_ends_with_the_same_weights(
    toys: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(name: str) -> RunConfig:
        return small_config(*FEW, *CHAINED, f"output={tmp_path / name}")

    train_run(config("whole"), Progress(), with_evaluation=False)
    own = Stepper.step

    def interrupted(stepper: Stepper, batch: Batch, number: int, *, compare: bool) -> dict[str, Any]:
        if number == 4:
            raise KeyboardInterrupt
        return own(stepper, batch, number, compare=compare)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_run(config("cut"), Progress(), with_evaluation=False)
    run = Run(tmp_path / "cut")
    assert not run.trained
    train_run(resume_run(run, run.config), Progress(), resume=run, with_evaluation=False)
    ours, theirs = (load_file(tmp_path / name / "bottleneck.safetensors") for name in ("cut", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_is_resumed_with_its_own_chain_alone(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write_config(validate({"chain": {"a": {}, "b": {}}}))
    assert resume_run(run, run.config) == run.config
    others: list[dict[str, Any]] = [{}, {"a": {}}, {"b": {}, "a": {}}, {"a": {}, "b": {"x": 1}}]
    for chain in others:
        with pytest.raises(ConfigError, match="start a new run"):
            resume_run(run, run.config.model_copy(update={"chain": chain}))


def test_a_link_that_raises_is_named_with_its_package(toys: Registry, tmp_path: Path) -> None:
    config = small_config(*FEW, "chain.faulty=null", "adapter=linear", f"output={tmp_path / 'run'}")
    with pytest.raises(PluginError, match=r"'faulty' of toys 1\.2 raised ArithmeticError: too many bits"):
        train_run(config, Progress(), with_evaluation=False)


def test_rules_that_do_not_go_with_a_chain_are_refused_at_evaluation(toys: Registry, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write_config(validate({"chain": {"pairs": None}, "losses": {"answer_ce": 1}}))
    (tmp_path / "bottleneck.json").write_text("{}")  # trained, as far as anyone asks before this
    with pytest.raises(ConfigError, match=r"^magnitude: .*'pairs' changes the length"):
        evaluate_run(run, {"magnitude": "sent"}, Progress())
