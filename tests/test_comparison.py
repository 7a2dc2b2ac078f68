"""Comparisons: statistics that others confirm, and runs that pair."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from false_alarms import alarms, equals
from scipy import stats

import stage1
from conftest import Invoke, refused
from edited_runs import answers_of, copied, said, write
from stage1.config import merge, validate
from stage1.errors import UsageError
from stage1.evaluation.statistics import LEVEL, ClusterBootstrap, Comparison, Floats, holm
from stage1.experiment import train_run
from stage1.files import read_record, write_record
from stage1.inspection.compare import compare_runs
from stage1.progress import Progress
from stage1.runs.answers import Answer
from stage1.runs.run import Run
from trainings import results_of

# -- statistics -------------------------------------------------------------------------------------------


def test_with_equal_passages_it_is_the_t_test_of_their_means() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(2, 10, 60)
    found = Comparison(np.repeat(range(12), 5).tolist(), 50, 0).difference(values[None])
    expected = stats.ttest_1samp(values.reshape(12, 5).mean(1), 0.0)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.ci95 == pytest.approx(list(expected.confidence_interval(0.95)), rel=1e-9)
    single = Comparison(range(60), 50, 0).difference(values[None])
    assert single.p == pytest.approx(stats.ttest_rel(values + 7, np.full(60, 7.0)).pvalue, rel=1e-9)


def test_with_unequal_passages_it_is_the_jackknife_over_them() -> None:
    passages, values = equals(np.random.default_rng(4), 15, 1)
    found = Comparison(passages, 50, 0).difference(values)
    without = [values[0][np.array(passages) != passage].mean() for passage in range(15)]
    error = math.sqrt(14 / 15 * sum((mean - values.mean()) ** 2 for mean in without))
    assert found.standard_error == pytest.approx(error, rel=1e-9)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(values.mean()) / error, 14), rel=1e-9)
    assert found.bootstrap_ci95 == ClusterBootstrap(passages, 50, 0).interval(values[0])


def test_seeds_add_their_variance_and_their_quantile() -> None:
    passages, values = equals(np.random.default_rng(5), 15, 3, shift=9)
    found = Comparison(passages, 50, 0).difference(values)
    one = Comparison(passages, 50, 0).difference(values.mean(0)[None]).standard_error ** 2
    other = values.mean(1).var(ddof=1) / 3
    assert found.standard_error == pytest.approx(math.sqrt(one + other), rel=1e-9)

    def quantile(p: float) -> float:
        return float((one * stats.t.isf(p / 2, 14) + other * stats.t.isf(p / 2, 2)) / (one + other))

    assert quantile(found.p) == pytest.approx(abs(found.mean) / found.standard_error, rel=1e-9)
    low, high = found.ci95
    assert (high - low) / 2 == pytest.approx(quantile(LEVEL) * found.standard_error, rel=1e-9)
    assert (found.p < LEVEL) == (low > 0 or high < 0)


def test_answers_that_are_the_same_show_nothing() -> None:
    comparison = Comparison(range(12), 50, 0)
    found = comparison.difference(np.zeros((1, 12)))
    assert (found.p, found.ci95, found.detectable) == (1.0, [0, 0], None)
    assert comparison.difference(np.full((1, 12), 3.0)).p == 0
    with pytest.raises(ValueError, match="One cluster"):
        Comparison([0, 0], 50, 0).difference(np.ones((1, 2)))


def test_holm_corrects_as_published() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])


@pytest.mark.parametrize(("passages", "seeds"), [(12, 1), (40, 1), (40, 3)])
def test_equals_are_rarely_told_apart(passages: int, seeds: int) -> None:
    assert alarms(passages, seeds, 0.15, 1_000)[0] <= 0.055


def test_what_is_called_detectable_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(300):
        passages, values = equals(rng, 40, 1)
        first = Comparison(passages, 2, 0).difference(values)
        passages, again = equals(rng, 40, 1, shift=first.detectable or 0.0)
        found.append(Comparison(passages, 2, 0).difference(again).p < LEVEL)
    assert 0.74 < np.mean(found) < 0.86


# -- runs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trio(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The run, one like it with another seed and one other answer, and one that always says `no`."""
    folder = tmp_path_factory.mktemp("trio")
    lost = next(i for i, answer in enumerate(Run(finished).read_answers("bottleneck")) if answer.right)

    def once(number: int, answer: Answer) -> Answer:
        return answer._replace(prediction="\x1b[31mred") if number == lost else answer

    other = copied(finished, folder / "seed1", {"bottleneck": once}, "seed=1")
    worse = copied(finished, folder / "worse", {"bottleneck": said("no")}, "compressor.ratio=32")
    return [copied(finished, folder / "seed0"), other, worse]


