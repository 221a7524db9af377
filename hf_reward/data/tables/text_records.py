"""Shared parts of the JSONL and CSV readers: lines of bounded length, and spans of rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hf_reward.data.tables.input_row import MAX_RECORD_BYTES, Span
from hf_reward.data.text_files import BOM


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file."""

    raw: bytes
    """The line with its line break; only its start if it is too long."""
    number: int
    """Line number, from 1."""
    end: int
    """Offset after the line, in bytes."""
    too_long: bool = False


def lines_from(file: BinaryIO, offset: int, number: int) -> Iterator[Line]:
    """Read lines from an offset on, with at most `MAX_RECORD_BYTES` of a line in memory.

    Args:
        file: The file.
        offset: Start of a line, in bytes.
        number: Number of this line.

    Yields:
        Line: Each line, without the file's byte order mark.
    """
    file.seek(offset)
    while raw := file.readline(MAX_RECORD_BYTES):
        end = offset + len(raw)
        too_long = len(raw) == MAX_RECORD_BYTES and not raw.endswith(b"\n")
        if too_long:
            end += _skip_line(file)
        yield Line(raw.removeprefix(BOM) if offset == 0 else raw, number, end, too_long)
        offset, number = end, number + 1


def _skip_line(file: BinaryIO) -> int:
    skipped = 0
    while raw := file.readline(2**20):
        skipped += len(raw)
        if raw.endswith(b"\n"):
            break
    return skipped


def cut_spans(starts: Iterator[tuple[int, int]], rows: int) -> Iterator[Span]:
    """Divide a text file into spans.

    Args:
        starts: Offset and line number of the start of each row, in order.
        rows: Rows per span.

    Yields:
        Span: Each span, in order.
    """
    first, offset, line, count = 0, 0, 1, 0
    for begins, number in starts:
        if count == rows:
            yield Span(first, count, offset, line)
            first, count = first + count, 0
        if count == 0:
            offset, line = begins, number
        count += 1
    if count:
        yield Span(first, count, offset, line)


def open_text(path: Path) -> BinaryIO:
    """Open a text file in binary mode, with a buffer for sequential reading.

    Args:
        path: The file.

    Returns:
        The open file.
    """
    return path.open("rb", buffering=2**20)
