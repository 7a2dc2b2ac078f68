"""Any lm-eval task through the bottleneck, beside the same task on the bare model.

Metrics, standard errors, examples and chat templates are lm-eval's own; added are the differences, paired by
document, and how many bits the contexts took.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from lm_eval.api.metrics import mean
from lm_eval.evaluator import evaluate as lm_eval_evaluate

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.statistics import count_tokens
from stage1.data.prompts import Prompt
from stage1.errors import Stage1Error, UsageError
from stage1.evaluation.answers import decisive
from stage1.evaluation.conditions import through
from stage1.evaluation.generation import Embed
from stage1.evaluation.lm_eval.catalogue import Selection
from stage1.evaluation.lm_eval.model import Stage1LM, requests_at_once
from stage1.evaluation.lm_eval.quiet import quiet_lm_eval
from stage1.evaluation.rate import rate
from stage1.plugins.tensors import TokenStats
from stage1.runs.journal import Journal, sha256
from stage1.session import Session

ROWS = ("text", "bottleneck")

READ_THE_PROMPT = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "prompt_lookup_num_tokens": None,
    "penalty_alpha": None,
}
"""Settings of generation that look at the prompt's tokens, with the value under which they do nothing."""


class TaskOptions(NamedTuple):
    """How tasks are asked, beside what the run's configuration says."""

    whole: bool = False  # the continuation crosses too: `--scope all`
    num_fewshot: int | None = None  # None: as the task says
    chat_template: bool = False
    system_instruction: str | None = None
    metadata: Mapping[str, Any] = MappingProxyType({})  # for tasks that take settings
    limit: int | None = None  # documents of each task


class TaskEvaluation(NamedTuple):
    """What came of it."""

    results: dict[str, Any]  # one entry a task and group
    samples: dict[str, dict[str, list[dict[str, Any]]]]  # task → row → what lm-eval logged of each document


def evaluate_tasks(
    bottleneck: Bottleneck,
    session: Session,
    selection: Selection,
    options: TaskOptions,
    *,
    cache: Path | None,
) -> TaskEvaluation:
    """Ask every task of the bare model (`text`) and through the bottleneck.

    Args:
        bottleneck: trained on the session's model.
        session: model and configuration.
        selection: the tasks.
        options: how they are asked.
        cache: folder for answers; those through the bottleneck are kept until the evaluation is done.

    Raises:
        UsageError: a task cannot be loaded, the model cannot be used, or the options do not go together.
        Stage1Error: a single request exceeds the memory.
    """
    if options.whole:
        refuse_other_length(bottleneck)
    if options.chat_template and not session.tokenizer.chat_template:
        raise UsageError(
            f"The tokenizer of {session.config.model.name!r} has no chat template.",
            "Leave out --chat-template, or use a model that was tuned to chat.",
        )
    progress = session.progress
    loaded = _load(selection, options, session)
    bottleneck = bottleneck.to(session.device).eval()
    common = {"lm_eval": version("lm-eval"), "batch": requests_at_once(session)}
    common |= decisive(session) if cache else {}
    found: dict[str, Any] = {}
    for row in ROWS:
        embed = embed_requests(bottleneck, session) if row == "bottleneck" else None
        ours = [bottleneck.fingerprint(), options.whole, session.config.keep_special]
        decides = ours if embed else "text"
        journal = Journal(cache, [common, decides], progress)
        lm = Stage1LM(
            session.model.llm,
            session.tokenizer,
            embed=embed,
            keep_special=session.config.keep_special,
            whole=options.whole,
            batch_size=requests_at_once(session),
            journal=journal,
            progress=progress,
            label=f"Asking: {row}",
        )
        found[row] = _ask(lm, loaded, options, session)
    journal.forget()
    sent: dict[str, Any] = {}
    shortened: dict[str, int] = {}
    for name, task in loaded["tasks"].items():
        contexts = sorted({lm.wire_text(request) for request in task.instances} - {""})
        sent[name] = _sent(contexts, lm, bottleneck, session)
        shortened[name] = sum(map(lm.is_too_long, task.instances))
        if not sent[name]:
            progress.note(f"{name}: nothing of it is context, so nothing crossed. --scope all compresses it.")
        if shortened[name]:
            progress.note(
                f"{name}: {shortened[name]} of {len(task.instances)} requests lost their beginning to the "
                "model's length."
            )
    return TaskEvaluation(
        _results(found, loaded, sent, shortened, bottleneck, session, options),
        {name: {row: found[row]["samples"][name] for row in ROWS} for name in loaded["tasks"]},
    )


