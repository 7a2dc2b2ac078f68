"""Compressor → wire → adapter as one module: building, rate accounting, saving and loading."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from stage1.bottleneck.chain import Chain, fit
from stage1.bottleneck.checkpoint import (
    component_record,
    damaged,
    digest,
    read_checkpoint,
    resolve_record,
)
from stage1.bottleneck.splice import Reconstruct, rescaled, rms, splice
from stage1.config import ModelConfig, require_trust
from stage1.errors import ConfigError, ConfigIssue, UsageError
from stage1.files import write_atomic, write_json
from stage1.hub import download
from stage1.llm.location import locate
from stage1.llm.table import load_table, table_sha256
from stage1.plugins import Resolved, ResolvedComponent, dump_options, load_plugins, source_sha256
from stage1.plugins.blame import built, expect, expect_code, expect_vectors
from stage1.plugins.interfaces import Adapter, Component, Compressor
from stage1.plugins.tensors import CHUNK, Code, Embedded, TokenStats, straight_through
from stage1.progress import SILENT, Progress

SCALE_BITS = 16
"""Bits of a transmitted RMS (bfloat16)."""


class Bottleneck(nn.Module):
    """A compressor, the wire its code crosses, and the adapter that reconstructs embeddings.

    Attributes:
        compressor, adapter: the plugins; a `Chain` where there are several compressors.
        magnitude: who says how long a reconstructed vector is: the adapter (`free`), the vocabulary (`vocab`:
            its mean RMS), or the sender (`sent`: the original's RMS, transmitted in bfloat16).
        vocab_rms: mean RMS of the rows of the LLM's table.
        mean_embedding: [D] mean of the training prompts' embeddings, what the `mean` row shows the LLM.
        seen: [V] bool: the tokens that crossed in training; empty before there was any.
        frozen: names of the parameters that training leaves alone, because a component said so when it was
            built or fitted.
    """

    def __init__(
        self, compressor: Compressor, adapter: Adapter, magnitude: str = "free", *, seed: int = 0
    ) -> None:
        super().__init__()
        self.compressor = compressor
        self.adapter = adapter
        self.magnitude = magnitude
        self.seed = seed  # of what the components draw while they are fitted
        self.frozen: frozenset[str] = frozenset()
        self.vocab_rms: Tensor
        self.mean_embedding: Tensor
        self.seen: Tensor
        self.register_buffer("vocab_rms", torch.ones(()))
        self.register_buffer("mean_embedding", torch.zeros(compressor.embed_dim))  # [D]
        self.register_buffer("seen", torch.zeros(0, dtype=torch.bool))

    @classmethod
    def build(cls, resolved: Resolved, magnitude: str, embed_dim: int, seed: int) -> "Bottleneck":
        """A fresh bottleneck for embeddings of width `embed_dim`.

        Each component draws its initial values from its own seed, so that another adapter does not change
        a random compressor.

        Raises:
            ConfigError: an option does not fit the width.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first, *others = resolved.compressors
            stages = [_built(first, embed_dim)]
            for offset, component in enumerate(others, 2):
                torch.manual_seed(seed + offset)
                stages.append(_built(component, _width(stages[-1])))
            compressor = Chain(stages) if others else stages[0]
            torch.manual_seed(seed + 1)
            adapter = built(resolved.adapter, _width(stages[-1]), embed_dim)
        return cls(compressor, adapter, magnitude, seed=seed)

    def start_from(self, source: str | Path, table: Tensor) -> None:
        """Take over the weights of another run's bottleneck of the same making, frozen where they are there.

        Raises:
            ConfigError: a compressor or the adapter is another one, or has other options.
            UsageError: it cannot be loaded (`from_pretrained`).
        """
        other = Bottleneck.from_pretrained(source, table=table)
        issues = []
        for part, ours, theirs in (
            ("compressors", self.stages, other.stages),
            ("adapter", [self.adapter], [other.adapter]),
        ):
            wanted, found = (_making(components) for components in (ours, theirs))
            if [*map(type, ours)] != [*map(type, theirs)] or wanted != found:
                issues.append(ConfigIssue(part, f"{source} was trained with {found}, you ask for {wanted}."))
        if issues:
            raise ConfigError(issues)
        self.load_state_dict(other.state_dict())
        self.freeze(other.frozen)
        self.receive_table(table)

    @property
    def stages(self) -> Sequence[Compressor]:
        """The compressors, in the order in which the embeddings go through them."""
        return self.compressor.stages if isinstance(self.compressor, Chain) else [self.compressor]

    @property
    def tokenwise(self) -> bool:
        """True if a reconstructed vector depends on its own token alone."""
        return self.compressor.tokenwise and self.adapter.tokenwise

    def fit(self, stats: TokenStats, table: Tensor, progress: Progress = SILENT) -> None:
        """What comes before training: fit the compressor, hand over the table, warm-start the adapter."""
        self.mean_embedding.copy_(stats.mean)
        self.vocab_rms.fill_(
            float(torch.cat([rms(some.float()) for some in torch.split(table, CHUNK)]).mean())
        )
        self.see(stats.ids, table)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            fit(self.compressor, stats, seed=self.seed, progress=progress)
            self.compressor.zero_grad()  # it may have trained
            self.receive_table(table)
            with torch.no_grad():
                self.adapter.warm_start(self.encode_rows, stats)
        self.freeze(name for name, parameter in self.named_parameters() if not parameter.requires_grad)

    def see(self, ids: Tensor, table: Tensor) -> None:
        """Remember that training meets the tokens `ids` [U] of `table` [V, D]."""
        if not len(self.seen):
            self.seen = torch.zeros(len(table), dtype=torch.bool, device=table.device)
        self.seen[ids] = True

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # A fresh bottleneck does not know how many tokens there are.
        self.seen = torch.zeros_like(state_dict.get(f"{prefix}seen", self.seen), device=self.seen.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def freeze(self, names: Iterable[str]) -> None:
        """Train all parameters but these."""
        self.frozen = frozenset(names)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in self.frozen)

    @torch.no_grad()
    def receive_table(self, table: Tensor) -> None:
        """Give the adapter the receiver's own embedding table [V, D]."""
        self.adapter.receive_table(self.encode_rows, table)

    def encode_rows(self, rows: Tensor) -> Tensor:
        """Codes [U, d] of `rows` [U, D] as they come off the wire: what adapters know as `encode`.

        Where a code depends on its surroundings, the first vector of a prompt of that one token.
        """
        return torch.cat([self._encode_some(some) for some in torch.split(rows, CHUNK)])

    def _encode_some(self, rows: Tensor) -> Tensor:
        mask = torch.ones(1, len(rows), dtype=torch.bool, device=rows.device)
        if self.compressor.tokenwise:
            return self.encode(rows[None], mask).vectors[0]
        return self.encode(rows[:, None], mask.T).vectors[:, 0]

    def encode(self, embeds: Tensor, mask: Tensor) -> Code:
        """Compress `embeds` [B, L, D] where `mask` [B, L] is true; the code as it comes off the wire."""
        code = expect_code(self.compressor, self.compressor(embeds, mask))
        if (sent := self.compressor.wire_dtype) is not None:
            rounded = code.vectors.to(sent).to(code.vectors.dtype)
            code = code._replace(vectors=straight_through(rounded, code.vectors))
        bits = self.compressor.bits(code)
        sound = getattr(bits, "shape", None) == code.mask.shape
        return code._replace(bits=expect(self.compressor, "bits", bits, Tensor, "a tensor [B, M]", sound))

    def decode(self, code: Code, original: Tensor) -> Tensor:
        """Reconstruct [B, M, D]. `original` [B, L, D] is only read for the RMS that `sent` transmits."""
        width = self.compressor.embed_dim
        reconstructed = expect_vectors(self.adapter, "forward", self.adapter(code), code.mask, width)
        if self.magnitude == "free":
            return reconstructed
        target = (
            self.vocab_rms if self.magnitude == "vocab" else rms(original).bfloat16().to(reconstructed.dtype)
        )
        return rescaled(reconstructed, target)

    def forward(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """Embeddings [B, L, D] as the receiver reconstructs them, [B, M, D]."""
        return self.decode(self.encode(embeds, mask), embeds)

    def reconstruct(self, embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` together with the mask of the reconstructed vectors: a `Reconstruct` for `splice`."""
        code = self.encode(embeds, mask)
        return self.decode(code, embeds), code.mask

    def reconstruct_linear(self, embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The same through the compressor's own inverse instead of the adapter."""
        code = self.encode(embeds, mask)
        reconstructed = self.compressor.inverse(code)
        return expect_vectors(
            self.compressor, "inverse", reconstructed, code.mask, embeds.shape[-1]
        ), code.mask

    def splice(self, prompts: Embedded, cross: Tensor, reconstruct: Reconstruct) -> Embedded:
        """`splice` as this bottleneck's compressor needs it."""
        return splice(prompts, cross, reconstruct, packed=self.compressor.changes_length)

    def code_bits(self, code: Code) -> Tensor:
        """[B] float64: bits of each prompt's code, transmitted magnitudes included."""
        scale = SCALE_BITS if self.magnitude == "sent" else 0
        return ((code.bits.double() + scale) * code.mask).sum(1)

    def size(self) -> dict[str, Any]:
        """Width of embeddings and code, their ratio, and what of each part has to lie on a disk.

        `parameters` are all numbers that are saved, those of a closed form too; `bytes` what they take.
        """
        width, code = self.compressor.embed_dim, self.stages[-1].code_dim
        parts: dict[str, nn.Module] = {"compressor": self.compressor, "adapter": self.adapter}
        saved = {name: part.state_dict().values() for name, part in parts.items()}
        sizes = {
            name: {"parameters": sum(t.numel() for t in tensors), "bytes": sum(t.nbytes for t in tensors)}
            for name, tensors in saved.items()
        }
        return {"embed_dim": width, "code_dim": code, "ratio": width / code, **sizes}

    def fingerprint(self) -> str:
        """A hash of all that its answers depend on: weights, options, and the plugins' own source files."""
        parts = [
            [type(part).__qualname__, dump_options(part.config), source_sha256(type(part))]
            for part in self.modules()
            if isinstance(part, Component) and part.config is not None
        ]
        tensors = save({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()})
        return digest({"parts": parts, "magnitude": self.magnitude}, tensors)

    # -- saving and loading ---------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, *, model: ModelConfig, table_hash: str) -> None:
        """Write `bottleneck.safetensors` and `bottleneck.json` to `folder`.

        `model` and `table_hash` say whose embeddings it was trained on; loading refuses any others.
        """
        registry = load_plugins()
        tensors = save({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()})
        record: dict[str, Any] = {
            "schema": 1,
            "compressors": [component_record(stage, registry) for stage in self.stages],
            "adapter": component_record(self.adapter, registry),
            "magnitude": self.magnitude,
            "frozen": sorted(self.frozen),
            "embed_dim": self.compressor.embed_dim,
            "model": model.model_dump(mode="json"),
            "table_sha256": table_hash,
        }
        record["sha256"] = digest(record, tensors)
        folder = Path(folder)
        write_atomic(folder / "bottleneck.safetensors", tensors)
        write_json(folder / "bottleneck.json", record)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        table: Tensor | None = None,
        revision: str | None = None,
        magnitude: str | None = None,
        trust_remote_code: bool = False,
    ) -> "Bottleneck":
        """Load a bottleneck from a run's folder or a Hub id.

        Args:
            source: a folder holding `bottleneck.json` and `bottleneck.safetensors`, or a Hub repository.
            table: the embedding table [V, D] it will be used with. Read from the model that the
                bottleneck was trained on when it is not given.
            revision: branch, tag or commit of a Hub repository.
            magnitude: another one than it was trained with.
            trust_remote_code: the model that the table is read from may run Python code of its own.

        Raises:
            UsageError: not a bottleneck, damaged, edited, of another model, of a missing plugin, or of a
                model that needs `trust_remote_code`.
        """
        folder = Path(source)
        if not folder.is_dir():
            folder = download(str(source), ["bottleneck.json", "bottleneck.safetensors"], revision)
        record, tensors = read_checkpoint(folder)
        resolved = resolve_record(record, folder)
        if table is None:
            model = ModelConfig(**record["model"])
            if model.trust_remote_code:
                require_trust(model.name, trust_remote_code)
            model = model.model_copy(update={"trust_remote_code": trust_remote_code})
            table = load_table(locate(model, weights="table", progress=Progress()), trust_remote_code)
        if table_sha256(table) != record["table_sha256"]:
            raise UsageError(
                f"{folder} was trained on another embedding table, that of {record['model']['name']!r}.",
                "Evaluate it with the model it was trained on, or train a bottleneck for this one.",
            )
        if table.shape[1] != record["embed_dim"]:
            raise damaged(folder, f"embed_dim is {record['embed_dim']}, the table has {table.shape[1]}.")
        try:
            bottleneck = cls.build(resolved, magnitude or record["magnitude"], record["embed_dim"], seed=0)
            bottleneck.load_state_dict(tensors, strict=True)
            bottleneck.freeze(record["frozen"])
        except (RuntimeError, ConfigError) as error:
            raise damaged(folder, str(error).splitlines()[0]) from None
        if len(bottleneck.seen) not in (0, len(table)):
            raise damaged(folder, f"it knows {len(bottleneck.seen)} tokens, the table has {len(table)}.")
        bottleneck.to(table.device).receive_table(table)
        return bottleneck.requires_grad_(False).eval()


def _width(compressor: Compressor) -> int:
    width = compressor.code_dim
    sound = isinstance(width, int) and width > 0
    return expect(compressor, "code_dim", width, int, "a positive whole number", sound)


def _built(component: ResolvedComponent, width: int) -> Compressor:
    try:
        compressor: Compressor = built(component, width)
    except ConfigError as error:  # a compressor does not know whether it is the first
        raise ConfigError(
            [i._replace(path=f"{component.path}.{i.path.removeprefix('compressor.')}") for i in error.issues]
        ) from None
    return compressor


def _making(components: Sequence[Compressor | Adapter]) -> str:
    """Names and options, for people."""
    made = [{"name": part.name, **dump_options(part.config)} for part in components]
    return " → ".join(map(str, made)) or "none"
