"""Every built-in component on the conformance suite of its kind, as any other plugin."""

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
    return type(f"Test{title}", (suite,), {"__module__": __name__, "component": record.cls})


TESTS = [_test_class(record) for record in BUILT_IN]
globals().update({test.__name__: test for test in TESTS})


def test_every_kind_has_built_ins_and_each_of_them_tests_of_its_own() -> None:
    assert {record.kind for record in BUILT_IN} == set(SUITES)
    assert len({test.__name__ for test in TESTS}) == len(BUILT_IN)
