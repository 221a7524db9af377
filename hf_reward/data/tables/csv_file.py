"""Reader of CSV files with a header, commas, double quotes and UTF-8; fields may contain line breaks."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from hf_reward.data.file_identity import file_identity
from hf_reward.data.tables.input_row import MAX_RECORD_BYTES, RAW_SHOWN, DamagedFile, InputRow, Span
from hf_reward.data.tables.text_records import cut_spans, lines_from, open_text
from hf_reward.data.text_files import why_not_utf8

MAX_FIELD_CHARACTERS = 16 * 2**20
"""Most characters in one field, so that an unclosed quote does not consume the complete file."""


@dataclass(slots=True)
class _Record:
    fields: list[str] = field(default_factory=list)
    problem: str = ""
    raw: str = ""
    size: int = 0
    line: int = 1
    begins: int = 0


class _Header(NamedTuple):
    columns: tuple[str, ...]
    end: int
    """Offset of the first row, in bytes."""
    next_line: int


class CsvTable:
    """The rows of a CSV file; all values are text."""

    def __init__(self, path: Path, name: str = "") -> None:
        self.path, self.name = path, name or path.name

    @cached_property
    def _header(self) -> _Header:
        with open_text(self.path) as file:
            records = _Records(file, 0, 1)
            header = next(iter(records), None)
            if header is None or header.problem:
                found = f"the first line cannot be read: {header.problem}" if header else "the file is empty"
                raise DamagedFile(
                    f"{self.path}: a CSV file must start with its column names, but {found}. Correct the file."
                )
            names = tuple(header.fields)
            if len(set(names)) != len(names):
                twice = sorted({name for name in names if names.count(name) > 1})
                raise DamagedFile(
                    f"{self.path}: column names must be unique, but two columns are called {', '.join(twice)}. Rename "
                    "one."
                )
            return _Header(names, records.end, records.next_line)

    @property
    def schema(self) -> pa.Schema:
        """The columns, all of them text."""
        return pa.schema([(column, pa.string()) for column in self._header.columns])

    def identity(self) -> dict[str, Any]:
        """Name, size and hashes of the content."""
        return file_identity(self.path) | {"name": self.name}

    def spans(self, rows: int) -> Iterator[Span]:
        """Divide the file into spans; reads it once."""
        with open_text(self.path) as file:
            records = _Records(file, self._header.end, self._header.next_line)
            yield from cut_spans(((record.begins, record.line) for record in records), rows)

    def read(self, span: Span) -> Iterator[InputRow]:
        """Read the rows of a span."""
        with open_text(self.path) as file:
            for number, record in enumerate(_Records(file, span.offset, span.line), start=span.first):
                yield self._row(record, number)
                if number + 1 == span.stop:
                    return

    def close(self) -> None:
        """Do nothing: no file is left open."""

    def _row(self, record: _Record, number: int) -> InputRow:
        problem, columns = record.problem, self._header.columns
        if not problem and len(record.fields) != len(columns):
            problem = f"the row must have {len(columns)} fields, as the header does, but has {len(record.fields)}"
        if problem:
            return InputRow(number=number, problem=problem, raw=record.raw, line=record.line)
        row = dict(zip(columns, record.fields, strict=True))
        return InputRow(number=number, row=row, line=record.line, size=record.size)


class _Records:
    """Records of a file from an offset on, with the offsets and UTF-8 errors that the csv module does not report."""

    def __init__(self, file: BinaryIO, offset: int, line: int) -> None:
        self.end, self.next_line = offset, line
        self._lines = lines_from(file, offset, line)
        self._problem, self._shown, self._size = "", "", 0
        # The limit is process-wide and small by default. It is never lowered, because other code may have raised it.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD_CHARACTERS))

    def __iter__(self) -> Iterator[_Record]:
        reader = csv.reader(self._texts(), strict=True)  # otherwise an unclosed quote would silently consume rows
        while True:
            begins, line = self.end, self.next_line
            self._problem, self._shown, self._size = "", "", 0
            try:
                fields = next(reader, None)
            except csv.Error as error:
                fields, self._problem = [], f"the row is not valid CSV ({error})"
            if fields is None:
                return
            if fields or self._problem:
                yield _Record(fields, self._problem, self._shown.rstrip("\r\n"), self._size, line, begins)

    def _texts(self) -> Iterator[str]:
        for line in self._lines:
            self.end, self.next_line = line.end, line.number + 1
            raw = line.raw
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                text = raw.decode("utf-8", "replace")
                self._problem = f"the row is not UTF-8 ({why_not_utf8(error, offset=line.end - len(raw))})"
            self._size += len(raw)
            self._shown += text[: RAW_SHOWN - len(self._shown)] if len(self._shown) < RAW_SHOWN else ""
            if line.too_long:
                self._problem, text = f"the line is longer than {MAX_RECORD_BYTES // 2**20} MiB", "\n"
            yield text