def refuse_other_length(bottleneck: Bottleneck) -> None:
    """Where continuations cross, each of their tokens must keep its place.

    Raises:
        UsageError: the compressor changes the number of vectors.
    """
    if bottleneck.compressor.changes_length:
        raise UsageError(
            f"Scope `all` scores each token, and the compressor {bottleneck.compressor.name!r} changes their "
            "number.",
            "Use scope `prompt`, or train with a compressor that keeps the length.",
        )


def embed_requests(bottleneck: Bottleneck, session: Session) -> Embed:
    """How requests reach the model of which nothing is known beforehand: any token may cross."""
    ids = torch.arange(len(session.table), device=session.device)
    every = TokenStats(ids, torch.ones(len(ids), dtype=torch.float64), session.table)
    return through(bottleneck, bottleneck.reconstruct, session, every)


# -- asking ------------------------------------------------------------------------------------------------


def _load(selection: Selection, options: TaskOptions, session: Session) -> dict[str, Any]:
    """The tasks with their documents, set as `options` say, which is what `simple_evaluate` does too."""
    import datasets

    datasets.disable_progress_bars()
    try:
        with session.progress.task("Reading the tasks' documents"), quiet_lm_eval():
            loaded: dict[str, Any] = selection.manager.load(selection.tasks)
    except Stage1Error:
        raise
    except Exception as error:  # any code a task brings, any way a download can fail
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"The tasks cannot be loaded: {type(error).__name__}: {reason}",
            "A task whose documents are on the Hub needs the network once. STAGE1_TRACEBACK=1 shows more.",
        ) from error
    for name, task in loaded["tasks"].items():
        _refuse_impossible(name, task, session)
        if options.num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=options.num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return loaded


def _refuse_impossible(name: str, task: Any, session: Session) -> None:
    """Say what lm-eval would stumble over in the middle."""
    if getattr(task, "UNSAFE_CODE", False):
        remedy = f"stage1 lm-eval run --model stage1 --tasks {name} --confirm_run_unsafe_code …"
        raise UsageError(f"The task {name} runs code that the model writes.", remedy)
    if getattr(task, "MULTIMODAL", False):
        raise UsageError(f"The task {name} needs a model that sees images.", "Choose a task of text.")
    settings = task.get_config("generation_kwargs") or {}
    if seeing := [key for key, neutral in READ_THE_PROMPT.items() if settings.get(key, neutral) != neutral]:
        raise UsageError(
            f"The task {name} sets {seeing[0]}: it reads the prompt's token ids, which embeddings do not "
            "have, so a bottleneck would differ from the text without any loss.",
            "Take a copy of the task without it, and name that file: --tasks FILE.yaml.",
        )
    room = session.context_length
    wanted = settings.get("max_gen_toks", 0)
    if wanted >= room:
        raise UsageError(
            f"The task {name} asks for {wanted} new tokens, and the model's context holds {room}.",
            "Choose another task, or a model with a longer context.",
        )


def _ask(lm: Stage1LM, loaded: Mapping[str, Any], options: TaskOptions, session: Session) -> dict[str, Any]:
    """lm-eval's results of one row; tasks that draw at random draw the same in each."""
    seed = session.config.seed
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=seed)
    with quiet_lm_eval():
        results: dict[str, Any] = lm_eval_evaluate(
            lm,
            loaded,
            limit=options.limit,
            bootstrap_iters=session.config.eval.resamples,
            log_samples=True,
            system_instruction=options.system_instruction,
            apply_chat_template=options.chat_template,
            fewshot_as_multiturn=options.chat_template,
        )
    return results


# -- the results -------------------------------------------------------------------------------------------