def f1_of(path: Path) -> Floats:
    return np.array([answer.f1 for answer in Run(path).read_answers("bottleneck")])


def test_a_pair_is_told_apart_as_scipy_does_it(trio: list[Path]) -> None:
    first, _, worse = trio
    found = stage1.compare(first, worse)
    [pair] = found.pairs
    assert (found.questions, found.passages) == (24, 24)  # a passage each
    assert pair.f1.difference == pytest.approx((f1_of(worse) - f1_of(first)).mean())
    assert pair.f1.p == pytest.approx(stats.ttest_rel(f1_of(worse), f1_of(first)).pvalue, rel=1e-9)
    assert pair.f1.p_holm == pair.f1.p
    assert pair.f1.found
    assert [side.settings for side in found.sides] == [{"compressor.ratio": 16}, {"compressor.ratio": 32}]
    results = results_of(first)
    [row] = [row for row in results["rows"] if row["row"] == "bottleneck"]
    assert list(found.sides[0].f1.ci95) == row["f1_ci95"]
    right = {a.id: a for a in Run(first).read_answers("bottleneck") if a.exact_match == 100}
    assert {flip.id for flip in pair.flips} == set(right)
    assert len(right) > 2
    for flip in pair.flips:
        assert not flip.gained
        assert (flip.first, flip.second) == ([right[flip.id].prediction], ["no"])
        assert (flip.gold, flip.question) == (right[flip.id].gold, right[flip.id].question)


def test_by_seed_takes_the_seeds_of_a_setting_together(
    trio: list[Path], finished: Path, tmp_path: Path
) -> None:
    settings = ("compressor.ratio=32", "seed=1")
    twin = copied(finished, tmp_path / "worse1", {"bottleneck": said("no idea")}, *settings)
    found = compare_runs([*trio, twin], by_seed=True)
    assert [side.seeds for side in found.sides] == [[0, 1], [0, 1]]
    [pair] = found.pairs
    scores = [f1_of(path) for path in (*trio, twin)]
    assert pair.f1.difference == pytest.approx(np.mean([scores[2] - scores[0], scores[3] - scores[1]]))
    assert pair.seeds == [0, 1]
    assert pair.flips[0].second == ["no", "no idea"]
    with pytest.raises(UsageError, match="seeds of one setting"):
        compare_runs(trio[:2], by_seed=True)
    with pytest.raises(UsageError, match=r"seed1 and .*again are the same setting with the same seed"):
        compare_runs([*trio, copied(finished, tmp_path / "again", None, "seed=1")], by_seed=True)


def test_three_runs_are_corrected_for_three_pairs(trio: list[Path]) -> None:
    pairs = compare_runs(trio).pairs
    assert [(pair.first, pair.second) for pair in pairs] == [("A", "B"), ("A", "C"), ("B", "C")]
    assert [pair.f1.p_holm for pair in pairs] == holm([pair.f1.p for pair in pairs])
    assert pairs[1].f1.p_holm > pairs[1].f1.p
    assert not pairs[0].f1.found  # two seeds of one setting
    assert pairs[0].f1.detectable


