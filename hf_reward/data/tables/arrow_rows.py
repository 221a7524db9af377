"""Rows that Arrow holds: Parquet files and `datasets` datasets."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from hf_reward.data.file_identity import file_identity
from hf_reward.data.tables.input_row import DamagedFile, InputRow, Span

_BATCH = 256
"""Rows decoded at a time: with texts of 1 MB that is already 256 MB."""


class _Footer(NamedTuple):
    schema: pa.Schema
    rows: list[int]
    """Rows of each row group."""


class ParquetTable:
    """The rows of a Parquet file; nested columns become lists and dicts.

    Spans that are read in order are decoded once: the reader stays where the last span ended.
    """

    def __init__(self, path: Path, name: str = "") -> None:
        self.path, self.name = path, name or path.name
        self._file: pq.ParquetFile | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None
        self._at = -1  # number of the next row that `_rest` and `_batches` give

    @cached_property
    def _footer(self) -> _Footer:
        with self._open() as file:
            metadata = file.metadata
            rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
            return _Footer(file.schema_arrow, rows)

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return self._footer.schema

    def identity(self) -> dict[str, Any]:
        """Name, size and hashes of the content."""
        return file_identity(self.path) | {"name": self.name}

    def spans(self, rows: int) -> Iterator[Span]:
        """Cut the file into spans; reads only its footer."""
        return even_spans(sum(self._footer.rows), rows)

    def read(self, span: Span) -> Iterator[InputRow]:
        """Give the rows of a span.

        Args:
            span: Which rows.

        Yields:
            InputRow: Each row.

        Raises:
            DamagedFile: If rows cannot be decoded.
        """
        group, begins = self._group_of(span.first)
        if not begins <= self._at <= span.first:
            self._begin(group, begins)
        while self._at < span.stop:
            batch, at = self._rest if self._rest is not None else self._decode(), self._at
            before, end = max(0, span.first - at), min(len(batch), span.stop - at)
            self._rest = batch.slice(end) if end < len(batch) else None
            self._at += end
            if end > before:
                part = batch.slice(before, end - before)
                yield from input_rows(part, _python_rows(part), at + before)

    def close(self) -> None:
        """Let go of the file and of what was decoded of it."""
        if self._file is not None:
            self._file.close()
        self._file, self._batches, self._rest, self._at = None, iter(()), None, -1

    def _group_of(self, row: int) -> tuple[int, int]:
        """The row group that holds a row, and that group's first row."""
        begins = 0
        for group, rows in enumerate(self._footer.rows):
            if row < begins + rows:
                return group, begins
            begins += rows
        raise DamagedFile(f"{self.path}: has {begins} rows, but the run was planned when it had more. Start anew.")

    def _begin(self, group: int, begins: int) -> None:
        self.close()
        file = self._file = self._open()
        self._at = begins
        # Group by group: a batch that reached into the next one would be lost with it if that is damaged.
        self._batches = chain.from_iterable(
            file.iter_batches(_BATCH, row_groups=[number], use_threads=False)
            for number in range(group, len(self._footer.rows))
        )

    def _decode(self) -> pa.RecordBatch:
        try:
            return next(self._batches)
        except StopIteration:
            reason = "it ends before the row that its footer promises"
        except (pa.ArrowException, OSError) as error:
            reason = _first_line(error)
        at = self._at
        self.close()
        raise DamagedFile(
            f"{self.path}: rows from number {at} on cannot be decoded ({reason}). Put a good copy in its place."
        )

    def _open(self) -> pq.ParquetFile:
        try:
            # Read page by page: the default loads whole columns of a row group, which may be gigabytes.
            return pq.ParquetFile(self.path, pre_buffer=False, buffer_size=2**20, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise DamagedFile(
                f"{self.path}: this is no readable Parquet file ({_first_line(error)}). It may be cut short: copy it "
                "again, or leave it out."
            ) from error


class DatasetTable:
    """The rows of a `datasets` dataset."""

    def __init__(self, dataset: Dataset, name: str) -> None:
        self.name = name
        self._python, self._arrow = dataset.with_format(None), dataset.with_format("arrow")

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return self._python.features.arrow_schema

    def identity(self) -> dict[str, Any]:
        """Name, number of rows, and the fingerprint by which `datasets` tells data apart."""
        return {"name": self.name, "rows": len(self._python), "fingerprint": self._python._fingerprint}

    def spans(self, rows: int) -> Iterator[Span]:
        """Cut the dataset into spans."""
        return even_spans(len(self._python), rows)

    def read(self, span: Span) -> Iterator[InputRow]:
        """Give the rows of a span."""
        for first in range(span.first, span.stop, _BATCH):
            last = min(first + _BATCH, span.stop)
            columns, table = self._python[first:last], cast(pa.Table, self._arrow[first:last])
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            yield from input_rows(table.combine_chunks().to_batches()[0], rows, first)

    def close(self) -> None:
        """Nothing stays open but what the dataset itself maps."""


def even_spans(rows: int, size: int) -> Iterator[Span]:
    """Cut a number of rows into spans.

    Args:
        rows: Rows in all.
        size: Rows of a span.

    Yields:
        Span: Each span, in order.
    """
    for first in range(0, rows, size):
        yield Span(first, min(size, rows - first))


def input_rows(batch: pa.RecordBatch, rows: Sequence[dict[str, Any] | str], first: int) -> Iterator[InputRow]:
    """Join Arrow's rows with what Python makes of them.

    Args:
        batch: The rows as Arrow holds them.
        rows: Each row's columns, or why it has none.
        first: Number of the first row.

    Yields:
        InputRow: Each row.
    """
    for place, row in enumerate(rows):
        if isinstance(row, str):
            yield InputRow(number=first + place, problem=row)
        else:
            # The batch says nothing of one row's size: its buffers are those of all rows that were decoded with it.
            yield InputRow(number=first + place, row=row, arrow=(batch, place), size=content_size(row))


def content_size(value: Any) -> int:
    """Bytes that a value takes, about; the same wherever and however it was read."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        return sum(map(content_size, value.values()))
    if isinstance(value, list):
        plain = not value or isinstance(value[0], (int, float))
        return 8 * len(value) if plain else sum(map(content_size, value))
    return 8


def _python_rows(batch: pa.RecordBatch) -> list[dict[str, Any] | str]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return [_python_row(batch.slice(place, 1)) for place in range(len(batch))]


def _python_row(row: pa.RecordBatch) -> dict[str, Any] | str:
    try:
        return row.to_pylist()[0]
    except UnicodeDecodeError as error:
        return f"a text column is not UTF-8 ({error.reason})"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
