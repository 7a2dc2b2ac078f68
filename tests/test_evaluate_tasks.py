"""lm-eval tasks of every type through a bottleneck: equal to stock lm-eval, paired, counted, resumable."""

import json
import math
import shutil
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.evaluator import evaluate as lm_eval_evaluate
from lm_eval.models.huggingface import HFLM

from conftest import ROOT, SQUAD, Invoke, Notes, refused, small_config
from pairs import pairs
from stage1.errors import UsageError
from stage1.evaluation.lm_eval.catalogue import Selection, select
from stage1.evaluation.lm_eval.evaluate import (
    TaskEvaluation,
    TaskOptions,
    evaluate_tasks,
    refuse_other_length,
)
from stage1.evaluation.lm_eval.model import Stage1LM
from stage1.evaluation.lm_eval.quiet import quiet_lm_eval
from stage1.evaluation.lm_eval.registered import RunLM
from stage1.experiment import evaluate_run_tasks, train_run
from stage1.llm.model import load_llm
from stage1.llm.tokenizer import load_tokenizer
from stage1.plugins import load_plugins
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.session import Session
from stage1_models.tiny import MODEL_DIR

TASKS = ROOT / "tests" / "tasks"
SMALL_TASKS = [str(TASKS / f"small_{name}.yaml") for name in ("generation", "cloze", "choice", "rolling")]
NAMES = [Path(path).stem for path in SMALL_TASKS]
LIMIT = 12


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A lossless run and one that loses much, without any gradient step."""
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    for name, settings in {
        "identity": ("compressor=identity", "adapter=identity"),
        "lossy": ("compressor.dim=24", "adapter=linear"),
    }.items():
        config = small_config(*settings, "train.steps=0", f"output={folder / name}")
        made[name] = train_run(config, Progress(), with_evaluation=False).run
    return made


def asked(run: Run, *tasks: str, progress: Progress | None = None, **options: Any) -> TaskEvaluation:
    given = TaskOptions(**{"limit": LIMIT, **options})
    return evaluate_run_tasks(run, {}, tasks or SMALL_TASKS, given, progress or Progress())


@pytest.fixture(scope="module")
def lossy(runs: dict[str, Run]) -> TaskEvaluation:
    return asked(runs["lossy"])


def metrics(evaluation: TaskEvaluation, task: str) -> dict[str, dict[str, Any]]:
    [entry] = [entry for entry in evaluation.results["tasks"] if entry["task"] == task]
    return {metric["metric"]: metric for metric in entry["metrics"]}


def stock(tasks: list[str], *, num_fewshot: int, limit: int) -> dict[str, Any]:
    """What lm-eval says of the bare model without any of our code in between."""
    loaded = selected(tasks).manager.load(tasks)
    for task in loaded["tasks"].values():
        task.set_config("num_fewshot", num_fewshot)
        task.set_fewshot_seed(0)
    with quiet_lm_eval():
        model = load_llm(MODEL_DIR, dtype="auto", device=torch.device("cpu"))
        lm = HFLM(pretrained=model, tokenizer=load_tokenizer(MODEL_DIR), batch_size=32)
        found: dict[str, Any] = lm_eval_evaluate(lm, loaded, limit=limit, bootstrap_iters=2000)
    results: dict[str, Any] = found["results"]
    return results


def same(value: float) -> Any:
    """Equal up to the last bits, in which two copies of one model differ (test_lm has one copy)."""
    return pytest.approx(value, rel=1e-6)


def selected(tasks: list[str]) -> Selection:
    return select(tasks, load_plugins(), Progress())


@pytest.mark.parametrize(("shots", "limit"), [(0, LIMIT), (2, 4)])
def test_lossless_equals_stock_lm_eval_in_every_type(shots: int, limit: int, runs: dict[str, Run]) -> None:
    ours = asked(runs["identity"], num_fewshot=shots, limit=limit)
    expected = stock(SMALL_TASKS, num_fewshot=shots, limit=limit)
    compared = 0
    for name in NAMES:
        for metric, entry in metrics(ours, name).items():
            for key, value in (
                (f"{metric},{entry['filter']}", "text"),
                (f"{metric}_stderr,{entry['filter']}", "text_stderr"),
            ):
                theirs = expected[name][key]
                wanted = None if theirs == "N/A" else same(theirs)
                assert entry[value] == wanted, (name, key)
                assert entry[value.replace("text", "bottleneck")] == wanted, (name, key)
                compared += 1
            assert not entry["difference"]
    assert compared == 14


def test_a_loss_shows_where_contexts_matter(lossy: TaskEvaluation) -> None:
    cloze = metrics(lossy, "small_cloze")
    assert cloze["perplexity"]["bottleneck"] > 2 * cloze["perplexity"]["text"]
    exact = metrics(lossy, "small_generation")["exact_match"]
    assert exact["bottleneck"] < exact["text"] - 0.3
    assert exact["text"] > 0.7
    rolling = metrics(lossy, "small_rolling")["bits_per_byte"]
    assert rolling["bottleneck"] == same(rolling["text"])  # no context, so nothing crossed


def test_scope_all_compresses_what_is_scored(runs: dict[str, Run]) -> None:
    notes = Notes()
    whole = asked(runs["lossy"], SMALL_TASKS[1], SMALL_TASKS[3], whole=True, progress=notes)
    rolling = metrics(whole, "small_rolling")["bits_per_byte"]
    assert rolling["bottleneck"] > rolling["text"] + 0.1
    assert whole.results["protocol"]["scope"] == "all"
    context = asked(runs["lossy"], SMALL_TASKS[1], SMALL_TASKS[3], progress=notes)
    assert context.results["protocol"]["scope"] == "prompt"
    cloze = [metrics(found, "small_cloze")["perplexity"]["bottleneck"] for found in (whole, context)]
    assert cloze[0] != cloze[1]
    assert len([note for note in notes.notes if "nothing crossed" in note]) == 1
    lossless = asked(runs["identity"], SMALL_TASKS[3], whole=True)
    entry = metrics(lossless, "small_rolling")["bits_per_byte"]
    assert entry["bottleneck"] == same(entry["text"])


def test_differences_are_paired_by_document(lossy: TaskEvaluation) -> None:
    found = metrics(lossy, "small_choice")["acc"]
    samples = lossy.samples["small_choice"]
    pairs = zip(samples["bottleneck"], samples["text"], strict=True)
    differences = np.array([ours["acc"] - text["acc"] for ours, text in pairs])
    assert np.any(differences)
    assert found["difference"] == pytest.approx(differences.mean())
    assert found["difference_stderr"] == pytest.approx(differences.std(ddof=1) / math.sqrt(LIMIT))
    assert found["difference"] == pytest.approx(found["bottleneck"] - found["text"])


def test_contexts_are_charged(lossy: TaskEvaluation, runs: dict[str, Run]) -> None:
    sent = {entry["task"]: entry["sent"] for entry in lossy.results["tasks"]}
    assert sent["small_rolling"] is None
    cloze = sent["small_cloze"]
    tokenizer, vocabulary = load_tokenizer(MODEL_DIR), 2997
    texts = {sample["arguments"][0][0] for sample in lossy.samples["small_cloze"]["text"]}
    tokens = sum(len(tokenizer(text)["input_ids"]) for text in texts)
    assert cloze["tokens"] == tokens
    assert cloze["crossed"] == tokens - len(texts)  # all but BOS
    bits = (cloze["crossed"] * 24 * 16 + len(texts) * math.log2(vocabulary)) / tokens
    assert cloze["bits_per_token"] == pytest.approx(bits)
    assert sent["small_choice"] == sent["small_generation"] == cloze


def test_the_run_keeps_results_and_samples(runs: dict[str, Run], tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("tasks")
    run = Run(shutil.copytree(runs["identity"].path, tmp_path / "run", ignore=ignored))
    folder = run.path / "tasks"
    asked(run)
    whole = (folder / "small_generation" / "results.json").read_bytes()
    for shots in (None, None, 1):  # the second time in its own place again
        asked(run, SMALL_TASKS[0], limit=3, num_fewshot=shots)
    assert (folder / "small_generation" / "results.json").read_bytes() == whole
    results = json.loads((folder / "small_generation-2" / "results.json").read_text())
    assert [entry["task"] for entry in results["tasks"]] == ["small_generation"]
    assert results["tasks"][0]["n"] == 3
    for row in ("text", "bottleneck"):
        lines = (folder / "small_generation-2" / f"{row}.jsonl").read_text().splitlines()
        logged = [json.loads(line) for line in lines]
        assert [sample["doc_id"] for sample in logged] == [0, 1, 2]
        assert all(sample["arguments"][0][0].startswith("Context: ") for sample in logged)
    more = {"small_generation-2", "small_generation-3"}
    assert {path.name for path in folder.iterdir()} == {*NAMES, *more}


def test_an_interrupted_evaluation_goes_on(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle of the bottleneck's row; what was asked is known when it is asked again."""
    run, counted = runs["lossy"], []
    complete = asked(run, SMALL_TASKS[2], limit=20)
    keep, answer_all = Stage1LM.add_partial, Stage1LM.answer

    def dying(self: Stage1LM, attr: str, req: Any, res: Any) -> None:
        keep(self, attr, req, res)
        if self.embed is not None:
            counted.append(req)
            if len(counted) == 20:
                raise KeyboardInterrupt

    monkeypatch.setattr(Stage1LM, "add_partial", dying)
    with pytest.raises(KeyboardInterrupt):
        asked(run, SMALL_TASKS[2], limit=20)
    monkeypatch.setattr(Stage1LM, "add_partial", keep)
    rows: list[tuple[int, int]] = []

    def watched(self: Stage1LM, requests: Any, ask: Any) -> Any:
        answers = answer_all(self, requests, ask)
        rows.append((len(requests), self.asked))
        return answers

    monkeypatch.setattr(Stage1LM, "answer", watched)
    again = metrics(asked(run, SMALL_TASKS[2], limit=20), "small_choice")
    for metric, entry in metrics(complete, "small_choice").items():
        assert again[metric]["bottleneck"] == entry["bottleneck"]
    (total, text), (_, ours) = rows
    assert text == 0
    assert ours == total - 20
    rows.clear()
    asked(run, SMALL_TASKS[2], limit=20)
    assert [count for _, count in rows] == [0, total]  # a bottleneck's answers are not kept when it is done


