"""What commands are given, by kind: each makes a mutated input in a folder and names the command for it."""

import csv
import gzip
import io
import json
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import yaml

from faults import mutations
from faults.warm import SMALL, config
from random_llama import random_llama
from stage1.experiment import train_run
from stage1.files import write_record
from stage1.plugins import load_plugins
from stage1.progress import Progress
from stage1.runs.run import Run, seal
from stage1.scaffold import named, render
from stage1_datasets.tiny_squad.generator import tiny_squad

Given = tuple[list[str], tuple[str, ...]]
"""The command's words, and how names begin of what it may change beside its output."""


def made(folder: Path) -> None:
    """What the cases are made of: a finished run, a model."""
    if folder.exists():
        return
    train_run(config(f"output={folder / 'run'}"), Progress())
    random_llama(folder / "model")


def settings(*more: str) -> list[str]:
    """`--set` for a run in less than a second."""
    return [word for text in (*SMALL, *more) for word in ("--set", text)]


# -- configurations and settings ---------------------------------------------------------------------------


@cache
def _configuration() -> dict[str, Any]:
    tree: dict[str, Any] = config("then.losses={recon: 1}", "prompt.stop=['.']").model_dump(mode="json")
    return tree


def configuration(random: Random, place: Path, _: Path) -> Given:
    whole = _configuration()
    if random.random() < 0.5:
        text = yaml.safe_dump(mutations.tree(whole, random), allow_unicode=True).encode(
            errors="surrogatepass"
        )
    else:
        text = mutations.content(yaml.safe_dump(whole).encode(), random)
    (place / "mutated.yaml").write_bytes(text)
    return ["config", "show", "mutated.yaml", *random.choice(([], ["--json"]))], ()


SETTINGS = ("compressor.dim=4", "losses.recon.weight=2", "then.losses={recon: 1}", "prompt.stop=[a, b]")
OPTIONS = (
    *("--loss", "--template", "--compressor", "--adapter", "--ratio", "--dim", "--recipe", "--protocol"),
    *("--device", "--dtype", "--magnitude", "--scope", "--batch-size", "--limit", "--seed", "--log-with"),
    *("--data", "--model", "--init", "--revision", "--shots"),
)


def setting(random: Random, place: Path, _: Path) -> Given:
    if random.random() < 0.3:
        words = [random.choice(OPTIONS), typed(random)]
    else:
        text = mutations.content(random.choice(SETTINGS).encode(), random)
        words = ["--set", text.decode(errors="surrogateescape").replace("\0", "")]
    return ["config", "show", *words], ()


def typed(random: Random, around: str = "") -> str:
    """An evil text as a shell can pass it: without NUL, and of surrogates only those of undecodable bytes."""
    text = mutations.text(random, around).replace("\0", "").replace("\ud800", "\udcf0")
    return text[:5000]


# -- data --------------------------------------------------------------------------------------------------


@cache
def _rows() -> list[dict[str, Any]]:
    return [dict(row) for row in tiny_squad("test", 3)]


def _squad(rows: list[dict[str, Any]]) -> dict[str, Any]:
    paragraphs: list[dict[str, Any]] = []
    for row in rows:
        answers = [{"text": text, "answer_start": 0} for text in row["answers"]["text"]]
        qa = {"id": row["id"], "question": row["question"], "answers": answers, "is_impossible": False}
        paragraphs.append({"context": row["context"], "qas": [qa]})
    return {"version": "1.1", "data": [{"title": "Oslo", "paragraphs": paragraphs}]}


def _mrqa(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"context": r["context"], "qas": [{"qid": r["id"], "question": r["question"], "answers": ["x", "y"]}]}
        for r in rows
    ]


def _hotpot(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"_id": r["id"], "question": r["question"], "answer": "x", "context": [["Oslo", ["One. ", "Two."]]]}
        for r in rows
    ]


def _trivia(rows: list[dict[str, Any]]) -> dict[str, Any]:
    answer, found = {"Value": "x", "Aliases": ["x", "y"]}, [{"Description": "A place.", "Filename": "a.txt"}]
    return {
        "Data": [
            {"QuestionId": r["id"], "Question": r["question"], "Answer": answer, "SearchResults": found}
            for r in rows
        ]
    }


