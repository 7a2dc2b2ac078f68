"""What decides a model's answers, as one hash; a large file is read once, however often it is asked for."""

import hashlib
import re
import time
from pathlib import Path

from stage1.files import default_cache, remember
from stage1.llm.location import SMALL_FILES
from stage1.llm.weights import is_gguf, weight_map

LARGE = 2**24
"""Bytes from which a file's hash is remembered; smaller ones are read faster than looked up."""
SETTLED = 2.0
"""Seconds that a file must have been left alone: a change within the clock's grain would go unseen."""


def model_sha256(source: Path, trust_remote_code: bool = False) -> str:
    """A hash of everything that decides what the model answers.

    That is the GGUF file; of a folder, the weights, every small file (configuration, tokenizer, chat
    templates, generation settings) and, where it is run, the Python code.
    """
    if is_gguf(source):
        return file_sha256(source)
    patterns = [*SMALL_FILES, *(["**/*.py"] if trust_remote_code else [])]
    paths = {path for pattern in patterns for path in source.glob(pattern) if path.is_file()}
    paths |= {source / name for name in weight_map(source).values() if (source / name).is_file()}
    named = sorted((path.relative_to(source).as_posix(), path) for path in paths)
    digests = "".join(f"{name} {file_sha256(path)}\n" for name, path in named)
    return hashlib.sha256(digests.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content; that of a large file is remembered in the cache folder.

    It is found again by path, size, time of change and inode, as `make` and `git` tell changed files.
    """
    target = path.resolve()
    if target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", target.name):
        return target.name  # the Hub's cache names a large file by its hash
    state = target.stat()
    key = f"{target}\n{state.st_size}\n{state.st_mtime_ns}\n{state.st_ino}"
    place = default_cache() / "hashes" / hashlib.sha256(key.encode()).hexdigest()
    settled = state.st_size >= LARGE and time.time() - state.st_mtime > SETTLED
    if settled and (known := _remembered(place)):
        return known
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if settled:
        remember(place, digest.encode())
    return digest


def _remembered(place: Path) -> str | None:
    try:
        text = place.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return text if re.fullmatch("[0-9a-f]{64}", text) else None
