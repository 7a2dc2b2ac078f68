"""`stage1 eval`, `stage1 score` and `stage1 push`: what came of it."""

from pathlib import Path
from typing import Annotated

import typer

from stage1.cli import options
from stage1.errors import UsageError

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder that `stage1 train` made.")]


def eval_(
    run: RunFolder,
    model: Annotated[
        str | None, typer.Option(help="Where the run's model lies on this machine, if elsewhere.")
    ] = None,
    data: options.Data = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Test questions at most.")] = None,
    batch_size: Annotated[str | None, typer.Option(metavar="N|auto", help="Prompts per batch.")] = None,
    device: options.Device = None,
    scope: options.Scope = None,
    raw_anchor: options.RawAnchor = None,
    keep_special: options.KeepSpecial = None,
    magnitude: options.Magnitude = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the results to this file.")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a trained run again: the same numbers, or those on other questions or under other rules.

    Only results on the run's own questions and under its own rules go into its folder.
    """
    if batch_size is not None and batch_size != "auto" and not (batch_size.isdecimal() and int(batch_size)):
        raise UsageError(f"--batch-size {batch_size!r} is not a number of prompts.", "Pass 1, 2, … or auto.")
    from stage1.cli.display import make_progress, show_outcome
    from stage1.files import write_json
    from stage1.runs import Run
    from stage1.workflow import evaluate_run

    overrides = options.flags_given(
        model__name=model,
        data__name=data,
        eval__limit=limit,
        eval__batch_size=int(batch_size) if batch_size and batch_size != "auto" else batch_size,
        device=device,
        scope=scope,
        raw_anchor=raw_anchor,
        keep_special=keep_special,
        magnitude=magnitude,
    )
    outcome = evaluate_run(Run.open(run), overrides, make_progress(quiet=quiet))
    if output and outcome.evaluation:
        write_json(output, outcome.evaluation.results)
    show_outcome(outcome, json=json, quiet=quiet)


def score(
    data: Annotated[Path, typer.Argument(metavar="DATA.json", help="Questions with their answers.")],
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS.json", help="id → answer text.")],
    json: options.Json = False,
) -> None:
    """Score a file of predictions with the official SQuAD v1.1 metric; a missing prediction scores 0."""
    from stage1.files import to_json
    from stage1.records import read_questions
    from stage1.squad import read_predictions
    from stage1.squad import score as score_predictions

    questions, unanswerable = read_questions(data)
    result = score_predictions(questions, read_predictions(predictions, {q.id for q in questions}))
    if json:
        typer.echo(to_json(result._asdict()), nl=False)
        return
    typer.echo(f"exact match {result.exact_match:.6f}   F1 {result.f1:.6f}   over {result.n} questions")
    if unanswerable:
        typer.echo(f"({unanswerable} unanswerable questions left out)")


def push(
    run: RunFolder,
    repo_id: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="Hub repository, as in me/my-bottleneck.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Publish a trained run on the Hugging Face Hub, with a generated model card."""
    from stage1.report import push as push_run
    from stage1.runs import Run

    typer.echo(push_run(Run.open(run), repo_id, private=private))