def _results(
    found: Mapping[str, Any],
    loaded: Mapping[str, Any],
    sent: Mapping[str, Any],
    shortened: Mapping[str, int],
    bottleneck: Bottleneck,
    session: Session,
    options: TaskOptions,
) -> dict[str, Any]:
    """The content of results.json: no time, no path, nothing that differs when it is measured again."""
    text = found["text"]
    template = str(session.tokenizer.chat_template) if options.chat_template else None
    tasks = [
        {
            "task": name,
            "version": text["versions"].get(name),
            "output_type": task.get_config("output_type"),
            "n": text["n-samples"][name]["effective"],
            "num_fewshot": text["n-shot"][name],
            "metrics": list(_metrics(name, found, task)),
            "sent": sent[name],
            "truncated": shortened[name],
            "documents": sha256(sorted({sample["doc_hash"] for sample in text["samples"][name]})),
        }
        for name, task in loaded["tasks"].items()
    ]
    groups = [
        {"group": name, "metrics": list(_metrics(name, found, None))} for name in text.get("groups", {})
    ]
    return {
        "schema": 1,
        "lm_eval": version("lm-eval"),
        "protocol": {
            "scope": "all" if options.whole else "prompt",
            "keep_special": session.config.keep_special,
            "magnitude": bottleneck.magnitude,
            "limit": options.limit,
            "metadata": dict(options.metadata),
            "chat_template": template,
            "system_instruction": options.system_instruction,
            "seed": session.config.seed,
        },
        "tasks": tasks,
        "groups": groups,
    }


def _metrics(name: str, found: Mapping[str, Any], task: Any) -> Iterator[dict[str, Any]]:
    """Each metric in every row with lm-eval's standard error and, of means, the paired difference."""
    better = found["text"]["higher_is_better"].get(name, {})
    for key in found["text"]["results"][name]:
        metric, comma, kept = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        entry: dict[str, Any] = {
            "metric": metric,
            "filter": kept,
            "higher_is_better": better.get(metric),
        }
        for row in ROWS:
            measured = found[row]["results"][name]
            entry |= {
                row: _number(measured[key]),
                f"{row}_stderr": _number(measured.get(f"{metric}_stderr,{kept}")),
            }
        is_mean = task is not None and task.aggregation().get(metric) is mean
        difference = _difference(name, metric, kept, found) if is_mean else (None, None)
        yield entry | {"difference": difference[0], "difference_stderr": difference[1]}


def _difference(
    name: str, metric: str, kept: str, found: Mapping[str, Any]
) -> tuple[float | None, float | None]:
    """Mean over the documents of bottleneck − text, and its standard error."""
    values = [
        {s["doc_id"]: s[metric] for s in found[row]["samples"][name] if s["filter"] == kept and metric in s}
        for row in ROWS
    ]
    text, ours = values
    if not text or text.keys() != ours.keys():
        return None, None
    differences = np.array([float(ours[document]) - float(text[document]) for document in text])
    if len(differences) < 2:
        return float(differences.mean()), None
    return float(differences.mean()), float(differences.std(ddof=1) / math.sqrt(len(differences)))


def _number(value: Any) -> float | None:
    """A metric as JSON takes it; lm-eval writes "N/A" where there is no standard error."""
    try:
        return float(value) if math.isfinite(float(value)) else None
    except (TypeError, ValueError):
        return None


def _sent(
    texts: Sequence[str], lm: Stage1LM, bottleneck: Bottleneck, session: Session
) -> dict[str, float] | None:
    """What the distinct contexts took on the wire, as `rate` says it; None where nothing crossed."""
    prompts = []
    for text in texts:
        ids = lm.tok_encode(text)
        tensor = torch.tensor([ids], dtype=torch.long, device=session.device)
        cross = lm.crossing(tensor, torch.ones_like(tensor))[0].tolist()
        prompts.append(Prompt("", text, ids, cross, 0))
    if not any(any(prompt.cross) for prompt in prompts):
        return None
    tokens = sum(len(prompt.ids) for prompt in prompts)
    crossed = sum(sum(prompt.cross) for prompt in prompts)
    stats = count_tokens(prompts, session.table)
    return {"tokens": tokens, "crossed": crossed, **rate(bottleneck, prompts, stats, session.table)}
