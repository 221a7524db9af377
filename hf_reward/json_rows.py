"""JSON and JSONL files -> rows, and rows that would end the process before anybody could refuse them."""

import json
import mmap
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Arrow cuts files at line ends; pyarrow 26 crashes (SIGSEGV) where a piece begins with a row that is null.
_NULL_ROW = re.compile(rb"(?:\A(?:\xef\xbb\xbf)?|[\r\n])[ \t]*null")
_LIST = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[")


def refuse_null_rows(files: Sequence[Path]) -> None:
    """Stop at rows that are null, at which the reader of `datasets` ends the process.

    Args:
        files: `.json` and `.jsonl` files.

    Raises:
        ValueError: If there is such a row, or a file that is one list holds anything but objects.
    """
    for file in files:
        if file.stat().st_size == 0:
            continue
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            is_list = _LIST.match(content) is not None
            found = _NULL_ROW.search(content)
            line = 0 if found is None else content[: found.end()].count(b"\n") + 1
        # `datasets` takes a list for rows whatever the file is called.
        if (file.suffix == ".json" or is_list) and _is_one_value(file):
            continue
        if line:
            raise ValueError(f"{file}, line {line}: a row must be a JSON object, but is null. Correct or remove it.")


def _is_one_value(file: Path) -> bool:
    """Whether a file is JSON as a whole; a list is checked, row by row."""
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return False
    if value is None or isinstance(value, list):
        _objects_of(value, file)
    return True


def read_json_rows(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Read files row by row.

    Args:
        files: `.json` and `.jsonl` files.

    Returns:
        The rows.

    Raises:
        ValueError: If a row is no JSON object, with its file and line.
    """
    rows = []
    for file in files:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            rows += _objects_of(_parse_json(text, f"{file}"), file)
            continue
        # not splitlines(): JSON texts may hold other line breaks, such as U+2028
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                rows.append(_object(_parse_json(line, f"{file}, line {number}"), f"{file}, line {number}"))
    return rows


def _objects_of(value: Any, file: Path) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise ValueError(f"{file}: must hold a list of objects, but holds a {type(value).__name__}.")
    return [_object(row, f"{file}, entry {number}") for number, row in enumerate(value, start=1)]


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: a row must be a JSON object, but is a {type(value).__name__}. Correct it.")
    return value


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # no JSON, a number with too many digits, nested too deeply
        raise ValueError(f"{where}: not valid JSON ({error}). Correct or remove it.") from error
