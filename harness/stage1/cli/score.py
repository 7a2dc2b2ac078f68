"""`stage1 score`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stage1.cli import options
from stage1.text import one_line

if TYPE_CHECKING:
    from stage1.evaluation.squad import Score


NO_IDS = (
    "The data have no ids, and predictions name questions by their id: pass a run's predictions/ROW.jsonl, "
    "which has the ids made from the questions' content, or give the data ids."
)


def score(
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Questions with their answers, as `train --data`."),
    ],
    predictions: Annotated[
        Path,
        typer.Argument(metavar="PREDICTIONS", help="JSON id → text, or a run's predictions/ROW.jsonl."),
    ],
    strict: options.Strict = None,
    settings: options.Settings = None,
    json: options.Json = False,
) -> None:
    """Score a file of predictions with the official SQuAD v1.1 metric; a missing prediction scores 0.

    Where questions are unanswerable, the numbers of the official v2.0 script follow. `--set data.…` sets how
    DATA is read.
    """
    from stage1.config import granted
    from stage1.data.sources import find_source
    from stage1.evaluation.squad import WORDS_MISLEAD, character_f1, is_unspaced, read_predictions, score_v2
    from stage1.evaluation.squad import score as score_predictions

    flags = {"data.name": data, **({} if strict is None else {"data.strict": strict})}
    config = granted({}, flags, settings or []).data
    records = find_source(config.name, config, repeated=True).read("test", None)
    for note in records.notes(config.name):
        typer.echo(one_line(note), err=True)
    questions = records.questions
    ids = {q.id for q in (*questions, *records.unanswerable)}
    found = read_predictions(predictions, ids, foreign=NO_IDS if records.made_ids else "")
    result = score_predictions(questions, found)
    v2 = score_v2([*questions, *records.unanswerable], found) if records.unanswerable else None
    answered = [q for q in questions if q.id in found]
    characters = None
    if is_unspaced([q.question for q in questions]):
        right = (character_f1(found.get(q.id, ""), q.answers) for q in questions)
        characters = 100 * sum(right) / len(questions)
    if json:
        shown: dict[str, Any] = {**result._asdict(), "answered": len(answered)}
        if characters is not None:
            shown["character_f1"] = characters
        if v2:
            shown["v2"] = {key: part and part._asdict() for key, part in v2._asdict().items()}
        options.print_json(shown)
        return
    typer.echo(f"{_line(result)} questions")
    if characters is not None:
        typer.echo(f"character-level F1 {characters:.6f}")
        typer.echo(WORDS_MISLEAD, err=True)
    if len(answered) < len(questions):
        missing = len(questions) - len(answered)
        part = f"; {_line(score_predictions(answered, found))} answered" if answered else ""
        typer.echo(f"(without a prediction, which counts 0: {missing}{part})")
    if v2:
        typer.echo(f"({len(records.unanswerable)} unanswerable questions left out)")
        typer.echo(f"by the rules of SQuAD v2.0: {_line(v2.total)} questions")
        for what, some in (("with an answer", v2.has_answer), ("without", v2.no_answer)):
            if some:
                typer.echo(f"  {_line(some)} {what}")


def _line(score: "Score") -> str:
    return f"exact match {score.exact_match:.6f}   F1 {score.f1:.6f}   over {score.n}"
