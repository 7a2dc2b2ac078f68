"""The frozen LLM as the losses read it: states from embeddings, as deep as anyone looks."""

import warnings
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stage1.errors import ConfigError, ConfigIssue
from stage1.llm.architecture import Head, find_decoder, repeated
from stage1.plugins.tensors import Answers, Embedded, States


class FrozenLLM:
    """Embedded prompts in, states out; gradients pass through to the embeddings, never into the weights.

    Args:
        model: the LLM, frozen (`load_llm`); it runs in its own type, whatever the embeddings' is.
        layers: layers (1 is the first) whose outputs are wanted.
        last: whether the last states are; without them the model is run to the deepest layer only.
        checkpointing: compute the layers' activations again in the backward pass instead of keeping them.

    Attributes:
        head: last states [N, D] to the model's own logits [N, V].
        shared: tokens in front of every prompt that `share` has run through the LLM, 0 without.

    Raises:
        ConfigError: a layer that the model does not have.
        UsageError: a model whose parts cannot be told apart.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        layers: Collection[int] = (),
        last: bool = True,
        checkpointing: bool = False,
    ) -> None:
        self.model = cast(Any, model)
        self.layers, self.last = sorted(layers), last
        decoder = find_decoder(model)
        self.head = Head(model, decoder)
        depth = len(decoder.layers)
        if wrong := [layer for layer in self.layers if not 1 <= layer <= depth]:
            message = f"the model has no layer {wrong[0]}; choose from 1 to {depth}."
            raise ConfigError([ConfigIssue("losses", message)])
        self._decoder = decoder if last else decoder.first(self.layers[-1])
        self.shared, self._cache = 0, None
        self.checkpointing = checkpointing
        if checkpointing:
            with warnings.catch_warnings():
                # The method was renamed during transformers 5; its early versions know this name only.
                warnings.simplefilter("ignore", FutureWarning)
                self.model.gradient_checkpointing_enable({"use_reentrant": False})

    @torch.no_grad()
    def share(self, embeds: Tensor) -> None:
        """Run `embeds` [P, D], what all prompts begin with, through the LLM once; calls go on from there.

        Without any, with a model that keeps no keys and values, or where activations are computed again,
        which goes without them, there is nothing to go on from.
        """
        read = len(embeds) > 0 and not self.checkpointing
        self._cache = self._decoder.read(embeds[None].to(self.model.dtype)) if read else None
        self.shared = 0 if self._cache is None else len(embeds)

    def __call__(self, prompts: Embedded, answers: Answers | None = None) -> States:
        """The states on `prompts` [B, M, D], each followed directly by its `answers` [B, A, D].

        Whatever the padding was, it is moved to the end. So no query row is masked whole, which some
        attention kernels answer with NaN, and causality alone keeps padding out: nothing is masked.
        """
        embeds, there = prompts.embeds, prompts.attention
        if answers is not None:
            embeds = torch.cat([embeds, answers.embeds.to(embeds.dtype)], dim=1)
            there = torch.cat([there, answers.mask], dim=1)
        order = (~there).long().argsort(dim=1, stable=True)  # [B, M + A]
        embeds = torch.take_along_dim(embeds, order[..., None], dim=1)
        with self._recorded() as recorded, self._checkpointed():
            everything = there.new_ones(len(there), self.shared + there.shape[1])
            behind = None if self._cache is None else repeated(self._cache, len(there))
            last = self._decoder.run(embeds.to(self.model.dtype), everything, behind)
        length = prompts.embeds.shape[1]
        return States(
            last if self.last else None,
            {layer: states[:, :length] for layer, states in recorded.items()},
            prompts.attention.sum(1),
            0 if answers is None else answers.ids.shape[1],
        )

    @contextmanager
    def _recorded(self) -> Iterator[dict[int, Tensor]]:
        found: dict[int, Tensor] = {}

        def keep(layer: int) -> Any:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                found[layer] = output[0] if isinstance(output, tuple) else output

            return hook

        with ExitStack() as hooks:
            for layer in self.layers:
                handle = self._decoder.layers[layer - 1].register_forward_hook(keep(layer))
                hooks.callback(handle.remove)
            yield found

    @contextmanager
    def _checkpointed(self) -> Iterator[None]:
        # Layers checkpoint in training mode only (their parts, dropout among them, stay out of it). It ends
        # with the pass: in this mode they refuse the cache that the same model needs to generate.
        layers = self._decoder.layers if self.checkpointing else ()
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    def assert_frozen(self) -> None:
        """Raise AssertionError if a weight of the LLM asks for, or has got, a gradient."""
        for name, weight in self.model.named_parameters():
            if weight.requires_grad or weight.grad is not None:
                raise AssertionError(f"a gradient reached {name} of the frozen LLM")
