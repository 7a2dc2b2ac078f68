"""The failures of the original study, each built on purpose: the diagnosis must name the true cause."""

import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import stage1.diagnosis.objective as objective
from conftest import NARROW, fitted, opened, with_table
from plugin_sites import Site
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.diagnosis import show
from stage1.diagnosis.case import Case
from stage1.diagnosis.diagnose import diagnose
from stage1.diagnosis.findings import Finding, findings
from stage1.plugins import Registry, load_plugins, resolve
from stage1.runs.run import Run
from stage1.session import Session
from stage1.training.trainer import Trainer
from test_diagnose_objective import LEAK
from test_diagnose_probes import case_of
from test_diagnose_protocol import CutFromTheRight, Faulty, WithoutBos, faulty, never_stop

QUESTIONS = 64
SETTINGS = (
    "data.train=5000",  # enough that the compressor need not be fitted anew on more
    "data.selection=60",
    "train.check_questions=20",
    "train.batch_prompts=8",
    "train.check_every=10",
    "eval.max_new_tokens=8",
    "eval.resamples=500",
    "raw_anchor=true",  # one variant fewer to be asked
)
QUARTER = ("compressor.ratio=4", "adapter=linear")
"""The embedded model loses nothing by it."""
BLANK = ("compressor.ratio=4", "adapter=mlp", "adapter.expansion=1")
"""An adapter that starts at random, so that training decides what it becomes."""


def session_of(*settings: str) -> Session:
    return opened(*SETTINGS, *settings)


@pytest.fixture(scope="module")
def sound() -> Case:
    """A quarter of the width, fitted as it should be."""
    session = session_of(*QUARTER)
    return case_of(fitted(session, *QUARTER), session, QUESTIONS)


def like(sound: Case, **changes: Any) -> Case:
    """Another bottleneck, after the same training prompts, asked the same questions in the same way."""
    case = replace(sound, **changes)
    for name in ("text", "raw"):
        case.asked[name] = sound.ask(name, sound.raw if name == "raw" else None)
    case.read["raw"] = sound.next_tokens("raw", sound.raw)
    case.__dict__["fitted"] = sound.fitted
    return case


def train(folder: Path, *settings: str, registry: Registry | None = None) -> dict[str, Any]:
    """A real run in `folder`: its bottleneck as it was saved, its metrics and its session."""
    session = session_of(f"output={folder / 'run'}", *settings)
    run = Run.create(session.config)
    registry = registry or load_plugins()
    Trainer(resolve(session.config, registry), session).train(run)
    bottleneck = Bottleneck.from_pretrained(run.path, table=session.table)
    return {"bottleneck": bottleneck, "metrics": run.metrics(), "session": session}


def first(case: Case) -> dict[str, Any]:
    """The first finding."""
    found = diagnose(case, "RUN")
    assert not found["clean"]
    assert len(found["findings"]) == len({finding["cause"] for finding in found["findings"]}) <= 3
    top: dict[str, Any] = found["findings"][0]
    assert top["severity"] != "note"
    return top


