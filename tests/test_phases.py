"""Two phases: the second only where the first is not enough; killed anywhere, a run ends the same."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import NARROW, CtrlC, Kill, Killed, Notes, small_config
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.config import RunConfig, validate
from stage1.errors import ConfigError, TrainingError, UsageError
from stage1.evaluation.conditions import NEEDED
from stage1.experiment import evaluate_run, resume_run, train_run
from stage1.files import read_record, write_record
from stage1.progress import Progress
from stage1.reports import publish, report
from stage1.runs.run import Run
from stage1.training.phases import FIRST, Decision
from trainings import results_of, same, weights

PHASES = (
    NARROW,
    "train.save_every=10",
    "train.check_questions=4",
    "eval.limit=9",
    "compressor.ratio=32",  # loses so much that `below` decides
    "then.losses.recon=auto",
    "then.losses.cosine=auto",
    "then.train.steps=20",
    "then.train.lr=1e-3",
)
ON, STAYS = "then.below=1", "then.below=0.001"


def two_phases(path: Path, *settings: str) -> RunConfig:
    return small_config(f"output={path}", *PHASES, *settings)


def steps_of(run: Run) -> list[int]:
    """Where it was measured, without what follows the optimiser's last step."""
    return [entry["step"] for entry in run.metrics() if "solved" not in entry]


# -- the configuration --------------------------------------------------------------------------------


def test_what_the_second_phase_does_not_change_is_as_in_the_first() -> None:
    config = small_config("train.clip=9", *PHASES)
    assert config.then is not None
    assert (config.then.train.steps, config.then.train.lr) == (20, 1e-3)
    assert (config.then.train.clip, config.then.train.check_every) == (9, 10)
    assert (config.train.steps, config.then.below) == (40, 0.85)
    assert validate(yaml.safe_load(config.to_yaml())) == config


def test_everything_wrong_with_the_second_phase_is_reported_with_its_path() -> None:
    with pytest.raises(ConfigError) as caught:
        validate({"then": {"below": 1.5, "train": {"stpes": 3, "lr": 0}, "losses": {"recon": -1}}})
    paths = {issue.path for issue in caught.value.issues}
    assert paths == {"then.below", "then.train.stpes", "then.train.lr", "then.losses.recon.weight"}
    with pytest.raises(ConfigError, match=r"then\.losses: Field required"):
        small_config("then.below=0.9")


def test_the_second_phases_losses_are_looked_up_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"then\.losses\.cosin: .*'cosine'"):
        train_run(two_phases(tmp_path / "run", "then.losses.cosin=1"), Progress())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("ours", "below", "goes_on"), [(42.5, 0.85, False), (42.4, 0.85, True), (0, 0.01, True), (60, 1, False)]
)
def test_the_second_phase_is_run_below_the_share_alone(ours: float, below: float, goes_on: bool) -> None:
    assert Decision.of(50, ours, below, 9).goes_on is goes_on


def test_no_second_phase_where_the_bare_model_answers_nothing() -> None:
    decision = Decision.of(0, 0, 0.85, 9)
    assert (decision.ratio, decision.goes_on) == (None, False)
    assert "bare model" in decision.reason


# -- the runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two phases, evaluated."""
    path = tmp_path_factory.mktemp("both") / "run"
    train_run(two_phases(path, ON), Progress())
    return path


def test_a_run_that_goes_on_starts_from_the_first_phase(both: Path) -> None:
    run, first = Run(both), Run(both / FIRST)
    assert first.trained
    assert first.config.then is None
    assert run.config.then is not None
    assert not same(weights(both), weights(first.path))
    begun, ended = run.metrics()[0], first.best_selection()
    assert begun["step"] == 0
    assert begun["selection"]["recon"] == pytest.approx(ended["selection"]["recon"], rel=1e-6)
    assert steps_of(run) == [0, 10, 20]


def test_results_say_which_phase_they_are_of_and_why(both: Path) -> None:
    results = results_of(both)
    one, two = results["phases"]
    assert (one["losses"], two["losses"]) == (["recon"], ["recon", "cosine"])
    assert (one["trained"], two["trained"]) == (True, True)
    assert one["selection"] == read_record(both / FIRST / "selection.json", "")
    assert one["selection"]["n"] == 9  # eval.limit
    assert one["selection"]["ratio"] == one["selection"]["bottleneck"] / one["selection"]["text"] < 1
    [verdict] = [line for line in report.summary(results) if line.startswith("Verdict")]
    assert "Result of phase 2 of 2" in verdict
    assert f"{100 * one['selection']['ratio']:.1f} %" in verdict
    assert results["teacher_forced"] is False
    assert "teacher" not in verdict


