"""What all conformance suites share."""


def expect(condition: object, message: str) -> None:
    """Fail a check with `message` unless `condition` holds; unlike `assert`, under `python -O` too."""
    __tracebackhide__ = True  # pytest then shows the check
    if not condition:
        raise AssertionError(message)


class Suite:
    """The base of the suites: every method test_… is a check."""

    @classmethod
    def checks(cls) -> list[str]:
        """The names of the suite's checks and the author's own, in their order of definition."""
        found = [name for base in reversed(cls.__mro__) for name in vars(base) if name.startswith("test_")]
        return list(dict.fromkeys(found))
