"""Where reconstructed vectors stand in a prompt, and how long they are."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stage1.plugins.tensors import Embedded

Reconstruct = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Packed embeddings [B, N, D] and their mask [B, N] to reconstructed ones [B, M, D] and their mask [B, M]."""


def pack(embeds: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """Each prompt's crossing positions moved together, right-padded: [B, N, D], and their mask [B, N]."""
    together = pad_sequence([row[own] for row, own in zip(embeds, cross, strict=True)], batch_first=True)
    return together, torch.arange(together.shape[1], device=cross.device) < cross.sum(1, keepdim=True)


def splice(
    prompts: Embedded,
    cross: Tensor,
    reconstruct: Reconstruct,
    *,
    packed: bool = False,
    padding: Literal["left", "right"] = "left",
) -> Embedded:
    """The prompts with their crossing positions reconstructed; the others stay as they are.

    Args:
        prompts: padded prompts [B, L, D].
        cross: [B, L] bool, the positions that cross the bottleneck.
        reconstruct: what happens to them.
        packed: for a compressor that changes the length. Each prompt's crossing positions are moved
            together (`pack`) before `reconstruct`, and its vectors, however many, take their place after the
            raw positions in front of the first crossing one. The result is padded anew.
        padding: where it then is: generation wants it on the left, training on the right.
    """
    if not packed:
        reconstructed, _ = reconstruct(prompts.embeds, cross)
        return Embedded(
            torch.where(cross[..., None], reconstructed.to(prompts.embeds.dtype), prompts.embeds),
            prompts.attention,
        )
    reconstructed, kept = reconstruct(*pack(prompts.embeds, cross))
    rows = []
    for row, attends, where, vectors, mask in zip(*prompts, cross, reconstructed, kept, strict=True):
        started = where.cumsum(0) > 0
        head, tail = row[attends & ~started], row[attends & started & ~where]
        rows.append(torch.cat([head, vectors[mask].to(row.dtype), tail]))
    lengths = torch.tensor([[len(row)] for row in rows], device=cross.device)
    embeds = pad_sequence(rows, batch_first=True, padding_side=padding)
    position = torch.arange(embeds.shape[1], device=cross.device)
    if padding == "left":
        position = position.flip(0)
    return Embedded(embeds, position < lengths)


def rms(vectors: Tensor) -> Tensor:
    """Root mean square over the last dimension, which is kept: [..., D] to [..., 1]."""
    return vectors.square().mean(-1, keepdim=True).sqrt()


def rescaled(vectors: Tensor, target: Tensor) -> Tensor:
    """`vectors` [..., D] in their directions, with the RMS `target` [..., 1] (or one for all)."""
    return vectors * (target / rms(vectors).clamp(min=1e-12))