@pytest.fixture(scope="module")
def stays(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run that ends with its first phase, evaluated, and the notes it made."""
    path, notes = tmp_path_factory.mktemp("stays") / "run", Notes()
    train_run(two_phases(path, STAYS), notes)
    return path, notes.notes


def test_a_run_whose_first_phase_suffices_takes_it_over(
    stays: tuple[Path, list[str]], tmp_path: Path
) -> None:
    path, notes = stays
    run, first = Run(path), Run(path / FIRST)
    for name in ("bottleneck.safetensors", "bottleneck.json", "metrics.jsonl"):
        assert (run.path / name).read_bytes() == (first.path / name).read_bytes()
    assert any("not under 0.1 %: training ends here" in note for note in notes)
    alone = train_run(small_config(f"output={tmp_path / 'alone'}", *PHASES[:5]), Progress())
    assert same(weights(run.path), weights(alone.run.path))
    results, expected = results_of(run), results_of(alone.run)
    assert results["rows"] == expected["rows"]
    assert [phase["trained"] for phase in results["phases"]] == [True, False]
    assert "phases" not in expected
    assert any("Result of phase 1 of 2" in line for line in report.summary(results))
    manifest = run.read_manifest()
    assert manifest["plugins"].keys() == {"compressors.0", "adapter", "losses.recon"}


def test_a_run_works_where_it_is_moved_to_and_without_its_first_phase(both: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(both, tmp_path / "moved")
    shutil.rmtree(moved / FIRST)
    before = (both / "results.json").read_bytes()
    (moved / "results.json").unlink()
    evaluate_run(Run.open(moved), {}, Progress())
    assert (moved / "results.json").read_bytes() == before
    assert str(both) not in (moved / "manifest.json").read_text()
    assert Run(moved).config.init is None


def test_the_first_phase_is_a_run_that_others_start_from(both: Path, tmp_path: Path) -> None:
    evaluation = evaluate_run(Run.open(both / FIRST), {}, Progress()).evaluation
    assert evaluation is not None
    assert "phases" not in evaluation.results
    settings = (f"init={both / FIRST}", f"output={tmp_path / 'next'}", "train.steps=0")
    config = small_config(*PHASES[:5], *settings)
    after = train_run(config, Progress(), with_evaluation=False).run
    assert same(weights(after.path), weights(both / FIRST))


@pytest.mark.parametrize(("ratio", "said"), [(1, True), (64, False)])
def test_where_little_is_left_to_gain_it_is_said(tmp_path: Path, ratio: int, said: bool) -> None:
    same = (
        f"compressor.ratio={ratio}",
        "adapter=linear",
        "data.train=40",
        "data.selection=8",
        "eval.limit=8",
    )
    first, second = tmp_path / "first", tmp_path / "second"
    train_run(small_config(*same, "train.steps=0", f"output={first}"), Progress(), rows=NEEDED)
    notes = Notes()
    losses = ("losses={kl: 1}", "train.steps=1", "train.check_prompts=2", "train.batch_prompts=2")
    config = small_config(*same, *losses, f"init={first}", f"output={second}")
    train_run(config, notes, with_evaluation=False)
    assert any(note.startswith(f"{first} keeps 100 % of the text F1") for note in notes.notes) == said


@pytest.mark.parametrize("setting", ["compressor.dim=3", "init=nowhere"])
def test_a_start_that_cannot_be_used_is_refused_before_anything_is_written(
    both: Path, tmp_path: Path, setting: str
) -> None:
    settings = (f"init={both / FIRST}", setting, f"output={tmp_path / 'run'}")
    config = small_config(*PHASES[:5], *settings)
    with pytest.raises(UsageError, match=r"compressor|nowhere"):
        train_run(config, Progress(), with_evaluation=False)
    assert not (tmp_path / "run").exists()


def test_a_first_phase_is_no_run_to_resume_by_default(
    both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(both, tmp_path / "runs")  # `--output runs`
    (run / FIRST / "bottleneck.json").unlink()
    with pytest.raises(UsageError, match="no unfinished run"):
        Run.latest()


# -- killed, interrupted, resumed ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "stopped",
    [
        pytest.param(Kill("Training", 25), id="killed in phase 1"),
        pytest.param(Kill("Solving the last layer", 0), id="killed at the end of phase 1"),
        pytest.param(CtrlC("Evaluating bottleneck", 1), id="interrupted between the phases"),
        pytest.param(Kill("Training", 58), id="killed in phase 2"),
        pytest.param(CtrlC("Training", 58), id="interrupted in phase 2"),
    ],
)
def test_a_run_that_was_stopped_ends_with_the_same_weights(
    both: Path, tmp_path: Path, stopped: CtrlC
) -> None:
    path = tmp_path / "run"
    config = two_phases(path, ON)
    with pytest.raises((Killed, KeyboardInterrupt)) as caught:
        train_run(config, stopped, with_evaluation=False)
    if not isinstance(stopped, Kill):
        assert str(caught.value) == f"Resume with: stage1 train --resume --output {path}"
    path = path.rename(tmp_path / "moved")
    run = Run.open(path)
    assert not run.trained
    base: dict[str, Any] = {**run.config.model_dump(mode="json"), "output": str(path)}
    train_run(resume_run(run, validate(base)), Progress(), resume=run, with_evaluation=False)
    assert same(weights(path), weights(both))
    assert same(weights(path / FIRST), weights(both / FIRST))
    steps = steps_of(run)
    assert steps == sorted(set(steps))
    assert run.config.output == path
    assert run.config.then == config.then


@pytest.mark.parametrize("missing", ["bottleneck.json", "bottleneck.safetensors", "metrics.jsonl"])
def test_a_run_that_was_killed_while_it_took_over_is_completed(
    stays: tuple[Path, list[str]], tmp_path: Path, missing: str
) -> None:
    whole = Run(shutil.copytree(stays[0], tmp_path / "run"))
    before = {path.name: path.read_bytes() for path in whole.path.glob("bottleneck.*")}
    (whole.path / missing).unlink()
    (whole.path / "bottleneck.json").unlink(missing_ok=True)
    train_run(whole.config, Progress(), resume=whole, with_evaluation=False)
    assert {path.name: path.read_bytes() for path in whole.path.glob("bottleneck.*")} == before
    assert whole.metrics() == Run(whole.path / FIRST).metrics()


def test_the_second_phase_may_be_changed_on_resuming_and_what_was_decided_stays(
    both: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(both, tmp_path / "run")
    (path / "bottleneck.json").unlink()
    run = Run.open(path)
    tree = run.config.model_dump(mode="json")
    tree["then"]["train"]["steps"] = 5
    decided = read_record(path / FIRST / "selection.json", "") | {"n": 8}  # 9 if it were measured again
    write_record(path / FIRST / "selection.json", decided)
    train_run(resume_run(run, validate(tree)), Progress(), resume=run, with_evaluation=False)
    assert read_record(path / FIRST / "selection.json", "") == decided
    assert steps_of(run) == [0, 5]
    tree["then"]["below"] = 0.5
    with pytest.raises(ConfigError, match=r"then\.below"):
        resume_run(run, validate(tree))


def test_a_loss_that_leaves_the_finite_numbers_names_the_phases_own_setting(tmp_path: Path) -> None:
    config = two_phases(tmp_path / "run", ON, "then.train.lr=1e30", "then.train.warmup=0")
    with pytest.raises(TrainingError) as caught:
        train_run(config, Progress(), with_evaluation=False)
    assert f"--output {tmp_path / 'run'} --set then.train.lr=1e+29" in caught.value.remedy


# -- losses that read the LLM -------------------------------------------------------------------------


def test_prompt_perplexity_after_reconstruction(tmp_path: Path) -> None:
    settings = ("then.losses.prompt_ppl=auto", "then.train.steps=4", "then.train.check_every=4")
    run = train_run(two_phases(tmp_path / "run", ON, *settings), Progress(), with_evaluation=False).run
    assert run.read_manifest()["batches"] == "prompts"
    assert Run(run.path / FIRST).read_manifest()["batches"] == "distinct tokens"
    assert "prompt_ppl" in run.metrics()[-1]["selection"]["terms"]
    Bottleneck.from_pretrained(run.path)


def test_the_mark_of_teacher_forcing_is_shown_and_inherited(tmp_path: Path) -> None:
    few = ("train.steps=2", "train.check_every=2", "eval.limit=6", "train.check_questions=4")
    config = small_config(*few, "losses.answer_ce=1", f"output={tmp_path / 'one'}")
    first = train_run(config, Progress(), with_evaluation=False).run
    second = train_run(small_config(*few, f"init={first.path}", f"output={tmp_path / 'two'}"), Progress()).run
    results = results_of(second)
    assert results["teacher_forced"] is True
    assert any("Verdict" in line and "Teacher-forced:" in line for line in report.summary(results))
    card = publish.published(second, "me/it")["README.md"].decode()
    assert "the trained adapter, teacher-forced" in card
    assert "**Teacher-forced" in card
