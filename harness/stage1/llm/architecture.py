"""The parts of a causal language model, whatever its family calls them: decoder, layers, head, embeddings.

Nothing here knows a family by name. The decoder is the smallest module that holds the input embeddings and,
side by side, as many layers as the configuration says; the head is everything that the model's own forward
pass does to the decoder's last states, the scaling or capping of its logits included.
"""

import copy
from inspect import signature
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from stage1.errors import UsageError


class Decoder(NamedTuple):
    """The part of a model that turns embeddings into last states."""

    path: str  # of the module within the model, dotted
    module: nn.Module
    list_name: str  # what the module calls its layers

    @property
    def layers(self) -> nn.ModuleList:
        """The layers, the first one first."""
        return cast(nn.ModuleList, getattr(self.module, self.list_name))

    def run(self, embeds: Tensor, attention: Tensor, behind: Any = None) -> Tensor:
        """Last states [B, L, D] on `embeds` [B, L, D].

        `attention` [B, P + L] (bool) tells padding; P is the length of what the cache `behind` holds of each
        row, which it will hold of these, too.
        """
        states: Tensor = self._run(embeds, attention, behind)[0]
        return states

    def read(self, embeds: Tensor) -> Any:
        """The cache of keys and values behind `embeds` [B, L, D], None if the model has none."""
        out = self._run(embeds, torch.ones_like(embeds[..., 0], dtype=torch.bool), None, use_cache=True)
        return getattr(out, cache_name(self.module), None)

    def _run(self, embeds: Tensor, attention: Tensor, behind: Any, *, use_cache: bool = False) -> Any:
        wanted = {
            "attention_mask": attention.long(),
            "position_ids": (attention.long().cumsum(1) - 1).clamp(min=0)[:, -embeds.shape[1] :],
            "use_cache": use_cache or behind is not None,
            cache_name(self.module): behind,
        }
        taken = signature(self.module.forward).parameters  # some count positions from the mask themselves
        options = {name: value for name, value in wanted.items() if name in taken}
        return self.module(inputs_embeds=embeds, **options)

    def first(self, depth: int) -> "Decoder":
        """The decoder cut off after its first `depth` layers; the layers themselves are shared."""
        short: Any = _shallow(self.module)
        setattr(short, self.list_name, nn.ModuleList(self.layers[:depth]))
        short.config = copy.copy(short.config)
        short.config.num_hidden_layers = depth
        return self._replace(module=short)


def find_decoder(model: PreTrainedModel) -> Decoder:
    """The decoder of `model`.

    Raises:
        UsageError: it has none that can be told from its parts.
    """
    depth = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    embedding = model.get_input_embeddings()
    found = [
        Decoder(path, module, name)
        for path, module in model.named_modules()
        for name, part in module.named_children()
        if isinstance(part, nn.ModuleList) and len(part) == depth and embedding in set(module.modules())
    ]
    innermost = [decoder for decoder in found if decoder.path == found[-1].path]  # each holds the next one
    if len(innermost) != 1 or not isinstance(innermost[0].module, PreTrainedModel):
        raise UsageError(
            f"{type(model).__name__} is not built of embeddings and a row of layers.",
            "Use a decoder-only model: Llama, Qwen, Gemma, GPT-2 and their like.",
        )
    return innermost[0]


