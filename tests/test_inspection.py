"""Finished runs: their questions shown, the runs of a folder listed, their results verified."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import stage1
from conftest import Invoke, refused, small_config
from edited_runs import answers_of, copied, reseal, said, write
from plugin_sites import Site, compressor
from stage1.errors import UsageError
from stage1.evaluation.summary import marked
from stage1.experiment import train_run
from stage1.files import read_record, write_record
from stage1.inspection.verify import Verified
from stage1.progress import Progress
from stage1.runs.answers import Answer, read, written
from stage1.runs.run import Run
from stage1_datasets.tiny_squad import tiny_squad
from stage1_models.tiny import MODEL_DIR
from trainings import results_of


@pytest.fixture
def run(spoilt: Path) -> Run:
    return Run(spoilt)


# -- show -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which two questions are gained, and one answer is foreign."""

    def text(number: int, answer: Answer) -> Answer:
        return answer._replace(prediction="nowhere") if number < 2 else answer

    def ours(number: int, answer: Answer) -> Answer:
        if number < 2:
            return answer._replace(prediction=f"The {answer.gold[0]}!")
        return answer._replace(prediction="\x1b[2J‮left\nright") if number == 2 else answer

    folder = tmp_path_factory.mktemp("mixed") / "run"
    return copied(finished, folder, {"text": text, "bottleneck": ours})


def test_the_answers_hold_all_that_their_scores_rest_on(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "predictions/text.jsonl").read_text().splitlines()]
    assert len(lines) == 24
    keys = ["id", "passage", "question", "gold", "prediction", "f1", "exact_match", "cut"]
    assert all(list(line) == keys for line in lines)
    assert len({line["passage"] for line in lines}) == 24


