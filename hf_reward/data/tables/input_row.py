"""Rows as returned by table readers, with their location and, if unreadable, the reason."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from hf_reward.data.preference_row import UNREADABLE

MAX_RECORD_BYTES = 64 * 2**20
"""Most bytes of a line or CSV record. Longer ones are skipped and reported, so that memory is bounded."""
RAW_SHOWN = 2_000
"""Most characters of an unreadable row that the quarantine file shows."""
_SURROGATE = re.compile("[\ud800-\udfff]")


class DamagedFile(ValueError):
    """A file that cannot be read, or only up to some row. The message has the file, the location and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRow:
    """One row of a table, readable or not."""

    number: int
    """Number of the row in its file, from 0."""
    row: dict[str, Any] | None = None
    """The columns; None if the row cannot be read."""
    problem: str = ""
    """Reason why the row cannot be read."""
    raw: str = ""
    """The start of an unreadable row's text."""
    line: int | None = None
    """First line of the row in a text file, from 1."""
    arrow: tuple[pa.RecordBatch, int] | None = None
    """Batch and index of a row from an Arrow source, which allows writing it without loss."""
    size: int = 0
    """Approximate size in bytes."""

    @property
    def columns(self) -> dict[str, Any]:
        """The columns; for an unreadable row, the reason in the column `UNREADABLE`."""
        return {UNREADABLE: self.problem} if self.row is None else self.row


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive rows of one table."""

    first: int
    """Number of the first row."""
    rows: int
    offset: int = 0
    """Offset of the first row in a text file, in bytes."""
    line: int = 1
    """Line of the first row in a text file, from 1."""

    @property
    def stop(self) -> int:
        """Number of the row after the last one."""
        return self.first + self.rows


class Table(Protocol):
    """A source of rows that is read in spans, so that it need not fit into memory."""

    name: str
    """Prefix of the ids of rows without an id."""

    @property
    def schema(self) -> pa.Schema | None:
        """Names and types of the columns, if the source has them."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return a fingerprint of the table, as JSON values."""
        ...

    def spans(self, rows: int) -> Iterator[Span]:
        """Divide the table into consecutive spans of `rows` rows; the last one may be shorter."""
        ...

    def read(self, span: Span) -> Iterator[InputRow]:
        """Read the rows of a span in order."""
        ...

    def close(self) -> None:
        """Close open files; the table can be read again."""
        ...


def lone_surrogate(text: str) -> str:
    """Describe the first lone surrogate of a text, which cannot be encoded as UTF-8.

    Args:
        text: Any text.

    Returns:
        A clause; empty for valid text.
    """
    found = _SURROGATE.search(text)
    return f"the text has a lone surrogate (U+{ord(found.group()):04X}), which is half a character" if found else ""
