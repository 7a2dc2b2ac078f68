"""The probes that compare vectors, against known answers and slow obvious computations."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from conftest import fitted, with_table
from pairs import pairs
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.data.datasets import spread
from stage1.data.prompts import Prompt
from stage1.diagnosis import compressor, statistics, tokens
from stage1.diagnosis.case import Case
from stage1.evaluation.answers import Answering
from stage1.evaluation.conditions import Condition
from stage1.plugins.interfaces import Adapter, ComponentConfig, Compressor
from stage1.plugins.tensors import Code
from stage1.session import Session

QUESTIONS = 20
PCA = ("compressor.dim=6", "adapter=linear")
"""So narrow that about half the tokens are lost."""


def case_of(bottleneck: Bottleneck, session: Session, asked: int = QUESTIONS) -> Case:
    """The bottleneck without a training, asked that many questions."""
    questions = spread(session.data.test, asked)
    return Case(bottleneck, session, questions, session.prompts(questions), [])


def probe(case: Case) -> dict[str, Any]:
    """All three, as they would be written."""
    found = {p.__name__.split(".")[-1]: p.measure(case) for p in (tokens, statistics, compressor)}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


class Scaled(Adapter):
    """Every vector times a factor."""

    factor = 120.0

    def forward(self, code: Code) -> Tensor:
        return self.factor * code.vectors


class Constant(Adapter):
    """The same vector, whatever the token."""

    vector: Tensor

    def forward(self, code: Code) -> Tensor:
        return self.vector.expand_as(code.vectors)


class Previous(Compressor):
    """Each vector comes one position late: not token-wise."""

    tokenwise = False

    def forward(self, embeds: Tensor, mask: Tensor) -> Code:
        return Code(torch.cat([embeds[:, :1], embeds[:, :-1]], dim=1), mask)


def untouched(session: Session, adapter: Adapter | None = None) -> Bottleneck:
    bottleneck = fitted(session, "compressor=identity", "adapter=identity")
    bottleneck.adapter = adapter or bottleneck.adapter
    return bottleneck


def constant(session: Session, vector: Tensor) -> Bottleneck:
    adapter = Constant(ComponentConfig(), len(vector), len(vector))
    adapter.vector = vector
    return untouched(session, adapter)


def originals(case: Case) -> tuple[Tensor, Tensor]:
    """Ids [N] and embeddings [N, D] float64 of every crossing position, prompt after prompt."""
    ids = [i for p in case.prompts for i, crosses in zip(p.ids, p.cross, strict=True) if crosses]
    return torch.tensor(ids), case.session.table[ids].double()


def reconstructed(case: Case) -> Tensor:
    """[N, D] float64, prompt by prompt."""
    rows = []
    for prompt in case.prompts:
        cross = torch.tensor([prompt.cross])
        embeds = case.session.table[prompt.ids].float()[None]
        rows.append(case.bottleneck(embeds, cross)[cross].double())
    return torch.cat(rows)


# -- known answers ----------------------------------------------------------------------------------------


def test_nothing_is_lost_by_the_identity(session: Session) -> None:
    case = case_of(untouched(session), session)
    found = probe(case)
    words = found["tokens"]
    assert words["recovery_euclidean"] == words["recovery_cosine"] == 1
    assert words["confusions"] == []
    assert words["distinct_nearest"] == words["distinct_original"] == len(case.stats.ids)
    assert {b["recovery"] for b in words["by_frequency"]} <= {1, None}
    ids, embeds = originals(case)
    token, count = Counter(ids.tolist()).most_common(1)[0]
    assert words["top_nearest"]["token"] == session.tokenizer.decode([token])
    assert words["top_nearest"]["share"] == pytest.approx(count / len(ids))
    assert ["".join(t["original"] for t in prompt[1:]) for prompt in words["prompts"]] == [
        prompt.text for prompt in case.prompts[:3]
    ]
    assert all(t["match"] and t["nearest"] == t["original"] for prompt in words["prompts"] for t in prompt)
    assert [t["crosses"] for t in words["prompts"][0]] == case.prompts[0].cross

    match = found["statistics"]
    assert set(match["norm_ratio"].values()) == {1}
    assert (match["mean_shift"], match["variance_ratio"]) == (0, 1)
    assert set(match["per_dimension"]["variance_ratio"].values()) == {1}
    assert match["norm_correlation"] == pytest.approx(1)
    assert match["spectrum"]["original"] == match["spectrum"]["reconstructed"]

    assert found["compressor"]["lost_sensitivity"] == 0
    assert {d["residual_share"] for d in found["compressor"]["directions"]} == {0}
    assert found["compressor"]["explained_variance"]["test"] == pytest.approx(1)
    assert found["compressor"]["claimed"] is None
    assert found["compressor"]["mean_distance"] < 1e-10
    assert found["compressor"]["estimate"]["code_dim"] == embeds.shape[1]


def test_an_adapter_that_returns_the_mean(session: Session) -> None:
    mean = originals(case_of(untouched(session), session))[1].mean(0).float()
    found = probe(case_of(constant(session, mean), session))
    assert found["tokens"]["distinct_nearest"] == found["tokens"]["top_nearest"]["share"] == 1
    assert found["tokens"]["recovery_euclidean"] < 0.1
    match = found["statistics"]
    assert match["variance_ratio"] == pytest.approx(0, abs=1e-9)
    assert match["mean_shift"] == pytest.approx(0, abs=1e-9)
    assert match["norm_correlation"] == 0
    assert match["norm_ratio"]["p5"] < match["norm_ratio"]["p95"] < 1
    for direction in found["compressor"]["directions"]:
        assert direction["residual_share"] == pytest.approx(1, rel=1e-4)
    assert found["compressor"]["lost_sensitivity"] == pytest.approx(1, rel=1e-4)


def test_an_adapter_that_returns_zeros(session: Session) -> None:
    found = probe(case_of(constant(session, torch.zeros(256)), session))
    assert found["tokens"]["recovery_cosine"] == 0
    assert set(found["statistics"]["norm_ratio"].values()) == {0}
    assert found["statistics"]["spectrum"]["effective_rank_reconstructed"] == 0
    assert set(found["statistics"]["spectrum"]["reconstructed"]) == {0}


def test_long_vectors(session: Session) -> None:
    found = probe(case_of(untouched(session, Scaled(ComponentConfig(), 256, 256)), session))
    assert found["tokens"]["recovery_cosine"] == 1
    match = found["statistics"]
    assert list(match["norm_ratio"].values()) == pytest.approx([120] * 4)
    assert match["variance_ratio"] == pytest.approx(120**2)
    assert match["norm_correlation"] == pytest.approx(1)
    spectrum = match["spectrum"]
    assert spectrum["reconstructed"] == pytest.approx(spectrum["original"])
    assert spectrum["effective_rank_reconstructed"] == pytest.approx(spectrum["effective_rank_original"])
    assert found["compressor"]["lost_sensitivity"] > 119**2  # far worse than the mean


def test_short_vectors_are_nearest_to_the_shortest_token(session: Session) -> None:
    adapter = Scaled(ComponentConfig(), 256, 256)
    adapter.factor = 1e-3
    found = tokens.measure(case_of(untouched(session, adapter), session))
    assert found is not None
    assert found["recovery_cosine"] == 1
    assert found["recovery_euclidean"] < 0.1
    shortest = int(session.table.float().norm(dim=1).argmin())
    assert found["top_nearest"]["share"] > 0.9
    assert found["top_nearest"]["token"] == session.tokenizer.decode([shortest])


def test_a_compressor_fitted_on_few_prompts(session: Session) -> None:
    few = replace(session, questions=session.data._replace(train=session.data.train[:3]))
    options = ("compressor.dim=100", "adapter=linear")
    found = compressor.measure(case_of(fitted(few, *options), few))
    seen = {i for p in few.prompts(few.data.train) for i in p.ids[1:]}
    ids, _ = originals(case_of(fitted(few, *options), few))
    unseen = [i for i in ids.tolist() if i not in seen]
    assert found["unseen"]["tokens"] == len(set(unseen)) > 50
    assert found["unseen"]["share_of_positions"] == pytest.approx(len(unseen) / len(ids))
    assert found["estimate"] == {
        "prompts": 3,
        "positions": sum(sum(p.cross) for p in few.prompts(few.data.train)),
        "distinct_tokens": len(seen),
        "code_dim": 100,
        "tokens_per_dimension": len(seen) / 100,
    }
    assert found["mean_distance"] < 1e-10
    many = compressor.measure(case_of(fitted(session, *options), session))
    assert many["explained_variance"]["test"] > found["explained_variance"]["test"] + 0.1
    assert found["explained_variance"]["training"] > found["explained_variance"]["test"] + 0.1


def test_a_bottleneck_of_another_table(session: Session) -> None:
    other = with_table(session, session.table.flip(1))
    found = compressor.measure(case_of(fitted(other, *PCA), session))
    assert found["mean_distance"] > 1e-2
    assert found["claimed"] > found["explained_variance"]["training"] + 0.1


def test_a_compressor_that_changes_the_length(session: Session) -> None:
    found = probe(case_of(pairs(256), session))
    assert found["tokens"] is None
    assert found["statistics"] is None
    whole = found["compressor"]
    assert whole["explained_variance"] is None
    assert whole["lost_sensitivity"] is None
    assert {d["residual_share"] for d in whole["directions"]} == {None}
    assert sum(d["sensitivity_share"] for d in whole["directions"]) > 0.01


def test_a_compressor_that_looks_at_other_tokens(session: Session) -> None:
    bottleneck = untouched(session)
    bottleneck.compressor = Previous(ComponentConfig(), 256)
    case = case_of(bottleneck, session)
    found = probe(case)
    for prompt in found["tokens"]["prompts"]:
        assert prompt[0]["nearest"] == prompt[0]["original"], "BOS does not cross"
        assert [t["nearest"] for t in prompt[1:]] == [t["original"] for t in prompt[:-1]]
        assert [t["match"] for t in prompt[1:]] == [t["original"] == t["nearest"] for t in prompt[1:]]
    expected = np.mean([a == b for p in case.prompts for a, b in zip(p.ids, p.ids[1:], strict=False)])
    assert found["tokens"]["recovery_euclidean"] == found["tokens"]["recovery_cosine"] == expected
    assert found["compressor"]["explained_variance"] is None
    assert found["compressor"]["lost_sensitivity"] > 0.5


# -- slow references --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenwise", [True, False])
def test_nearest_tokens_one_position_at_a_time(
    tokenwise: bool, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(fitted(session, *PCA), session)
    monkeypatch.setattr(type(case.bottleneck.compressor), "tokenwise", tokenwise)
    ids, _ = originals(case)
    ours, table = reconstructed(case), session.table.double()
    nearest = torch.cdist(ours, table).argmin(1)
    right = nearest == ids
    cosine = (normalize(ours) @ normalize(table).T).argmax(1) == ids
    found = tokens.measure(case)
    assert found is not None
    assert 0.2 < found["recovery_euclidean"] < 0.9
    assert found["recovery_euclidean"] == pytest.approx(float(right.double().mean()))
    assert found["recovery_cosine"] == pytest.approx(float(cosine.double().mean()))
    assert found["distinct_nearest"] == len(set(nearest.tolist()))
    assert found["distinct_original"] == len(set(ids.tolist()))
    count = Counter(nearest.tolist()).most_common(1)[0][1]
    assert found["top_nearest"]["share"] == pytest.approx(count / len(ids))

    def text(token: int) -> str:
        return str(session.tokenizer.decode([token]))

    wrong = zip(ids[~right].tolist(), nearest[~right].tolist(), strict=True)
    confused = Counter((text(a), text(b)) for a, b in wrong)
    listed = {(c["token"], c["read_as"]): c["positions"] for c in found["confusions"]}
    assert len(found["confusions"]) == len(listed) == 15
    assert list(listed.values()) == [n for _, n in confused.most_common(15)]
    assert all(confused[pair] == n for pair, n in listed.items())

    train = Counter(i for p in session.prompts(session.data.train) for i in p.ids[1:])
    assert [b["bucket"] for b in found["by_frequency"]] == list(tokens.BUCKETS)
    limits = [(0, 0), (1, 10), (11, 100), (101, 10**9)]
    for bucket, (low, high) in zip(found["by_frequency"], limits, strict=True):
        inside = [n for n, i in enumerate(ids.tolist()) if low <= train[i] <= high]
        assert bucket["positions"] == len(inside) > 0
        assert bucket["tokens"] == len({int(ids[n]) for n in inside})
        assert bucket["recovery"] == pytest.approx(float(right[inside].double().mean()))


def test_tokens_that_are_no_text_by_themselves(session: Session) -> None:
    case = case_of(untouched(session), session)
    ids = session.tokenizer.encode("日", add_special_tokens=False)
    table = torch.cat([session.table, torch.ones(40, 256)])  # longer than the vocabulary
    beyond = len(table) - 1
    case.session = with_table(session, table)
    case.prompts = [Prompt("x", "", [0, *ids, beyond], [False, *[True] * len(ids), True], 0), *case.prompts]
    found = tokens.measure(case)
    assert found is not None
    texts = [t["original"] for t in found["prompts"][0]]
    assert texts[1:-1] == session.tokenizer.convert_ids_to_tokens(ids)
    assert len(ids) == 3, "one token for each byte"
    assert texts[-1] == f"<id {beyond}>"


def test_statistics_over_every_position(session: Session) -> None:
    case = case_of(fitted(session, *PCA), session)
    e, r = originals(case)[1].numpy(), reconstructed(case).numpy()
    found = statistics.measure(case)
    assert found is not None
    ratio = np.linalg.norm(r, axis=1) / np.linalg.norm(e, axis=1)
    p5, median, p95 = np.quantile(ratio, [0.05, 0.5, 0.95], method="inverted_cdf")
    expected = {"mean": ratio.mean(), "p5": p5, "median": median, "p95": p95}
    assert found["norm_ratio"] == pytest.approx(expected, rel=1e-4)
    assert p5 < 0.95 * median
    total = e.var(0).sum()
    shift = ((e.mean(0) - r.mean(0)) ** 2).sum() / total
    assert found["mean_shift"] == pytest.approx(shift, rel=1e-3)
    assert found["variance_ratio"] == pytest.approx(r.var(0).sum() / total, rel=1e-4)
    logs = [np.log(np.linalg.norm(x, axis=1)) for x in (e, r)]
    assert found["norm_correlation"] == pytest.approx(np.corrcoef(*logs)[0, 1], rel=1e-4)
    for name, rows in (("original", e), ("reconstructed", r)):
        values = np.linalg.eigvalsh(np.cov(rows.T))[::-1]
        assert found["spectrum"][name] == pytest.approx((values / values.sum())[:16], abs=1e-6)
        rank = values.sum() ** 2 / (values**2).sum()
        assert found["spectrum"][f"effective_rank_{name}"] == pytest.approx(rank, rel=1e-4)
    assert found["spectrum"]["effective_rank_reconstructed"] < 6.01
    ratios = r.var(0) / e.var(0)
    three = np.quantile(ratios, [0.05, 0.5, 0.95], method="inverted_cdf")
    assert list(found["per_dimension"]["variance_ratio"].values()) == pytest.approx(three, rel=1e-4)
    distance = ((e.mean(0) - r.mean(0)) ** 2 + (e.std(0) - r.std(0)) ** 2) / e.var(0)
    worst = found["per_dimension"]["worst"]
    assert [w["dimension"] for w in worst] == np.argsort(-distance)[:5].tolist()
    for w in worst:
        d = w["dimension"]
        assert w["mean_original"] == pytest.approx(e[:, d].mean(), rel=1e-4)
        assert w["mean_reconstructed"] == pytest.approx(r[:, d].mean(), rel=1e-4, abs=1e-8)
        assert w["variance_ratio"] == pytest.approx(ratios[d], rel=1e-4)


@pytest.mark.parametrize("options", [PCA, ("compressor=random_projection", "compressor.dim=24")])
def test_explained_variance_is_that_of_least_squares(options: tuple[str, ...], session: Session) -> None:
    bottleneck = fitted(session, *options, "adapter=linear")
    case = case_of(bottleneck, session)
    seen = replace(session, questions=session.data._replace(test=session.data.train))
    train = case_of(bottleneck, seen, 300)
    sides = []
    for part in (train, case):
        _, rows = originals(part)
        codes = bottleneck.encode_rows(rows.float()).double()
        sides.append((torch.cat([codes, torch.ones(len(codes), 1)], dim=1).double(), rows))
    decoder = torch.linalg.lstsq(*sides[0]).solution
    expected = [
        1 - float((codes @ decoder - rows).square().sum() / (rows - rows.mean(0)).square().sum())
        for codes, rows in sides
    ]
    found = compressor.measure(case)
    assert list(found["explained_variance"].values()) == pytest.approx(expected, rel=1e-6)
    if options == PCA:
        assert found["claimed"] == pytest.approx(expected[0], abs=1e-4)  # the code is rounded to bfloat16
    else:
        assert found["claimed"] is None


def test_sensitivity_one_prompt_at_a_time(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressor, "CHUNK", 50)
    case = case_of(fitted(session, *PCA), session, asked=10)
    gradients = []
    for prompt in case.prompts:
        embeds = session.table[prompt.ids].float()[None].requires_grad_()
        logits = case.session.model.llm(inputs_embeds=embeds).logits[0]
        cross_entropy(logits[:-1], torch.tensor(prompt.ids[1:]), reduction="sum").backward()  # type: ignore[no-untyped-call]
        assert embeds.grad is not None
        gradients.append(embeds.grad[0][torch.tensor(prompt.cross)].double())
    gradient, e, r = torch.cat(gradients), originals(case)[1], reconstructed(case)
    variance, vectors = torch.linalg.eigh(torch.cov(e.T, correction=0))
    squared = (gradient @ vectors).square().sum(0)
    residual = ((r - e) @ vectors).square().mean(0)
    found = compressor.measure(case)
    assert [d["direction"] for d in found["directions"]] == list(range(1, 13))
    for name, expected in (
        ("variance_share", variance / variance.sum()),
        ("residual_share", residual / variance),
        ("sensitivity_share", squared / squared.sum()),
    ):
        listed = [d[name] for d in found["directions"]]
        assert listed == pytest.approx(expected.flip(0)[:12].tolist(), rel=1e-3)
    lost = float(residual @ squared / (variance @ squared))
    assert 0.05 < lost < 0.95
    assert found["lost_sensitivity"] == pytest.approx(lost, rel=1e-3)


def test_the_bare_model_is_asked_nothing_twice(
    bottleneck: Bottleneck, session: Session, tmp_path: Path
) -> None:
    questions = session.data.test[:4]
    bare = session.prompts(questions, with_context=False)
    case = Case(bottleneck, session, questions, session.prompts(questions), [], tmp_path)
    case.ask("text bare", None, bare)
    again = Answering(session, tmp_path)
    again.answers(Condition("no_context", bare, None, ["text"]))  # as an evaluation asks it
    assert again.throughput == {"no_context": None}
