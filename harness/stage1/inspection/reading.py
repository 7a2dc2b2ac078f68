"""What the LLM may read in place of a prompt: each reconstructed vector's nearest token."""

from collections.abc import Collection
from typing import Any

from stage1.bottleneck.statistics import count_tokens
from stage1.diagnosis.tokens import readings
from stage1.evaluation.reconstruction import nearest, positions
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.session import Session, changed

Readings = dict[str, list[dict[str, Any]]]


class Reader:
    """Reads prompts back, of one run after the other; the table of a model that they share is loaded once.

    No LLM is asked: it takes the embedding table, the tokenizer, the data and the bottleneck.

    Args:
        progress: told what is loaded.
        trust_remote_code: run Python code that the model's folder brings.
    """

    def __init__(self, progress: Progress, *, trust_remote_code: bool = False) -> None:
        self.progress = progress
        self._overrides = {"model.trust_remote_code": True} if trust_remote_code else {}
        self._session: Session | None = None

    def read(self, run: Run, ids: Collection[str]) -> Readings:
        """Question id → its prompt token by token; empty where the compressor changes the length.

        Raises:
            UsageError: the model or the data are not here, or are others than the run's.
        """
        config = changed(run, self._overrides)
        session = Session.open(
            config,
            self.progress,
            weights="table",
            trained_on=run.read_trained_on(),
            example_data=config.data,
            before=self._session,
        )
        self._session = session
        questions = [question for question in session.data.test if question.id in ids]
        if not questions:
            return {}
        prompts, bottleneck = session.prompts(questions), session.load_bottleneck(run)
        stats = count_tokens(prompts, session.table)
        crossing = positions(bottleneck, prompts, stats, session.table)
        if crossing is None:
            return {}
        found = nearest(crossing.reconstructed, crossing.ids, session.table).euclidean
        read = readings(bottleneck, session, prompts, crossing, found)
        return dict(zip([question.id for question in questions], read, strict=True))
