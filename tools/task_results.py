"""The third table of docs/results.md: lm-eval tasks of every type through bottlenecks."""

from pathlib import Path
from typing import Any

from stage1.config import merge, validate
from stage1.evaluation.lm_eval.evaluate import TaskOptions
from stage1.experiment import evaluate_run_tasks, train_run
from stage1.progress import Progress
from stage1.runs.run import Run

TASKS = Path(__file__).resolve().parent.parent / "tests" / "tasks"
CONTEXT = ("small_generation", "small_cloze", "small_choice")
"""Tasks whose requests have a context; a text whose perplexity is asked crosses under scope `all` alone."""

BOTTLENECKS = {
    "identity": ("compressor=identity", "adapter=identity"),
    "PCA 4×": ("compressor.ratio=4",),
    "PCA 16×": ("compressor.ratio=16",),
}


def measure(work: Path, progress: Progress) -> list[dict[str, Any]]:
    """One entry for each task, scope and metric: the bare model's value and every bottleneck's."""
    entries: dict[tuple[str, str, str], dict[str, Any]] = {}
    for name, settings in BOTTLENECKS.items():
        run = _run(work / "-".join(("tasks", *settings)), settings, progress)
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


def _run(folder: Path, settings: tuple[str, ...], progress: Progress) -> Run:
    """A run of the default objective, trained unless it is there already."""
    config = validate(merge({}, {}, [*settings, f"output={folder}"]))
    if Run(folder).trained:
        return Run(folder)
    return train_run(config, progress, with_evaluation=False).run
