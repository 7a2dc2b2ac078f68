"""From a configuration's names and options to classes and validated options, all errors at once."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ValidationError

from stage1.config import ComponentChoice, LossChoice, RunConfig
from stage1.config.messages import issues_of
from stage1.errors import ConfigError, ConfigIssue, UsageError
from stage1.plugins.faults import FaultError, guarded
from stage1.plugins.interfaces import Compressor, Loss
from stage1.plugins.registry import Kind, Registry


class ResolvedLoss(NamedTuple):
    """A term of the objective."""

    cls: type[Loss]
    config: BaseModel
    weight: float | Literal["auto"]
    ramp: int = 0  # steps over which the weight rises from zero


class ResolvedComponent(NamedTuple):
    """A compressor or the adapter."""

    path: str  # where `--set` reaches its options
    cls: type[Any]
    config: BaseModel


class Resolved(NamedTuple):
    """What a configuration's names stand for, with validated options."""

    compressors: list[ResolvedComponent]  # in the order in which the embeddings go through them
    adapter: ResolvedComponent
    losses: dict[str, ResolvedLoss]  # by the name that the configuration uses
    then_losses: dict[str, ResolvedLoss]  # the second phase's; empty where there is none


def resolve(config: RunConfig, registry: Registry) -> Resolved:
    """Look up the plugins that `config` names and check their options and how they go together.

    Raises:
        ConfigError: with every issue found, each with its path, the nearest valid name and the choices.
    """
    then = config.then.losses if config.then else {}
    parts: dict[str, tuple[Any, BaseModel]] = {}  # class and options by path
    if issues := list(_issues(config, then, registry, parts)):
        raise ConfigError(issues)

    def losses(prefix: str, choices: Mapping[str, LossChoice]) -> dict[str, ResolvedLoss]:
        return {
            name: ResolvedLoss(*parts[f"{prefix}.{name}"], choice.weight, choice.ramp)
            for name, choice in choices.items()
        }

    return Resolved(
        [ResolvedComponent(path, *parts[path]) for path in config.compressor_paths],
        ResolvedComponent("adapter", *parts["adapter"]),
        losses("losses", config.losses),
        losses("then.losses", then),
    )


def _issues(
    config: RunConfig,
    then: Mapping[str, LossChoice],
    registry: Registry,
    parts: dict[str, tuple[Any, BaseModel]],
) -> Iterator[ConfigIssue]:
    """What is wrong; what is right is put into `parts`."""
    route = list(zip(config.compressor_paths, config.compressors, strict=True))
    choices: list[tuple[Kind, str, str, dict[str, Any]]] = [
        *(("compressor", path, choice.name, choice.options) for path, choice in route),
        ("adapter", "adapter", config.adapter.name, config.adapter.options),
        *(("loss", f"losses.{name}", name, choice.options) for name, choice in config.losses.items()),
        *(("loss", f"then.losses.{name}", name, choice.options) for name, choice in then.items()),
    ]
    classes: dict[str, Any] = {}  # those with wrong options, too
    for kind, path, name, options in choices:
        try:
            cls = classes[path] = registry.get(kind, name)
            what = f"the options' check by {registry.owner(cls)} raised"
            parts[path] = cls, guarded(what, cls.Config.model_validate, options)
        except UsageError as error:
            yield ConfigIssue(path, f"{error.problem} {error.remedy}")
        except FaultError as fault:
            if isinstance(fault.__cause__, ValidationError):
                for issue in issues_of(fault.__cause__, cls.Config, path):
                    yield _of_another(issue, cls, config, registry)
            else:
                yield ConfigIssue(path, f"{fault}.")
    for name in config.log_with:
        try:
            registry.get("tracker", name)
        except UsageError as error:
            yield ConfigIssue("log_with", f"{error.problem} {error.remedy}")
    known = [(path, choice.name, classes.pop(path)) for path, choice in route if path in classes]
    yield from _order_clashes(known, registry)
    yield from _clashes(config, [(name, cls) for _, name, cls in known], classes, registry)