def test_what_does_not_pair_is_refused_and_named_where_forced(
    trio: list[Path], finished: Path, tmp_path: Path, invoke: Invoke
) -> None:
    shots, model, data = (copied(finished, tmp_path / name) for name in ("shots", "model", "data"))
    results, answers = results_of(shots), answers_of(Run(shots))
    rules = {**results["protocol"], "prompt": {**results["protocol"]["prompt"], "shots": 3}}
    write(Run(shots), answers, protocol=rules)
    write(Run(model), answers, model={**results["model"], "sha256": "0" * 64})
    record = read_record(data / "data.json", "")
    write_record(data / "data.json", {**record, "content": "0" * 64})
    reasons = {shots: "another prompt (shots 0 and 3)", model: "another model", data: "other data"}
    for path, why in reasons.items():
        refused(invoke("compare", str(trio[0]), str(path)), why, "--force")
        forced = invoke("compare", str(trio[0]), str(path), "--force").printed
        assert f"Not the same: {path} has {why}" in forced
    for arguments, why in (((trio[0],), "at least two"), ((trio[0], tmp_path / "none"), "does not exist")):
        refused(invoke("compare", *map(str, arguments)), why)


def test_only_common_questions_count(trio: list[Path], finished: Path, tmp_path: Path) -> None:
    fewer = copied(finished, tmp_path / "fewer")
    answers = {row: given[:15] for row, given in answers_of(Run(fewer)).items()}
    write(Run(fewer), answers)
    found = compare_runs([trio[0], fewer])
    assert found.questions == 15
    assert "Only 15 of up to 24 questions were asked of all runs." in found.notes
    write(Run(fewer), {row: [a._replace(question="Why?") for a in given] for row, given in answers.items()})
    with pytest.raises(UsageError, match="is not the same in all runs"):
        compare_runs([trio[0], fewer])


@pytest.mark.parametrize("columns", ["80", "100", "200"])
def test_the_tables_fit_and_foreign_text_is_shown_as_text(
    trio: list[Path], invoke: Invoke, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("stage1.cli.console.WIDE", int(columns))
    shown = invoke("compare", *map(str, trio), "-n", "30", "--prompts").printed
    assert "\x1b" not in shown
    assert "\\u001b[31mred" in shown
    table = [line for line in shown.splitlines() if "[" in line and line[:1] in "ABC"]
    assert len(table) >= 6
    assert all(len(line) <= int(columns) and "…" not in line for line in table if "runs/" not in line)
    assert "No difference between A and B is shown" in shown
    assert "A answers better than C" in shown
    assert "The prompt through C:" in shown


def test_other_outputs_say_the_same(trio: list[Path], invoke: Invoke) -> None:
    runs = [str(path) for path in trio]
    record = json.loads(invoke("compare", *runs, "--json").out)
    assert record == compare_runs(trio).model_dump(mode="json")
    lines = list(csv.DictReader(io.StringIO(invoke("compare", *runs, "--csv").out)))
    assert [line["metric"] for line in lines] == ["f1", "exact_match"] * 3
    for line, pair in zip(lines[::2], record["pairs"], strict=True):
        assert float(line["difference"]) == pair["f1"]["difference"]
        assert [float(line["low"]), float(line["high"])] == pair["f1"]["ci95"]
    latex = invoke("compare", *runs, "--latex").out
    assert latex.count("\\begin{tabular}") == latex.count("\\end{tabular}") == 2
    assert f"{record['pairs'][1]['f1']['difference']:+.1f}" in latex
    assert invoke("compare", *runs, "--json", "--csv").code == 2
    assert invoke("compare", *runs, "--by", "passage").code == 2


@pytest.mark.slow
def test_real_runs_are_told_apart_where_they_differ(tmp_path: Path) -> None:
    """PCA with two seeds, and a learned map, at a sixteenth of the width: the runs in docs/compare.md."""

    def trained(name: str, seed: int) -> Path:
        path = tmp_path / f"{name}-{seed}"
        own = (f"compressor={name}", f"seed={seed}", f"output={path}")
        settings = (*own, "compressor.ratio=16", "adapter=residual", "train.steps=300", "eval.limit=200")
        return train_run(validate(merge({}, {}, settings)), Progress()).run.path

    first, second, learned = trained("pca", 0), trained("pca", 1), trained("learned_linear", 0)
    [seeds] = compare_runs([first, second]).pairs
    assert not seeds.f1.found
    [methods] = compare_runs([first, learned]).pairs
    assert methods.f1.found
    assert methods.f1.difference > 5
