"""What commands are given, by kind: each makes a mutated input in a folder and names the command for it."""

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import yaml

from faults import mutations
from faults.data_files import data, json_lines, tiny_rows
from faults.plugin_modules import plugin
from faults.warm import OUT, Given, config, settings
from random_llama import random_llama
from stage1.experiment import train_run
from stage1.files import read_record, write_record
from stage1.progress import Progress
from stage1.runs.run import Run, seal


def made(folder: Path) -> None:
    """What the cases are made of: a finished run, a model."""
    if folder.exists():
        return
    train_run(config(f"output={folder / 'run'}"), Progress())
    random_llama(folder / "model")


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
        words = [random.choice(OPTIONS), mutations.typed(random)]
    else:
        text = mutations.content(random.choice(SETTINGS).encode(), random)
        words = ["--set", text.decode(errors="surrogateescape").replace("\0", "")]
    return ["config", "show", *words], ()


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
        path.write_bytes(json_lines(mutations.tree(rows, random, texts_alone=random.random() < 0.5)))
        results = read_record(run / "results.json", "")
        results["files"] = {
            file: hashlib.sha256((run / file).read_bytes()).hexdigest()
            for file in results["files"]
            if (run / file).exists()
        }
        write_record(run / "results.json", results)
    else:
        write_record(run / name, mutations.tree(read_record(run / name, ""), random, texts_alone=True))
    return _asked(random, place)


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


# -- texts -------------------------------------------------------------------------------------------------

WORDS = """
show X
eval X
push X me/it --dry-run
push run X --dry-run
runs X
runs . --where X
runs . --sort X
report X
report run --output outX
compare X run
compare run X
verify X
plugins show X
plugins check X
plugins check pca --set X
plugins new X --kind loss --output out
plugins new ok --kind X --output out
recipes show X
recipes copy X
recipes copy phase1 outX
protocols show X
score X answers.json
score data.json X
X
X --help
--X
tasks X
train --model X
train --data X
train --init X
train --compressor X
train --recipe X
train --resume --output X
train X
train --rows X
train --loss X
train --log-with X
eval run --data X
eval run --model X
eval run --rows X
eval run --scope X
eval run --tasks X
eval run --tasks tiny_squad --metadata X
show run --search X
diagnose X
sweep --over X --output out
sweep --over seed=1 --seeds X --output out
sweep --over adapter=X --output out
frontier --over X
frontier --axis X
verify run --data X
verify run --model X
compare run run --by X
""".strip().split("\n")
"""Commands with X in place of a word that others choose."""


def text(random: Random, place: Path, made: Path) -> Given:
    evil = mutations.typed(random)
    (place / "answers.json").write_text("{}")
    if random.random() < 0.85:
        words = random.choice(WORDS).split(" ")
        if "run" in words:
            shutil.copytree(made / "run", place / "run")
        few = settings("train.steps=0", "data.train=8") if words[0] == "train" else []
        return [*(word.replace("X", evil) for word in words), *few], ("run", "report.html")
    rows = [mutations.tree(row, random, texts_alone=True) for row in tiny_rows()]
    (place / "data.json").write_bytes(mutations.as_json(rows))
    fields = random.choice(
        ([], ["--set", f"prompt.instruction={evil}"], ["--template", f"{evil}{{context}}{{question}}"])
    )
    few = settings("train.steps=0", "data.train=8")
    return ["train", "--data", "data.json", "--output", OUT, *few, *fields], ()


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
