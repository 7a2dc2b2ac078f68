"""Measure the built-in compressors and adapters on the embedded model; write docs/results.md and the figure.

python tools/make_results.py            # trains and evaluates 32 runs
python tools/make_results.py --render   # only writes the page and the figure again from docs/results.json
"""

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stage1.config import merge, validate
from stage1.workflow import train_run

DOCS = Path(__file__).resolve().parent.parent / "docs"
RATIOS = (2, 4, 8, 16)
COMPRESSORS = ("pca", "random_projection")
ADAPTERS = ("linear", "mlp", "residual", "codebook")
COLOURS = {"linear": "tab:gray", "mlp": "tab:orange", "residual": "tab:blue", "codebook": "tab:green"}


def measure() -> dict[str, Any]:
    """Train and evaluate every combination."""
    from stage1.cli.display import make_progress

    progress = make_progress(quiet=False)
    runs: list[dict[str, Any]] = []
    for ratio in RATIOS:
        for compressor in COMPRESSORS:
            for adapter in ADAPTERS:
                progress.note(f"== {compressor} → {adapter} at {ratio}×")
                flags = {"compressor.name": compressor, "adapter.name": adapter}
                with tempfile.TemporaryDirectory() as folder:
                    config = validate(merge({}, flags, [f"compressor.ratio={ratio}", f"output={folder}"]))
                    evaluation = train_run(config, progress).evaluation
                assert evaluation is not None
                entry = {"ratio": ratio, "compressor": compressor, "adapter": adapter}
                runs.append({**entry, "results": evaluation.results})
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, no GPU"
    return {"machine": machine, "versions": versions(), "runs": runs}


def versions() -> str:
    """The libraries that decide the numbers."""
    import torch
    import transformers

    import stage1

    return f"stage1 {stage1.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"


def row(run: dict[str, Any], name: str) -> dict[str, Any]:
    """One row of a run's results."""
    found: dict[str, Any] = next(r for r in run["results"]["rows"] if r["row"] == name)
    return found


def shown(measured: dict[str, Any]) -> str:
    """F1 with its interval."""
    low, high = measured["f1_ci95"]
    return f"{measured['f1']:.1f} [{low:.1f}, {high:.1f}]"


def page(record: dict[str, Any]) -> Iterator[str]:
    """docs/results.md."""
    runs = record["runs"]
    first = runs[0]
    text = row(first, "text")["f1"]
    yield "# Results on the embedded model"
    yield ""
    yield "Written by `python tools/make_results.py`; the numbers behind it are in `results.json`."
    yield f"Machine: {record['machine']}; {record['versions']}; {row(first, 'text')['n']} test questions of"
    yield "tiny-squad, seed 0. Intervals are 95 %, bootstrapped by passage."
    yield "**Llama-3.1-8B was not measured here**: there are no weights of it on this machine."
    yield ""
    yield "| frame | F1 |"
    yield "|---|---|"
    for name in ("text", "raw", "mean", "no_context"):
        yield f"| `{name}` | {shown(row(first, name))} |"
    yield ""
    equal = all(run["results"]["raw_equals_text"] for run in runs)
    yield f"`raw` equals `text` on every question{' in every run' if equal else ': NO, see results.json'}."
    yield f"The study's target, 85 % of the ceiling at 8×, is F1 {0.85 * text:.1f} here."
    for ratio in RATIOS:
        trained = [r for r in runs if r["ratio"] == ratio and r["adapter"] in ("mlp", "residual")]
        best = max(trained, key=lambda r: float(row(r, "bottleneck")["f1"]))
        names = f"{best['compressor']} → {best['adapter']}"
        share = 100 * row(best, "bottleneck")["f1"] / text
        yield f"- At {ratio}× the best trained adapter is {names}: {share:.0f} % of the ceiling."
    yield ""
    yield "`codebook` looks up the nearest of the vocabulary's own codes, which the receiver can compute: the"
    yield "bound for every adapter behind a token-wise compressor, and exact while codes stay distinct."
    yield ""
    yield "| ratio | bits/token | compressor | adapter | F1 | % of text | recon | cosine | tokens recovered |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for run in runs:
        results, ours = run["results"], row(run, "bottleneck")
        rebuilt = results["reconstruction"]
        yield (
            f"| {run['ratio']}× | {results['rate']['bits_per_token']:.0f} | {run['compressor']} "
            f"| {run['adapter']} | {shown(ours)} | {100 * ours['f1'] / text:.0f} | {rebuilt['recon']:.4f} "
            f"| {rebuilt['cosine']:.3f} | {100 * rebuilt['token_recovery']:.1f} % |"
        )
    yield ""
    yield "![F1 against bits per token](f1_vs_bits.svg)"


def figure(record: dict[str, Any], path: Path) -> None:
    """F1 against bits per token, a line for each compressor and adapter."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "stage1"  # the same picture is the same file
    import matplotlib.pyplot as plt

    runs = record["runs"]
    drawing, axes = plt.subplots(figsize=(7.5, 4.5))
    for compressor, style in zip(COMPRESSORS, ("-", "--"), strict=True):
        for adapter in ADAPTERS:
            line = [r for r in runs if (r["compressor"], r["adapter"]) == (compressor, adapter)]
            bits = [r["results"]["rate"]["bits_per_token"] for r in line]
            f1 = [row(r, "bottleneck") for r in line]
            error = [
                [r["f1"] - r["f1_ci95"][0] for r in f1],
                [r["f1_ci95"][1] - r["f1"] for r in f1],
            ]
            label = f"{compressor} → {adapter}"
            points: dict[str, Any] = {
                "linestyle": style,
                "marker": "o",
                "markersize": 4,
                "capsize": 2,
                "label": label,
            }
            axes.errorbar(bits, [r["f1"] for r in f1], error, color=COLOURS[adapter], **points)
    for name, style in (("text", "-"), ("no_context", ":")):
        axes.axhline(row(runs[0], name)["f1"], color="black", linewidth=1, linestyle=style)
        place = (0.99, row(runs[0], name)["f1"] + 1)
        axes.annotate(name, place, xycoords=("axes fraction", "data"), ha="right")
    axes.set(xscale="log", xlabel="bits per token", ylabel="F1", ylim=(0, 104))
    ticks = sorted({round(r["results"]["rate"]["bits_per_token"]) for r in runs})
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.legend(fontsize=7, loc=(0.66, 0.13))
    drawing.tight_layout()
    drawing.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, then write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--render", action="store_true", help="measure nothing")
    args = parser.parse_args()
    store = DOCS / "results.json"
    if not args.render:
        store.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    record = json.loads(store.read_text(encoding="utf-8"))
    (DOCS / "results.md").write_text("\n".join(page(record)) + "\n", encoding="utf-8")
    figure(record, DOCS / "f1_vs_bits.svg")


if __name__ == "__main__":
    main()