def _of_another(issue: ConfigIssue, cls: Any, config: RunConfig, registry: Registry) -> ConfigIssue:
    """The issue, and who knows the option if only another compressor does: `--ratio` is the first one's."""
    path, _, option = issue.path.rpartition(".")
    if option in cls.Config.model_fields:
        return issue
    known = registry.names("compressor", lambda cls: option in cls.Config.model_fields)
    for other, name in zip(config.compressor_paths, config.compressor_names, strict=True):
        if path in config.compressor_paths and other != path and name in known:
            return issue._replace(message=f"{issue.message} {name!r} has it: --set {other}.{option}=…")
    return issue


Route = Sequence[tuple[str, type[Compressor]]]
"""The chosen compressors, name and class, in the order in which the embeddings go through them."""


def _order_clashes(
    route: Sequence[tuple[str, str, type[Compressor]]], registry: Registry
) -> Iterator[ConfigIssue]:
    """What is wrong with the order of the compressors, given as path, name and class."""
    mixer = None
    for place, (path, name, cls) in enumerate(route):
        if place and cls.needs_llm:
            yield ConfigIssue(path, f"{name!r} is fitted to what the LLM makes of embeddings: put it first.")
        if mixer and cls.needs_fit:
            free = registry.names("compressor", lambda cls: not cls.needs_fit)
            yield ConfigIssue(
                path,
                f"{name!r} is fitted to each token's code, and behind {mixer!r}, which does not treat each "
                f"token alone, tokens have none. Put it before {mixer!r}, or choose one that is not fitted "
                f"({', '.join(sorted(free))}).",
            )
        mixer = mixer or (None if cls.tokenwise else name)


def _clashes(
    config: RunConfig, route: Route, others: dict[str, Any], registry: Registry
) -> Iterator[ConfigIssue]:
    """What the chosen compressors rule out; `others` are the adapter's and the losses' classes by path."""
    adapter = others.pop("adapter", None)
    mixer = next((name for name, cls in route if not cls.tokenwise), None)
    if adapter and adapter.needs_tokenwise and mixer:
        free = registry.names("adapter", lambda cls: not cls.needs_tokenwise)
        tokenwise = registry.names("compressor", lambda cls: cls.tokenwise)
        yield ConfigIssue(
            "adapter",
            f"{config.adapter.name!r} only works behind a compressor that treats each token alone, which "
            f"{mixer!r} does not. {_choose('a token-wise compressor', tokenwise, 'another adapter', free)}",
        )
    name = _length_changer(route)
    if name is None:
        return
    keep = registry.names("compressor", lambda cls: not cls.changes_length)
    unaligned = registry.names("loss", lambda cls: not cls.requires_same_length)
    for path, loss in others.items():
        if loss.requires_same_length:
            yield ConfigIssue(
                path,
                f"it compares position with position, and the compressor {name!r} changes the length. "
                f"{_choose('a compressor that keeps the length', keep, 'another loss', unaligned)}",
            )
    yield from magnitude_clash(config, route, registry)


def _length_changer(route: Route) -> str | None:
    return next((name for name, cls in route if cls.changes_length), None)


def magnitude_clash(config: RunConfig, route: Route, registry: Registry) -> Iterator[ConfigIssue]:
    """What is wrong with `config.magnitude` behind these compressors."""
    name = _length_changer(route)
    if config.magnitude == "sent" and name is not None:
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

    def spelt_out(choice: ComponentChoice, component: ResolvedComponent) -> ComponentChoice:
        return ComponentChoice(name=choice.name, **dump_options(component.config))

    pairs = zip(config.compressors, resolved.compressors, strict=True)
    then = config.then and config.then.model_copy(update={"losses": _spelt_out(resolved.then_losses)})
    return config.model_copy(
        update={
            "compressors": [spelt_out(choice, component) for choice, component in pairs],
            "adapter": spelt_out(config.adapter, resolved.adapter),
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
