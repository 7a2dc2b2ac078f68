"""Measure a real Llama on SQuAD and write docs/results-smollm2.md: protocols, then a grid of bottlenecks.

    python tools/results_smollm2.py --data dev-v1.1.json               # 100 questions; hours on two cores
    python tools/results_smollm2.py --data dev-v1.1.json --questions 500 --ratios 2,4,8,16   # with a GPU
    python tools/results_smollm2.py --render                           # only the page, from the numbers kept

It resumes where it was stopped: runs lie in runs/smollm2/, numbers in docs/results-smollm2.json.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from results_page import shown

DOCS = Path(__file__).resolve().parent.parent / "docs"
STORE, PAGE = DOCS / "results-smollm2.json", DOCS / "results-smollm2.md"
WORK = Path("runs") / "smollm2"
PROTOCOLS = ("plain", "few_shot", "chat_short")

Entry = dict[str, Any]


def settings(args: argparse.Namespace, protocol: str) -> Entry:
    """The configuration of every run under `protocol`."""
    from stage1.config import overlay
    from stage1.config.presets import PROTOCOLS as KNOWN

    base: Entry = {
        "model": {"name": args.model},
        "data": {"name": args.data},
        "eval": {"limit": args.questions},
    }
    return overlay(base, KNOWN.find(protocol).settings)


def measure_protocols(args: argparse.Namespace) -> Iterator[Entry]:
    """The bare model's F1 under each protocol: what a bottleneck could reach."""
    from stage1.config import validate
    from stage1.data.datasets import spread
    from stage1.evaluation.answers import Answering
    from stage1.evaluation.conditions import Condition
    from stage1.evaluation.statistics import ClusterBootstrap
    from stage1.evaluation.summary import graded
    from stage1.files import default_cache
    from stage1.progress import Progress
    from stage1.session import Session

    session = None
    for protocol in PROTOCOLS:
        begun = time.perf_counter()
        session = Session.open(validate(settings(args, protocol)), Progress(), before=session)
        questions = spread(session.data.test, args.questions)
        prompts = session.prompts(questions)
        answers = Answering(session, default_cache()).answers(Condition("text", prompts, None, ["text"]))
        kept = [graded(q, answer.text, cut=answer.cut) for q, answer in zip(questions, answers, strict=True)]
        f1 = np.array([answer.f1 for answer in kept])
        bootstrap = ClusterBootstrap([q.context for q in questions], session.config.eval.resamples, 0)
        yield {
            "protocol": protocol,
            "n": len(questions),
            "passages": len({q.context for q in questions}),
            "f1": float(f1.mean()),
            "f1_ci95": bootstrap.interval(f1),
            "exact_match": float(np.mean([answer.exact_match for answer in kept])),
            "answers_cut": sum(answer.cut for answer in answers),
            "seconds": time.perf_counter() - begun,
        }


def measure_grid(args: argparse.Namespace) -> Iterator[Entry]:
    """Every bottleneck of the grid under the protocol few_shot, trained and evaluated."""
    from stage1.cli.display import make_progress
    from stage1.sweeps.grid import Axis, plan
    from stage1.sweeps.sweep import Sweep

    ratios = [float(ratio) for ratio in args.ratios.split(",")]
    grids = [("grid", args.compressors.split(","), args.adapters.split(","))]
    if args.codebook:
        grids.append(("codebook", ["pca"], ["codebook"]))
    for name, compressors, adapters in grids:
        axes = [Axis("compressor.ratio", ratios), Axis("compressor", compressors), Axis("adapter", adapters)]
        cells = plan(settings(args, "few_shot"), args.set, axes, [0], WORK / name)
        sweep = Sweep(WORK / name, axes, cells)
        begun = time.perf_counter()
        sweep.run(make_progress(quiet=False))
        seconds = time.perf_counter() - begun
        for cell in sweep.record()["cells"]:
            yield {**cell, "seconds_of_its_grid": seconds}