def _lines(rows: Any) -> bytes:
    return b"".join(mutations.as_json(row) + b"\n" for row in (rows if isinstance(rows, list) else [rows]))


def _table(rows: Any, delimiter: str) -> bytes:
    text = io.StringIO()
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    writer = csv.DictWriter(
        text, sorted({str(key) for row in rows for key in row}) or ["id"], delimiter=delimiter
    )
    writer.writeheader()
    writer.writerows({str(key): value for key, value in row.items()} for row in rows)
    return text.getvalue().encode(errors="surrogatepass")


def _parquet(rows: Any) -> bytes:
    buffer = io.BytesIO()
    try:
        table = pa.Table.from_pylist(rows)
    except (pa.ArrowException, TypeError, AttributeError, ValueError, OverflowError):  # no table any more
        table = pa.Table.from_pylist(_rows())
    pq.write_table(table, buffer, compression=None)
    return buffer.getvalue()


FORMATS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], bytes]]] = {
    "squad.json": (_squad, mutations.as_json),
    "squad_v2.json": (_squad, mutations.as_json),
    "hotpot.json": (_hotpot, mutations.as_json),
    "trivia.json": (_trivia, mutations.as_json),
    "rows.json": (list, mutations.as_json),
    "rows.jsonl": (list, _lines),
    "mrqa.ndjson": (_mrqa, _lines),
    "rows.csv": (list, lambda rows: _table(rows, ",")),
    "rows.tsv": (list, lambda rows: _table(rows, "\t")),
    "rows.parquet": (list, _parquet),
}


def data(random: Random, place: Path, made: Path) -> Given:
    name = random.choice(list(FORMATS))
    arrange, write = FORMATS[name]
    whole = arrange(_rows())
    mutate = random.choice(("bytes", "tree", "texts"))
    if mutate == "bytes":
        content = mutations.content(write(whole), random)
    else:
        content = write(mutations.tree(whole, random, texts_alone=mutate == "texts"))
    if random.random() < 0.2:
        name, content = f"{name}.gz", gzip.compress(content)
        content = mutations.content(content, random) if random.random() < 0.5 else content
    (place / name).write_bytes(content)
    answers = {row["id"]: row["answers"]["text"][0] for row in _rows()}
    (place / "answers.json").write_bytes(mutations.as_json(answers))
    match random.randrange(12):
        case 0:
            return ["train", "--data", name, "--output", OUT, "--no-eval", *settings("train.steps=0")], ()
        case 1:
            return ["eval", shutil.copytree(made / "run", place / "run").name, "--data", name], ("run",)
        case 2:
            (place / "answers.json").write_bytes(mutations.content(mutations.as_json(answers), random))
        case 3:
            changed = mutations.tree(answers, random)
            (place / "answers.jsonl").write_bytes(
                _lines([{"id": key, "prediction": value} for key, value in changed.items()])
                if isinstance(changed, dict)
                else b""
            )
            return ["score", name, "answers.jsonl"], ()
    return ["score", name, "answers.json", *random.choice(([], ["--json"], ["--strict"]))], ()


OUT = "out"

# -- runs --------------------------------------------------------------------------------------------------


def damaged(random: Random, place: Path, made: Path) -> Given:
    """A run one of whose files was cut, edited or damaged."""
    run = Path(shutil.copytree(made / "run", place / "run"))
    path = random.choice([path for path in sorted(run.rglob("*")) if path.is_file()])
    path.write_bytes(mutations.content(path.read_bytes(), random))
    return _asked(random, place)


