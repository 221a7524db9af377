"""Load data files of one format as a dataset that keeps a row for every unreadable line."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, IterableDataset, Value, load_dataset

from hf_reward.data.json_files import need_own_reader, read_json_rows, was_changed
from hf_reward.data.path_safety import refuse_archives
from hf_reward.data.preference_row import UNREADABLE
from hf_reward.data.tables.csv_file import CsvTable
from hf_reward.data.tables.input_row import lone_surrogate
from hf_reward.data.text_files import require_one_byte_units

BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""Suffix of a data file -> builder of `datasets`."""
_TEXTS = ("prompt", "chosen", "rejected", "response", "response_a", "response_b", "text")
"""Columns in which an empty cell of a CSV file means empty text; in other columns it means null."""


def load_files(
    files: Sequence[Path], name: str, *, streaming: bool = False, columns: Mapping[str, str] | None = None
) -> Dataset | IterableDataset:
    """Load data files.

    Cells of CSV files are always text: `02139` does not become a number and `NA` does not become null.

    Args:
        files: Files of one format, in order.
        name: Name of the data in errors.
        streaming: Load the files as a stream.
        columns: Field -> name of its column in the files.

    Returns:
        The rows. If lines cannot be parsed, the column `UNREADABLE` has the reason.

    Raises:
        ValueError: If the files have unknown or different formats, are not UTF-8, cannot be read, or have no readable
            row.
    """
    suffixes = {file.suffix for file in files}
    if len(suffixes) > 1 or not suffixes <= set(BUILDERS):
        raise ValueError(
            f"{name}: data files must all have the same format, one of {', '.join(BUILDERS)}, but found "
            f"{', '.join(sorted(suffixes))}. Convert them, or pass one format at a time."
        )
    refuse_archives(files)
    builder = BUILDERS[suffixes.pop()]
    if builder != "parquet":
        for file in files:
            require_one_byte_units(file)
    if builder == "csv":
        return _load_csv(files, columns or {}, streaming)
    if builder == "json" and need_own_reader(files):
        return _own_json(files, streaming)
    try:
        loaded: Any = load_dataset(builder, data_files=list(map(str, files)), split="train", streaming=streaming)
    except Exception as error:
        if builder != "json" or streaming:
            raise ValueError(
                f"{name}: the files cannot be read as {builder}: {_root(error)}. Correct or re-create them."
            ) from error
        loaded = None
    if builder == "json" and (loaded is None or (isinstance(loaded, Dataset) and was_changed(loaded))):
        # Arrow requires one type per column, but valid JSON may mix types (a boolean among texts).
        return _own_json(files, streaming)
    return loaded


def from_rows(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    """Create a dataset in memory with the columns of all rows, not only of the first.

    Args:
        rows: The rows.

    Returns:
        The dataset. If rows have text that Arrow cannot store, the column `UNREADABLE` has the reason.

    Raises:
        ValueError: If the rows cannot be stored as a table.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        return Dataset.from_list([{name: row.get(name) for name in names} for row in rows], on_mixed_types="use_json")
    except Exception as error:  # Arrow and `datasets` raise various errors for unsupported names and numbers
        checked = [_without_lone_surrogates(row) for row in rows]
        if checked != list(rows):
            return from_rows(checked)
        columns = ", ".join(map(repr, names))
        raise ValueError(
            f"The rows with the columns {columns} cannot be stored as a table: {_root(error)}. Give each column one "
            "type."
        ) from error


def _without_lone_surrogates(row: Mapping[str, Any]) -> Mapping[str, Any]:
    problem = lone_surrogate(json.dumps(dict(row), ensure_ascii=False, default=str))
    return {UNREADABLE: problem} if problem else row


def _own_json(files: Sequence[Path], streaming: bool) -> Dataset | IterableDataset:
    """Read rows with our own parser; a stream keeps one row in memory at a time."""
    first = next(read_json_rows(files), None)
    if first is not None and all(UNREADABLE in row for row in read_json_rows(files)):
        raise _nothing_readable(files, first[UNREADABLE])
    if not streaming:
        return from_rows(list(read_json_rows(files)))
    names = tuple(dict.fromkeys(name for row in read_json_rows(files) for name in row))
    return IterableDataset.from_generator(_json_rows, gen_kwargs={"files": list(map(str, files)), "names": names})


def _json_rows(files: list[str], names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for row in read_json_rows(list(map(Path, files))):
        yield {name: row.get(name) for name in names}


def _nothing_readable(files: Sequence[Path], reason: Any) -> ValueError:
    return ValueError(
        f"{', '.join(map(str, files))}: no row can be read. Problem of the first row: {reason}. Correct the file."
    )


# --- CSV -------------------------------------------------------------------------------------------------------------


def _load_csv(files: Sequence[Path], columns: Mapping[str, str], streaming: bool) -> Dataset | IterableDataset:
    names = list(dict.fromkeys(name for file in files for name in CsvTable(file).schema.names))
    # Sizes and times are part of the arguments that `datasets` hashes for its cache, so an edited file is read again.
    states = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    texts = sorted({columns.get(name, name) for name in _TEXTS})
    settings: dict[str, Any] = {
        "features": Features({name: Value("string") for name in [*names, UNREADABLE]}),
        # Tuples, because `datasets` shards lists over processes.
        "gen_kwargs": {
            "files": list(map(str, files)),
            "names": tuple(names),
            "texts": tuple(texts),
            "states": tuple(states),
        },
    }
    if streaming:
        return IterableDataset.from_generator(_csv_rows, **settings)
    try:
        rows: Any = Dataset.from_generator(_csv_rows, **settings)
    except ValueError as error:
        if "corresponds to no data" not in str(error):
            raise
        return Dataset.from_dict({name: [] for name in names})  # a file with only a header
    unreadable = rows.data.column(UNREADABLE)
    if len(rows) and unreadable.null_count == 0:
        raise _nothing_readable(files, unreadable[0])
    return rows if unreadable.null_count < len(rows) else rows.remove_columns(UNREADABLE)


def _csv_rows(
    files: list[str], names: tuple[str, ...], texts: tuple[str, ...], states: tuple[Any, ...]
) -> Iterator[dict[str, Any]]:
    for file in files:
        table = CsvTable(Path(file))
        for span in table.spans(2**40):
            for found in table.read(span):
                cells = found.row or {}
                row = {name: (cells.get(name) or None) if name not in texts else cells.get(name) for name in names}
                yield {**row, UNREADABLE: found.problem or None}


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"
