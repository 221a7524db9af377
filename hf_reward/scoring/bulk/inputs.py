"""What a user names (file, folder, list of files, Hub id, dataset) -> tables, checked before anything is scored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset

from hf_reward.data.path_safety import require_inside
from hf_reward.data.sources import Source, load_source
from hf_reward.data.tables.arrow_rows import DatasetTable, ParquetTable
from hf_reward.data.tables.csv_file import CsvTable
from hf_reward.data.tables.input_row import Table
from hf_reward.data.tables.json_lines import JsonLinesTable
from hf_reward.data.text_files import require_one_byte_units

_READERS = {".jsonl": JsonLinesTable, ".ndjson": JsonLinesTable, ".csv": CsvTable, ".parquet": ParquetTable}
SUFFIXES = tuple(_READERS)


def open_tables(data: Any, *, split: str = "train") -> list[Table]:
    """Find the tables that `data` names; nothing is read yet.

    Args:
        data: A JSONL, CSV or Parquet file, a folder of such files of one kind, a list of files, a Hub id, a
            `datasets.Dataset`, or a list of rows.
        split: Split of a Hub id.

    Returns:
        The tables, in the order of their names; a list of files keeps its order.

    Raises:
        FileNotFoundError: If there is no such file or folder, or the folder holds no table.
        ValueError: If a file is of another kind, or two files would give their rows the same ids.
        TypeError: If the data is a stream.
    """
    if isinstance(data, (str, Path)) and Path(data).exists():
        return _of_files(_files_in(Path(data)))
    if isinstance(data, Sequence) and not isinstance(data, str) and all(isinstance(part, (str, Path)) for part in data):
        return _of_files([Path(part) for part in data])
    if isinstance(data, (str, Path)) and Path(data).suffix in SUFFIXES:
        raise FileNotFoundError(f"There is no file {str(data)!r} (looked in {Path.cwd()}).")
    loaded = load_source(Source(data=data if not isinstance(data, Path) else str(data), split=split))
    if isinstance(loaded, IterableDataset):
        raise TypeError("A stream cannot be resumed or counted. Save it as JSONL or Parquet, and score that.")
    assert isinstance(loaded, Dataset)
    return [DatasetTable(loaded, data if isinstance(data, str) else "data")]


def _files_in(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    # Names that begin with . or _ are no data for any reader of folders: temporaries, manifests, logs.
    found = [file for file in found if not file.name.startswith((".", "_"))]
    if not found:
        raise FileNotFoundError(f"The folder {path} holds no {', '.join(SUFFIXES)} file.")
    require_inside(path, found)
    return found


def _of_files(paths: Sequence[Path]) -> list[Table]:
    if not paths:
        raise ValueError("The list of files is empty. Name one or more.")
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {str(path)!r} (looked in {Path.cwd()}).")
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{path}: tables are {', '.join(SUFFIXES)} files, but this is {path.suffix or 'neither'}."
                             f"{_cure(path.suffix)}")  # fmt: skip
    kinds = {path.suffix for path in paths}
    if len(kinds) > 1:
        raise ValueError(f"Files of one run must be of one kind, but found {', '.join(sorted(kinds))}. Score each kind "
                         "on its own.")  # fmt: skip
    stems = [path.stem for path in paths]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ValueError(f"Two files are named {', '.join(twice[:3])}: their rows would get the same ids. Rename one.")
    for path in paths:
        if path.suffix != ".parquet":
            require_one_byte_units(path)
    return [_READERS[path.suffix](path) for path in paths]


def _cure(suffix: str) -> str:
    if suffix in (".gz", ".zst", ".bz2", ".xz"):
        return " Unpack it: a compressed file cannot be read from the middle, which resuming needs."
    if suffix == ".json":
        return " Write one object per line and name it .jsonl: a JSON list cannot be read piece by piece."
    return ""