def test_show_filters(mixed: Path, invoke: Invoke) -> None:
    rows = answers_of(Run(mixed))
    pairs = list(zip(rows["text"], rows["bottleneck"], strict=True))
    expected = {
        "--lost": [t.id for t, b in pairs if t.right and not b.right],
        "--gained": [t.id for t, b in pairs if b.right and not t.right],
        "--wrong": [b.id for _, b in pairs if not b.right],
    }
    assert expected["--gained"] == [pairs[0][0].id, pairs[1][0].id]
    assert len(expected["--lost"]) > 1
    for flag, ids in expected.items():
        done = invoke("show", str(mixed), flag, "--json")
        assert [asked["id"] for asked in json.loads(done.out)] == ids
    both = [asked.id for asked in stage1.questions(mixed, "lost", "gained")]
    assert sorted(both) == sorted(expected["--lost"] + expected["--gained"])
    word = pairs[5][0].question.split()[-1].strip("?").upper()
    found = stage1.questions(mixed, search=word)
    assert pairs[5][0].id in [asked.id for asked in found]
    assert len(found) < 24
    assert invoke("show", str(mixed), "--search", "xyzzy").out.startswith("0 of 0 questions")


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_show_prints_gold_and_every_rows_answer_as_text(
    mixed: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr("stage1.cli.console.WIDE", columns)
    shown = invoke("show", str(mixed), "-n", "3", "--prompts").printed
    rows = answers_of(Run(mixed))
    for number, answer in enumerate(rows["text"][:3], 1):
        assert f"{number}. {answer.question}" in " ".join(shown.split())
        assert answer.gold[0] in shown
    assert all(name in shown for name in rows)
    assert "\\u001b[2J\\u202eleft right" in shown
    assert "\x1b" not in shown
    assert "‮" not in shown
    assert "3 of 24 questions (24 were asked)" in shown
    assert "⏎ Answer :" in shown
    printed = [line for line in shown.splitlines() if not line.startswith("<")]
    assert max(map(len, printed)) <= columns


def test_show_says_what_is_missing(run: Run, invoke: Invoke) -> None:
    (run.path / "results.json").unlink()
    refused(invoke("show", str(run.path)), f"stage1 eval {run.path}")


# -- runs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shelf(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four runs, one in a sweep's folder, one damaged, one that was not evaluated."""
    folder = tmp_path_factory.mktemp("shelf")
    copied(finished, folder / "first")
    copied(finished, folder / "sweep" / "cell", {"bottleneck": said("no")}, "compressor.ratio=32", "seed=1")
    damaged = copied(finished, folder / "torn")
    (damaged / "config.yaml").write_text("compressors: [")
    (copied(finished, folder / "young") / "results.json").unlink()
    (folder / "notes").mkdir()
    (folder / "notes" / "config.yaml").write_text("a: 1")
    return folder


def test_runs_are_listed_damaged_ones_too(shelf: Path, finished: Path, invoke: Invoke) -> None:
    listed = {Path(run["run"]).name: run for run in json.loads(invoke("runs", str(shelf), "--json").printed)}
    assert {name: run["state"] for name, run in listed.items()} == {
        **{"first": "evaluated", "cell": "evaluated", "torn": "damaged", "young": "trained"}
    }
    results = results_of(finished)
    [row] = [row for row in results["rows"] if row["row"] == "bottleneck"]
    first = listed["first"]
    assert (first["model"], first["protocol"], first["method"]) == ("tiny", "plain", "pca → residual")
    assert (first["f1"], first["bits_per_token"]) == (row["f1"], results["rate"]["bits_per_token"])
    assert (first["share"], first["verdict"]) == (results["verdict"]["ratio"], results["verdict"]["level"])
    assert first["date"] == Run(finished).read_manifest()["created"]
    assert "was cut or edited" in listed["torn"]["problem"]
    text = invoke("runs", str(shelf)).out
    assert all(name in text for name in ("first", "cell", "torn", "young", "damaged"))


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("--where", "compressor=pca", "--sort", "f1"), ["first", "cell", "young"]),
        (("--where", "f1>0", "--where", "model=tiny"), ["first"]),
        (("--where", "state!=damaged", "--sort", "seed"), ["cell", "young", "first"]),
        (("--where", "compressor.ratio=32"), ["cell"]),
        (("--where", "seed<1", "--sort", "f1", "--reverse"), ["first", "young"]),
        (("--where", "state=damaged"), ["torn"]),
    ],
)
def test_runs_are_filtered_and_sorted(
    shelf: Path, invoke: Invoke, arguments: tuple[str, ...], names: list[str]
) -> None:
    done = invoke("runs", str(shelf), *arguments, "--json")
    assert [Path(run["run"]).name for run in json.loads(done.out)] == names


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--sort", "f2"), "Did you mean 'f1'"),
        (("--where", "f1"), "is no condition"),
        (("--where", "f1>much"), "compares with no number"),
        (("none",), "There is no folder"),
    ],
)
def test_what_cannot_be_listed_is_said(
    shelf: Path, invoke: Invoke, arguments: tuple[str, ...], why: str
) -> None:
    refused(invoke("runs", *(arguments if arguments == ("none",) else (str(shelf), *arguments))), why)


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_lists_fit(shelf: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr("stage1.cli.console.WIDE", columns)
    lines = invoke("runs", str(shelf)).out.splitlines()
    assert max(map(len, lines)) <= columns
    assert not any("…" in line for line in lines)


# -- verify -----------------------------------------------------------------------------------------------


def failing(verified: Verified) -> dict[str, str]:
    """Check → what it complains of."""
    return {check.name: " ".join(check.problems) for check in verified.checks if check.state == "fails"}


def test_what_was_left_alone_holds(finished: Path, invoke: Invoke) -> None:
    record = json.loads(invoke("verify", str(finished), "--json").printed)
    assert record["holds"]
    assert {check["state"] for check in record["checks"]} == {"holds"}, record
    text = invoke("verify", str(finished)).out
    assert "whether the model gives these answers: 24 questions, 8 rows" in text
    assert f"stage1 eval {finished}" in text


def overwrite(run: Run, answers: list[Answer]) -> None:
    """An edit of the bottleneck's answers by someone who makes the checksums anew."""
    name, content = "predictions/bottleneck.jsonl", written(answers)
    (run.path / name).write_bytes(content)
    reseal(run, lambda results: results["files"].update({name: hashlib.sha256(content).hexdigest()}))


def test_an_edited_answer_is_found_however_it_is_covered_up(run: Run) -> None:
    path = run.path / "predictions" / "bottleneck.jsonl"
    answers = read(path.read_bytes())
    wrong = next(i for i, answer in enumerate(answers) if answer.f1 == 0)
    better = answers[wrong]._replace(prediction=answers[wrong].gold[0])
    edited = [*answers[:wrong], better, *answers[wrong + 1 :]]

    path.write_bytes(written(edited))
    found = failing(stage1.verify(run.path))
    assert "predictions/bottleneck.jsonl is not the one" in found["files"]
    assert repr(better.id) in found["answers"]
    overwrite(run, edited)
    found = failing(stage1.verify(run.path))
    assert set(found) == {"answers", "numbers"}
    assert f"question {better.id!r}: f1 is 0.0 and should be 100" in found["answers"]
    overwrite(run, [*answers[:wrong], marked(better), *answers[wrong + 1 :]])
    found = failing(stage1.verify(run.path))
    assert set(found) == {"numbers"}
    assert "bottleneck.f1 is" in found["numbers"]


@pytest.mark.parametrize(
    ("edit", "check"),
    [
        (lambda results: results["rows"][3].update(f1=99.0), "numbers"),
        (lambda results: results["rows"][3].update(f1_ci95=[98.0, 99.5]), "numbers"),
        (lambda results: results["rows"][0].update(answers_cut=7), "numbers"),
        (lambda results: results["questions"].update(passages=400), "numbers"),
        (lambda results: results["verdict"].update(level="reconstruction suffices"), "numbers"),
        (lambda results: results["gate"].update(broken=True), "numbers"),
        (lambda results: results["rate"].update(bits_per_token=8.0), "rate"),
        (lambda results: results["reconstruction"].update(recon=0.001), "rate"),
        (lambda results: results["questions"].update(truncated_prompts=3), "rate"),
        (lambda results: results["protocol"].update(scope="context"), "settings"),
        (lambda results: results.update(training={"steps": 1}), "settings"),
        (lambda results: results["model"].update(sha256="0" * 64), "model"),
    ],
)
def test_an_edited_number_is_found_though_its_checksum_is_right(
    run: Run, edit: Callable[[dict[str, Any]], None], check: str
) -> None:
    reseal(run, edit)
    verified = stage1.verify(run.path)
    assert check in failing(verified)
    assert not verified.holds
    assert "files" not in failing(verified)


def test_other_weights_and_settings_are_found(run: Run, invoke: Invoke) -> None:
    weights = load_file(run.path / "bottleneck.safetensors")
    save_file({name: tensor + 0.1 for name, tensor in weights.items()}, run.path / "bottleneck.safetensors")
    run.write_config(run.config.model_copy(update={"seed": 5}))
    done = invoke("verify", str(run.path), "--json")
    assert done.code == 1
    states = {check["name"]: check["state"] for check in json.loads(done.out)["checks"]}
    assert (states["files"], states["settings"], states["numbers"]) == ("fails", "fails", "fails")
    assert states["rate"] == "unknown"  # the checkpoint is damaged
    (run.path / "config.yaml").write_text("seed: 1\n")
    done = invoke("verify", str(run.path))
    assert done.code == 1
    assert "was cut or edited" in done.out


def test_another_model_is_found(finished: Path, tmp_path: Path, invoke: Invoke) -> None:
    """One that differs in a single layer, and has the same embeddings."""
    other = Path(shutil.copytree(MODEL_DIR, tmp_path / "other"))
    file = next(other.glob("*.safetensors"))
    weights = load_file(file)
    layer = next(name for name in weights if "layers.0" in name)
    weights[layer] = weights[layer] + torch.ones_like(weights[layer])
    file.chmod(0o644)
    save_file(weights, file, {"format": "pt"})
    done = invoke("verify", str(finished), "--model", str(other))
    assert done.code == 1
    assert "is not the model that answered" in done.out
    found = failing(stage1.verify(finished, model=str(other)))
    assert set(found) == {"model"}
    missing = stage1.verify(finished, model=str(tmp_path / "nothing"))
    assert missing.holds
    states = {check.name: check.state for check in missing.checks}
    assert (states["model"], states["rate"], states["numbers"]) == ("unknown", "unknown", "holds")


def test_another_data_set_is_found(finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(list(tiny_squad("test", 30, seed=7))))
    found = failing(stage1.verify(finished, data=str(other)))
    assert "is not what the run was trained and asked on" in found["data"]
    missing = {check.name: check.state for check in stage1.verify(finished, data="none.json").checks}
    assert missing["data"] == "unknown"


def test_easier_gold_answers_and_left_out_questions_are_found(run: Run) -> None:
    """Everything is computed anew from answers that were not given to these questions."""
    answers = answers_of(run)
    easy = {
        row: [
            marked(a._replace(gold=(*a.gold, answers["bottleneck"][i].prediction or "no")))
            for i, a in enumerate(given)
        ]
        for row, given in answers.items()
    }
    write(run, easy)
    found = failing(stage1.verify(run.path))
    assert set(found) == {"data"}
    assert "has another text, passage or gold answers" in found["data"]
    right = [i for i, answer in enumerate(answers["bottleneck"]) if answer.right]
    write(run, {row: [given[i] for i in right] for row, given in answers.items()})
    found = failing(stage1.verify(run.path))
    assert set(found) == {"rate"}
    assert "asks 24 questions that are not those answered" in found["rate"]


def test_a_changed_plugin_is_found(site: Site, tmp_path: Path) -> None:
    site.install("keeper", {"point": compressor("keep")})
    few = ("train.steps=0", "data.train=40", "data.selection=8", "eval.limit=4")
    config = small_config(*few, "compressor=keep", "adapter=linear", f"output={tmp_path / 'run'}")
    run = train_run(config, Progress()).run
    assert failing(stage1.verify(run.path)) == {}
    [module] = site.folder.glob("keeper__*.py")
    module.write_text(module.read_text().replace("Keeps something", "Keeps something else"))
    found = failing(stage1.verify(run.path))
    assert set(found) == {"plugins"}
    assert "The source of the compressor keep of keeper 1.2 has changed" in found["plugins"]
    manifest = read_record(run.path / "manifest.json", "")
    manifest["plugins"]["adapter"]["distribution"] = "elsewhere"
    write_record(run.path / "manifest.json", manifest)
    found = failing(stage1.verify(run.path))
    assert {"files", "plugins"} <= set(found)


def test_what_cannot_be_verified_is_refused(run: Run, invoke: Invoke) -> None:
    (run.path / "results.json").write_text("{")
    assert invoke("verify", str(run.path)).code == 1
    (run.path / "results.json").unlink()
    refused(invoke("verify", str(run.path)), "has no results")
    with pytest.raises(UsageError, match="does not exist"):
        stage1.verify(run.path / "none")
