"""`stage1 eval`: a trained run asked again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from stage1.cli import completion, groups, options
from stage1.errors import UsageError
from stage1.processes import is_first


@dataclass(frozen=True)
class Asked(options.Protocol, options.ModelAndData):
    """What is asked, and how."""

    model: options.ModelHere = None
    scope: Annotated[
        str | None,
        completion.one_of(
            "prompt|context|all",
            "Which part of the prompt is compressed; all: with --tasks, the scored continuations too.",
        ),
        groups.Setting("scope"),
    ] = None


@groups.grouped
def eval_(
    run: options.RunFolder,
    asked: Asked,
    *,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="lm-eval tasks to evaluate instead, beside the bare model: names, patterns, YAML files. "
            "A task file is code: use only those of people you trust.",
        ),
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples in front of each document; default: as the task says.")
    ] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Ask through the tokenizer's chat template.")
    ] = False,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System instruction in front of each request.")
    ] = None,
    metadata: Annotated[
        str | None,
        typer.Option(metavar="JSON", help='For tasks that take settings: \'{"data": "dev.json"}\'.'),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the results to this file.")
    ] = None,
    rows: options.Rows = None,
    fail_below: options.FailBelow = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Evaluate a trained run again, on its own questions or others, under its own protocol or another.

    Results on other questions or under another protocol go to RUN/evaluations/. With --tasks, any lm-eval
    task is evaluated; results and samples go to RUN/tasks/.
    """
    only_with = {
        "--num-fewshot": num_fewshot is not None,
        "--chat-template": chat_template,
        "--system": system,
        "--metadata": metadata,
    }
    only_without = {
        "--data": asked.data,
        "--strict": asked.strict,
        "--rows": rows is not None,
        "--raw-anchor": asked.raw_anchor is not None,
        "--fail-below": fail_below is not None,
    }
    _refuse(bool(tasks), only_without, only_with, asked.scope)
    from stage1.config import flat

    overrides = {**flat(asked.preset()), **asked.given()}
    if tasks:
        overrides = {key: value for key, value in overrides.items() if key not in ("eval.limit", "scope")}
    settings = _metadata(metadata)
    from stage1.cli.display import end_by, make_progress, show_outcome, show_tasks
    from stage1.files import write_json
    from stage1.runs.run import Run

    progress, opened = make_progress(quiet=quiet or not is_first()), Run.open(run)
    if tasks:
        from stage1.evaluation.lm_eval.evaluate import TaskOptions
        from stage1.experiment import evaluate_run_tasks

        how = TaskOptions(asked.scope == "all", num_fewshot, chat_template, system, settings, asked.limit)
        names = [name.strip() for name in tasks.split(",") if name.strip()]
        results = evaluate_run_tasks(opened, overrides, names, how, progress).results
        show_tasks(results, run, json=json, quiet=quiet)
    else:
        from stage1.experiment import evaluate_run

        outcome = evaluate_run(opened, overrides, progress, options.rows_asked(rows))
        results = outcome.evaluation.results if outcome.evaluation else {}
        if not is_first():
            return
        show_outcome(outcome, json=json, quiet=quiet)
    if output:
        write_json(output, results)
    if not tasks:
        end_by(outcome, fail_below)


def _refuse(tasks: bool, only_without: dict[str, Any], only_with: dict[str, Any], scope: str | None) -> None:
    """Say which flags do not go together, before anything is loaded."""
    wrong = [flag for flag, given in (only_without if tasks else only_with).items() if given]
    flags, goes = ", ".join(wrong), "do" if len(wrong) > 1 else "does"
    if wrong and tasks:
        remedy = "A task brings its own documents and prompts; see --metadata for those that take a file."
        raise UsageError(f"{flags} {goes} not go with --tasks.", remedy)
    if wrong:
        raise UsageError(f"{flags} {goes} nothing without --tasks.", "Name some: --tasks squad.")
    if scope == "context" and tasks:
        raise UsageError(
            "--scope context means the passage of a question, which a task does not tell from the rest.",
            "Pass --scope prompt (a request's whole context, the default) or --scope all.",
        )
    if scope == "all" and not tasks:
        raise UsageError("--scope all is for --tasks.", "Pass --scope prompt, or name some: --tasks squad.")


def _metadata(text: str | None) -> dict[str, Any]:
    from stage1.bounded import load_json

    try:
        settings = load_json(text or "{}")
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise UsageError(
            f"--metadata {text!r} is not a JSON object.", """Write --metadata '{"data": "dev-v1.1.json"}'."""
        )
    return settings
