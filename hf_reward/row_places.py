"""Row of loaded files -> where it stands: file and line, as an editor shows them, or its number where there is none."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from datasets import Dataset, IterableDataset

from hf_reward.json_rows import is_json_list
from hf_reward.preference_row import PreferenceFormatError
from hf_reward.tables.csv_file import CsvTable
from hf_reward.tables.json_lines import JsonLinesTable

_KEY = "hf_reward_file"
_Rows = TypeVar("_Rows", Dataset, IterableDataset, Dataset | IterableDataset)


def remember_files(rows: _Rows, files: Sequence[Path]) -> _Rows:
    """Note in a dataset which files its rows came from; whatever is selected from it keeps the note.

    Args:
        rows: All rows of the files, in order.
        files: The files.

    Returns:
        The dataset.
    """
    rows.info.download_checksums = {str(file): {_KEY: True} for file in files}
    return rows


class RowPlaces:
    """Where the rows of a dataset stand. The files are looked through when the first place is asked for.

    Args:
        rows: A dataset, perhaps selected from one with remembered files.
    """

    def __init__(self, rows: Any) -> None:
        noted = getattr(getattr(rows, "info", None), "download_checksums", None) or {}
        self._rows = rows
        self._files = [Path(name) for name, note in noted.items() if isinstance(note, dict) and note.get(_KEY)]

    def where(self, number: int, *, short: bool = False) -> str | None:
        """File and line of a row.

        Args:
            number: Its place in the dataset.
            short: Give the file's name without its folder.

        Returns:
            `data/train.jsonl, line 4`, from 1, or None if the row has no line.
        """
        if not self._lines:
            return None
        indices = self._rows._indices  # places in the table that was loaded, where rows were selected or shuffled
        place = number if indices is None else indices.column(0)[number].as_py()
        file = int(np.searchsorted(np.cumsum([len(lines) for lines in self._lines]), place, side="right"))
        line = self._lines[file][place - sum(map(len, self._lines[:file]))]
        return f"{self._files[file].name if short else self._files[file]}, line {line}"

    @cached_property
    def _lines(self) -> list[np.ndarray]:
        """Line of each row of each file; empty if they are not the loaded rows one by one."""
        if not isinstance(self._rows, Dataset) or not all(map(_has_lines, self._files)):
            return []
        lines = [_lines_of(file) for file in self._files]
        return lines if sum(map(len, lines)) == self._rows.data.num_rows else []


@contextmanager
def naming_lines(rows: Any) -> Iterator[None]:
    """Within this, an error of a row says where the row stands in its file.

    Args:
        rows: The dataset whose rows are read.

    Yields:
        None: While they are.

    Raises:
        PreferenceFormatError: The error, with the place.
    """
    try:
        yield
    except PreferenceFormatError as error:
        if error.row_index is None or error.place is not None:
            raise
        place = RowPlaces(rows).where(error.row_index)
        raise PreferenceFormatError(error.message, error.row_index, error.field, place) from None


def _has_lines(file: Path) -> bool:
    try:
        return file.suffix == ".csv" or (file.suffix in (".jsonl", ".json") and not is_json_list(file))
    except OSError:  # it was moved since
        return False


def _lines_of(file: Path) -> np.ndarray:
    table = CsvTable(file) if file.suffix == ".csv" else JsonLinesTable(file)
    return np.fromiter((span.line for span in table.spans(1)), np.int64)
