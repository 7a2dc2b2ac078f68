"""stage1 as a model of lm-eval: `--model stage1 --model_args run=RUN`."""

from pathlib import Path

import torch
from lm_eval.api.registry import register_model

from stage1.errors import UsageError, suggest
from stage1.evaluation.lm_eval.evaluate import ROWS, embed_requests, refuse_other_length
from stage1.evaluation.lm_eval.model import Stage1LM, requests_at_once
from stage1.progress import Progress
from stage1.runs.run import Run
from stage1.session import Session, changed


@register_model("stage1")
class RunLM(Stage1LM):
    """A trained run's model, contexts crossing its bottleneck.

    Args:
        run: the run's folder.
        row: `bottleneck`, or `text` for the bare model.
        scope: `prompt` (the context crosses) or `all` (a scored continuation too).
        model: where the run's model lies on this machine, if elsewhere.
        trust_remote_code: the model may run Python code of its own.
        batch_size: requests at a time, or `auto`.
        device: as for `stage1 train`; default: the run's.

    Raises:
        UsageError: the run is not trained, or an argument is not one of the choices.
    """

    def __init__(
        self,
        run: str,
        row: str = "bottleneck",
        scope: str = "prompt",
        model: str | None = None,
        trust_remote_code: bool = False,
        batch_size: int | str = "auto",
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        for name, value, choices in (("row", row, ROWS), ("scope", scope, ("prompt", "all"))):
            if value not in choices:
                raise UsageError(f"model_args has {name}={value}.", suggest(value, choices))
        if device == "cuda:0" and not torch.cuda.is_available():
            device = None  # lm-eval's default wherever it runs
        given = {
            "model.name": model,
            "model.trust_remote_code": trust_remote_code or None,
            "device": device,
            "eval.batch_size": int(batch_size) if str(batch_size).isdecimal() else batch_size,
        }
        overrides = {key: value for key, value in given.items() if value is not None}
        trained = Run.open(Path(run))
        session = Session.open(changed(trained, overrides), Progress(), data="none")
        bottleneck = session.load_bottleneck(trained)
        if scope == "all":
            refuse_other_length(bottleneck)
        super().__init__(
            session.model.llm,
            session.tokenizer,
            embed=embed_requests(bottleneck, session) if row == "bottleneck" else None,
            keep_special=session.config.keep_special,
            whole=scope == "all",
            batch_size=requests_at_once(session),
        )
