"""Everything that only a GPU can tell, in one go and one JSON: tests, repeatability, gradients, speed.

    python benchmarks/gpu.py --output gpu.json               # the embedded model, 8B's shape for the step
    python benchmarks/gpu.py --model smollm2 --data dev-v1.1.json --output gpu.json

Without a GPU it runs too, at a small shape, and says so: that tests the script, not the GPU. A part that
fails is recorded with its error, and the others go on.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import phase2_step
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from stage1.config import RunConfig, merge, validate
from stage1.data.datasets import spread
from stage1.evaluation.answers import Answering
from stage1.evaluation.conditions import Condition, raw
from stage1.evaluation.gate import check
from stage1.experiment import train_run
from stage1.llm.model import attention_backends
from stage1.plugins import load_plugins
from stage1.progress import Progress
from stage1.session import Session

ROOT = Path(__file__).resolve().parent.parent
CUDA = torch.cuda.is_available()


def configuration(args: argparse.Namespace, *settings: str) -> RunConfig:
    """The model and data that were asked for, in bfloat16 on a GPU."""
    flags = {
        "model.name": args.model,
        "data.name": args.data,
        "dtype": "bfloat16" if CUDA else "float32",
        "prompt.shots": args.shots,
        "eval.limit": args.questions,
    }
    return validate(merge({}, flags, settings))


def repeatability(args: argparse.Namespace) -> dict[str, Any]:
    """Two identical evaluations without a cache: answers that changed, and the gate's exact comparison."""
    session = Session.open(configuration(args), Progress())
    prompts = session.prompts(spread(session.data.test, args.questions))
    answering = Answering(session, None)
    text = Condition("text", prompts, None, None)
    first, second = (answering.answers(text) for _ in range(2))
    embedded = answering.answers(Condition("raw", prompts, raw(session), None))
    return {
        "questions": len(prompts),
        "changed": sum(a != b for a, b in zip(first, second, strict=True)),
        "raw_differs": sum(a != b for a, b in zip(first, embedded, strict=True)),
        "gate": check(answering, prompts)._asdict(),
    }


def gradients(args: argparse.Namespace) -> dict[str, str]:
    """A few training steps under every loss that reads the LLM: "finite", or what went wrong."""
    registry = load_plugins()
    found = {}
    for name in registry.names("loss", lambda cls: cls.needs_llm):
        settings = ["train.steps=3", "train.batch_prompts=4", "data.train=64", "data.selection=8"]
        with tempfile.TemporaryDirectory() as folder:
            config = configuration(args, *settings, f"output={folder}/run", f"losses={{{name}: 1}}")
            try:
                train_run(config, Progress(), with_evaluation=False)
                found[name] = "finite"
            except Exception as error:
                found[name] = f"{type(error).__name__}: {error}"
    return found


def throughput(args: argparse.Namespace) -> dict[str, Any]:
    """Questions per second on the same prompts: stock lm-eval, our token ids, our embeddings."""
    session = Session.open(configuration(args), Progress())
    prompts = session.prompts(spread(session.data.test, args.questions))
    answering = Answering(session, None)
    tokens = session.config.eval.max_new_tokens

    def ours(condition: Condition) -> Callable[[], Any]:
        return lambda: answering.answers(condition)

    lm: Any = HFLM(pretrained=session.model.llm, tokenizer=session.tokenizer, batch_size=args.batch)
    options = {"until": ["\n"], "max_gen_toks": tokens, "do_sample": False}
    requests = [
        Instance("generate_until", {}, (prompt.text, dict(options)), number)
        for number, prompt in enumerate(prompts)
    ]
    ways: dict[str, Callable[[], Any]] = {
        "text": ours(Condition("text", prompts, None, None)),
        "raw": ours(Condition("raw", prompts, raw(session), None)),
        "lm_eval": lambda: lm.generate_until(requests, disable_tqdm=True),
    }
    speed = {}
    for name, ask in ways.items():
        ask()  # warms up
        begun = time.perf_counter()
        ask()
        speed[name] = len(prompts) / (time.perf_counter() - begun)
    return {
        "questions": len(prompts),
        "prompt_tokens": sum(len(prompt.ids) for prompt in prompts) / len(prompts),
        "questions_per_second": speed,
        "text_vs_lm_eval": speed["text"] / speed["lm_eval"],
        "raw_vs_lm_eval": speed["raw"] / speed["lm_eval"],
    }


def phase2(_args: argparse.Namespace) -> dict[str, Any]:
    """A training step through the LLM, at the shape of an 8B Llama where there is a GPU."""
    shape = phase2_step.LARGE if CUDA else {**phase2_step.SMALL, "layers": 2, "batch": 2, "length": 32}
    options = argparse.Namespace(**shape, steps=5 if CUDA else 1, checkpointing=False, peak_tflops=989.0)
    return phase2_step.measure(options, torch.device("cuda" if CUDA else "cpu"))


def tests(_args: argparse.Namespace) -> dict[str, Any]:
    """The tests that need a GPU."""
    here = str(ROOT / "tests" / "test_gpu.py")  # the others may need what a GPU machine lacks
    command = [sys.executable, "-m", "pytest", here, "-q", "-m", "gpu", "-n", "0", "--no-header"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return {"code": done.returncode, "summary": done.stdout.strip().splitlines()[-1:]}


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "tests": tests,
    "repeatability": repeatability,
    "gradients": gradients,
    "throughput": throughput,
    "phase2_step": phase2,
}


def main() -> None:
    """Run the parts that were asked for, and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--data", default="tiny-squad")
    parser.add_argument("--shots", type=int, default=3)
    parser.add_argument("--questions", type=int, default=512 if CUDA else 16)
    parser.add_argument("--batch", type=int, default=128 if CUDA else 8, help="of stock lm-eval")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, separated by commas")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    record: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if CUDA else "CPU: a test of the script, not of a GPU",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "attention_backends": attention_backends(),
        "model": args.model,
    }
    for name in args.parts.split(","):
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            record[name] = PARTS[name](args)
        except Exception:
            record[name] = {"error": traceback.format_exc().splitlines()[-1]}
        args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
