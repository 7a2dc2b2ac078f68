"""The conformance suite of folders of lm-eval tasks."""

from collections import Counter
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import SkipTest

from stage1.errors import UsageError
from stage1.testing.base import Suite, expect

DOCUMENTS = 4
"""Of each task, that are looked at."""

BEST_EFFORT = ("loglikelihood_rolling",)
"""Kinds of task whose perplexities have no standard error in lm-eval itself."""


class TaskSuite(Suite):
    """Checks that lm-eval can run the tasks in a folder and say how sure their scores are.

    Derive a class named Test…, give the folder as `folder = …`, and run pytest. A task whose
    data cannot be had on this machine is left out.
    """

    @property
    def folder(self) -> Path:
        """The folder of the task files (YAML): the one thing to fill in."""
        raise NotImplementedError("define folder: the folder of your task files")

    def _tasks(self) -> dict[str, Any]:
        """The folder's tasks by name, as lm-eval loads them."""
        from lm_eval.tasks import TaskManager

        from stage1.evaluation.lm_eval.quiet import quiet_lm_eval

        manager = TaskManager(include_path=str(self.folder), include_defaults=False)
        tasks: dict[str, Any] = {}
        out_of_reach = []
        for name in manager.all_subtasks:
            try:
                with quiet_lm_eval():
                    tasks |= manager.load([name])["tasks"]
            except (UsageError, OSError) as error:
                out_of_reach.append(f"{name}: {error}")
        if not tasks and out_of_reach:
            raise SkipTest(f"the data cannot be had here ({'; '.join(out_of_reach)})")
        expect(tasks, f"no file in {self.folder} defines a task; each needs a line `task: name`")
        return tasks

    def test_names(self) -> None:
        """Every file can be read, and no two define a task of one name."""
        from lm_eval.tasks._yaml_loader import load_yaml

        expect(self.folder.is_dir(), f"{self.folder} is not a folder; does the package ship its YAML files?")
        files = sorted(self.folder.rglob("*.yaml"))
        named = [(path, load_yaml(path, resolve_func=False).get("task")) for path in files]
        count = Counter(name for _, name in named if isinstance(name, str))
        for path, name in named:
            expect(count.get(name, 0) < 2, f"{path.name}: another file also defines the task {name!r}")

    def test_requests(self) -> None:
        """Every task has documents, and a request can be made of each."""
        for name, task in self._tasks().items():
            expect(
                task.has_test_docs() or task.has_validation_docs(),
                f"{name} has neither a test nor a validation split",
            )
            with redirect_stderr(StringIO()):  # lm-eval's progress bar
                task.build_all_requests(limit=DOCUMENTS)
            for request in task.instances:
                context = request.args[0]
                expect(isinstance(context, str), f"{name}: a request's context is {context!r}, not text")
                expect(
                    task.OUTPUT_TYPE == "loglikelihood_rolling" or context == context.rstrip(" "),
                    f"{name}: the prompt ends in a space, which tokenizes differently from one that starts "
                    "the answer; take it off (`target_delimiter` puts it before the answer)",
                )

    def test_gold_answers(self) -> None:
        """A generation task scores its own gold answers above an empty one."""
        found = False
        for name, task in self._tasks().items():
            if task.OUTPUT_TYPE != "generate_until":
                continue
            for doc in _documents(task):
                target = task.doc_to_target(doc)
                if not isinstance(target, str):
                    continue
                found = True
                gold, empty = (task.process_results(doc, [answer]) for answer in (target, ""))
                signs = {metric: 1 if up else -1 for metric, up in task.higher_is_better().items()}
                gains = {m: signs[m] * (gold[m] - empty[m]) for m in gold if m in signs}
                expect(
                    gains and max(gains.values()) > 0 and min(gains.values()) >= 0,
                    f"{name}: the gold answer {target!r} scores {gold}, an empty one {empty}; check "
                    "doc_to_target, the metrics and their higher_is_better",
                )
        if not found:
            raise SkipTest("no task here generates an answer that is compared with a text")

    def test_standard_errors(self) -> None:
        """Every metric is averaged in a way for which lm-eval has a standard error."""
        from lm_eval.api.metrics import stderr_for_metric

        for name, task in self._tasks().items():
            if task.OUTPUT_TYPE in BEST_EFFORT:
                continue
            for metric, aggregation in task.aggregation().items():
                expect(
                    stderr_for_metric(aggregation, 2),
                    f"{name}: lm-eval has no standard error for the aggregation of {metric!r}; use `mean`",
                )


def _documents(task: Any) -> list[Any]:
    return [doc for _, doc in zip(range(DOCUMENTS), task.eval_docs, strict=False)]
