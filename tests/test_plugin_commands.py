"""Commands that plugins add: found by name, never in the way of stage1's own, their errors attributed.
And what `stage1 plugins` says of all that is no component.
"""

import json
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import typer

from conftest import Invoke, refused
from plugin_sites import HOOK, Site, compressor, of
from stage1.cli import app
from stage1.plugins import load_plugins
from stage1.plugins.registry import COMMANDS

COMMANDS_OF_ITS_OWN = '''
    """Says things."""
    import typer
    import stage1

    @stage1.hookimpl
    def stage1_commands(app):
        group = typer.Typer(help="Several things to say.")

        @app.command()
        def say_hello(name: str, loud: bool = False):
            """Greet somebody.

            Not shown in a list.
            """
            print(f"Hello, {name}{'!' if loud else '.'}")

        @group.command()
        def bye(name: str = typer.Argument("all")):
            """Take leave."""
            typer.echo(f"Bye, {name}.")

        @group.command()
        def nothing():
            """Say nothing."""

        app.add_typer(group, name="say")
'''

FAILING = """
    import sys, typer, stage1
    from stage1.errors import UsageError

    def fail():
        "End in some way."
        {}

    @stage1.hookimpl
    def stage1_commands(app):
        app.command()(fail)
"""


def command(name: str, said: str) -> str:
    return HOOK + f"def stage1_commands(app):\n    app.command({name!r})(lambda: print({said!r}))\n"


def test_commands_and_groups_become_records(site: Site) -> None:
    site.install("stage1-say", {"point": COMMANDS_OF_ITS_OWN}, release="0.3")
    first, second = of(site.load(), "stage1-say")
    assert (first.name, first.kind, first.summary) == ("say-hello", "command", "Greet somebody.")
    assert (second.name, second.kind, second.summary) == ("say", "command", "Several things to say.")


def test_they_run_and_have_help(site: Site, invoke: Invoke) -> None:
    site.install("stage1-say", {"point": COMMANDS_OF_ITS_OWN})
    assert invoke("say-hello", "you", "--loud") == (0, "Hello, you!\n", "")
    assert invoke("say", "bye") == (0, "Bye, all.\n", "")
    assert invoke("stage1-say:say-hello", "you").out == "Hello, you.\n"
    assert invoke("Stage1_Say:say", "bye", "me").out == "Bye, me.\n"
    shown = invoke("say-hello", "--help").printed
    assert "stage1 say-hello" in shown
    assert "Not shown in a list." in shown
    assert "Take leave." in invoke("say", "-h").out
    wrong = invoke("say-hello", "you", "--laud")
    assert wrong.code == 2
    assert "--loud" in wrong.err


def test_the_list_of_own_commands_is_whole() -> None:
    """No plugin may take their names; a command added to stage1 goes into the list."""
    group = typer.main.get_group(app)
    assert set(COMMANDS) == set(group.commands)


def test_stage1s_own_commands_keep_their_meaning(site: Site, invoke: Invoke) -> None:
    site.install("a-set", {"point": command("recipes", "mine")})
    [record] = of(load_plugins(), "a-set")
    assert (record.name, record.status) == ("a-set:recipes", "ok")
    assert record.reason == "'recipes' means the command of stage1; this one is used as 'a-set:recipes'"
    assert "distill" in invoke("recipes").out
    assert invoke("a-set:recipes").out == "mine\n"


def test_each_plugin_adds_to_an_application_of_its_own(site: Site) -> None:
    spoil = "def stage1_commands(app):\n    app.registered_commands.clear()\n"
    site.install("spoiler", {"point": HOOK + spoil})
    site.install("alpha", {"point": command("greet", "alpha")})
    registry = site.load()
    assert registry.names("command") == ["greet"]
    assert "added no command" in of(registry, "spoiler")[0].reason


def test_an_unknown_command_gets_the_nearest_name(site: Site, invoke: Invoke) -> None:
    site.install("stage1-say", {"point": COMMANDS_OF_ITS_OWN})
    site.install("broken", {"lost": "import no_such_module_xyz"})
    for typed, near in (("trian", "train"), ("say-helo", "say-hello")):
        words = (f"Unknown command {typed!r}", f"Did you mean {near!r}?", "Plugins that failed to load: 1")
        refused(invoke(typed, "--anything"), *words)
    assert "the name of a plugin of another kind: compressor" in invoke("pca").err
    said = "'lost' of broken 1.2 failed to load: the import failed: ModuleNotFoundError"
    refused(invoke("lost"), said)


RAISED = "Error: The command 'fail' of stage1-sad 1.2 raised "
DEBUG = "\nSTAGE1_TRACEBACK=1 shows the traceback.\n"


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ('raise ValueError("two\\nlines")', 1, f"{RAISED}ValueError: two lines{DEBUG}"),
        ('raise OSError(2, "gone")', 1, f"{RAISED}FileNotFoundError: [Errno 2] gone{DEBUG}"),
        ("raise typer.Exit(5)", 5, ""),
        ("sys.exit(6)", 6, ""),
        ("raise typer.Abort", 1, "Aborted"),
        ('raise typer.BadParameter("not that")', 2, "not that"),
        (
            'raise UsageError("It cannot be done.", "Do another thing.")',
            2,
            "cannot be done.\nDo another thing.\n",
        ),
        ("raise KeyboardInterrupt", 130, "Interrupted."),
    ],
)
def test_how_a_command_ends(site: Site, invoke: Invoke, end: str, code: int, said: str) -> None:
    site.install("stage1-sad", {"point": dedent(FAILING).format(end)})
    done = invoke("fail")
    assert done.code == code
    assert done.err == said if DEBUG in said else said in done.err
    assert "Traceback" not in done.err


