"""The LLM's sensitivity, and the basis that is made of it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from conftest import built, small_config
from random_llama import calls_of
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.errors import ConfigError
from stage1.plugins import load_plugins, resolve
from stage1.plugins.tensors import TokenStats
from stage1.session import Session
from stage1.training.sensitivity import fitting_stats, sensitivity


def test_it_is_the_mean_outer_product_of_gradients_under_what_the_llm_says(session: Session) -> None:
    prompts = session.prompts(session.data.train[:3])
    embeds, said = [], []
    for prompt in prompts:  # one at a time, by the model's own forward pass
        embeds.append(session.table[torch.tensor(prompt.ids)].float().requires_grad_())
        logits = session.model.llm(inputs_embeds=embeds[-1][None]).logits[0, :-1]
        said.append(logits[~torch.isin(torch.tensor(prompt.ids[1:]), session.special)].log_softmax(-1))
    everything = torch.cat(said)
    generator = torch.Generator().manual_seed(session.config.seed)
    chunks = torch.split(everything.detach().exp(), 128)
    drawn = [torch.multinomial(part, 1, generator=generator) for part in chunks]
    everything.gather(1, torch.cat(drawn)).sum().backward()  # type: ignore[no-untyped-call]
    rows = torch.cat(
        [
            row.grad[torch.tensor(p.cross)]
            for row, p in zip(embeds, prompts, strict=True)
            if row.grad is not None
        ]
    )
    found = fitting_stats(session, session.prompts(session.data.train[:5])).sensitivity(3)
    wanted = rows.T @ rows / len(rows)
    torch.testing.assert_close(found.float(), wanted, rtol=1e-3, atol=1e-4 * float(wanted.max()))


def test_it_is_estimated_once_and_again_where_anything_differs(
    session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STAGE1_CACHE", str(tmp_path))
    prompts = session.prompts(session.data.train[:4])
    with calls_of(session.model.llm) as calls:
        found = sensitivity(session, prompts, 2)
        asked = len(calls)
        assert torch.equal(sensitivity(session, prompts, 2), found)
        assert len(calls) == asked > 0
        other = session.under(session.config.model_copy(update={"seed": 5}))
        assert not torch.equal(sensitivity(other, prompts, 2), found)
        assert not torch.equal(sensitivity(session, prompts[1:], 2), found)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STAGE1_CACHE", str(tmp_path / "file"))  # a folder that cannot be made
    assert torch.equal(sensitivity(session, prompts, 2), found)


@pytest.mark.parametrize("damage", ["cut", "text", "shape", "name", "nan"])
def test_a_damaged_cache_is_estimated_again(
    session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str
) -> None:
    monkeypatch.setenv("STAGE1_CACHE", str(tmp_path))
    prompts = session.prompts(session.data.train[:1])
    found = sensitivity(session, prompts, 1)
    (place,) = (tmp_path / "sensitivity").iterdir()
    good = place.read_bytes()
    place.write_bytes(
        {
            "cut": good[:-5],
            "text": b"{}",
            "shape": save({"sensitivity": found[:3]}),
            "name": save({"other": found}),
            "nan": save({"sensitivity": found * torch.nan}),
        }[damage]
    )
    assert torch.equal(sensitivity(session, prompts, 1), found)
    assert place.read_bytes() == good


def decoded(stats: TokenStats, *compressors: str) -> tuple[Tensor, Bottleneck]:
    """What the closed form behind these compressors makes of the tokens, [U, D]."""
    names = ", ".join(compressors)
    bottleneck = built(stats, f"compressors=[{names}]", "adapter=linear", "compressors.0.floor=1e-6")
    mask = torch.ones(1, len(stats.ids), dtype=torch.bool)
    return bottleneck(stats.embeds[None], mask)[0].detach(), bottleneck


def test_what_stands_behind_it_keeps_what_the_llm_minds(stats: TokenStats) -> None:
    weak = stats.covariance().diagonal().argsort()[:3]  # dimensions that PCA gives up first
    minded = torch.full((24,), 1e-3, dtype=torch.float64)
    minded[weak] = 1e3
    known = TokenStats(stats.ids, stats.weights, stats.embeds, lambda _: minded.diag())
    ours, bottleneck = decoded(known, "sensitivity", "{name: pca, dim: 3}")
    torch.testing.assert_close(
        ours[:, weak], stats.embeds[:, weak], rtol=0, atol=0.02 * float(stats.embeds.std())
    )
    mask = torch.ones(1, 1, dtype=torch.bool)
    code = bottleneck.encode(known.embeds[None, :1], mask)
    back = bottleneck.compressor.inverse(code)[0, 0]
    torch.testing.assert_close(
        back[weak], stats.embeds[0, weak], rtol=0, atol=0.02 * float(stats.embeds.std())
    )


def test_where_there_is_no_llm_it_says_so(stats: TokenStats) -> None:
    with pytest.raises(ValueError, match="stands first"):
        decoded(stats, "sensitivity", "pca")


def test_it_stands_first() -> None:
    config = small_config("compressors=[pca, sensitivity]")
    with pytest.raises(ConfigError, match="put it first"):
        resolve(config, load_plugins())
