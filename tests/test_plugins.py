"""Plugins: found on the path like any installed package, isolated from one another, named, configured.

The plugins here are real modules with real distribution metadata in a folder on `sys.path`.
"""

from importlib.metadata import EntryPoint, distributions, version
from pathlib import Path
from textwrap import dedent

import pytest

from plugin_sites import Site, compressor, of
from stage1.errors import UsageError
from stage1.plugins import Owner, discover, load_plugins

# -- the built-in plugins -----------------------------------------------------------------------------


def test_the_built_in_plugins_load_and_are_stage1s_own() -> None:
    registry = load_plugins()
    own = of(registry, "stage1")
    assert own
    for record in own:
        assert record.status == "ok", record
        assert record.reason == ""
        assert record.version == version("stage1")
        assert record.summary
        assert "\n" not in record.summary
        assert record.owner == Owner("stage1", version("stage1"))
        if record.kind in ("compressor", "adapter", "loss"):
            assert record.cls is not None
            assert registry.owner(record.cls) == record.owner


def test_every_entry_point_of_the_package_is_accounted_for() -> None:
    [points] = [d.entry_points.select(group="stage1") for d in distributions(name="stage1")][:1]
    assert len(of(load_plugins(), "stage1")) == len(points)


def test_names_of_different_kinds_do_not_clash() -> None:
    registry = load_plugins()
    assert registry.get("compressor", "identity").__module__ == "stage1_compressors.identity"
    assert registry.get("adapter", "identity").__module__ == "stage1_adapters.identity"


# -- a third party's plugin ---------------------------------------------------------------------------


def test_a_record_says_what_it_is_and_whose(site: Site) -> None:
    site.install("Keep-Some.Dims", {"point": compressor("keep")}, release="0.3.1")
    [record] = of(site.load(), "Keep-Some.Dims")
    assert record.as_dict() == {
        "name": "keep",
        "kind": "compressor",
        "distribution": "Keep-Some.Dims",
        "version": "0.3.1",
        "summary": "Keeps something.",
        "status": "ok",
        "reason": "",
    }


@pytest.mark.parametrize(
    "name", ["keep", "keep-some-dims:keep", "Keep-Some.Dims:keep", "keep_some_dims:keep"]
)
def test_a_component_goes_by_its_name_and_by_its_qualified_name(site: Site, name: str) -> None:
    site.install("Keep-Some.Dims", {"point": compressor("keep")})
    registry = site.load()
    cls = registry.get("compressor", name)
    assert cls.__name__ == "Keep"
    assert registry.owner(cls) == ("Keep-Some.Dims", "1.2")
    assert str(registry.owner(cls)) == "Keep-Some.Dims 1.2"
    assert registry.qualified("compressor", "keep", "Keep_Some_Dims") == "keep-some-dims:keep"
    assert registry.qualified("adapter", "keep", "Keep_Some_Dims") is None


def test_a_class_that_no_plugin_registered_is_owned_by_its_module() -> None:
    assert load_plugins().owner(Path) == ("pathlib", "")


def test_stage1_comes_first_then_distributions_and_names_in_order(site: Site) -> None:
    site.install("zeta", {"b": compressor("z1"), "a": compressor("z2")})
    site.install("Alpha", {"a": compressor("a1")})
    order = [(r.distribution, r.name) for r in site.load().components]
    assert order[-3:] == [("Alpha", "a1"), ("zeta", "z2"), ("zeta", "z1")]
    assert {distribution for distribution, _ in order[:-3]} == {"stage1"}


def test_a_plugin_may_return_several_classes_and_a_bad_one_spares_the_others(site: Site) -> None:
    source = compressor("one") + dedent(
        """
        from stage1 import Adapter

        class Two(Keep):
            '''The second.'''
            name = "two"

        class Bad(Keep):
            name = "bad name"

        @hookimpl(specname="stage1_compressors")
        def more():
            return Two, Bad
        """
    )
    site.install("several", {"point": source})
    records = {(r.name, r.status): r for r in of(site.load(), "several")}
    assert set(records) == {("one", "ok"), ("two", "ok"), ("point", "failed")}
    assert records["two", "ok"].summary == "The second."
    assert "Bad.name is 'bad name'" in records["point", "failed"].reason


