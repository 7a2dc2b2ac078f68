"""One training step through the frozen LLM: recon + cosine + prompt_ppl on a Llama with random weights.

The LLM is built from a configuration, so nothing is downloaded: Llama-3.1-8B's shape on a GPU, a small one
without. Bottleneck, losses and LLM are the project's own code: PCA to an eighth with a residual adapter, and
a whole optimiser step. Speed does not depend on what the weights are, so random ones will do.

FLOPs of a step are counted as 2 P T forward and 2 P T backward (through the activations alone: the LLM's
weights are frozen and get no gradient), P the LLM's parameters without the embedding table, T the tokens.
Attention's own products, the bottleneck, and checkpointing's second forward pass are not counted.

    python benchmarks/phase2_step.py [--layers 32] [--batch 32] [--length 256] [--checkpointing] [--json]
"""

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stage1.bottleneck.bottleneck import Bottleneck
from stage1.bottleneck.splice import splice
from stage1.config import merge, validate
from stage1.llm.states import FrozenLLM
from stage1.plugins import load_plugins, resolve
from stage1.plugins.tensors import Embedded, LLMOutputs, LossInputs, TokenStats
from stage1.training.objective import Objective

SMALL = {
    "layers": 4,
    "width": 256,
    "intermediate": 704,
    "heads": 8,
    "kv_heads": 4,
    "vocabulary": 8192,
    "batch": 8,
    "length": 128,
}
LARGE = {
    "layers": 32,
    "width": 4096,
    "intermediate": 14_336,
    "heads": 32,
    "kv_heads": 8,
    "vocabulary": 128_256,
    "batch": 32,
    "length": 256,
}
USED = 4000
"""Tokens in use: what PCA and the linear decoder are fitted on."""


def random_llama(args: argparse.Namespace, device: torch.device) -> Any:
    """A frozen Llama of the asked shape: bfloat16 on a GPU, float32 without one."""
    config: Any = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.width,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        max_position_embeddings=args.length,
        tie_word_embeddings=False,
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with device:
            model: Any = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    return model.requires_grad_(False).eval()


class Step:
    """Everything one training step needs; calling it takes one."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        settings = ["losses.recon=1", "losses.cosine=1", "losses.prompt_ppl=1", "compressor.ratio=8"]
        config = validate(merge({}, {}, settings))
        resolved = resolve(config, load_plugins())
        self.model = random_llama(args, device)
        table = self.model.get_input_embeddings().weight
        used = torch.arange(min(USED, len(table)), device=device)
        stats = TokenStats(
            used, torch.ones(len(used), dtype=torch.float64, device=device), table[used].float()
        )
        self.variance = stats.variance
        self.bottleneck = Bottleneck.build(resolved, config.magnitude, args.width, config.seed).to(device)
        self.bottleneck.fit(stats, table)
        self.objective = Objective(resolved).to(device)
        self.llm = FrozenLLM(
            self.model,
            layers=self.objective.layers,
            last=self.objective.reads_last_states,
            checkpointing=args.checkpointing,
        )
        self.trained = [p for p in self.bottleneck.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=config.train.lr)
        self.ids = torch.randint(0, len(used), (args.batch, args.length), device=device)
        self.embeds = table[self.ids].float()
        self.every = torch.ones_like(self.ids, dtype=torch.bool)

    def __call__(self) -> None:
        """Forward, backward, optimiser."""
        original = Embedded(self.embeds, self.every)
        reconstructed = self.bottleneck(self.embeds, self.every)
        spliced = splice(original, self.every, lambda *_: (reconstructed, self.every))
        outputs = LLMOutputs(self.llm, self.llm.head, original, spliced, self.every)
        inputs = LossInputs(self.embeds, reconstructed, self.every.float(), self.ids, self.variance, outputs)
        total: Any = self.objective.total(self.objective(inputs), self.objective.weights(0))
        self.optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()


def median_seconds(step: Callable[[], None], repeats: int, device: torch.device) -> float:
    """Of `repeats` steps, after two that warm up."""
    times = []
    for _ in range(repeats + 2):
        begun = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return sorted(times[2:])[repeats // 2]


def measure(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Take the steps; speed, memory and the share of the peak."""
    step = Step(args, device)
    seconds = median_seconds(step, args.steps, device)
    step.llm.assert_frozen()
    weights = sum(p.numel() for p in step.model.parameters()) - args.vocabulary * args.width
    tokens = args.batch * args.length
    flops = 4 * weights * tokens
    cuda = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    return {
        "device": torch.cuda.get_device_name() if cuda else f"CPU ({platform.machine()})",
        "dtype": str(step.model.dtype).removeprefix("torch."),
        **{name: getattr(args, name) for name in LARGE},
        "checkpointing": args.checkpointing,
        "llm_parameters": weights,
        "seconds_per_step": seconds,
        "tokens_per_second": tokens / seconds,
        "peak_bytes": peak or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "tflops": flops / seconds / 1e12,
        "share_of_peak": flops / seconds / 1e12 / args.peak_tflops if cuda else None,
    }


def main() -> None:
    """Measure and print."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (LARGE if device.type == "cuda" else SMALL).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--steps", type=int, default=5, help="steps whose median counts")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--peak-tflops", type=float, default=989, help="the GPU's dense bf16 peak")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args, device)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['device']}, {found['dtype']}: {args.layers} layers, {args.width} wide, ", end="")
    print(f"vocabulary {args.vocabulary:,}, {args.batch} x {args.length} tokens")
    print(f"{found['seconds_per_step']:.3f} s per step, {found['tokens_per_second']:,.0f} tokens per second")
    print(f"peak memory {found['peak_bytes'] / 2**30:.2f} GiB{'' if device.type == 'cuda' else ' (RSS)'}")
    share = found["share_of_peak"]
    of_peak = "" if share is None else f", {100 * share:.1f} % of {args.peak_tflops:g}"
    print(f"{found['tflops']:.3g} TFLOP/s{of_peak} (2 P T forward + 2 P T backward, ", end="")
    print(f"P = {found['llm_parameters']:,}, T = {args.batch * args.length:,})")


if __name__ == "__main__":
    main()
