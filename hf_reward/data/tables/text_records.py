"""What JSONL and CSV files share: lines of bytes with a bound on their length, and spans found by reading once."""

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
    """With its line break; only the beginning if it is too long."""
    number: int
    """From 1."""
    end: int
    """Byte after it."""
    too_long: bool = False


def lines_from(file: BinaryIO, offset: int, number: int) -> Iterator[Line]:
    """Read lines from a byte on, never holding more than `MAX_RECORD_BYTES` of one.

    Args:
        file: The file.
        offset: Where a line begins.
        number: The number of that line.

    Yields:
        Line: Each line, the file's byte order mark left out.
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
    """Cut a text file into spans.

    Args:
        starts: Byte and line at which each row begins, in order.
        rows: Rows of a span.

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
    """Open a file of lines with a buffer that suits reading it from end to end.

    Args:
        path: The file.

    Returns:
        The open file.
    """
    return path.open("rb", buffering=2**20)
