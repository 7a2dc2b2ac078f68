"""Packages of plugins on the path, and what tests ask of them."""

from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest

from stage1.config import RunConfig, merge, validate
from stage1.errors import ConfigError
from stage1.plugins import PluginRecord, Registry, load_plugins, resolve

COMPRESSOR = '''
    """A module of compressors."""
    from pydantic import Field
    from stage1 import Code, Compressor, SizeConfig, hookimpl

    class {cls}(Compressor):
        """Keeps something.

        Not shown in a list.
        """
        name = "{name}"
        Config = SizeConfig
    {body}
        def forward(self, embeds, mask):
            return Code(embeds, mask)

    @hookimpl
    def stage1_compressors():
        return {cls}
'''


def compressor(name: str, cls: str = "Keep", body: str = "") -> str:
    """The source of a plugin with one compressor that keeps to the interface."""
    return dedent(COMPRESSOR).format(name=name, cls=cls, body=indent(dedent(body), "    "))


class Site:
    """A folder on the path into which packages are installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: set[str] = set()

    def install(self, distribution: str, entry_points: dict[str, str], release: str = "1.2") -> None:
        """One module for each entry point, from its source, and the metadata pip would write."""
        load_plugins.cache_clear()
        points = []
        for name, source in entry_points.items():
            module = f"{distribution.lower().replace('-', '_').replace('.', '_')}__{name}"
            (self.folder / f"{module}.py").write_text(dedent(source), encoding="utf-8")
            self.modules.add(module)
            points.append(f"{name} = {module}")
        self.metadata(distribution, "[stage1]\n" + "\n".join(points), release)

    def metadata(self, distribution: str, entry_points: str, release: str = "1.2") -> Path:
        """Only the metadata of a package."""
        info = self.folder / f"{distribution.replace('-', '_')}-{release}.dist-info"
        info.mkdir()
        head = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {release}\n"
        (info / "METADATA").write_text(head, encoding="utf-8")
        (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")
        return info

    def load(self) -> Registry:
        """What a new process would find."""
        return load_plugins.__wrapped__()


def of(registry: Registry, distribution: str) -> list[PluginRecord]:
    return [record for record in registry.components if record.distribution == distribution]


def configured(*settings: str, **tree: Any) -> RunConfig:
    return validate(merge(tree, {}, settings))


def issues(config: RunConfig, registry: Registry) -> dict[str, str]:
    """Path → message of everything that `resolve` finds wrong."""
    with pytest.raises(ConfigError) as caught:
        resolve(config, registry)
    assert caught.value.exit_code == 2
    return {issue.path: issue.message for issue in caught.value.issues}


RICH = """
    from enum import Enum
    from pathlib import Path
    from typing import Any, Literal

    from pydantic import BaseModel, Field, computed_field
    from stage1 import SizeConfig

    class Colour(Enum):
        RED = "red"
        BLUE = "blue"

    class Size(BaseModel, extra="forbid"):
        width: int = 3

    class RichConfig(SizeConfig):
        must: int = Field(ge=2, lt=9, description="Something (dimensions).")
        colour: Colour = Colour.RED
        size: Size = Size()
        steps: list[float] = Field(default_factory=lambda: [1.0], min_length=1)
        folder: Path | None = None
        kind: Literal["a", "b"] | None = "a"
        lam: float = Field(0.5, alias="lambda")
        free: Any = None

        @computed_field
        @property
        def twice(self) -> int:
            return 2 * self.must
"""


HOOK = "import stage1\n@stage1.hookimpl\n"
"""What a module with one hook begins with."""


TOYS = '''
    from pairs import halved
    from stage1 import Code, Compressor, hookimpl

    class Pairs(Compressor):
        """The mean of every two neighbours; two bits beside each."""
        name = "pairs"
        needs_fit = False
        tokenwise = False
        changes_length = True

        def forward(self, embeds, mask):
            return halved(embeds, mask)

        def bits(self, code):
            return super().bits(code) + 2

    class Halve(Compressor):
        """Sends the first half of the dimensions."""
        name = "halve"
        needs_fit = False

        @property
        def code_dim(self):
            return self.embed_dim // 2

        def forward(self, embeds, mask):
            return Code(embeds[..., : self.code_dim], mask)

    class Faulty(Compressor):
        """Raises."""
        name = "faulty"

        def forward(self, embeds, mask):
            raise ArithmeticError("too many bits")

    @hookimpl
    def stage1_compressors():
        return [Pairs, Halve, Faulty]
'''
"""Compressors to chain: one that changes the length, one without an inverse, one that raises."""
