"""The bottleneck as a whole: the wire, magnitudes, splicing, and checkpoints that are refused."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from conftest import Notes, built, small_config
from plugin_sites import HOOK, Site, compressor
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.splice import rms, splice
from stage1.config import ModelConfig
from stage1.errors import UsageError
from stage1.llm.table import table_sha256
from stage1.plugins import load_plugins, resolve
from stage1.plugins.interfaces import ComponentConfig, Compressor
from stage1.plugins.tensors import Code, Embedded, TokenStats, straight_through
from stage1.progress import SILENT, Progress


def saved(bottleneck: Bottleneck, stats: TokenStats, folder: Path) -> Path:
    model = ModelConfig(name="somewhere/else")
    bottleneck.save_pretrained(folder, model=model, table_hash=table_sha256(stats.embeds))
    return folder


# -- magnitude ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["linear", "mlp"])
def test_magnitude_of_what_the_llm_receives(adapter: str, stats: TokenStats) -> None:
    mask = torch.ones(1, 200, dtype=torch.bool)
    options = ("compressor.dim=4", f"adapter={adapter}")
    free, vocab, sent = (built(stats, *options, f"magnitude={m}") for m in ("free", "vocab", "sent"))
    embeds = stats.embeds[None]
    plain = free(embeds, mask)
    norms = rms(vocab(embeds, mask)).squeeze()
    torch.testing.assert_close(norms, rms(stats.embeds).mean().expand(200), rtol=1e-4, atol=0)
    true = rms(embeds).bfloat16().float()  # what 16 bits can say
    torch.testing.assert_close(rms(sent(embeds, mask)), true, rtol=1e-4, atol=0)
    cosine = torch.nn.functional.cosine_similarity(plain, sent(embeds, mask), dim=-1)
    torch.testing.assert_close(cosine, torch.ones(1, 200), rtol=0, atol=1e-5)  # direction untouched


def test_transmitted_magnitude_is_paid_for(stats: TokenStats) -> None:
    mask = torch.tensor([[True, True, False, True]])
    bits = {}
    for magnitude in ("free", "vocab", "sent"):
        bottleneck = built(stats, "compressor.dim=4", f"magnitude={magnitude}")
        bits[magnitude] = float(bottleneck.code_bits(bottleneck.encode(stats.embeds[None, :4], mask)))
    assert bits == {"free": 3 * 4 * 16, "vocab": 3 * 4 * 16, "sent": 3 * (4 * 16 + 16)}


# -- splicing -----------------------------------------------------------------------------------------


@st.composite
def prompts(draw: st.DrawFn) -> tuple[Embedded, torch.Tensor]:
    """Left-padded prompts: some raw positions, a run of crossing ones, some raw ones."""
    shapes = draw(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=4))
    shapes = [(head, run + 1, tail) for head, run, tail in shapes]
    length = max(map(sum, shapes))
    cross = torch.zeros(len(shapes), length, dtype=torch.bool)
    attention = torch.zeros_like(cross)
    for row, (head, run, tail) in enumerate(shapes):
        start = length - head - run - tail
        attention[row, start:] = True
        cross[row, start + head : start + head + run] = True
    embeds = torch.arange(1.0, cross.numel() * 3 + 1).view(*cross.shape, 3)
    return Embedded(embeds * attention[..., None], attention), cross


@given(prompts())
@settings(deadline=None)
def test_packed_splice_of_an_identity_changes_nothing(case: tuple[Embedded, torch.Tensor]) -> None:
    whole, cross = case
    for packed in (False, True):
        again = splice(whole, cross, lambda embeds, mask: (embeds, mask), packed=packed)
        assert torch.equal(again.embeds, whole.embeds)
        assert torch.equal(again.attention, whole.attention)


@given(prompts())
@settings(deadline=None)
def test_packed_splice_puts_a_shorter_code_in_the_place_of_the_run(
    case: tuple[Embedded, torch.Tensor],
) -> None:
    """The reference keeps lists: head, the first vector of the run only, tail."""
    whole, cross = case

    def first_only(embeds: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return embeds[:, :1], mask[:, :1]

    short = splice(whole, cross, first_only, packed=True)
    for row in range(len(cross)):
        kept = [
            v.tolist()
            for v, a, c in zip(whole.embeds[row], whole.attention[row], cross[row], strict=True)
            if a and not c
        ]
        run = [v.tolist() for v, c in zip(whole.embeds[row], cross[row], strict=True) if c]
        head = int((whole.attention[row] & (cross[row].cumsum(0) == 0)).sum())
        expected = [*kept[:head], run[0], *kept[head:]]
        assert short.embeds[row][short.attention[row]].tolist() == expected
        assert short.attention[row].tolist() == sorted(short.attention[row].tolist())  # left-padded


# -- checkpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["linear", "local_linear", "mlp", "residual", "codebook"])
@pytest.mark.parametrize("magnitude", ["free", "vocab"])
def test_a_loaded_bottleneck_reconstructs_the_same_bits(
    adapter: str, magnitude: str, stats: TokenStats, tmp_path: Path
) -> None:
    bottleneck = built(stats, f"adapter={adapter}", f"magnitude={magnitude}", "compressor.dim=5")
    loaded = Bottleneck.from_pretrained(saved(bottleneck, stats, tmp_path), table=stats.embeds)
    mask = torch.ones(1, 200, dtype=torch.bool)
    assert torch.equal(loaded(stats.embeds[None], mask), bottleneck(stats.embeds[None], mask))
    assert not any(p.requires_grad for p in loaded.parameters())


class Pretrained(Compressor):
    """Trains in `fit`, and freezes what it has learned there."""

    name = "pretrained"
    wire_dtype = None

    def __init__(self, config: Any, embed_dim: int) -> None:
        super().__init__(config, embed_dim)
        self.kept, self.tuned = nn.Linear(embed_dim, 4), nn.Linear(4, 4)

    @property
    def code_dim(self) -> int:
        return 4

    def fit(self, stats: TokenStats, *, seed: int = 0, progress: Progress = SILENT) -> None:
        progress.note(f"seed {seed}")
        error = (self.tuned(self.kept(stats.embeds)) - 1).square().mean()
        error.backward()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.sub_(0.1 * torch.as_tensor(parameter.grad))
        self.kept.requires_grad_(False)

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        return Code(self.tuned(self.kept(embeds)), mask)

    def bits(self, code: Code) -> Tensor:
        return torch.full(code.mask.shape, 128.0)


def test_fit_may_train_and_freeze(
    site: Site, stats: TokenStats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pretrained_plugin", sys.modules[__name__])
    source = (
        f"{HOOK}def stage1_compressors():\n    import pretrained_plugin as own\n    return own.Pretrained\n"
    )
    site.install("pre", {"point": source})
    registry = load_plugins()
    resolved = resolve(small_config("compressors=[identity, pretrained]", "adapter=linear"), registry)
    bottleneck, heard = Bottleneck.build(resolved, "free", 24, 7), Notes()
    before = {name: value.clone() for name, value in bottleneck.compressor.state_dict().items()}
    bottleneck.fit(stats, stats.embeds, heard)
    assert heard.notes == ["seed 7"]
    for name, value in bottleneck.compressor.named_parameters():
        assert not torch.equal(value, before[name])
        assert value.grad is None  # of its own training nothing is left
        assert value.requires_grad == ("kept" not in name)
    folder = saved(bottleneck, stats, tmp_path)
    again = Bottleneck.build(resolved, "free", 24, 8)
    again.start_from(folder, stats.embeds)
    for (name, ours), theirs in zip(again.named_parameters(), bottleneck.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.requires_grad == theirs.requires_grad, name
    assert not any(
        p.requires_grad for p in Bottleneck.from_pretrained(folder, table=stats.embeds).parameters()
    )


def test_a_loaded_bottleneck_may_have_another_magnitude(stats: TokenStats, tmp_path: Path) -> None:
    folder = saved(built(stats, "magnitude=vocab"), stats, tmp_path)
    assert Bottleneck.from_pretrained(folder, table=stats.embeds).magnitude == "vocab"
    assert Bottleneck.from_pretrained(folder, table=stats.embeds, magnitude="sent").magnitude == "sent"


def test_rounding_lets_gradients_through_and_is_exact() -> None:
    values = torch.tensor([0.1, 1e-20, -3.3e7], requires_grad=True)
    rounded = straight_through(values.round(), values)
    assert rounded.tolist() == values.round().tolist()
    (rounded * torch.tensor([1.0, 2.0, 3.0])).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.as_tensor(values.grad).tolist() == [1, 2, 3]


def refused(folder: Path, stats: TokenStats, *words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Bottleneck.from_pretrained(folder, table=stats.embeds)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_an_edited_or_missing_record_is_refused(stats: TokenStats, tmp_path: Path) -> None:
    record = saved(built(stats), stats, tmp_path) / "bottleneck.json"
    record.write_text(record.read_text().replace('"magnitude": "free"', '"magnitude": "vocab"'))
    refused(tmp_path, stats, "truncated or was edited")
    record.unlink()
    refused(tmp_path, stats, "bottleneck.json is missing", "--resume")


def test_a_checkpoint_of_another_table_is_refused(stats: TokenStats, tmp_path: Path) -> None:
    folder = saved(built(stats), stats, tmp_path)
    other = TokenStats(stats.ids, stats.weights, stats.embeds + 1e-3)
    refused(folder, other, "another embedding table", "somewhere/else")


def test_a_hub_id_is_downloaded(stats: TokenStats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no Hub here: what the client would be asked for is looked at, and a folder returned."""
    folder = saved(built(stats), stats, tmp_path)
    asked: dict[str, object] = {}

    def snapshot(repo: str, **options: object) -> str:
        asked.update(options, repo=repo)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    Bottleneck.from_pretrained("someone/bottleneck", table=stats.embeds, revision="v2")
    assert (asked["repo"], asked["revision"]) == ("someone/bottleneck", "v2")
    assert asked["allow_patterns"] == ["bottleneck.json", "bottleneck.safetensors"]


