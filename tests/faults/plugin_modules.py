"""Packages of plugins with something wrong in them, and the commands that meet them."""

import sys
from functools import cache
from pathlib import Path
from random import Random

from faults import mutations
from faults.warm import OUT, Given, settings
from stage1.plugins import load_plugins
from stage1.scaffold import named, render

STATEMENTS = r"""
raise RuntimeError('\x1b[2J evil')
raise SystemExit(0)
raise SystemExit('\x1b[2J')
return None
return 'x'
return -1
return float('nan')
return torch.zeros(0)
return torch.zeros(3, 3)
return object()
raise StopIteration
raise RecursionError
raise BaseException('x' * 5000)
raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})
raise KeyError(('a', 1))
raise type('\x1b[2J', (Exception,), {})('y')
return 2 ** 70
pass
del self
return [self]
return (lambda f: f(f))(lambda f: f(f))
import nowhere
raise UnicodeDecodeError('a', b'b', 0, 1, 'c')
return self
raise GeneratorExit
return b'\xff'
""".strip().split("\n")
"""In place of one of a plugin's own."""


@cache
def _package(kind: str) -> tuple[str, str]:
    """The module of a new plugin, and the entry point's name."""
    files = render(named("evil", kind))
    [module] = [name for name in files if name.endswith("stage1_evil/__init__.py")]
    return files[module], "evil"


def plugin(random: Random, place: Path, _: Path) -> Given:
    kind = random.choice(("compressor", "adapter", "loss"))
    source, name = _package(kind)
    lines = source.split("\n")
    match random.randrange(5):
        case 0:
            source = mutations.content(source.encode(), random).decode(errors="replace")
        case 1:  # something else in place of a statement
            bodies = [n for n, line in enumerate(lines) if line.startswith("        ") and line.strip()]
            lines[random.choice(bodies)] = f"        {random.choice(STATEMENTS)}"
            source = "\n".join(lines)
        case 2:  # what it is called
            source = source.replace('name = "evil"', f"name = {mutations.text(random)!r}")
        case 3:  # a line less
            del lines[random.randrange(len(lines))]
            source = "\n".join(lines)
        case _:
            source = source.replace('"""', f'"""{mutations.typed(random)!r} ', 1)
            source = source.replace("Config = ", "Config = None  # ")
    module = f"evil_{random.randrange(1 << 60)}"
    site = place / "site"
    info = site / f"{module}-1.dist-info"
    info.mkdir(parents=True)
    (site / f"{module}.py").write_bytes(source.encode(errors="surrogatepass"))
    head = f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n".encode()
    points = f"[stage1]\n{name} = {module}\n".encode()
    spoilt = random.random()
    (info / "METADATA").write_bytes(mutations.content(head, random) if spoilt < 0.15 else head)
    (info / "entry_points.txt").write_bytes(mutations.content(points, random) if spoilt > 0.85 else points)
    for old in [path for path in sys.path if path.endswith("/case/site")]:
        sys.path.remove(old)
    sys.path.insert(0, str(site))
    load_plugins.cache_clear()
    few = [f"--{kind}", name, "--output", OUT, *settings("train.steps=1", "data.train=8")]
    commands = [["plugins", "list"], ["plugins", "show", name], ["plugins", "check", name], ["train", *few]]
    return random.choice((*commands, *commands[2:])), ()
