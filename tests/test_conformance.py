"""Every built-in component on the conformance suite of its kind, as any other plugin."""

from types import new_class
from typing import Any

from stage1.plugins import PluginRecord, load_plugins
from stage1.testing import AdapterSuite, CompressorSuite, LossSuite

SUITES: dict[str, Any] = {"compressor": CompressorSuite, "adapter": AdapterSuite, "loss": LossSuite}
BUILT_IN = [
    record
    for record in load_plugins().components
    if record.distribution == "stage1" and record.cls is not None
]


def _test_class(record: PluginRecord) -> type:
    suite = SUITES[record.kind]
    title = "".join(part.title() for part in (*record.name.split("_"), record.kind))
    filled = {"__module__": __name__, "component": property(lambda self: record.cls)}
    return new_class(f"Test{title}", (suite,), exec_body=lambda body: body.update(filled))


TESTS = [_test_class(record) for record in BUILT_IN]
globals().update({test.__name__: test for test in TESTS})


def test_every_kind_has_built_ins_and_each_of_them_tests_of_its_own() -> None:
    assert {record.kind for record in BUILT_IN} == set(SUITES)
    assert len({test.__name__ for test in TESTS}) == len(BUILT_IN)
    assert all(vars(test)["__test__"] for test in TESTS)