def test_two_runs_share_the_bare_model_and_nothing_else(
    runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    keys: set[str] = set()
    read = Path.unlink

    def kept(self: Path, missing_ok: bool = False) -> None:
        if self.parent.name == "answers":
            keys.add(self.name)
            return
        read(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", kept)  # a done bottleneck's answers stay, to see where they lie
    monkeypatch.setenv("STAGE1_CACHE", str(cache))
    different: list[tuple[str, dict[str, Any], bool]] = [
        ("identity", {}, False),
        ("lossy", {}, False),
        ("lossy", {}, True),
        ("lossy", {"keep_special": False}, False),
        ("lossy", {"magnitude": "vocab"}, False),
    ]
    for name, overrides, whole in different:
        options = TaskOptions(whole, limit=2)
        evaluate_run_tasks(runs[name], overrides, SMALL_TASKS[2:3], options, Progress())
    assert len(keys) == len(different)
    assert len(list((cache / "answers").iterdir())) == len(keys) + 1


def test_requests_that_are_cut_are_counted(runs: dict[str, Run]) -> None:
    notes = Notes()
    long = asked(runs["identity"], SMALL_TASKS[0], num_fewshot=30, limit=2, progress=notes)
    [entry] = long.results["tasks"]
    assert entry["truncated"] == 2
    assert "2 of 2 requests lost their beginning" in notes.notes[-1]
    assert [entry["truncated"] for entry in asked(runs["identity"]).results["tasks"]] == [0] * 4


@pytest.mark.usefixtures("catalogued")
def test_groups_have_their_common_score(runs: dict[str, Run], tmp_path: Path) -> None:
    for path in TASKS.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    (tmp_path / "pair.yaml").write_text(
        "group: pair\ntask: [small_choice, small_cloze]\n"
        "aggregate_metric_list:\n  - {metric: acc, aggregation: mean, weight_by_size: true}\n"
    )
    evaluation = asked(runs["lossy"], str(tmp_path / "pair.yaml"))
    accuracies = [metrics(evaluation, task)["acc"] for task in ("small_choice", "small_cloze")]
    [group] = evaluation.results["groups"]
    [metric] = group["metrics"]
    for row in ("text", "bottleneck"):
        assert metric[row] == pytest.approx(sum(each[row] for each in accuracies) / 2)
        assert metric[f"{row}_stderr"] > 0
    assert metric["bottleneck"] < metric["text"]


@pytest.mark.skipif(not SQUAD.exists(), reason="no copy of SQuAD here")
def test_squad_takes_a_file(runs: dict[str, Run], invoke: Invoke) -> None:
    [path] = SQUAD.glob("dev-*.json")
    told = ("--tasks", "squad", "--metadata", json.dumps({"data": str(path)}), "--limit", "3", "--json", "-q")
    results = json.loads(invoke("eval", str(runs["identity"].path), *told).printed)
    [entry] = results["tasks"]
    assert {metric["metric"] for metric in entry["metrics"]} == {"f1", "exact_match"}
    assert all(metric["text_stderr"] is not None for metric in entry["metrics"])
    assert results["protocol"]["metadata"] == {"data": str(path)}


def test_the_chat_template_and_a_system_instruction_reach_the_model(runs: dict[str, Run]) -> None:
    session = Session.open(runs["identity"].config, Progress(), data="none")
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
    session.tokenizer.chat_template = template

    evaluation = evaluate_tasks(
        session.load_bottleneck(runs["identity"]),
        session,
        selected(SMALL_TASKS[:1]),
        TaskOptions(chat_template=True, system_instruction="Be short.", limit=2, num_fewshot=1),
        cache=None,
    )
    [first, _] = evaluation.samples["small_generation"]["bottleneck"]
    request = first["arguments"][0][0]
    assert request.startswith("<system>Be short.\n<user>Context: ")
    assert request.count("<user>") == 2
    assert request.endswith("<assistant>")
    assert evaluation.results["protocol"]["chat_template"] == template
    assert evaluation.results["protocol"]["system_instruction"] == "Be short."


# -- the command line -------------------------------------------------------------------------------------


def test_the_command_shows_and_writes_them(runs: dict[str, Run], invoke: Invoke, tmp_path: Path) -> None:
    run, tasks = str(runs["lossy"].path), ",".join(SMALL_TASKS[1:3])
    shown = invoke("eval", run, "--tasks", tasks, "--limit", "4", "--output", "out.json").printed
    for text in ("small_cloze", "acc_norm ↑", "perplexity ↓", "±", "scope prompt", "bits per token of con"):
        assert text in shown
    given = invoke("eval", run, "--tasks", tasks, "--limit", "4", "--json", "--num-fewshot", "0")
    written = json.loads((tmp_path / "out.json").read_text())
    assert json.loads(given.out) == {"run": run, **written}


WRONG = {
    "unknown task": (["--tasks", "small_choise"], "Unknown task"),
    "no such file": (["--tasks", "./nothing.yaml"], "does not exist"),
    "data": (["--tasks", "tiny-squad", "--data", "squad"], "--data does not go with --tasks"),
    "anchor": (["--tasks", "tiny-squad", "--raw-anchor"], "--raw-anchor does not go with --tasks"),
    "passage": (["--tasks", "tiny-squad", "--scope", "context"], "--scope prompt"),
    "all alone": (["--scope", "all"], "--scope all is for --tasks"),
    "shots alone": (["--num-fewshot", "1"], "--num-fewshot does nothing without --tasks"),
    "metadata": (["--tasks", "tiny-squad", "--metadata", "{'data': 1}"], "is not a JSON object"),
    "deep metadata": (
        ["--tasks", "tiny-squad", "--metadata", '{"a": ' * 60 + "1" + "}" * 60],
        "is not a JSON",
    ),
    "no template": (["--tasks", "tiny-squad", "--chat-template"], "has no chat template"),
    "chat alone": (["--chat-template", "--system", "x"], "--chat-template, --system do nothing without"),
}


@pytest.mark.usefixtures("catalogued")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_is_said_in_a_line(case: str, runs: dict[str, Run], invoke: Invoke) -> None:
    arguments, message = WRONG[case]
    refused(invoke("eval", str(runs["lossy"].path), *arguments, "-q"), message)


def test_a_task_that_cannot_be_loaded_is_named(runs: dict[str, Run], invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(
        "task: broken\ndataset_path: json\ndataset_kwargs:\n  data_files: nowhere.jsonl\n"
        'output_type: generate_until\ntest_split: train\ndoc_to_text: "{{q}}"\n'
    )
    refused(invoke("eval", str(runs["lossy"].path), "--tasks", "./broken.yaml", "-q"), "cannot be loaded")


@pytest.mark.parametrize(
    ("setting", "refusal"),
    [
        ("max_gen_toks: 4000", "asks for 4000 new tokens, and the model's context holds 1024"),
        ("no_repeat_ngram_size: 2", "sets no_repeat_ngram_size: it reads the prompt's token ids"),
        ("repetition_penalty: 1.2", "sets repetition_penalty: it reads the prompt's token ids"),
        ("penalty_alpha: 0.6", "sets penalty_alpha: it reads the prompt's token ids"),
        ("no_repeat_ngram_size: 0", None),
        ("repetition_penalty: 1.0", None),
    ],
)
def test_impossible_settings_of_generation_are_refused_before_anything_is_asked(
    setting: str, refusal: str | None, runs: dict[str, Run], tmp_path: Path
) -> None:
    shutil.copy(TASKS / "documents.py", tmp_path)
    file, text = tmp_path / "own.yaml", Path(SMALL_TASKS[0]).read_text()
    file.write_text(text.replace("  do_sample:", f"  {setting}\n  do_sample:"))
    assert setting in file.read_text()
    if refusal:
        with pytest.raises(UsageError, match=refusal):
            asked(runs["identity"], str(file))
    else:
        assert asked(runs["identity"], str(file), limit=2).results["tasks"]


def test_scope_all_is_refused_where_positions_are_lost(runs: dict[str, Run]) -> None:
    with pytest.raises(UsageError, match="changes their number"):
        refuse_other_length(pairs(256))


# -- from lm-eval's side ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", ["", ",row=text", ",scope=all"])
def test_a_run_is_a_model_of_lm_eval(arguments: str, runs: dict[str, Run]) -> None:
    [point] = entry_points(group="lm_eval.models", name="stage1")
    lm = point.load().create_from_arg_string(
        f"run={runs['lossy'].path}{arguments}", {"batch_size": "16", "device": "cuda:0"}
    )
    found: dict[str, Any] = {}
    with quiet_lm_eval():
        loaded = selected(SMALL_TASKS[1:3]).manager.load(SMALL_TASKS[1:3])
        found = lm_eval_evaluate(lm, loaded, limit=LIMIT, bootstrap_iters=0)["results"]
    expected = asked(runs["lossy"], *SMALL_TASKS[1:3], whole="scope=all" in arguments)
    row = "text" if "row=text" in arguments else "bottleneck"
    for task, metric in (("small_choice", "acc"), ("small_cloze", "perplexity")):
        assert found[task][f"{metric},none"] == pytest.approx(metrics(expected, task)[metric][row], rel=1e-5)


@pytest.mark.slow
def test_lm_evals_own_command_line(runs: dict[str, Run], cli: Any) -> None:
    done = cli(
        *("lm-eval", "run", "--model", "stage1", "--model_args", f"run={runs['identity'].path}"),
        *("--tasks", SMALL_TASKS[0], "--limit", "4", "--batch_size", "4", "--include_path", str(TASKS)),
    )
    assert done.returncode == 0, done.stderr
    assert "|small_generation|" in done.stdout
    wrong = cli(
        "lm-eval", "run", "--model", "stage1", "--model_args", "run=nowhere", "--tasks", SMALL_TASKS[0]
    )
    assert wrong.returncode == 2
    assert "nowhere does not exist" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize(("argument", "message"), [("row=linear", "text"), ("scope=context", "all, prompt")])
def test_wrong_model_args_name_the_choices(argument: str, message: str, runs: dict[str, Run]) -> None:
    name, value = argument.split("=")
    arguments: dict[str, Any] = {name: value}
    with pytest.raises(UsageError, match=message):
        RunLM(str(runs["lossy"].path), **arguments)
