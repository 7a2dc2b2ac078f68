"""Cross-entropy and KL over a large vocabulary, in chunks against the logits held whole: memory and time.

Each form runs in a process of its own, on states and a head of random float32 numbers. Its memory is how far
the process's peak grows over what it holds once the states, the head and a first small call are there. Then
both forms' losses and gradients with respect to the states are compared.

    python benchmarks/chunked_loss.py [--batch 8] [--length 256] [--width 1024] [--vocabulary 128256] [--json]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from stage1.llm.chunked import token_cross_entropy, token_kl

LOSSES, FORMS = ("cross_entropy", "kl"), ("naive", "chunked")


def naive_cross_entropy(states: Tensor, targets: Tensor, head: Any) -> Tensor:
    """All logits at once."""
    return cross_entropy(head(states).float(), targets, reduction="none")


def naive_kl(student: Tensor, teacher: Tensor, head: Any) -> Tensor:
    """All logits of both at once."""
    with torch.no_grad():
        goal = log_softmax(head(teacher).float(), dim=-1)
    return kl_div(log_softmax(head(student).float(), dim=-1), goal, log_target=True, reduction="none").sum(-1)


FUNCTIONS: dict[tuple[str, str], Any] = {
    ("cross_entropy", "naive"): naive_cross_entropy,
    ("cross_entropy", "chunked"): token_cross_entropy,
    ("kl", "naive"): naive_kl,
    ("kl", "chunked"): token_kl,
}


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(loss: str, form: str, args: argparse.Namespace, results: Path) -> None:
    """Time one form, write its losses and gradient to `results`, print its time and memory as JSON."""
    generator = torch.Generator().manual_seed(0)
    positions = args.batch * args.length
    head = torch.nn.Linear(args.width, args.vocabulary, bias=False).requires_grad_(False)
    head.weight.normal_(std=args.width**-0.5, generator=generator)
    states = torch.randn(positions, args.width, generator=generator).requires_grad_()
    others = {
        "cross_entropy": torch.randint(0, args.vocabulary, (positions,), generator=generator),
        "kl": torch.randn(positions, args.width, generator=generator),
    }[loss]
    function = FUNCTIONS[loss, form]
    function(states[:2], others[:2], head).mean().backward()  # libraries load, threads start
    states.grad = None
    before, begun = peak_bytes(), time.perf_counter()
    values = function(states, others, head)
    values.mean().backward()
    seconds, after = time.perf_counter() - begun, peak_bytes()
    assert states.grad is not None
    save_file({"values": values.detach(), "gradient": states.grad}, results)
    print(json.dumps({"seconds": seconds, "bytes": after - before}))


def compare(loss: str, arguments: list[str]) -> dict[str, Any]:
    """Both forms of `loss`, each in its own process."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {form: Path(folder) / f"{form}.safetensors" for form in FORMS}
        for form in FORMS:
            command = [sys.executable, __file__, *arguments, "--measure", loss, form, str(files[form])]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[form] = json.loads(done.stdout)
        naive, chunked = (load_file(files[form]) for form in FORMS)
    for name in ("values", "gradient"):
        found[f"largest_difference_of_{name}"] = float((naive[name] - chunked[name]).abs().max())
    found["largest_gradient"] = float(naive["gradient"].abs().max())
    found["memory_ratio"] = found["chunked"]["bytes"] / found["naive"]["bytes"]
    return found


def main() -> None:
    """Run every form of every loss and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8, help="prompts")
    parser.add_argument("--length", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--width", type=int, default=1024, help="width of the states")
    parser.add_argument("--vocabulary", type=int, default=128_256, help="tokens")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        loss, form, results = args.measure
        measure(loss, form, args, Path(results))
        return
    shape = ("batch", "length", "width", "vocabulary")
    arguments = [text for name in shape for text in (f"--{name}", str(getattr(args, name)))]
    results = {loss: compare(loss, arguments) for loss in LOSSES}
    if args.json:
        print(json.dumps({**{name: getattr(args, name) for name in shape}, **results}, indent=2))
        return
    for loss, found in results.items():
        for form in FORMS:
            figures = found[form]
            print(f"{loss:14} {form:8} {figures['bytes'] / 2**30:6.2f} GiB {figures['seconds']:8.1f} s")
        values, gradient = (found[f"largest_difference_of_{name}"] for name in ("values", "gradient"))
        print(f"{loss:14} chunked takes {found['memory_ratio']:.3f} of naive's memory; largest differences:")
        print(f"{'':14} values {values:.1e} nats, gradient {gradient:.1e} of {found['largest_gradient']:.1e}")


if __name__ == "__main__":
    main()