def _shallow(module: nn.Module) -> nn.Module:
    """A copy of `module` whose parts can be replaced without touching the original's."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def cache_name(module: nn.Module) -> str:
    """What the module calls the cache of keys and values; transformers renamed it during version 5."""
    return "cache" if "cache" in signature(module.forward).parameters else "past_key_values"


def repeated(cache: Any, rows: int) -> Any:
    """A new cache with `rows` rows, each of them the only one of `cache`."""
    copied = copy.deepcopy(cache)
    copied.batch_repeat_interleave(rows)
    return copied


# -- the head ----------------------------------------------------------------------------------------------


class Head(nn.Module):
    """Last states [N, D] to the model's own logits [N, V].

    The model's forward pass is run with its decoder replaced by one that returns what it is given, so that
    factors and caps on the logits (Granite, Cohere, Gemma 2) are where they belong.
    """

    def __init__(self, model: PreTrainedModel, decoder: Decoder) -> None:
        super().__init__()
        self.model = cast(Any, _with_part(model, decoder.path, _Passing(decoder.module)))

    def forward(self, states: Tensor) -> Tensor:
        """Logits [N, V] of `states` [N, D]."""
        logits: Tensor = self.model(inputs_embeds=states[None]).logits
        return logits[0]


class _Given(BaseModelOutputWithPast):
    """What a decoder returned, of which the last states alone are known."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Passing(nn.Module):
    """In place of a decoder: what comes in as embeddings goes out as last states."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self._original = (original,)  # no part of this module: its attributes are read, nothing else

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _Given:
        return _Given(last_hidden_state=cast(torch.FloatTensor, inputs_embeds))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._original[0], name)


def _with_part(module: nn.Module, path: str, part: nn.Module) -> nn.Module:
    """`module` with `part` at `path`; what lies around it is copied, all else is shared."""
    twin = _shallow(module)
    name, _, rest = path.partition(".")
    twin._modules[name] = _with_part(getattr(module, name), rest, part) if rest else part
    return twin


# -- embeddings --------------------------------------------------------------------------------------------


class _ReachedError(Exception):
    """Ends a forward pass at the first layer."""


@torch.no_grad()
def align_embeddings(model: PreTrainedModel) -> None:
    """Make `inputs_embeds` mean what `get_input_embeddings()` returns.

    In most models it does. Some multiply what they look up on their way from token ids, and would not
    multiply embeddings that are given to them (MiniCPM, Falcon-H1): a hook makes up for it.

    Raises:
        UsageError: the model cannot continue embeddings, or its first layer receives something else for
            them than for their ids.
    """
    name, prepare = type(model).__name__, cast(Any, model).prepare_inputs_for_generation
    if "inputs_embeds" not in signature(prepare).parameters:
        raise UsageError(f"{name} cannot continue given embeddings.", "Use a model of the Llama family.")
    decoder = find_decoder(model)
    device = next(model.parameters()).device
    ids = torch.arange(4, device=device)[None] + min(100, model.config.get_text_config().vocab_size // 2)

    def by_embeds() -> Tensor:
        return _at_first_layer(model, decoder, inputs_embeds=model.get_input_embeddings()(ids))

    goal, found = _at_first_layer(model, decoder, input_ids=ids), by_embeds()
    if torch.equal(goal, found):
        return
    ratio = float((goal.float() / found.float()).nanmedian())
    for factor in _numbers_near(ratio, model.config.get_text_config().to_dict()):
        hook = decoder.module.register_forward_pre_hook(_multiplied(factor), with_kwargs=True)
        if torch.equal(goal, by_embeds()):
            return
        hook.remove()
    raise UsageError(
        f"{name} changes what it looks up on the way to its first layer, in an unknown way.",
        "Use a model of the Llama family.",
    )


def _at_first_layer(model: Any, decoder: Decoder, **given: Tensor) -> Tensor:
    """What the first layer receives when the model is called with `given`."""
    received: list[Tensor] = []

    def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        received.append((args[0] if args else kwargs["hidden_states"]).clone())
        raise _ReachedError

    hook = decoder.layers[0].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**given, use_cache=False)
    except _ReachedError:
        pass
    finally:
        hook.remove()
    return received[0]


def _numbers_near(ratio: float, settings: dict[str, Any]) -> list[float]:
    """The configuration's numbers within 1 % of `ratio`, nearest first."""
    numbers = {float(value) for value in settings.values() if isinstance(value, int | float)}
    return sorted(
        (number for number in numbers if abs(number - ratio) <= 0.01 * abs(ratio)),
        key=lambda number: abs(number - ratio),
    )


def _multiplied(factor: float) -> Any:
    def multiply(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("inputs_embeds") is not None:
            kwargs = {**kwargs, "inputs_embeds": kwargs["inputs_embeds"] * factor}
        return args, kwargs

    return multiply