def test_what_a_plugin_prints_stays_out_of_standard_output(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "print('imported')\n" + compressor("loud") + "    print('called')\n"
    site.install("loud", {"point": source.replace("    return Keep", "    print('asked'); return Keep")})
    site.load()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.split() == ["imported", "asked"]


# -- names --------------------------------------------------------------------------------------------


def test_a_built_in_plugin_keeps_its_name_and_the_other_stays_reachable(site: Site) -> None:
    site.install("a-pca", {"pca": compressor("pca")})
    registry = site.load()
    assert registry.owner(registry.get("compressor", "pca")).distribution == "stage1"
    assert registry.get("compressor", "stage1:pca") is registry.get("compressor", "pca")
    assert registry.owner(registry.get("compressor", "a-pca:pca")).distribution == "a-pca"
    [record] = of(registry, "a-pca")
    assert (record.name, record.status) == ("a-pca:pca", "ok")
    assert "'pca' means the compressor of stage1" in record.reason
    assert "'a-pca:pca'" in record.reason


def test_of_two_third_parties_the_first_in_order_keeps_the_name(site: Site) -> None:
    site.install("beta", {"point": compressor("same")}, release="2.0")
    site.install("alpha", {"point": compressor("same")})
    points = [p for d in distributions() for p in d.entry_points.select(group="stage1")]
    for registry in (discover(points), discover(points[::-1])):  # whichever is found first
        assert registry.owner(registry.get("compressor", "same")).distribution == "alpha"
        assert registry.owner(registry.get("compressor", "beta:same")).distribution == "beta"
        assert "alpha 1.2" in of(registry, "beta")[0].reason
        assert "beta:same" in registry.names("compressor")


def test_entry_points_of_the_same_name_do_not_hide_each_other(site: Site) -> None:
    site.install("alpha", {"pca": compressor("first")})
    site.install("beta", {"pca": compressor("second")})
    names = site.load().names("compressor")
    assert {"pca", "first", "second"} <= set(names)


def test_two_components_of_one_package_with_one_name(site: Site) -> None:
    site.install("twice", {"a": compressor("same", cls="First"), "b": compressor("same", cls="Second")})
    registry = site.load()
    first, second = of(registry, "twice")
    assert (first.status, second.status) == ("ok", "failed")
    assert "two compressor plugins named 'same'" in second.reason
    assert registry.get("compressor", "twice:same").__name__ == "First"


def test_two_entry_points_for_one_module_or_with_one_name(site: Site) -> None:
    site.install("double", {"a": compressor("keep")})
    site.modules.add("double__other")
    (site.folder / "double__other.py").write_text(compressor("other"))
    info = next(site.folder.glob("double*.dist-info"))
    (info / "entry_points.txt").write_text(
        "[stage1]\na = double__a\na = double__other\nb = double__a\n", encoding="utf-8"
    )
    records = {(r.name, r.status): r.reason for r in of(site.load(), "double")}
    assert set(records) == {("keep", "ok"), ("a", "failed"), ("b", "failed")}
    assert "another entry point of the same name" in records["a", "failed"]
    assert "double:a has registered the same object" in records["b", "failed"]


def test_a_shadowed_installation_of_a_package_is_not_loaded_twice(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("shadow", {"point": compressor("old")})
    front = tmp_path / "front"
    front.mkdir()
    newer = Site(front)
    newer.install("shadow", {"point": compressor("new")}, release="2.0")
    monkeypatch.syspath_prepend(str(front))
    assert [(r.name, r.version) for r in of(site.load(), "shadow")] == [("new", "2.0")]


# -- asking for a name --------------------------------------------------------------------------------


def test_an_unknown_name_gets_the_nearest_and_the_choices() -> None:
    with pytest.raises(UsageError, match="Unknown compressor 'pcaa'") as caught:
        load_plugins().get("compressor", "pcaa")
    assert "'pca'?" in caught.value.remedy
    assert "identity" in caught.value.remedy
    assert "random_projection" in caught.value.remedy
    assert "cosine" not in caught.value.remedy


def test_a_name_of_another_kind_is_recognised() -> None:
    with pytest.raises(UsageError) as caught:
        load_plugins().get("compressor", "mlp")
    assert "another kind: adapter" in caught.value.remedy


@pytest.mark.parametrize("name", ["keep", "faulty:keep"])
def test_a_failed_plugins_name_tells_whose_it_is_and_why(site: Site, name: str) -> None:
    site.install("faulty", {"keep": "import no_such_module_xyz"}, release="0.9")
    with pytest.raises(UsageError) as caught:
        site.load().get("compressor", name)
    message = str(caught.value)
    assert f"{name!r} of faulty 0.9 failed to load" in message
    assert "No module named 'no_such_module_xyz'" in message
    assert "pca" in caught.value.remedy


def test_a_failed_components_own_name_is_known_too(site: Site) -> None:
    site.install("faulty", {"point": compressor("keep").replace("def forward", "def backward")})
    with pytest.raises(UsageError, match="does not define forward"):
        site.load().get("compressor", "keep")


def test_an_unknown_name_points_at_plugins_that_failed(site: Site) -> None:
    site.install("faulty", {"point": "import no_such_module_xyz"})
    with pytest.raises(UsageError, match=r"failed to load: 1; see `stage1 plugins list`"):
        site.load().get("compressor", "firstdims")


def test_an_entry_point_without_a_distribution_is_still_isolated() -> None:
    registry = discover([EntryPoint("odd", "no_such_module_xyz", "stage1")])
    [record] = registry.components
    assert (record.status, record.distribution) == ("failed", "unknown")
