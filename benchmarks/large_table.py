"""Training at the size of Llama-3.1-8B's embedding table: 128,256 × 4,096, 25,000 tokens in use.

There are no such weights here: the table is synthetic, bfloat16, with a spectrum that decays, and the text is
words drawn by Zipf's law. It is written as a model with one narrow layer, of which `stage1 train --no-eval`
reads the table alone; that command is run in a process of its own and measured from outside.

    python benchmarks/large_table.py --folder TABLE [--compressor autoencoder] [--set KEY=VALUE]
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stage1.llm.model import device_name

PASSAGES, WORDS = 1000, 200


def write_model(folder: Path, vocabulary: int, width: int) -> None:
    """A table [V, D] of RMS near 0.01, and a tokenizer whose words are numbers."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    mixing *= torch.arange(1, width + 1)[:, None] ** -0.4
    table = torch.empty(vocabulary, width, dtype=torch.bfloat16)
    for rows in torch.split(table, 8192):
        rows.copy_(0.05 * torch.randn(len(rows), width, generator=generator) @ mixing)
    sizes: Any = {"num_attention_heads": 8, "num_hidden_layers": 1, "intermediate_size": 64}
    config: Any = LlamaConfig(vocab_size=vocabulary, hidden_size=width, tie_word_embeddings=True, **sizes)
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    model.get_input_embeddings().weight = torch.nn.Parameter(table)
    model.tie_weights()
    model.save_pretrained(folder)
    special = ["<unk>", "<s>", "</s>"]
    words = {word: i for i, word in enumerate([*special, *map(str, range(vocabulary - len(special)))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names: Any = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def write_questions(path: Path, vocabulary: int, used: int) -> None:
    """A question about each passage of words, the most frequent ones scattered over the vocabulary."""
    random = np.random.default_rng(1)
    words = random.permutation(vocabulary - 3)[:used]
    zipf = 1 / np.arange(1, used + 1)
    with path.open("w", encoding="utf-8") as file:
        for number in range(PASSAGES):
            drawn = random.choice(words, WORDS, p=zipf / zipf.sum())
            rare = random.choice(words, WORDS // 8)  # so that every word in use occurs somewhere
            context = " ".join(map(str, [*drawn, *rare]))
            answer = {"text": [str(rare[0])], "answer_start": [context.index(str(rare[0]))]}
            record = {
                "id": str(number),
                "title": "",
                "context": context,
                "question": str(rare[1]),
                "answers": answer,
            }
            file.write(json.dumps(record) + "\n")


def write(folder: Path, vocabulary: int, width: int, used: int) -> None:
    """The model and, last, so that they say that all is there, the questions."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder, vocabulary, width)
    write_questions(folder / "questions.jsonl", vocabulary, used)


def measure(folder: Path, run: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Train on what is in `folder`; what it took, and what the files of `run` say of it."""
    command = [sys.executable, "-m", "stage1", "train", "--no-eval", "--model", str(folder)]
    command += ["--data", str(folder / "questions.jsonl"), "--output", str(run)]
    command += ["--compressor", args.compressor, "--adapter", args.adapter]
    command += [part for setting in args.settings for part in ("--set", setting)]
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(code)
    model, manifest, timings = (
        json.loads(path.read_text(encoding="utf-8"))
        for path in (folder / "config.json", run / "manifest.json", run / "timings.json")
    )
    return {
        "table": [model["vocab_size"], model["hidden_size"]],
        "compressor": args.compressor,
        "adapter": args.adapter,
        "settings": args.settings,
        "tokens": manifest["tokens"],
        "device": device_name(torch.device(manifest["device"])),
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),  # of all threads, on a busy machine too
        "training_seconds": round(timings["training_seconds"], 1),
        "training": manifest["training"],
        "peak_memory_gb": usage.ru_maxrss * 1024 / 1e9,
    }


def main() -> None:
    """Write what is missing, train, and print what it took as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the model and the questions are kept")
    parser.add_argument("--output", type=Path, help="where the run is kept")
    parser.add_argument("--compressor", default="pca")
    parser.add_argument("--adapter", default="residual")
    parser.add_argument(
        "--shape", type=int, nargs=3, default=[128_256, 4096, 25_000], metavar=("V", "D", "USED")
    )
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch) / "table"
        if not (folder / "questions.jsonl").exists():
            # Linux counts the peak of what starts a process as that process's own, so this one stays small.
            writer = multiprocessing.get_context("spawn").Process(target=write, args=(folder, *args.shape))
            writer.start()
            writer.join()
            if writer.exitcode:
                sys.exit(writer.exitcode)
        print(json.dumps(measure(folder, args.output or Path(scratch) / "run", args), indent=2))


if __name__ == "__main__":
    main()
