"""Find the file and line of loaded rows for messages, or the row number for formats such as Parquet."""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xxhash
from datasets import Dataset, IterableDataset

from hf_reward.data.json_files import is_json_list
from hf_reward.data.preference_row import PreferenceFormatError
from hf_reward.data.tables.csv_file import CsvTable
from hf_reward.data.tables.json_lines import JsonLinesTable

_KEY = "hf_reward_file"
_SEARCHED = 2**28
"""Most bytes of files that are searched for the content of a row, which takes a few seconds."""
_Rows = TypeVar("_Rows", Dataset, IterableDataset, Dataset | IterableDataset)


def remember_files(rows: _Rows, files: Sequence[Path]) -> _Rows:
    """Record the files of a dataset's rows in the dataset; selections from it keep this record.

    Args:
        rows: All rows of the files, in order.
        files: The files.

    Returns:
        The dataset.
    """
    rows.info.download_checksums = {str(file): {_KEY: True} for file in files}
    return rows


def remembered_files(rows: Any) -> list[Path]:
    """Return the files that `remember_files` recorded.

    Args:
        rows: A dataset or a stream.

    Returns:
        Paths in order; empty for other data.
    """
    noted = getattr(getattr(rows, "info", None), "download_checksums", None) or {}
    return [Path(name) for name, note in noted.items() if isinstance(note, dict) and note.get(_KEY)]


class FileLines:
    """Line numbers of the rows of files. The files are searched when a line is first requested.

    Args:
        files: The files, in loading order.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = list(files)

    def name(self, place: int, *, short: bool = False) -> str:
        """Return the file and line of a row, by its index over all files."""
        file = int(np.searchsorted(np.cumsum([len(lines) for lines in self.lines]), place, side="right"))
        line = self.lines[file][place - sum(map(len, self.lines[:file]))]
        return f"{self._files[file].name if short else self._files[file]}, line {line}"

    def find(self, row: Mapping[str, Any], *, short: bool = False) -> str | None:
        """Return the file and line of the first row with this content; None without one or if files are too large."""
        places = [] if self.hashes is None else np.flatnonzero(self.hashes == _content_hash(row))
        return self.name(int(places[0]), short=short) if len(places) else None

    @cached_property
    def lines(self) -> list[np.ndarray]:
        """Line number of each row of each file, from 1; empty for formats without lines."""
        return [_lines_of(file) for file in self._files] if all(map(_has_lines, self._files)) else []

    @cached_property
    def hashes(self) -> np.ndarray | None:
        """Hash of the content of each row; None for files that would take long to read."""
        if not self.lines or sum(file.stat().st_size for file in self._files) > _SEARCHED:
            return None
        tables = [(table, span) for table in map(_table, self._files) for span in table.spans(2**40)]
        contents = (found.columns for table, span in tables for found in table.read(span))
        return np.fromiter(map(_content_hash, contents), np.uint64)


class RowLocations:
    """Locations of the rows of a dataset in its files.

    Rows are found by number. In streams and contiguous parts of a file, where `datasets` does not keep the number, they
    are found by content.

    Args:
        rows: A dataset or a stream, which may be a selection from one with recorded files.
    """

    def __init__(self, rows: Any) -> None:
        self._rows, self._files = rows, FileLines(remembered_files(rows))

    def where(self, number: int, *, short: bool = False) -> str | None:
        """Return the file and line of a row.

        Args:
            number: Index in the dataset.
            short: Return the file's name without its folder.

        Returns:
            For example `data/train.jsonl, line 4`, counted from 1; None if the row has no line.
        """
        if isinstance(self._rows, IterableDataset):
            row = next(islice(self._rows, number, None), None) if self._files.lines else None
            return None if row is None else self._files.find(row, short=short)
        if self._offset is None:
            return None
        indices = self._rows._indices  # indices into the loaded table, if rows were selected or shuffled
        place = number if indices is None else indices.column(0)[number].as_py()
        return self._files.name(self._offset + place, short=short)

    @cached_property
    def _offset(self) -> int | None:
        """Index of the table's first row over all files; None if the table is not a part of the files."""
        if not isinstance(self._rows, Dataset) or not self._files.lines:
            return None
        count, total = self._rows.data.num_rows, sum(map(len, self._files.lines))
        if count == total:
            return 0
        if not 0 < count < total or self._files.hashes is None:
            return None
        table = copy.copy(self._rows)
        table._indices = None
        ends = [_content_hash(table[place]) for place in (0, count - 1)]
        hashes = self._files.hashes
        begins = np.flatnonzero((hashes[: total - count + 1] == ends[0]) & (hashes[count - 1 :] == ends[1]))
        return int(begins[0]) if len(begins) == 1 else None


@contextmanager
def with_row_locations(rows: Any) -> Iterator[None]:
    """Context manager: format errors of rows within it also name the file and line.

    Args:
        rows: The dataset whose rows are read.

    Yields:
        None: Within the context.

    Raises:
        PreferenceFormatError: The error with its location.
    """
    try:
        yield
    except PreferenceFormatError as error:
        if error.row_index is None or error.place is not None:
            raise
        place = RowLocations(rows).where(error.row_index)
        raise PreferenceFormatError(error.message, error.row_index, error.field, place) from None


def _has_lines(file: Path) -> bool:
    try:
        return file.suffix == ".csv" or (file.suffix in (".jsonl", ".json") and not is_json_list(file))
    except OSError:  # the file has been moved since loading
        return False


def _table(file: Path) -> CsvTable | JsonLinesTable:
    return CsvTable(file) if file.suffix == ".csv" else JsonLinesTable(file)


def _lines_of(file: Path) -> np.ndarray:
    return np.fromiter((span.line for span in _table(file).spans(1)), np.int64)


def _content_hash(row: Mapping[str, Any]) -> int:
    """Hash a row so that `datasets`' version has the same hash: missing fields equal null, and 1 equals 1.0."""
    return xxhash.xxh3_64_intdigest(json.dumps(_content(row), sort_keys=True, default=str).encode())


def _content(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _content(part) for name, part in value.items() if part is not None and part != ""}
    if isinstance(value, (list, tuple)):
        return [_content(part) for part in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