def test_a_compressor_that_changes_the_length_is_loaded_again(
    site: Site, stats: TokenStats, tmp_path: Path
) -> None:
    """It does not go with the default objective, which is none of a checkpoint's business."""
    site.install("lengths", {"pool": compressor("pool", body="changes_length = True; tokenwise = False")})
    registry = load_plugins()
    config = small_config("compressor=pool", "adapter=mlp", "losses={answer_ce: 1}")
    bottleneck = Bottleneck.build(resolve(config, registry), "free", 24, 0)
    loaded = Bottleneck.from_pretrained(saved(bottleneck, stats, tmp_path), table=stats.embeds)
    assert loaded.compressor.changes_length
    for name, value in bottleneck.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_what_is_drawn_while_fitting_follows_the_seed(stats: TokenStats) -> None:
    class Shaken(Compressor):
        name = "shaken"

        def fit(self, stats: TokenStats) -> None:
            self.register_buffer("noise", torch.rand(3))

        def forward(self, embeds: Tensor, mask: Tensor) -> Code:
            return Code(embeds, mask)

    registry = load_plugins()
    drawn: list[Tensor] = []
    for state, seed in ((1, 5), (2, 5), (2, 6)):
        adapter = registry.get("adapter", "identity")(ComponentConfig(), 24, 24)
        bottleneck = Bottleneck(Shaken(None, 24), adapter, seed=seed)
        torch.manual_seed(state)
        expected = torch.rand(4)
        torch.manual_seed(state)
        bottleneck.fit(stats, stats.embeds)
        assert torch.equal(torch.rand(4), expected)  # and it takes nothing from anybody else's draws
        drawn.append(bottleneck.compressor.get_buffer("noise"))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])
