"""Files as rows, whatever a row means: JSON, JSON Lines, CSV, TSV and Parquet, each also gzipped."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from stage1.bounded import read_json
from stage1.errors import UsageError

Row = dict[str, Any]

FORMATS = (
    "SQuAD v1.1 or v2.0 JSON, MRQA, HotpotQA or TriviaQA, or JSON, JSONL, Parquet, CSV or TSV with the "
    "columns id, title, context, question, answers; each may be gzipped (.gz)."
)
LONGEST_FIELD = 2**31 - 1
"""Characters of a CSV field; the csv module's own limit is 131,072."""
EXPANSION, SMALL = 100, 1 << 26
"""How many times as large a compressed file may become; one of up to 64 MB unpacked is always read."""


class Table(NamedTuple):
    """The rows of a file."""

    rows: list[Row]
    version: Any = None  # as the file states it


def is_data_file(path: Path) -> bool:
    """Whether the name ends as a file that can be read does."""
    return _ending(path) in READERS


def read_rows(path: Path) -> Table:
    """The rows of a file in any accepted format, as they are.

    Raises:
        UsageError: the file is missing, empty or damaged, or of no accepted format.
    """
    remedy = f"A file is {FORMATS}"
    try:
        content = path.read_bytes()
    except (FileNotFoundError, ValueError):  # ValueError: a path that no file can have
        raise _missing(path) from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder.", remedy) from None
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.", remedy) from None
    if not is_data_file(path):
        raise UsageError(
            f"{path} has none of the endings {', '.join(READERS)}, or one of them and .gz.", remedy
        )
    try:
        if path.suffix.lower() == ".gz":
            content = _unzipped(content)
        if not content.strip():
            raise UsageError(f"{path} is empty.", remedy)
        return READERS[_ending(path)](content)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UsageError(f"{path} is not a complete gzip file.", "Download or compress it again.") from None
    except (ValueError, csv.Error) as error:  # also bad UTF-8 and bad JSON
        raise UsageError(f"{path} cannot be read: {str(error).rstrip('.')}.", remedy) from None


def _unzipped(content: bytes) -> bytes:
    with gzip.open(io.BytesIO(content)) as file:
        whole = file.read(_most(content) + 1)
    _refuse_bomb(len(whole), content)
    return whole


def _most(content: bytes) -> int:
    return max(SMALL, EXPANSION * len(content))


def _refuse_bomb(size: int, content: bytes) -> None:
    if size > _most(content):
        raise ValueError(f"unpacked it is more than {EXPANSION} times as large, which no text is")


def _ending(path: Path) -> str:
    path = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return path.suffix.lower()


def _missing(path: Path) -> UsageError:
    try:
        neighbours = [neighbour.name for neighbour in path.parent.glob("*")]
    except (OSError, ValueError):
        neighbours = []
    near = get_close_matches(path.name, neighbours, n=1)
    return UsageError(
        f"There is no file {path}.", f"Did you mean {near[0]!r}?" if near else f"A file is {FORMATS}"
    )


def _json(content: bytes) -> Table:
    """A list of rows, one under `data` (TriviaQA: `Data`), or JSON Lines under another name."""
    try:
        tree = read_json(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # `datasets` and pandas write JSON Lines to files called .json
            return _jsonl(content)
        raise
    version = None
    if isinstance(tree, dict):
        version = tree.get("version")
        tree = [tree] if {"context", "question"} <= tree.keys() else tree.get("data", tree.get("Data"))
    if not isinstance(tree, list) or not all(isinstance(row, dict) for row in tree):
        raise ValueError("it holds no list of records")
    return Table(tree, version)


def _jsonl(content: bytes) -> Table:
    rows = []
    for number, line in enumerate(content.decode("utf-8-sig").split("\n"), 1):
        if line.strip():
            try:
                rows.append(read_json(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}: {error}") from None
            if not isinstance(rows[-1], dict):
                raise ValueError(f"line {number} is not a JSON object")
    return Table(rows)


def _csv(content: bytes, delimiter: str = ",") -> Table:
    """Every cell as a text, None where it is empty.

    The csv module leaves cells as they are, where a reader that guesses types makes a number of the answer
    "1984" and nothing of the answer "NA".
    """
    before = csv.field_size_limit(LONGEST_FIELD)
    try:
        lines = io.StringIO(content.decode("utf-8-sig"), newline="")
        rows: list[Row] = list(csv.DictReader(lines, strict=True, delimiter=delimiter))
    finally:
        csv.field_size_limit(before)
    for number, row in enumerate(rows, 1):
        if None in row:
            raise ValueError(f"record {number} has more fields than the header; is a quote missing?")
    return Table([{key: cell or None for key, cell in row.items()} for row in rows])


def _parquet(content: bytes) -> Table:
    # The reader beneath `datasets`, without that library's cache, which can answer with an older file.
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        said = pq.read_metadata(pa.BufferReader(content))
        groups = [said.row_group(number) for number in range(said.num_row_groups)]
        columns = [group.column(number) for group in groups for number in range(group.num_columns)]
        _refuse_bomb(said.num_rows + sum(c.num_values + c.total_uncompressed_size for c in columns), content)
        # A text that many rows share stays one until it is known how much that would become.
        shared = [c.path_in_schema for c in columns if any("DICTIONARY" in name for name in c.encodings)]
        table = pq.read_table(pa.BufferReader(content), read_dictionary=shared)
        _refuse_bomb(sum(_size(column) for column in table.columns), content)
        return Table(table.to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error).split("\n")[0]) from None


def _size(array: Any) -> int:
    """Bytes of the texts in an Arrow array, each counted wherever it stands."""
    import pyarrow as pa
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    if isinstance(array, pa.ChunkedArray):
        return sum(map(_size, array.chunks))
    if isinstance(array, pa.DictionaryArray):
        lengths = pc.binary_length(array.dictionary).take(array.indices)
        return pc.sum(lengths).as_py() or 0
    if isinstance(array, pa.StructArray):
        return sum(map(_size, array.flatten()))
    if isinstance(array, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray | pa.MapArray):
        return _size(array.flatten())
    return int(array.nbytes)


READERS: dict[str, Callable[[bytes], Table]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".csv": _csv,
    ".tsv": partial(_csv, delimiter="\t"),
    ".parquet": _parquet,
}
"""By the file name's ending."""
