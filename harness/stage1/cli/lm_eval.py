"""`stage1 lm-eval`: lm-eval's own command line, with trained runs as models."""

import sys

import typer

ABOUT = """\
stage1's part, the rest is lm-eval's own:
  --model stage1 --model_args run=RUN[,NAME=VALUE,…]
    run=RUN                  the folder of a trained run
    row=bottleneck|text      ask through the bottleneck (default), or the bare model
    scope=prompt|all         what crosses: a request's context (default), or the scored continuation too
    model=FOLDER             where the run's model lies, if elsewhere
    trust_remote_code=True   the model may run Python code of its own"""


def lm_eval(context: typer.Context) -> None:
    """Run lm-eval's own command line, which knows trained runs as models and stage1's tasks.

    `stage1 lm-eval run --model stage1 --model_args run=RUN --tasks squad`; every other word is lm-eval's, see
    `stage1 lm-eval run --help`. After RUN there may be `,row=text` (the bare model), `,scope=all`,
    `,model=FOLDER` and `,trust_remote_code=True` (the model may run Python code of its own).
    """
    from lm_eval.__main__ import cli_evaluate

    import stage1.evaluation.lm_eval.registered  # noqa: F401 - registers the model
    from stage1.plugins import load_plugins

    words = list(context.args)
    if words[:1] in ([], ["-h"], ["--help"]):
        typer.echo(f"{ABOUT}\n")
    if words[:1] in (["run"], ["ls"], ["validate"]) and not any(
        w.startswith("--include_path") for w in words
    ):
        (_, ours), *_ = load_plugins().task_folders()
        words += ["--include_path", str(ours)]
    sys.argv = ["lm-eval", *words]
    cli_evaluate()
