"""From a configuration's names and options to classes and validated options, all errors at once."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ValidationError

from stage1.config import ComponentChoice, LossChoice, RunConfig
from stage1.errors import ConfigError, ConfigIssue, UsageError
from stage1.interfaces import Adapter, Compressor, Loss
from stage1.issues import issues_of
from stage1.plugins.faults import FaultError, guarded
from stage1.plugins.registry import Kind, Registry


class ResolvedLoss(NamedTuple):
    """A term of the objective."""

    cls: type[Loss]
    config: BaseModel
    weight: float | Literal["auto"]
    ramp: int = 0  # steps over which the weight rises from zero


class Resolved(NamedTuple):
    """What a configuration's names stand for, with validated options."""

    compressor_cls: type[Compressor]
    compressor_config: BaseModel
    adapter_cls: type[Adapter]
    adapter_config: BaseModel
    losses: dict[str, ResolvedLoss]  # by the name that the configuration uses
    then_losses: dict[str, ResolvedLoss]  # the second phase's; empty where there is none


def resolve(config: RunConfig, registry: Registry) -> Resolved:
    """Look up the plugins that `config` names and check their options and how they go together.

    Raises:
        ConfigError: with every issue found, each with its path, the nearest valid name and the choices.
    """
    if issues := list(_issues(config, registry)):
        raise ConfigError(issues)
    compressor = registry.get("compressor", config.compressor.name)
    adapter = registry.get("adapter", config.adapter.name)
    return Resolved(
        compressor,
        compressor.Config.model_validate(config.compressor.options),
        adapter,
        adapter.Config.model_validate(config.adapter.options),
        _losses(config.losses, registry),
        _losses(config.then.losses if config.then else {}, registry),
    )


def _losses(choices: Mapping[str, LossChoice], registry: Registry) -> dict[str, ResolvedLoss]:
    resolved = {}
    for name, choice in choices.items():
        loss = registry.get("loss", name)
        options = loss.Config.model_validate(choice.options)
        resolved[name] = ResolvedLoss(loss, options, choice.weight, choice.ramp)
    return resolved


def _issues(config: RunConfig, registry: Registry) -> Iterator[ConfigIssue]:
    then = config.then.losses if config.then else {}
    choices: list[tuple[Kind, str, str, dict[str, Any]]] = [
        ("compressor", "compressor", config.compressor.name, config.compressor.options),
        ("adapter", "adapter", config.adapter.name, config.adapter.options),
        *(("loss", f"losses.{name}", name, choice.options) for name, choice in config.losses.items()),
        *(("loss", f"then.losses.{name}", name, choice.options) for name, choice in then.items()),
    ]
    classes: dict[str, Any] = {}
    for kind, path, name, options in choices:
        try:
            cls = classes[path] = registry.get(kind, name)
            guarded(f"the options' check by {registry.owner(cls)} raised", cls.Config.model_validate, options)
        except UsageError as error:
            yield ConfigIssue(path, f"{error.problem} {error.remedy}")
        except FaultError as fault:
            if isinstance(fault.__cause__, ValidationError):
                yield from issues_of(fault.__cause__, cls.Config, path)
            else:
                yield ConfigIssue(path, f"{fault}.")
    if compressor := classes.pop("compressor", None):
        yield from _clashes(config, compressor, classes, registry)


def _clashes(
    config: RunConfig, compressor: type[Compressor], others: dict[str, Any], registry: Registry
) -> Iterator[ConfigIssue]:
    """What the chosen compressor rules out; `others` are the adapter's and the losses' classes by path."""
    name = config.compressor.name
    adapter = others.pop("adapter", None)
    if adapter and adapter.needs_tokenwise and not compressor.tokenwise:
        free = registry.names("adapter", lambda cls: not cls.needs_tokenwise)
        tokenwise = registry.names("compressor", lambda cls: cls.tokenwise)
        yield ConfigIssue(
            "adapter",
            f"{config.adapter.name!r} only works behind a compressor that treats each token alone, which "
            f"{name!r} does not. {_choose('a token-wise compressor', tokenwise, 'another adapter', free)}",
        )
    if not compressor.changes_length:
        return
    keep = registry.names("compressor", lambda cls: not cls.changes_length)
    unaligned = registry.names("loss", lambda cls: not cls.aligned)
    for path, loss in others.items():
        if loss.aligned:
            yield ConfigIssue(
                path,
                f"it compares position with position, and the compressor {name!r} changes the length. "
                f"{_choose('a compressor that keeps the length', keep, 'another loss', unaligned)}",
            )
    yield from magnitude_clash(config, compressor, registry)


def magnitude_clash(
    config: RunConfig, compressor: type[Compressor], registry: Registry
) -> Iterator[ConfigIssue]:
    """What is wrong with `config.magnitude` behind this compressor."""
    if config.magnitude == "sent" and compressor.changes_length:
        name = config.compressor.name
        keep = registry.names("compressor", lambda cls: not cls.changes_length)
        yield ConfigIssue(
            "magnitude",
            f"'sent' transmits the RMS at each position, and the compressor {name!r} changes the length. "
            f"{_choose('a compressor that keeps the length', keep, 'a magnitude', ['free', 'vocab'])}",
        )


def _choose(first: str, names: list[str], second: str, others: list[str]) -> str:
    offers = [
        f"{what} ({', '.join(sorted(some))})" for what, some in ((first, names), (second, others)) if some
    ]
    return f"Choose {' or '.join(offers)}." if offers else "No installed plugin goes with it."


def fully_resolved(config: RunConfig, resolved: Resolved) -> RunConfig:
    """`config` with every option of its plugins spelt out, the defaults too."""
    compressor = dump_options(resolved.compressor_config)
    adapter = dump_options(resolved.adapter_config)
    then = config.then and config.then.model_copy(update={"losses": _spelt_out(resolved.then_losses)})
    return config.model_copy(
        update={
            "compressor": ComponentChoice(name=config.compressor.name, **compressor),
            "adapter": ComponentChoice(name=config.adapter.name, **adapter),
            "losses": _spelt_out(resolved.losses),
            "then": then,
        }
    )


def _spelt_out(losses: Mapping[str, ResolvedLoss]) -> dict[str, LossChoice]:
    return {
        name: LossChoice(weight=loss.weight, ramp=loss.ramp, **dump_options(loss.config))
        for name, loss in losses.items()
    }


def dump_options(options: BaseModel) -> dict[str, Any]:
    """Every option as JSON takes it and validation takes it back: by alias, without computed fields."""
    return options.model_dump(mode="json", by_alias=True, include=set(type(options).model_fields))