def machine() -> str:
    """What the numbers were measured on."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), {torch.get_num_threads()} threads, no GPU"


def page(record: Entry) -> Iterator[str]:
    """docs/results-smollm2.md."""
    yield "# Results on SmolLM2-135M-Instruct and SQuAD"
    yield ""
    yield f"Written by `{record['command']}` on {record['date']}; the numbers are in `results-smollm2.json`."
    yield f"Machine: {record['machine']}; {record['versions']}. Intervals are 95 %, bootstrapped by passage."
    yield f"SmolLM2-135M-Instruct as a 4-bit GGUF, run in {record['dtype']}. What is not in the tables was"
    yield "not measured."
    yield ""
    yield "## Protocols: what the text itself reaches"
    yield ""
    yield "| protocol | questions | passages | F1 | exact match | answers cut | seconds |"
    yield "|---|---|---|---|---|---|---|"
    for row in record["protocols"]:
        yield (
            f"| {row['protocol']} | {row['n']} | {row['passages']} | {shown(row['f1'], row['f1_ci95'])} "
            f"| {row['exact_match']:.1f} | {row['answers_cut']} | {row['seconds']:.0f} |"
        )
    yield ""
    yield "## Bottlenecks, asked as few_shot"
    yield ""
    yield "`kept` is the share of the text F1, paired on the same questions."
    yield ""
    yield "| ratio | compressor | adapter | bits per token | F1 | kept, % | tokens recovered, % | verdict |"
    yield "|---|---|---|---|---|---|---|---|"
    for cell in sorted(record["grid"], key=lambda cell: float(cell["settings"]["compressor.ratio"])):
        yield _line(cell)
    yield ""
    hours = sum({cell["seconds_of_its_grid"] for cell in record["grid"]}) / 3600
    yield f"Trained and asked within {hours:.1f} hours, the protocols apart."
    yield _equal(record["grid"])


def _line(cell: Entry) -> str:
    where = cell["settings"]
    head = f"| {where['compressor.ratio']:g}× | {where['compressor']} | {where['adapter']} |"
    if cell["results"] is None:
        return f"{head} | | | | {(cell['error'] or 'not measured').splitlines()[0]} |"
    results = cell["results"]
    ours = next(row for row in results["rows"] if row["row"] == "bottleneck")
    verdict, reconstructed = results["verdict"], results["reconstruction"]
    kept = "" if verdict["ratio"] is None else f"{100 * verdict['ratio']:.0f}"
    if verdict["ratio_ci95"]:
        kept += f" [{100 * verdict['ratio_ci95'][0]:.0f}, {100 * verdict['ratio_ci95'][1]:.0f}]"
    return (
        f"{head} {results['rate']['bits_per_token']:.0f} | {shown(ours['f1'], ours['f1_ci95'])} | {kept} "
        f"| {100 * reconstructed['token_recovery']:.1f} | {verdict['level']} |"
    )


def _equal(cells: list[Entry]) -> str:
    found = [cell["results"] for cell in cells if cell["results"]]
    raw = sum(row["answers_differ"] for r in found for row in r["rows"] if row["row"] == "raw")
    broken = sum(result["gate"]["broken"] for result in found)
    return (
        f"`raw` answered {raw} questions otherwise than `text` in {len(found)} runs; the gate found "
        f"embeddings fed in wrongly in {broken}."
    )


def main() -> None:
    """Measure what is asked for and not there yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", help="SQuAD v1.1: a JSON file, or `squad`")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--ratios", default="2,4,8,16")
    parser.add_argument("--compressors", default="pca,random_projection,learned_linear")
    parser.add_argument("--adapters", default="linear,residual")
    parser.add_argument("--codebook", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as stage1 train's")
    parser.add_argument("--render", action="store_true", help="only write the page again")
    args = parser.parse_args()
    if not args.render:
        if not args.data:
            parser.error("--data is needed to measure")
        import torch
        import transformers

        record: Entry = {
            "command": shlex.join(["python", *sys.argv]),
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
            "dtype": "bfloat16" if torch.cuda.is_available() else "float32",
            "protocols": list(measure_protocols(args)),
            "grid": [],
        }
        for cell in measure_grid(args):
            record["grid"].append(cell)
        STORE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    record = json.loads(STORE.read_text(encoding="utf-8"))
    PAGE.write_text("\n".join(page(record)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
