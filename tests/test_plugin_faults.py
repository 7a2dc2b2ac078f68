"""What is wrong with a plugin is caught, attributed to its package and shown; everything else goes on.

The plugins here are real modules with real distribution metadata in a folder on `sys.path`.
"""

import pytest

from plugin_sites import HOOK, Site, compressor, of

FAULTS = {
    "missing dependency": ("import no_such_module_xyz", "No module named 'no_such_module_xyz'"),
    "raises": ("raise ValueError('two\\nlines')", "the import failed: ValueError: two lines"),
    "exits": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "own BaseException": ("class E(BaseException): pass\nraise E('no')", "E: no"),
    "unprintable": (
        "class E(Exception):\n    def __str__(self): raise ValueError\nraise E()",
        "exception str() failed",
    ),
    "endless recursion": ("def f(): f()\nf()", "RecursionError"),
    "no hook": ("def stage1_compressors(): pass", "marks no function with @stage1.hookimpl"),
    "misspelt hook": (
        HOOK + "def stage1_compressor(): pass",
        "'stage1_compressor', which is not a hook. Did you mean 'stage1_compressors'? Choices:",
    ),
    "wrong argument": (HOOK + "def stage1_step(run, stepp): pass", "stepp"),
    "misspelt argument with a default": (
        HOOK + "def stage1_step(run, stepp=0): pass",
        "takes 'stepp=0'; it may take any of run, step, metrics, each without * or a default",
    ),
    "default that hides the fact": (HOOK + "def stage1_step(step=0): pass", "takes 'step=0'"),
    "all arguments": (HOOK + "def stage1_step(**facts): pass", "takes '**facts'"),
    "default of a hook without arguments": (
        HOOK + "def stage1_losses(kind='l1'): pass",
        "takes \"kind='l1'\"; it may take no arguments",
    ),
    "wrapper": (HOOK.replace("impl\n", "impl(wrapper=True)\n") + "def stage1_losses(): yield", "wrapper"),
    "hook raises": (HOOK + "def stage1_losses(): return 1 / 0", "stage1_losses raised: ZeroDivisionError"),
    "hook returns nothing": (HOOK + "def stage1_losses(): pass", "returned None, which is not a subclass"),
    "hook returns an empty list": (HOOK + "def stage1_losses(): return []", "empty list"),
    "hook returns a list that is none": (
        "class L(list):\n    def __iter__(self): raise ValueError('no')\n"
        + HOOK
        + "def stage1_losses(): return L([1])",
        "ValueError: no",
    ),
    "unreadable documentation": (
        "import sys, types\nclass M(types.ModuleType):\n"
        "    @property\n    def __doc__(self): raise ValueError('no')\n"
        "sys.modules[__name__].__class__ = M\ndel __doc__\n" + HOOK + "def stage1_step(): pass",
        "it cannot be inspected: ValueError: no",
    ),
    "another family": (
        compressor("x").replace("def stage1_compressors", "def stage1_adapters"),
        "not a subclass of stage1.Adapter",
    ),
    "an instance": (
        compressor("x").replace("return Keep", "return Keep(Keep.Config(), 8)"),
        "not a subclass of stage1.Compressor",
    ),
    "no name": (compressor("x").replace("name =", "names ="), "Keep.name is None"),
    "name with a colon": (compressor("a:b"), "Keep.name is 'a:b'"),
    "no forward": (compressor("x").replace("def forward", "def backward"), "does not define forward"),
    "length and token-wise": (compressor("x", body="changes_length = True"), "needs tokenwise = False"),
    "no Config": (compressor("x", body="Config = dict"), "Config is not a pydantic model"),
    "lax Config": (
        compressor("x", body="from pydantic import BaseModel as Config"),
        "lets unknown options pass",
    ),
    "unreadable schema": (
        compressor("x", body="class Config(SizeConfig):\n    f: type(print) = print").replace(
            "class Config(SizeConfig):", "class Config(SizeConfig, arbitrary_types_allowed=True):"
        ),
        "has no JSON schema",
    ),
    "reserved option": (
        compressor("x", body="class Config(SizeConfig):\n    name: str = ''"),
        "option 'name', a name that stage1 uses itself",
    ),
    "reserved option of a model that contains itself": (
        compressor(
            "x", body="class Config(SizeConfig):\n    name: str = ''\n    more: list['Config'] = []"
        ).replace(
            "@hookimpl", "Keep.Config.model_rebuild(_types_namespace={'Config': Keep.Config})\n\n@hookimpl"
        ),
        "option 'name', a name that stage1 uses itself",
    ),
    "terminal codes": ("raise ValueError('\\x1b[2J\\u202e')", r"ValueError: \u001b[2J\u202e"),
    "tasks are a text": (
        HOOK + "def stage1_tasks(): return 'tasks'",
        "'tasks', which is not an absolute path",
    ),
    "tasks are elsewhere": (
        "from pathlib import Path\n" + HOOK + "def stage1_tasks(): return [Path('/no/such/folder')]",
        "not an absolute path of an existing folder",
    ),
    "no command": (HOOK + "def stage1_commands(app): pass", "stage1_commands added no command"),
    "a callback": (
        HOOK + "def stage1_commands(app): app.callback()(lambda: None)",
        "set a callback on stage1's own application",
    ),
    "a command's type": (
        HOOK + "def stage1_commands(app):\n    @app.command()\n    def go(it: int | str): pass",
        "its commands cannot be built: AssertionError",
    ),
    "a command's name": (
        HOOK + "def stage1_commands(app):\n    @app.command('a:b')\n    def go(): pass",
        "command 'a:b' is not made of letters",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_faulty_plugin_is_reported_and_spares_the_others(site: Site, case: str) -> None:
    source, reason = FAULTS[case]
    site.install("healthy", {"point": compressor("sound")})
    site.install("broken", {"point": source}, release="0.0.7")
    site.install("zealous", {"point": compressor("eager")})
    registry = site.load()
    [record] = of(registry, "broken")
    assert record.status == "failed"
    assert (record.version, record.cls) == ("0.0.7", None)
    assert reason in record.reason
    assert "\n" not in record.reason
    assert len(record.reason) < 500
    assert registry.get("compressor", "sound")
    assert registry.get("compressor", "eager"), "also the plugins after it"
    assert registry.get("compressor", "pca")
    assert all(r.status == "ok" for r in registry.components if r is not record)


def test_ctrl_c_while_plugins_load_is_not_swallowed(site: Site) -> None:
    site.install("slow", {"point": "raise KeyboardInterrupt"})
    with pytest.raises(KeyboardInterrupt):
        site.load()


def test_entry_points_that_lead_nowhere(site: Site) -> None:
    site.install("partly", {"good": compressor("good")})
    site.metadata(
        "wrong", "[stage1]\nmodule = no_such_module_xyz\nattribute = json:no_such\nnone = json:__loader__.x"
    )
    registry = site.load()
    assert {(r.name, r.status) for r in of(registry, "wrong")} == {
        ("module", "failed"),
        ("attribute", "failed"),
        ("none", "failed"),
    }
    assert registry.get("compressor", "good")


def test_unreadable_metadata_of_any_package_stops_nothing(site: Site) -> None:
    site.install("healthy", {"point": compressor("sound")})
    site.metadata("garbled", "[stage1]\nthis is no entry point\n")
    (site.folder / "nameless-1.0.dist-info").mkdir()
    (site.folder / "empty-1.0.dist-info").mkdir()
    (site.folder / "empty-1.0.dist-info" / "METADATA").write_text("")
    assert site.load().get("compressor", "sound")


@pytest.mark.parametrize("line", ["Name: misnamed; rm", "Version: 1 2", f"Name: {'n' * 101}"])
def test_a_package_that_no_checkpoint_could_name_is_not_used(site: Site, line: str) -> None:
    site.install("misnamed", {"point": compressor("keep")})
    metadata = site.folder / "misnamed-1.2.dist-info" / "METADATA"
    given = dict(part.split(": ", 1) for part in [*metadata.read_text().splitlines(), line])
    metadata.write_text("".join(f"{key}: {value}\n" for key, value in given.items()))
    (record,) = of(site.load(), given["Name"])
    assert (record.status, record.cls) == ("failed", None)
    assert "no valid name and version" in record.reason


def test_an_optional_hook_of_a_later_version_is_let_pass(site: Site) -> None:
    later = "\n@hookimpl(optionalhook=True)\ndef stage1_future(): pass\n"
    site.install("modern", {"point": compressor("keep") + later})
    assert site.load().get("compressor", "keep")
