"""Readers of rows in Arrow format: Parquet files and `datasets` datasets."""

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
"""Rows per decoded batch: with texts of 1 MB, a batch is 256 MB."""


class _Footer(NamedTuple):
    schema: pa.Schema
    rows: list[int]
    """Number of rows in each row group."""


class ParquetTable:
    """The rows of a Parquet file; nested columns become lists and dicts.

    The reader keeps its position after a span, so spans that are read in order are decoded only once.
    """

    def __init__(self, path: Path, name: str = "") -> None:
        self.path, self.name = path, name or path.name
        self._file: pq.ParquetFile | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None
        self._at = -1  # number of the next row in `_rest` and `_batches`

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
        """Divide the file into spans; reads only the footer."""
        return even_spans(sum(self._footer.rows), rows)

    def read(self, span: Span) -> Iterator[InputRow]:
        """Read the rows of a span.

        Args:
            span: The span.

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
        """Close the file and release decoded rows."""
        if self._file is not None:
            self._file.close()
        self._file, self._batches, self._rest, self._at = None, iter(()), None, -1

    def _group_of(self, row: int) -> tuple[int, int]:
        """Return the row group of a row, and the number of the group's first row."""
        begins = 0
        for group, rows in enumerate(self._footer.rows):
            if row < begins + rows:
                return group, begins
            begins += rows
        raise DamagedFile(
            f"{self.path}: row {row} was expected, but the file now has only {begins} rows. The file has changed since "
            "the run started; start a new run."
        )

    def _begin(self, group: int, begins: int) -> None:
        self.close()
        file = self._file = self._open()
        self._at = begins
        # One group at a time, so that a damaged group does not also lose the last rows of the previous one.
        self._batches = chain.from_iterable(
            file.iter_batches(_BATCH, row_groups=[number], use_threads=False)
            for number in range(group, len(self._footer.rows))
        )

    def _decode(self) -> pa.RecordBatch:
        try:
            return next(self._batches)
        except StopIteration:
            reason = "the file has fewer rows than its footer states"
        except (pa.ArrowException, OSError) as error:
            reason = _first_line(error)
        at = self._at
        self.close()
        raise DamagedFile(
            f"{self.path}: rows from number {at} on cannot be decoded ({reason}). Replace the file with an intact copy."
        )

    def _open(self) -> pq.ParquetFile:
        try:
            # Read page by page: the default loads complete columns of a row group, which may be gigabytes.
            return pq.ParquetFile(self.path, pre_buffer=False, buffer_size=2**20, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise DamagedFile(
                f"{self.path} must be a Parquet file, but cannot be read as one ({_first_line(error)}). It may be "
                "truncated: copy it again, or leave it out."
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
        """Name, number of rows, and the fingerprint of `datasets`."""
        return {"name": self.name, "rows": len(self._python), "fingerprint": self._python._fingerprint}

    def spans(self, rows: int) -> Iterator[Span]:
        """Divide the dataset into spans."""
        return even_spans(len(self._python), rows)

    def read(self, span: Span) -> Iterator[InputRow]:
        """Read the rows of a span."""
        for first in range(span.first, span.stop, _BATCH):
            last = min(first + _BATCH, span.stop)
            columns, table = self._python[first:last], cast(pa.Table, self._arrow[first:last])
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            yield from input_rows(table.combine_chunks().to_batches()[0], rows, first)

    def close(self) -> None:
        """Do nothing: no file is open except those that the dataset maps."""


def even_spans(rows: int, size: int) -> Iterator[Span]:
    """Divide a number of rows into spans.

    Args:
        rows: Total number of rows.
        size: Rows per span.

    Yields:
        Span: Each span, in order.
    """
    for first in range(0, rows, size):
        yield Span(first, min(size, rows - first))


def input_rows(batch: pa.RecordBatch, rows: Sequence[dict[str, Any] | str], first: int) -> Iterator[InputRow]:
    """Combine rows in Arrow format with their Python values.

    Args:
        batch: The rows in Arrow format.
        rows: Columns of each row, or the reason why it cannot be read.
        first: Number of the first row.

    Yields:
        InputRow: Each row.
    """
    for place, row in enumerate(rows):
        if isinstance(row, str):
            yield InputRow(number=first + place, problem=row)
        else:
            # A single row's size is not known from the batch, whose buffers are shared by all rows.
            yield InputRow(number=first + place, row=row, arrow=(batch, place), size=content_size(row))


def content_size(value: Any) -> int:
    """Estimate the size of a value in bytes, independent of the file format."""
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
