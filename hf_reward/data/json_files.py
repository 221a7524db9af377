"""Read JSON and JSONL files that the reader of `datasets` would reject, crash on or change."""

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

# Arrow splits files at line ends, and pyarrow 26 crashes (SIGSEGV) if a block starts with a null row.
_NULL_ROW = re.compile(rb"(?:\A(?:\xef\xbb\xbf)?|[\r\n])[ \t]*null")
# An escaped lone surrogate: `datasets` refuses the complete JSONL file, or drops it silently from a JSON list.
_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_BLOCK = 2**24
_LIST = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[")


def need_own_reader(files: Sequence[Path]) -> bool:
    """Return whether files may have content that the reader of `datasets` cannot handle.

    This content is null rows, lone surrogates and bytes that are not UTF-8.

    Args:
        files: `.json` and `.jsonl` files.

    Returns:
        Whether at least one file does, or may do.
    """
    return any(map(_is_suspect, files))


def _is_suspect(file: Path) -> bool:
    if file.stat().st_size == 0:
        return False
    if is_json_list(file) and not all(isinstance(entry, dict) for entry in _entries(file)):
        return True
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        suspect = any(pattern.search(content) is not None for pattern in (_NULL_ROW, _LONE_SURROGATE))
        return suspect or not _is_utf8(content)


def _is_utf8(content: mmap.mmap) -> bool:
    """Return whether content is UTF-8. Arrow accepts other bytes and fails only when a row is accessed."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for begins in range(0, len(content), _BLOCK):
            decoder.decode(content[begins : begins + _BLOCK], final=begins + _BLOCK >= len(content))
    except UnicodeDecodeError:
        return False
    return True


def was_changed(rows: Dataset) -> bool:
    """Return whether the reader of `datasets` converted text to dates, which JSON does not have.

    Args:
        rows: The loaded rows.

    Returns:
        Whether a column has a date or time type.
    """
    return bool(re.search(r"\b(timestamp|date32|date64|time32|time64|duration)\b", str(rows.features.arrow_schema)))


def read_json_rows(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Read files row by row.

    Args:
        files: `.json` and `.jsonl` files.

    Yields:
        dict[str, Any]: Each row. A row that cannot be read has only the key `UNREADABLE`, with the reason.

    Raises:
        ValueError: If a JSON list is damaged or not UTF-8.
    """
    for file in files:
        # `datasets` also accepts a JSON list in a `.jsonl` file.
        if is_json_list(file):
            yield from map(_checked, _entries(file))
        else:
            yield from (found.columns for found in JsonLinesTable(file).read(Span(0, 2**40)))


def is_json_list(file: Path) -> bool:
    """Return whether a file is a JSON list instead of one object per line.

    Args:
        file: A `.json` or `.jsonl` file.

    Returns:
        Whether its first character, after white space, is `[`.
    """
    with file.open("rb") as opened:
        return _LIST.match(opened.read(2**10)) is not None


def _entries(file: Path) -> list[Any]:
    text = read_utf8(file)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, a number with too many digits, nested too deeply
        raise ValueError(
            f"{file} must be a valid JSON list, but cannot be parsed ({error}). Correct the file, or write one object "
            "per line (.jsonl)."
        ) from error
    assert isinstance(value, list)
    return value


def _checked(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        return {UNREADABLE: f"the row must be a JSON object, but is a {type(entry).__name__}"}
    problem = lone_surrogate(json.dumps(entry, ensure_ascii=False))
    return {UNREADABLE: problem} if problem else entry
