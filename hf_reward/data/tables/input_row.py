"""What a reader gives: rows one after the other, where each came from, and what is wrong with those that are none."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from hf_reward.data.preference_row import UNREADABLE

MAX_RECORD_BYTES = 64 * 2**20
"""Bytes of one line or CSV record, at most: a longer one is skipped and reported, so that memory stays bounded."""
RAW_SHOWN = 2_000
"""Characters of a row that the quarantine shows, at most."""
_SURROGATE = re.compile("[\ud800-\udfff]")


class DamagedFile(ValueError):
    """A file that cannot be read, or not beyond some row: says which, where and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRow:
    """One row of a table, or what stands where a row should be."""

    number: int
    """Place in its file, from 0."""
    row: dict[str, Any] | None = None
    """The columns; None if there is a problem."""
    problem: str = ""
    """Why there is no row."""
    raw: str = ""
    """The beginning of what stands there, if there is a problem."""
    line: int | None = None
    """Line of a text file, from 1, on which the row begins."""
    arrow: tuple[pa.RecordBatch, int] | None = None
    """The same row as Arrow holds it, where that is where it comes from: it is written back without loss."""
    size: int = 0
    """Bytes it takes, about."""

    @property
    def columns(self) -> dict[str, Any]:
        """The columns, or why there are none as `UNREADABLE`."""
        return {UNREADABLE: self.problem} if self.row is None else self.row


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive rows of one table, and where they begin."""

    first: int
    """Number of the first row."""
    rows: int
    offset: int = 0
    """Byte of a text file."""
    line: int = 1
    """Line of a text file, from 1."""

    @property
    def stop(self) -> int:
        """Number of the row after the last one."""
        return self.first + self.rows


class Table(Protocol):
    """A source of rows that can be read from any span on, never held in memory as a whole."""

    name: str
    """What rows without an id are named after."""

    @property
    def schema(self) -> pa.Schema | None:
        """Names and types of the columns, where the source states them."""
        ...

    def identity(self) -> dict[str, Any]:
        """What tells the table from another one, as JSON values."""
        ...

    def spans(self, rows: int) -> Iterator[Span]:
        """Cut the table into consecutive spans of that many rows, the last of which may be shorter."""
        ...

    def read(self, span: Span) -> Iterator[InputRow]:
        """Give the rows of a span in order."""
        ...

    def close(self) -> None:
        """Let go of what is open; the table can be read again."""
        ...


def lone_surrogate(text: str) -> str:
    """Say what is wrong with text that no program can write as UTF-8, nothing if it is well.

    Args:
        text: Any text.

    Returns:
        A clause, or "".
    """
    found = _SURROGATE.search(text)
    return f"it holds half a character (U+{ord(found.group()):04X} alone)" if found else ""
