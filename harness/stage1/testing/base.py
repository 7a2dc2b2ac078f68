"""What makes a conformance suite: checks that every subclass runs, and that none can weaken."""

from collections.abc import Iterator
from inspect import getattr_static
from typing import Any

TO_FILL = ("component", "options", "folder")
"""What the author of a plugin fills in; everything else of a suite stays as it is."""

MARKS = ("skip", "skipif", "xfail")
"""Pytest's marks that would let a failing check pass."""

OURS = ("__module__", "__doc__", "__dict__", "__weakref__", "__qualname__", "__annotations__", "__test__")
"""Attributes that differ from class to class."""


def expect(condition: object, message: str) -> None:
    """Fail a check with `message` unless `condition` holds; unlike `assert`, under `python -O` too."""
    __tracebackhide__ = True  # pytest then shows the check
    if not condition:
        raise AssertionError(message)


class SuiteType(type):
    """The type of all suites: refuses whatever takes a check away from one.

    A check may be lost by overriding it, by a mixin in front of the suite, by setting it to None, by
    deleting it, by a mark of pytest's, or by anything that keeps pytest from collecting the class.
    """

    frozen: dict[str, Any]
    """Name → attribute of the suite that an author's class derives from, as it was defined."""

    def __new__(
        mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], *, suite: bool = False
    ) -> "SuiteType":
        """A class; `suite` says that it is a suite itself rather than an author's subclass."""
        if not suite and not namespace.get("__test__", True):
            raise TypeError(f"{name} sets __test__ = False, which would keep its checks from running.")
        cls = super().__new__(mcs, name, bases, namespace)
        if suite:
            # pytest collects none of the suites themselves, under whatever name they are imported.
            type.__setattr__(cls, "__test__", False)
            type.__setattr__(cls, "frozen", _attributes(cls))
            return cls
        for lost in missing(cls):
            fill = " and ".join(each for each in TO_FILL if hasattr(cls, each))
            raise TypeError(
                f"{name} changes {lost}, a part of the conformance suite. Fill in {fill} only, and "
                "give checks of your own names of their own."
            )
        for base in cls.__mro__:
            _refuse_marks(name, vars(base).get("pytestmark", ()))
        # A class that names what it checks is collected whatever it is called.
        ours = [base for base in cls.__mro__ if "frozen" not in vars(base)]
        filled = any(each in vars(base) for base in ours for each in TO_FILL)
        type.__setattr__(cls, "__test__", filled or name.startswith("Test"))
        return cls

    def __init__(
        cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], *, suite: bool = False
    ) -> None:
        super().__init__(name, bases, namespace)

    def __setattr__(cls, name: str, value: Any) -> None:
        if name == "pytestmark":
            _refuse_marks(cls.__name__, value)
        elif name in cls.frozen or name == "__test__":
            raise TypeError(f"{name} is a part of the conformance suite and stays as it is.")
        super().__setattr__(name, value)

    def __delattr__(cls, name: str) -> None:
        if name in cls.frozen:
            raise TypeError(f"{name} is a part of the conformance suite and stays where it is.")
        super().__delattr__(name)


def _attributes(cls: type) -> dict[str, Any]:
    names = {name for base in cls.__mro__[:-1] for name in vars(base)} | {"__init__", "__new__"}
    return {name: getattr_static(cls, name) for name in names - {*TO_FILL, *OURS, "frozen"}}


def missing(cls: SuiteType) -> Iterator[str]:
    """Names of what `cls` no longer has as its suite defined it."""
    for name, attribute in cls.frozen.items():
        found = getattr_static(cls, name, None)
        if found is not attribute or hasattr(found, "pytestmark"):
            yield name


def _refuse_marks(name: str, marks: Any) -> None:
    for mark in marks if isinstance(marks, list | tuple) else [marks]:
        if getattr(mark, "name", None) in MARKS:
            raise TypeError(f"{name} is marked {mark.name}, which would let its checks fail unseen.")


class Suite(metaclass=SuiteType, suite=True):
    """The base of the suites."""

    def test_suite_is_whole(self) -> None:
        """Every check is there, as the suite defines it."""
        lost = sorted(missing(type(self)))
        expect(not lost, f"the suite was changed after it was defined: {', '.join(lost)}; remove that change")

    @classmethod
    def checks(cls) -> list[str]:
        """The names of the suite's checks and the author's own, in their order of definition."""
        found = [name for base in reversed(cls.__mro__) for name in vars(base) if name.startswith("test_")]
        return list(dict.fromkeys(found))
