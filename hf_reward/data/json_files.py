"""JSON and JSONL files -> rows, read one by one where the reader of `datasets` would stop, crash or change a value."""

import codecs
import json
import mmap
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_reward.data.preference_row import UNREADABLE
from hf_reward.data.tables.input_row import Span, lone_surrogate
from hf_reward.data.tables.json_lines import JsonLinesTable
from hf_reward.data.text_files import read_utf8

# Arrow cuts files at line ends; pyarrow 26 crashes (SIGSEGV) where a piece begins with a row that is null.
_NULL_ROW = re.compile(rb"(?:\A(?:\xef\xbb\xbf)?|[\r\n])[ \t]*null")
# Half of an escaped pair: `datasets` refuses the whole JSONL file, and removes it from a JSON list without a message.
_HALF = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_BLOCK = 2**24
_LIST = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[")


def need_own_reader(files: Sequence[Path]) -> bool:
    """Whether files hold what the reader of `datasets` crashes at, changes or fails at later.

    That is rows that are null, half characters, and bytes that are not UTF-8.

    Args:
        files: `.json` and `.jsonl` files.

    Returns:
        Whether they do, or may.
    """
    return any(map(_is_suspect, files))


def _is_suspect(file: Path) -> bool:
    if file.stat().st_size == 0:
        return False
    if is_json_list(file) and not all(isinstance(entry, dict) for entry in _entries(file)):
        return True
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _NULL_ROW.search(content) is not None or _HALF.search(content) is not None or not _is_utf8(content)


def _is_utf8(content: mmap.mmap) -> bool:
    """Arrow takes other bytes for text too, and fails only where a row is looked at."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for begins in range(0, len(content), _BLOCK):
            decoder.decode(content[begins : begins + _BLOCK], final=begins + _BLOCK >= len(content))
    except UnicodeDecodeError:
        return False
    return True


def was_changed(rows: Dataset) -> bool:
    """Whether the reader of `datasets` took texts for dates, which JSON does not have.

    Args:
        rows: What it read.

    Returns:
        Whether a column holds dates.
    """
    return bool(re.search(r"\b(timestamp|date32|date64|time32|time64|duration)\b", str(rows.features.arrow_schema)))


def read_json_rows(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Read files row by row.

    Args:
        files: `.json` and `.jsonl` files.

    Yields:
        dict[str, Any]: Each row; one that is no JSON object, or not text, has only the reason, as `UNREADABLE`.

    Raises:
        ValueError: If a JSON list is damaged or not UTF-8.
    """
    for file in files:
        # `datasets` takes a list for rows whatever the file is called.
        if is_json_list(file):
            yield from map(_checked, _entries(file))
        else:
            yield from (found.columns for found in JsonLinesTable(file).read(Span(0, 2**40)))


def is_json_list(file: Path) -> bool:
    """Whether a file is one JSON list rather than an object on each line.

    Args:
        file: A `.json` or `.jsonl` file.

    Returns:
        Whether it begins as one.
    """
    with file.open("rb") as opened:
        return _LIST.match(opened.read(2**10)) is not None


def _entries(file: Path) -> list[Any]:
    text = read_utf8(file)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # no JSON, a number with too many digits, nested too deeply
        raise ValueError(f"{file}: not valid JSON ({error}). Correct it, or write one object on each line.") from error
    assert isinstance(value, list)
    return value


def _checked(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        return {UNREADABLE: f"it is not a JSON object but a {type(entry).__name__}"}
    problem = lone_surrogate(json.dumps(entry, ensure_ascii=False))
    return {UNREADABLE: problem} if problem else entry
