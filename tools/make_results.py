"""Measure on the embedded model what docs/results.md says; write the page, the figure and the numbers.

python tools/make_results.py            # 320 runs, an hour or more on two cores; goes on where it was stopped
python tools/make_results.py --tasks    # only measures the lm-eval tasks again, two minutes
python tools/make_results.py --render   # only writes the page and the figure again from docs/results.json
"""

import argparse
import json
import os
import platform
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from results_page import RECIPES, figure, page

from stage1.config import RunConfig, merge, overlay, presets, validate
from stage1.evaluation.statistics import Comparison
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.sweeps.sweep import asked, question_f1

DOCS = Path(__file__).resolve().parent.parent / "docs"
WORK = Path("runs") / "results"

BASIC = {
    "ratio": (2, 4, 8, 16),
    "compressor": ("pca", "random_projection"),
    "adapter": ("linear", "mlp", "residual", "codebook"),
}
"""The first table: every compressor with every adapter, default objective, seed 0."""

STUDY = {
    "seed": (0, 1, 2),
    "ratio": (4, 8, 16, 32),
    "compressor": ("pca", "random_projection", "learned_linear"),
    "adapter": ("linear", "residual"),
}
"""The second table: each of these with every recipe; the last three start from the first one's run."""

TASKS = Path(__file__).resolve().parent.parent / "tests" / "tasks"
CONTEXT = ("small_generation", "small_cloze", "small_choice")
"""Tasks whose requests have a context; a text whose perplexity is asked crosses under scope `all` alone."""

BOTTLENECKS = {
    "identity": ("compressor=identity", "adapter=identity"),
    "PCA 4×": ("compressor.ratio=4",),
    "PCA 16×": ("compressor.ratio=16",),
}


def cells(axes: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """The grid's cells, the last axis fastest."""
    for values in product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def folder(cell: Mapping[str, Any], recipe: str) -> Path:
    """Where a cell's run lies."""
    keys = ("ratio", "compressor", "adapter", "seed")
    return WORK / "-".join([recipe, *(str(cell[key]) for key in keys if key in cell)])


def configured(cell: Mapping[str, Any], recipe: str | None) -> RunConfig:
    """A cell's configuration; LLM recipes start from the phase-1 run of the same cell."""
    flags = {
        "compressor.name": cell["compressor"],
        "adapter.name": cell["adapter"],
        "seed": cell.get("seed", 0),
    }
    settings = [f"compressor.ratio={cell['ratio']}", f"output={folder(cell, recipe or 'default')}"]
    if recipe not in (None, "phase1"):
        settings.append(f"init={folder(cell, 'phase1')}")
    tree = presets.RECIPES.find(recipe).settings if recipe else {}
    return validate(merge(overlay({}, tree), flags, settings))


def train(cell: Mapping[str, Any], recipes: tuple[str | None, ...]) -> str:
    """Train and evaluate one cell under each recipe, unless that is done already; in a process of its own."""
    import torch

    from stage1.evaluation.conditions import NEEDED
    from stage1.experiment import train_run

    torch.set_num_threads(1)
    for recipe in recipes:
        config = configured(cell, recipe)
        run = Run(config.output or Path())
        if (run.path / "results.json").exists():
            continue
        there = run if (run.path / "config.yaml").exists() else None
        train_run(config, Progress(), resume=there, rows=None if recipe is None else NEEDED)
    return folder(cell, "").name


def measure(processes: int) -> dict[str, Any]:
    """Train and evaluate everything, and reduce it to what the page shows."""
    from stage1.cli.display import make_progress

    # One run first: the others then find the bare model's answers in the cache.
    first, *rest = [(cell, (None,)) for cell in cells(BASIC)] + [(cell, RECIPES) for cell in cells(STUDY)]
    train(*first)
    progress = make_progress(quiet=False)
    spawn = get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn) as pool, progress.task("Runs", len(rest)) as done:
        for future in as_completed([pool.submit(train, *job) for job in rest]):
            progress.note(f"done: {future.result()}")
            done(1)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, no GPU"
    return {
        "machine": machine,
        "versions": versions(),
        "protocol": protocol(),
        # It is the model's and the questions', not the bottleneck's: any run of these says the same.
        "gate": (Run(folder(first[0], "default")).read_results() or {})["gate"],
        "basic": [basic(cell) for cell in cells(BASIC)],
        "study": list(study()),
    }


def versions() -> str:
    """The libraries that decide the numbers."""
    import torch
    import transformers

    import stage1

    return f"stage1 {stage1.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"