# -- clean --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The diagnosis of a run with the defaults, for which 1,000 prompts are plenty."""
    settings = (NARROW, "data.train=1000", "train.steps=20", "train.check_every=20")
    run = train(tmp_path_factory.mktemp("clean"), *settings)
    assert run["bottleneck"].compressor.code_dim * 8 == run["session"].table.shape[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stage1.diagnosis.ablation.PLENTY", 1000)
        case = case_of(run["bottleneck"], run["session"], QUESTIONS)
        return diagnose(replace(case, metrics=run["metrics"]), "RUN")


def test_a_sound_run_has_a_clean_bill(clean: dict[str, Any]) -> None:
    assert clean["clean"]
    assert clean["findings"] == []
    assert "Nothing wrong was found" in show.verdict(clean)


# -- the protocol -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "cause"), [(WithoutBos, "no_bos"), (CutFromTheRight, "cut")])
def test_prompts_put_wrongly(sound: Case, kind: type[Faulty], cause: str) -> None:
    session = faulty(kind, sound.session)
    top = first(case_of(sound.bottleneck, session, QUESTIONS))
    assert top["cause"] == cause
    assert f"{QUESTIONS} of {QUESTIONS} prompts" in top["evidence"][0]
    assert f"→ {sound.text.mean:.1f}" in top["evidence"][1]


@pytest.mark.slow
def test_no_stop_at_the_newline(sound: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = sound.text.mean
    never_stop(monkeypatch)
    top = first(case_of(sound.bottleneck, sound.session, QUESTIONS))
    assert top["cause"] == "no_stop"
    assert f"→ {expected:.1f}" in top["evidence"][1]


# -- the bottleneck as it is --------------------------------------------------------------------------------


@pytest.mark.slow
def test_vectors_120_times_too_long(sound: Case) -> None:
    bottleneck = fitted(sound.session, *QUARTER)
    for parameter in bottleneck.adapter.parameters():
        parameter.mul_(120)
    top = first(like(sound, bottleneck=bottleneck))
    assert top["cause"] == "magnitude"
    assert top["severity"] == "critical"
    assert re.search(r"typically 1[12]\d times as long", top["evidence"][0])
    assert "--magnitude vocab" in top["command"]


@pytest.mark.slow
def test_an_adapter_that_says_the_mean(sound: Case) -> None:
    bottleneck = fitted(sound.session, *QUARTER)
    weight, bias = bottleneck.adapter.parameters()
    weight.zero_()
    bias.copy_(bottleneck.mean_embedding)
    top = first(like(sound, bottleneck=bottleneck))
    assert top["cause"] == "collapse"
    assert top["severity"] == "critical"
    assert any("0.0 % of the originals' variance" in line for line in top["evidence"])


@pytest.mark.slow
def test_another_models_table(sound: Case) -> None:
    """The same words in other directions."""
    table = sound.session.table
    generator = torch.Generator().manual_seed(3)
    rotation, _ = torch.linalg.qr(torch.randn(2 * table.shape[1:], generator=generator))
    other = with_table(sound.session, (table.float() @ rotation).to(table.dtype))
    top = first(like(sound, bottleneck=fitted(other, *QUARTER)))
    assert top["cause"] == "wrong_table"
    assert top["severity"] == "critical"
    assert "total variances away" in top["evidence"][0]


@pytest.mark.slow
def test_pca_of_too_few_prompts(sound: Case) -> None:
    """Thirty, at 6.4 times fewer dimensions, cost this small model 15 points of F1.

    The study's hundred cost it 8, which takes 150 questions to be sure of, and nothing at 4 times fewer.
    """
    options = ("compressor.dim=40", "adapter=linear")
    session = session_of(*options, "data.train=30")
    top = first(case_of(fitted(session, *options), session, 100))
    assert top["cause"] == "few_prompts"
    assert "30 prompts" in top["evidence"][0]
    assert "fitted on plenty" in top["evidence"][2]


# -- training -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_loss_term_drowns_another(sound: Case, tmp_path: Path) -> None:
    """Read through the LLM and weighed a hundredfold; reconstruction, the other term, is torn down."""
    losses = "losses={recon: 1, prompt_ppl: 100}"
    run = train(tmp_path, *BLANK, losses, "train.steps=20", "train.lr=0.03")
    top = first(like(sound, **run))
    assert top["cause"] == "drowning"
    assert top["severity"] == "critical"
    assert "prompt_ppl" in top["title"]
    told = "; ".join(top["evidence"])
    assert "`prompt_ppl`, 9" in told  # 9x % of the objective
    start, end = (f"{run['metrics'][k]['selection']['recon']:.4f}" for k in (0, -1))
    assert f"recon on the selection split went from {start} to {end}" in told
    assert "--loss recon=auto --loss prompt_ppl=auto" in top["command"]


@pytest.mark.slow
def test_training_with_the_gold_answer_in_sight(sound: Case, tmp_path: Path) -> None:
    """The loss falls by nearly half; to the prompt alone there is no right answer."""
    run = train(tmp_path, *BLANK, "losses={answer_ce: 1}", "train.steps=20", "train.lr=0.01")
    top = first(like(sound, **run))
    assert top["cause"] == "teacher_forced"
    assert top["severity"] == "critical"
    told = "; ".join(top["evidence"])
    start, end = (run["metrics"][k]["selection"]["terms"]["answer_ce"] for k in (0, -1))
    assert end < 0.6 * start
    assert f"`answer_ce`, 100 % of the objective, went from {start:.3g} to {end:.3g}" in told
    assert "% of the answer's tokens are right when the answer so far is given, 0 %" in told
    assert "without training F1 is" in told


@pytest.mark.slow
def test_a_loss_that_leaks_the_originals_norm(
    sound: Case, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Training starts a hundred times too long, and its loss cannot tell."""
    site.install("leak", {"point": LEAK})
    registry = site.load()
    monkeypatch.setattr(objective, "load_plugins", lambda: registry)
    long = fitted(sound.session, *QUARTER)
    for parameter in long.adapter.parameters():
        parameter.mul_(100)
    start = tmp_path / "start"
    start.mkdir()
    long.save_pretrained(start, model=sound.session.config.model, table_hash=sound.session.model.table_hash)
    Run(start).write_manifest({})
    settings = (*QUARTER, f"init={start}", "losses={leaking: 1}", "train.steps=20", "train.lr=0.01")
    top = first(like(sound, **train(tmp_path, *settings, registry=registry)))
    assert top["cause"] == "norm_leak"
    assert top["severity"] == "critical"
    assert "unchanged" in top["evidence"][-1]


# -- what the ten do not reach: a clean diagnosis, with one measurement changed -----------------------------


def causes(clean: dict[str, Any], *path: str, **changes: Any) -> dict[str, Finding]:
    """The findings by cause, in their order, where the measurement at `path` has other values."""
    measured = deepcopy(clean["measured"])
    place = measured
    for key in path:
        place = place[key]
    assert changes.keys() <= place.keys()
    place.update(changes)
    return {finding.cause: finding for finding in findings(measured, "RUN")}


MENDED = {how: {f"f1_text_{how}": 99.0, f"f1_ours_{how}": 99.0} for how in ("with", "whole", "first_line")}
"""What is asked again without the fault of the protocol."""


@pytest.mark.parametrize(
    ("path", "changes", "cause", "severity", "told"),
    [
        ("protocol", {"raw_differs": 2}, "raw_differs", "warning", "2 of 64"),
        ("protocol", {"truncated": {"prompts": 7, "tokens": 90}}, "truncated", "note", "lost 90 tokens"),
        ("protocol", {"trailing_space": 64}, "trailing_space", "warning", "64 of 64"),
        ("protocol", {"chat_template": {"there": True, "used": False}}, "chat_template", "note", "template"),
        ("protocol.stop", {"unstopped": 11}, "unstopped", "note", "11 of 64"),
        ("protocol.bos", {"missing": 9, **MENDED["with"]}, "no_bos", "warning", "9 of 64 prompts lack"),
        ("protocol.cut", {"anchor_missing": 9, **MENDED["whole"]}, "cut", "warning", "9 do not end in"),
        ("protocol.stop", {"run_on": 9, **MENDED["first_line"]}, "no_stop", "warning", "9 of 64 answers"),
        ("objective", {"selection_on_test": 3}, "selection_on_test", "warning", "3 passages"),
        ("objective", {"training_on_test": 4}, "training_on_test", "warning", "4 passages"),
        ("protocol", {"text_f1": 4.0}, "no_ceiling", "warning", "4.0"),
        (
            "generation.text",
            {"contains_gold_but_wrong": 0.5, "points_in_form": 40.0},
            "format",
            "critical",
            "50 % of them",
        ),
    ],
)
def test_one_measurement(
    clean: dict[str, Any], path: str, changes: dict[str, Any], cause: str, severity: str, told: str
) -> None:
    found = causes(clean, *path.split("."), **changes)
    assert list(found) == [cause]
    assert found[cause].severity == severity
    assert told in found[cause].evidence[0]


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("protocol.stop", {"unstopped": 6}),
        ("protocol", {"chat_template": {"there": True, "used": True}}),
        ("generation.text", {"contains_gold_but_wrong": 0.05, "points_in_form": 2.9}),
        ("objective", {"dominating": {"term": "recon", "share": 0.99}}),
        ("objective", {"magnitude_blind": True}),
        ("compressor", {"mean_distance": 0.2}),
    ],
)
def test_what_alone_is_no_fault(clean: dict[str, Any], path: str, changes: dict[str, Any]) -> None:
    assert causes(clean, *path.split("."), **changes) == {}


def staged(clean: dict[str, Any], **f1: float) -> dict[str, Any]:
    """The clean diagnosis with these F1, every difference beyond chance."""
    changed = deepcopy(clean)
    ablation = changed["measured"]["ablation"]
    rows = {row["name"]: row for row in ablation["stages"] + ablation["variants"]}
    for name, value in f1.items():
        if name not in rows:
            rows[name] = {"name": name}
            ablation["variants"].append(rows[name])
        rows[name]["f1"] = value
        gain = value - f1["bottleneck"]
        rows[name]["gain_ci95"] = [gain - 1, gain + 1]
    return changed


def test_no_point_of_f1_is_claimed_twice(clean: dict[str, Any]) -> None:
    """Training cost 30, few prompts 15 more, and 20 are missing from the code."""
    worse = staged(clean, raw=85, bottleneck=20, true_norms=22, inverse=45, closed_form=50, refit=65)
    found = causes(worse, "objective", teacher_forced=["answer_ce"], teacher_forced_accuracy=None)
    assert {cause: finding.explains for cause, finding in found.items()} == {
        "teacher_forced": 30,
        "too_lossy": 20,
        "few_prompts": 15,
    }


@pytest.mark.parametrize(("ours", "severity"), [(84, "note"), (75, "warning")])
def test_a_teacher_forced_run_that_no_variant_betters(
    clean: dict[str, Any], ours: float, severity: str
) -> None:
    """No harm was measured, but training and evaluation do not match where there is something to win."""
    worse = staged(clean, raw=85, bottleneck=ours, true_norms=ours, inverse=40, closed_form=40)
    found = causes(worse, "objective", teacher_forced=["answer_ce"])
    assert {cause: (f.explains, f.severity) for cause, f in found.items()} == {
        "teacher_forced": (0, severity)
    }


def test_a_difference_within_chance_is_no_finding(clean: dict[str, Any]) -> None:
    better = staged(clean, raw=85, bottleneck=80, true_norms=80, inverse=70, closed_form=84.5)
    (row,) = [row for row in better["measured"]["ablation"]["variants"] if row["name"] == "closed_form"]
    row["gain_ci95"] = [-0.5, 9.5]
    assert causes(better) == {}
    row["gain_ci95"] = [0.5, 8.5]
    assert list(causes(better)) == ["harmed"]


def test_training_that_never_bettered_its_start(clean: dict[str, Any]) -> None:
    worse = staged(clean, raw=85, bottleneck=5, true_norms=5, inverse=80, closed_form=80)
    found = causes(worse, "objective", kept_step=0)
    assert "the checkpoint kept is the start" in found["harmed"].evidence[1]
    assert "unimproved" not in found
    found = causes(worse, "objective", kept_step=10)
    assert len(found["harmed"].evidence) == 1
    # Kept at its start, it did no harm: that training brought nothing is a finding all the same.
    alone = causes(clean, "objective", kept_step=0, score_first=0.07, score_last=12.3, lr=0.02)
    assert list(alone) == ["unimproved"]
    assert alone["unimproved"].severity == "warning"
    assert "from 0.07 to 12.3" in alone["unimproved"].evidence[1]
    assert alone["unimproved"].command == "stage1 train --set train.lr=0.002"


def test_lengths_that_training_ruined_with_all_else(clean: dict[str, Any]) -> None:
    """Right norms bring back a part only: no fault of their own. Where they bring back all, they are it."""
    worse = staged(clean, raw=85, bottleneck=5, true_norms=30, inverse=80, closed_form=80)
    worse["measured"]["statistics"]["norm_ratio"]["median"] = 4.0
    found = causes(worse, "objective", recon_first=1.0, recon_last=9.0)
    assert list(found) == ["harmed"]
    assert "4 times as long" in found["harmed"].evidence[-1]
    found = causes(staged(worse, bottleneck=5, true_norms=79), "objective")
    assert list(found) == ["magnitude"]


def test_reconstruction_went_on_and_f1_fell(clean: dict[str, Any]) -> None:
    worse = staged(clean, raw=85, bottleneck=50, true_norms=50, inverse=40, closed_form=40)
    pair = {"from": 10, "to": 40, "recon_from": 0.4, "recon_to": 0.1, "f1_from": 75.0, "f1_to": 52.0}
    found = causes(worse, "divergence", diverged=[pair])
    assert {cause: finding.explains for cause, finding in found.items()} == {"diverged": 23}
    assert "F1 75.0 → 52.0" in found["diverged"].evidence[0]


def test_answers_that_say_more_through_the_bottleneck(clean: dict[str, Any]) -> None:
    worse = staged(clean, raw=85, bottleneck=60, true_norms=60, inverse=40, closed_form=40)
    found = causes(worse, "generation", "ours", contains_gold_but_wrong=0.3, points_in_form=22.0)
    text = worse["measured"]["generation"]["text"]["points_in_form"]
    assert list(found) == ["format"]
    assert found["format"].explains == pytest.approx(22 - text)


def test_a_broken_protocol_comes_before_everything(clean: dict[str, Any]) -> None:
    """Whatever else explains more was measured under it."""
    worse = staged(clean, raw=85, bottleneck=20, true_norms=84, inverse=20, closed_form=20)
    worse["measured"]["statistics"]["norm_ratio"]["median"] = 120.0
    found = causes(worse, "protocol", raw_differs=1)
    assert list(found) == ["raw_differs", "magnitude"]
    assert found["raw_differs"].explains < 2 < found["magnitude"].explains
    assert [finding.severity for finding in found.values()] == ["warning", "critical"]
