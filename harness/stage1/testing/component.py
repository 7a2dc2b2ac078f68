"""Checks that hold for compressors, adapters and losses alike."""

from collections.abc import Iterator
from typing import Any
from unittest import SkipTest

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from stage1.config.messages import issues_of
from stage1.plugins import dump_options
from stage1.plugins.interfaces import Component
from stage1.plugins.tensors import Code, Embedded
from stage1.testing.base import Suite, expect
from stage1.testing.sample import PADDINGS, make_batch, make_sample, poisoned, same

SEED = 5
"""Of the run that the suites imitate."""


class ComponentSuite(Suite):
    """The checks that the three families share."""

    @property
    def component(self) -> Any:
        """The class under test: the one thing to fill in."""
        raise NotImplementedError(f"define component in {type(self).__name__}: the class under test")

    @property
    def options(self) -> dict[str, Any]:
        """The options to build it with, by name; the defaults where nothing is said."""
        return {}

    # -- what each suite fills in --------------------------------------------------------------------------

    def _fitted(self, seed: int = SEED) -> Any:
        """A component as the core prepares it under a run's seed, in evaluation mode."""
        raise NotImplementedError

    def _results(self, made: Any, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """What it returns for the sample, on a device and in a type."""
        raise NotImplementedError

    def _build(self, *arguments: Any, seed: int = SEED) -> Any:
        """A component as the core builds it: under the seed, on the CPU."""
        config = self.component.Config.model_validate(self.options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.component(config, *arguments)

    # -- options -------------------------------------------------------------------------------------------

    def test_options_are_checked(self) -> None:
        """An unknown option is refused, and what is written to a run's folder can be read back."""
        config = self.component.Config
        expect(
            isinstance(config, type) and issubclass(config, BaseModel),
            "Config is not a pydantic model; derive it from stage1.ComponentConfig",
        )
        try:
            config.model_validate({**self.options, "no_such_option": 1})
        except ValidationError as error:
            kinds = {problem["type"] for problem in error.errors() if problem["loc"] != ("no_such_option",)}
            expect(
                not kinds,
                f"these options are not valid: {'; '.join(map(str, issues_of(error, config)))} Give those "
                "that have no default in `options`",
            )
        else:
            expect(False, "an unknown option is accepted; derive Config from stage1.ComponentConfig")
        options = config.model_validate(self.options)
        dumped = dump_options(options)
        expect(
            config.model_validate(dumped) == options,
            f"the options do not survive being saved: {dumped} is read back as something else",
        )

    def test_options_are_documented(self) -> None:
        """`stage1 plugins show` and editors can say what each option means."""
        schema = self.component.Config.model_json_schema()
        for name, option in schema.get("properties", {}).items():
            expect(
                option.get("description"),
                f"the option {name!r} has no description; write Field(…, description=…), with its unit",
            )
        taken = {"name", "weight"} & set(schema.get("properties", {}))
        expect(not taken, f"{taken} is what stage1's own configuration calls something; rename that option")
        expect(
            self.component.__doc__, "the class has no docstring; `stage1 plugins list` shows its first line"
        )

    # -- reproducibility -----------------------------------------------------------------------------------

    def test_determinism(self) -> None:
        """The run's seed decides everything: built, fitted and called twice, the same comes out."""
        with torch.random.fork_rng(devices=[]):
            made = []
            for state in (1, 2):
                torch.manual_seed(state)  # whatever was drawn before must not matter
                made.append(self._fitted())
            one, two = (part.state_dict() for part in made)
            for name, value in one.items():
                expect(
                    name in two and torch.equal(value, two[name]),
                    f"{name} differs between two runs with one seed; draw random numbers from torch's "
                    "default generator, which the harness seeds, or from one of your own with a fixed seed",
                )
            first, again = self._results(made[0]), self._results(made[0])
            expect(
                _equal(first, again),
                "forward gives another result each time in evaluation mode; leave randomness to training "
                "(`if self.training`)",
            )
            expect(
                _equal(first, self._results(made[1])),
                "two components of one seed give different results; something that forward reads was drawn "
                "from another source of randomness than torch's default generator",
            )

    # -- state, devices, types -----------------------------------------------------------------------------

    def test_tensors_are_registered(self) -> None:
        """Every tensor is a parameter or a buffer: others stay behind on `.to(device)` and when saving."""
        for path, module in self._fitted().named_modules():
            for name, value in vars(module).items():
                if name in ("_parameters", "_buffers", "_modules"):
                    continue
                expect(
                    not list(_tensors(value)),
                    f"{'.'.join(filter(None, [path, name]))} holds a tensor that is neither a parameter nor "
                    "a buffer; use self.register_buffer(name, tensor)",
                )

    def test_device_moves(self) -> None:
        """`.to(device)` is enough: forward makes what it needs where its input is.

        Without a GPU, on torch's meta device, which has shapes but no values.
        """
        made = self._fitted()
        device = "cuda" if torch.cuda.is_available() else "meta"
        try:
            results = self._results(made.to(device), device)
        except (NotImplementedError, RuntimeError) as error:
            if device == "meta" and " device" not in str(error):
                raise SkipTest("what forward does depends on values, and this machine has no GPU") from None
            raise AssertionError(
                f"after .to({device!r}), forward fails: {error}; make new tensors with device=…"
            ) from error
        for result in results:
            expect(
                result.device.type == device,
                f"after .to({device!r}), forward returns a tensor on {result.device}; make new tensors "
                "with device=…",
            )

    def test_bf16(self) -> None:
        """In bfloat16 it still works."""
        made = self._fitted().to(torch.bfloat16)
        try:
            results = self._results(made, dtype=torch.bfloat16)
        except RuntimeError as error:
            raise AssertionError(
                f"in bfloat16, forward fails: {error}; convert with .to(vectors.dtype), and to float32 only "
                "inside"
            ) from error
        first = results[0]
        expect(
            first.dtype == torch.bfloat16 or not first.dim(),
            f"bfloat16 in, {first.dtype} out; return vectors in the type of those that came in",
        )
        for result in results:
            expect(bool(result.isfinite().all()), "in bfloat16, forward returns infinite values or NaN")

    def _expect_gradients(self, made: nn.Module, value: Tensor) -> None:
        """Every trainable parameter gets a gradient from `value`."""
        made.zero_grad()  # of a `fit` that trains
        value.backward()  # type: ignore[no-untyped-call]
        for name, parameter in made.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:
                raise AssertionError(
                    f"no gradient reaches {name}; use it in forward without .detach(), or freeze it "
                    "(requires_grad_(False), in __init__ or fit)"
                )
            expect(bool(parameter.grad.isfinite().all()), f"the gradient of {name} is infinite or NaN")
            expect(
                parameter.grad.any(), f"the gradient of {name} is zero everywhere; it would never be trained"
            )


class VectorSuite(ComponentSuite):
    """The checks that compressors and adapters share: what the vectors that come out may depend on."""

    def _given(self, made: Any, prompts: Embedded) -> Code:
        """What goes into it: `prompts` themselves, or their code."""
        raise NotImplementedError

    def _out(self, made: Any, given: Code) -> Code:
        """What comes out, and which of it counts; without gradient."""
        raise NotImplementedError

    def _results(self, made: Any, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Tensor]:
        given = self._given(made, make_batch())
        return list(self._out(made, Code(given.vectors.to(device, dtype), given.mask.to(device))))

    def test_tokenwise_promise(self) -> None:
        """A vector depends on its own token alone: not on other tokens, and not on its place."""
        made = self._fitted()
        if not made.tokenwise:
            raise SkipTest("it does not promise to treat each token alone")
        rows, mask = make_sample().table[:60], torch.ones(5, 12, dtype=torch.bool)
        given = self._given(made, Embedded(rows.view(5, 12, -1), mask))
        vectors = self._out(made, given).vectors
        others = torch.where((torch.arange(12) % 3 > 0)[:, None], given.vectors.flip(0, 1), given.vectors)
        expect(
            same(self._out(made, given._replace(vectors=others)).vectors[:, ::3], vectors[:, ::3]),
            "a vector changes when other tokens do; set tokenwise = False, or treat each token alone",
        )
        for shape in ((1, 60), (60, 1)):
            turned = given.vectors.flatten(0, 1).flip(0).view(*shape, -1)
            again = self._out(made, Code(turned, torch.ones(shape, dtype=torch.bool))).vectors
            expect(
                same(again.flatten(0, 1).flip(0), vectors.flatten(0, 1)),
                "a token's vector changes with its place in prompt or batch; set tokenwise = False",
            )

    def test_padding_invariance(self) -> None:
        """What stands in positions that do not cross reaches nothing that comes out."""
        made = self._fitted()
        for padding in PADDINGS:
            given = self._given(made, make_batch(padding=padding))
            clean = self._out(made, given)
            dirty = self._out(made, given._replace(vectors=poisoned(given.vectors, given.mask)))
            expect(
                torch.equal(clean.mask, dirty.mask)
                and same(dirty.vectors[dirty.mask], clean.vectors[clean.mask])
                and same(dirty.bits[dirty.mask], clean.bits[clean.mask]),
                "what comes out changes with what stands in padded positions; use the mask",
            )

    def test_batch_invariance(self) -> None:
        """A prompt comes out the same alone and in a batch with longer ones."""
        made = self._fitted()
        for padding in PADDINGS:
            given = self._given(made, make_batch(padding=padding))
            together = self._out(made, given)
            for row, sent in enumerate(given.mask):
                alone = self._out(made, Code(given.vectors[row][sent][None], sent[sent][None]))
                expect(
                    same(together.vectors[row][together.mask[row]], alone.vectors[alone.mask]),
                    f"a prompt comes out differently in a batch ({padding}-padded) than alone; compute "
                    "nothing across the batch, and count positions with the mask",
                )


def trainable(made: Component) -> list[nn.Parameter]:
    """The parameters that the optimiser gets, moved off any special start such as a zero last layer."""
    generator = torch.Generator().manual_seed(0)
    parameters = [parameter for parameter in made.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in parameters:
            step = 0.1 * float(parameter.abs().mean()) + 1e-2
            parameter.add_(step * torch.randn(parameter.shape, generator=generator))
    return parameters


def _equal(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) and all(map(torch.equal, one, two))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors in a value, and in the containers it consists of."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from _tensors(part)
