"""What the LLM may read in place of a prompt: each reconstructed vector's nearest token."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from stage1.diagnosis.tokens import readings
from stage1.evaluation.reconstruction import read_back
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.session import Session, changed

Readings = dict[str, list[dict[str, Any]]]
"""Question id → its prompt token by token; empty where the compressor changes the length."""


def read_prompts(
    asked: Iterable[tuple[Run, Collection[str]]], progress: Progress, *, trust_remote_code: bool = False
) -> Iterator[Readings]:
    """The prompts of some questions of each run; the table of a model that runs share is loaded once.

    No LLM is asked: it takes the embedding table, the tokenizer, the data and the bottleneck.

    Args:
        asked: each run, and the ids of the questions.
        progress: told what is loaded.
        trust_remote_code: run Python code that the model's folder brings.

    Raises:
        UsageError: the model or the data are not here, or are others than the run's.
    """
    session = None
    for run, ids in asked:
        config = changed(run, {"model.trust_remote_code": True} if trust_remote_code else {})
        session = Session.open(
            config,
            progress,
            weights="table",
            trained_on=run.read_trained_on(),
            example_data=config.data,
            before=session,
        )
        questions = [question for question in session.data.test if question.id in ids]
        prompts = session.prompts(questions)
        read = read_back(session.load_bottleneck(run), prompts, session.table) if prompts else None
        shown = readings(session, prompts, read) if read else []
        yield {question.id: tokens for question, tokens in zip(questions, shown, strict=False)}