def forged(random: Random, place: Path, made: Path) -> Given:
    """A run whose files say something evil, with checksums that fit."""
    run = Path(shutil.copytree(made / "run", place / "run"))
    records = ("manifest.json", "data.json", "results.json", "timings.json", "config.yaml", "metrics.jsonl")
    name = random.choice((*records, "predictions"))
    if name == "config.yaml":
        tree = mutations.tree(Run(run).settings, random, texts_alone=random.random() < 0.5)
        text = yaml.safe_dump(tree, sort_keys=False).encode(errors="replace").decode()
        (run / name).write_bytes(seal(text))
    elif name in ("metrics.jsonl", "predictions"):
        path = run / name if name in records else random.choice(sorted((run / name).iterdir()))
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_bytes(_lines(mutations.tree(rows, random, texts_alone=random.random() < 0.5)))
        results = json.loads((run / "results.json").read_text())
        results.pop("sha256")
        results["files"] = {
            file: _sha256((run / file).read_bytes()) for file in results["files"] if (run / file).exists()
        }
        write_record(run / "results.json", results)
    else:
        record = json.loads((run / name).read_text())
        record.pop("sha256")
        forged = mutations.tree(record, random, texts_alone=True)
        write_record(run / name, forged)
    return _asked(random, place)


def _sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def _asked(random: Random, place: Path) -> Given:
    """A command that is given the run in `place`, a quick one more often than one that asks the LLM."""
    quick: list[list[str]] = [
        ["push", "run", "me/it", "--dry-run"],
        ["show", "run", *random.choice(([], ["--json"], ["--lost"]))],
        ["runs", ".", *random.choice(([], ["--json"], ["--sort", "f1"]))],
        ["config", "show", "run"],
        ["verify", "run", *random.choice(([], ["--json"]))],
        ["report", "run", "--output", f"{OUT}.html"],
        ["compare", "run", "run"],
    ]
    slow: list[list[str]] = [
        ["eval", "run"],
        ["train", "--resume", "--output", "run"],
        ["train", "--init", "run", "--output", OUT, "--no-eval", *settings("train.steps=0")],
        ["show", "run", "--prompts"],
        ["train", "run", "--output", OUT, "--no-eval", "--steps", "0"],
    ]
    return random.choice(slow if random.random() < 0.25 else quick), ("run",)


# -- models ------------------------------------------------------------------------------------------------

SMALL_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")


def model(random: Random, place: Path, made: Path) -> Given:
    folder = Path(shutil.copytree(made / "model", place / "model"))
    name = random.choice((*SMALL_FILES, "config.json", "model.safetensors"))
    path = folder / name
    if name == "model.safetensors":
        whole = path.read_bytes()
        head = 8 + int.from_bytes(whole[:8], "little")
        if random.random() < 0.5:  # its header is JSON
            told = mutations.as_json(mutations.tree(json.loads(whole[8:head]), random))
            path.write_bytes(len(told).to_bytes(8, "little") + told + whole[head:])
        else:
            path.write_bytes(mutations.content(whole[:head], random) + whole[head:])
    elif random.random() < 0.6:
        path.write_bytes(mutations.as_json(mutations.tree(json.loads(path.read_text()), random)))
    else:
        path.write_bytes(mutations.content(path.read_bytes(), random))
    few = settings(
        "train.steps=0", "data.train=8", "data.selection=3", "eval.limit=2", "data.max_prompt_tokens=200"
    )
    evaluated = [] if random.random() < 0.2 else ["--no-eval"]
    return ["train", "--model", "./model", "--output", OUT, *evaluated, *few], ()


# -- plugins -----------------------------------------------------------------------------------------------

