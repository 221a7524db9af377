"""Writers of scored rows as JSONL or Parquet. The output is deterministic: equal rows give equal bytes."""

import json
import shutil
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_reward.data.tables.input_row import InputRow
from hf_reward.data.tables.schemas import REMEDY


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A row with added columns."""

    source: InputRow
    added: dict[str, Any]

    @property
    def columns(self) -> dict[str, Any]:
        """All columns, the added ones last."""
        assert self.source.row is not None
        return self.source.row | self.added


class RowWriter(Protocol):
    """Writer of batches of rows to an open file."""

    def write(self, rows: Sequence[ScoredRow]) -> None:
        """Append rows."""
        ...

    def close(self) -> None:
        """Write the end of the file, without closing it."""
        ...


class JsonLinesWriter:
    """Write one JSON object per line."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, rows: Sequence[ScoredRow]) -> None:
        """Append rows."""
        self._file.write(b"".join(json_line(row.columns) for row in rows))

    def close(self) -> None:
        """Do nothing: a JSONL file has no footer."""


class ParquetWriter:
    """Write one row group per batch of rows."""

    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(file, schema, write_page_checksum=True)

    def write(self, rows: Sequence[ScoredRow]) -> None:
        """Append rows."""
        if not rows:
            return
        try:
            table = _as_table(rows, self._schema)
        except (pa.ArrowException, OverflowError) as error:
            raise ValueError(
                f"Rows must match the column types of the output, but some do not ({error}). {REMEDY}"
            ) from error
        self._writer.write_table(table, row_group_size=len(rows))

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


def json_line(row: dict[str, Any]) -> bytes:
    """Format a row as a line of JSON.

    Args:
        row: Column -> value. Values that JSON does not support become text: dates in ISO format, bytes in base64.

    Returns:
        The line, in UTF-8.
    """
    return json.dumps(row, ensure_ascii=False, default=_json_value).encode("utf-8") + b"\n"


def _json_value(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (bytes, bytearray)):
        return b64encode(value).decode("ascii")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _as_table(rows: Sequence[ScoredRow], schema: pa.Schema) -> pa.Table:
    if any(row.source.arrow is None for row in rows):
        names = schema.names
        values = [row.columns for row in rows]
        return pa.Table.from_pydict({name: [each.get(name) for each in values] for name in names}, schema=schema)
    kept = pa.concat_tables(_arrow_parts(rows), promote_options="default")
    columns = [_column(kept, rows, each) for each in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _arrow_parts(rows: Sequence[ScoredRow]) -> Iterable[pa.Table]:
    for _, group in groupby((row.source.arrow for row in rows if row.source.arrow), key=lambda arrow: id(arrow[0])):
        places = list(group)
        yield pa.Table.from_batches([places[0][0].take(pa.array([place for _, place in places]))])


def _column(kept: pa.Table, rows: Sequence[ScoredRow], field: pa.Field) -> Any:
    if field.name in rows[0].added:
        return pa.array([row.added[field.name] for row in rows], type=field.type)
    if field.name not in kept.column_names:
        return pa.nulls(len(rows), field.type)
    column = kept[field.name]
    return column if column.type == field.type else column.cast(field.type)


def copy_json_lines(parts: Iterable[BinaryIO], file: BinaryIO) -> None:
    """Concatenate JSONL files.

    Args:
        parts: The open files, in order.
        file: The output.
    """
    for part in parts:
        shutil.copyfileobj(part, file, 2**20)


def copy_parquet(parts: Iterable[BinaryIO], file: BinaryIO, schema: pa.Schema) -> None:
    """Concatenate Parquet files of one schema, one row group at a time.

    Args:
        parts: The open files, in order.
        file: The output.
        schema: Their schema.
    """
    with pq.ParquetWriter(file, schema, write_page_checksum=True) as writer:
        for part in parts:
            with pq.ParquetFile(part, pre_buffer=False, page_checksum_verification=True) as source:
                for group in range(source.num_row_groups):
                    writer.write_table(source.read_row_group(group, use_threads=False), row_group_size=2**30)