def test_the_traceback_is_shown_to_those_who_ask(
    site: Site, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("stage1-sad", {"point": dedent(FAILING).format("raise ValueError")})
    monkeypatch.setenv("STAGE1_TRACEBACK", "1")
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        invoke("fail")
    assert Path(raised.traceback[-1].path).name == "stage1_sad__point.py"


def test_an_error_of_stage1s_own_is_not_put_on_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    program = typer.main.get_group(app)
    monkeypatch.setattr(program.commands["recipes"], "callback", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        program.main(["recipes"])


@pytest.mark.parametrize("words", [["--help"], ["recipes"], ["train", "--help"], ["score", "--nonsense"]])
def test_only_an_unknown_name_loads_plugins(site: Site, invoke: Invoke, words: list[str]) -> None:
    site.install("eager", {"point": command("greet", "loaded")})
    invoke(*words)
    assert "eager__point" not in sys.modules
    assert invoke("greet").out == "loaded\n"
    assert "eager__point" in sys.modules


def test_help_says_where_plugins_commands_are_listed(invoke: Invoke) -> None:
    assert "stage1 plugins list" in " ".join(invoke("--help").out.split())


def test_shell_completion_of_a_foreign_command_loads_nothing(site: Site, invoke: Invoke) -> None:
    site.install("eager", {"point": command("greet", "loaded")})
    program = typer.main.get_group(app)
    half_typed = program.make_context("stage1", ["greet"], resilient_parsing=True)
    assert program.resolve_command(half_typed, ["greet"])[1] is None
    assert "eager__point" not in sys.modules


# -- stage1 plugins -----------------------------------------------------------------------------------

TASKS = "from pathlib import Path\n" + HOOK + "def stage1_tasks(): return Path(__file__).parent / 'quiz'\n"
LISTENER = "'Listens.'\n" + HOOK + "def stage1_run_end(): pass\n"


@pytest.fixture
def several(site: Site) -> None:
    """Packages that provide what is no component, and one that cannot be imported."""
    (site.folder / "quiz").mkdir()
    (site.folder / "quiz" / "a.yaml").write_text("task: a\n")
    site.install("Stage1-Say", {"talk": COMMANDS_OF_ITS_OWN}, release="0.3")
    site.install("quiz", {"quiz": TASKS, "ear": LISTENER})
    site.install("broken", {"lost": "import no_such_module_xyz", "off": HOOK + "def stage1_step(steps): 0"})


def test_hooks_are_listed_with_who_implements_them(several: None, invoke: Invoke) -> None:
    listed = invoke("plugins", "list", "--hooks", "--json").printed
    [commands] = [hook for hook in json.loads(listed) if hook["hook"] == "stage1_commands"]
    assert commands == {
        "hook": "stage1_commands",
        "summary": "Add sub-commands to `app`: `stage1 NAME` runs them.",
        "implementers": [{"plugin": "talk", "distribution": "Stage1-Say", "version": "0.3"}],
    }
    assert "broken" not in listed
    table = invoke("plugins", "list", "--hooks", "--strict")
    assert table.code == 1  # there is a failed plugin
    assert "talk (Stage1-Say 0.3)" in table.out
    assert "ear (quiz 1.2)" in table.out
    [line] = [line for line in table.out.splitlines() if line.startswith("stage1_evaluated")]
    assert line.rstrip().endswith("nobody")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("say", ("command of Stage1-Say 0.3", "Several things to say.", "stage1 say --help")),
        ("quiz", ("tasks of quiz 1.2", "/quiz")),
        ("ear", ("events of quiz 1.2", "Listens.", "stage1 plugins list --hooks")),
        ("lost", ("plugin of broken 1.2", "It failed", "No module named 'no_such_module_xyz'")),
    ],
)
def test_whatever_is_listed_can_be_shown(
    several: None, invoke: Invoke, name: str, words: tuple[str, ...]
) -> None:
    said = " ".join(invoke("plugins", "show", name).printed.split())
    assert [word for word in words if word not in said] == []
    assert "no options" not in said
    [shown] = json.loads(invoke("plugins", "show", name, "--json").out)
    assert shown["options"] == []


def test_a_components_options_are_documented(site: Site, invoke: Invoke) -> None:
    site.install("stage1-keep", {"point": compressor("keep")}, release="0.3.1")
    words = " ".join(invoke("plugins", "show", "keep").printed.split())
    for text in ("Keeps something. Not shown in a list.", "stage1-keep", "ratio", "8.0", "overrides `ratio`"):
        assert text in words, text


def test_a_broken_plugin_is_shown_and_fails_only_a_strict_list(site: Site, invoke: Invoke) -> None:
    source = """
        print("noise on standard output")
        raise SystemExit("no licence found")
    """
    site.install("stage1-broken", {"broken": source}, release="0.1")
    listed = json.loads(invoke("plugins", "list", "--json").printed)
    [record] = [record for record in listed if record["status"] == "failed"]
    assert (record["name"], record["distribution"], record["version"]) == ("broken", "stage1-broken", "0.1")
    assert "no licence found" in record["reason"]
    strict = invoke("plugins", "list", "--strict")
    assert strict.code == 1
    assert "no licence found" in " ".join(strict.out.split())