STATEMENTS = (
    *(
        "raise RuntimeError('\\x1b[2J evil')",
        "raise SystemExit(0)",
        "raise SystemExit('\\x1b[2J')",
        "return None",
    ),
    *("return 'x'", "return -1", "return float('nan')", "return torch.zeros(0)", "return torch.zeros(3, 3)"),
    *("return object()", "raise StopIteration", "raise RecursionError", "raise BaseException('x' * 5000)"),
    *("raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})", "raise KeyError(('a', 1))"),
    *("raise type('\\x1b[2J', (Exception,), {})('y')", "return 2 ** 70", "pass", "del self", "return [self]"),
    *(
        "return (lambda f: f(f))(lambda f: f(f))",
        "import nowhere",
        "raise UnicodeDecodeError('a', b'b', 0, 1, 'c')",
    ),
    *("return self", "raise GeneratorExit", "return b'\\xff'"),
)


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
            source = source.replace('"""', f'"""{typed(random)!r} ', 1).replace(
                "Config = ", "Config = None  # "
            )
    module = f"evil_{random.randrange(1 << 60)}"
    site = place / "site"
    info = site / f"{module}-1.dist-info"
    info.mkdir(parents=True)
    (site / f"{module}.py").write_bytes(source.encode(errors="surrogatepass"))
    head, points = (
        f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n".encode(),
        f"[stage1]\n{name} = {module}\n".encode(),
    )
    spoilt = random.random()
    (info / "METADATA").write_bytes(mutations.content(head, random) if spoilt < 0.15 else head)
    (info / "entry_points.txt").write_bytes(mutations.content(points, random) if spoilt > 0.85 else points)
    for old in [path for path in sys.path if path.endswith("/case/site")]:
        sys.path.remove(old)
    sys.path.insert(0, str(site))
    load_plugins.cache_clear()
    few = [f"--{kind}", name, "--output", OUT, *settings("train.steps=1", "data.train=8")]
    commands = [["plugins", "list"], ["plugins", "info", name], ["plugins", "check", name], ["train", *few]]
    return random.choice((*commands, *commands[2:])), ()


# -- texts -------------------------------------------------------------------------------------------------

WORDS = (
    *("show X", "eval X", "push X me/it --dry-run", "push run X --dry-run", "runs X", "runs . --where X"),
    *(
        "runs . --sort X",
        "report X",
        "report run --output outX",
        "compare X run",
        "compare run X",
        "verify X",
    ),
    *(
        "plugins info X",
        "plugins check X",
        "plugins check pca --set X",
        "plugins new X --kind loss --output out",
    ),
    *("plugins new ok --kind X --output out", "recipes show X", "recipes copy X", "recipes copy phase1 outX"),
    *("protocols show X", "score X answers.json", "score data.json X", "X", "X --help", "--X", "tasks X"),
    *("train --model X", "train --data X", "train --init X", "train --compressor X", "train --recipe X"),
    *("train --resume --output X", "train X", "train --rows X", "train --loss X", "train --log-with X"),
    *(
        "eval run --data X",
        "eval run --model X",
        "eval run --rows X",
        "eval run --scope X",
        "eval run --tasks X",
    ),
    *(
        "eval run --tasks tiny_squad --metadata X",
        "show run --search X",
        "diagnose X",
        "sweep --over X --output out",
    ),
    *(
        "sweep --over seed=1 --seeds X --output out",
        "sweep --over adapter=X --output out",
        "frontier --over X",
    ),
    *("frontier --axis X", "verify run --data X", "verify run --model X", "compare run run --by X"),
)
"""Commands with X in place of a word that others choose."""


def text(random: Random, place: Path, made: Path) -> Given:
    evil = typed(random)
    (place / "answers.json").write_text("{}")
    if random.random() < 0.85:
        words = random.choice(WORDS).split(" ")
        if "run" in words:
            shutil.copytree(made / "run", place / "run")
        few = settings("train.steps=0", "data.train=8") if words[0] == "train" else []
        return [*(word.replace("X", evil) for word in words), *few], ("run", "report.html")
    rows = [mutations.tree(row, random, texts_alone=True) for row in _rows()]
    (place / "data.json").write_bytes(mutations.as_json(rows))
    fields = random.choice(
        ([], ["--set", f"prompt.instruction={evil}"], ["--template", f"{evil}{{context}}{{question}}"])
    )
    return [
        "train",
        "--data",
        "data.json",
        "--output",
        OUT,
        *settings("train.steps=0", "data.train=8"),
        *fields,
    ], ()


GIVEN: dict[str, Callable[[Random, Path, Path], Given]] = {
    "configuration": configuration,
    "setting": setting,
    "data": data,
    "damaged": damaged,
    "forged": forged,
    "model": model,
    "plugin": plugin,
    "text": text,
}
"""By kind."""