def protocol() -> dict[str, float]:
    """F1 of 200 questions without any bottleneck, where the study suspected the protocol: label → F1."""
    import torch

    from stage1.data.datasets import spread
    from stage1.data.prompts import Prompt
    from stage1.evaluation.answers import Answering
    from stage1.evaluation.conditions import Condition, raw
    from stage1.evaluation.generation import Embed
    from stage1.plugins.tensors import Embedded
    from stage1.session import Session

    session = Session.open(RunConfig(), Progress())
    questions = spread(session.data.test, 200)
    prompts, answering, original = session.prompts(questions), Answering(session, None), raw(session)
    without_bos = [p._replace(ids=p.ids[1:], cross=p.cross[1:], text=f"{p.text} ") for p in prompts]

    def f1(shown: list[Prompt], embed: Embed | None) -> float:
        return float(answering.f1(Condition("protocol", shown, embed, None), questions).mean())

    def scaled(factor: float) -> Embed:
        def embed(ids: Any, cross: Any, attention: Any) -> Embedded:
            embeds = original(ids, cross, attention).embeds
            return Embedded(torch.where(cross[..., None], embeds * factor, embeds), attention)

        return embed

    measured = {"text": f1(prompts, None), "text without BOS": f1(without_bos, None)}
    for factor in (0.01, 0.1, 10, 30, 120):
        measured[f"embeddings × {factor:g}"] = f1(prompts, scaled(factor))
    return measured


def basic(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What the first table shows of a run."""
    results = Run(folder(cell, "default")).read_results() or {}
    kept = ("row", "n", "f1", "f1_ci95")
    return {
        **cell,
        "rows": {row["row"]: {key: row[key] for key in kept} for row in results["rows"]},
        "bits_per_token": results["rate"]["bits_per_token"],
        "reconstruction": results["reconstruction"],
    }


def study() -> Iterator[dict[str, Any]]:
    """The second table's entries: each recipe averaged over the seeds, and paired with phase 1."""
    axes = {name: values for name, values in STUDY.items() if name != "seed"}
    config = configured(next(cells(STUDY)), "phase1")
    questions = asked(config)
    comparison = Comparison([q.context for q in questions], config.eval.resamples, config.seed)
    for cell in cells(axes):
        base: dict[int, Any] = {}
        for recipe in RECIPES:
            runs = {int(seed): Run(folder({**cell, "seed": seed}, recipe)) for seed in STUDY["seed"]}
            f1 = {seed: question_f1(run, questions) for seed, run in runs.items()}
            base = base or f1
            results = [run.read_results() or {} for run in runs.values()]
            text = next(row["f1"] for row in results[0]["rows"] if row["row"] == "text")
            yield {
                **cell,
                "recipe": recipe,
                "text": text,
                "bits_per_token": results[0]["rate"]["bits_per_token"],
                "by_seed": {str(seed): float(values.mean()) for seed, values in f1.items()},
                "recon": [result["reconstruction"]["recon"] for result in results],
                "kept_start": sum(run.best_selection()["step"] == 0 for run in runs.values()),
                **comparison.average(list(f1.values())),
                **(comparison.compared(f1, base) or {}),
            }


def measure_tasks(progress: Progress) -> list[dict[str, Any]]:
    """The third table's entries: the values of bare model and bottlenecks by task, scope and metric."""
    from stage1.evaluation.lm_eval.evaluate import TaskOptions
    from stage1.experiment import evaluate_run_tasks, train_run

    entries: dict[tuple[str, str, str], dict[str, Any]] = {}
    for name, settings in BOTTLENECKS.items():
        run = Run(WORK / "-".join(("tasks", *settings)))
        if not run.trained:
            config = validate(merge({}, {}, [*settings, f"output={run.path}"]))
            run = train_run(config, progress, with_evaluation=False).run
        for names, whole in ((CONTEXT, False), (("small_rolling",), True)):
            files = [str(TASKS / f"{task}.yaml") for task in names]
            results = evaluate_run_tasks(run, {}, files, TaskOptions(whole=whole), progress).results
            for task in results["tasks"]:
                for metric in task["metrics"]:
                    key = (task["task"], results["protocol"]["scope"], metric["metric"])
                    facts = {
                        "output_type": task["output_type"],
                        "n": task["n"],
                        "higher_is_better": metric["higher_is_better"],
                        "text": [metric["text"], metric["text_stderr"]],
                        "bottlenecks": {},
                    }
                    entry = entries.setdefault(key, facts)
                    entry["bottlenecks"][name] = {
                        "value": [metric["bottleneck"], metric["bottleneck_stderr"]],
                        "difference": [metric["difference"], metric["difference_stderr"]],
                        "bits_per_token": task["sent"]["bits_per_token"],
                    }
    return [
        {"task": task, "scope": scope, "metric": metric, **entry}
        for (task, scope, metric), entry in entries.items()
    ]


def main() -> None:
    """Measure, then write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--render", action="store_true", help="measure nothing")
    parser.add_argument("--tasks", action="store_true", help="measure the lm-eval tasks alone")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, a thread each")
    args = parser.parse_args()
    store = DOCS / "results.json"
    record = json.loads(store.read_text(encoding="utf-8")) if args.render or args.tasks else {}
    if not args.render:
        from stage1.cli.display import make_progress

        record = record or measure(args.processes)
        record["tasks"] = measure_tasks(make_progress(quiet=False))
        store.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (DOCS / "results.md").write_text("\n".join(page(record)) + "\n", encoding="utf-8")
    figure(record, DOCS / "f1_vs_bits.svg")


if __name__ == "__main__":
    main()
