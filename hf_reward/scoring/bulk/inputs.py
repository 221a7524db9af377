"""Open the inputs (file, folder, list of files, Hub id, dataset) as tables and check them before scoring."""

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
    """Find the tables of `data` without reading them.

    Args:
        data: A JSONL, CSV or Parquet file, a folder of such files of one kind, a list of files, a Hub id, a
            `datasets.Dataset`, or a list of rows.
        split: Split of a Hub id.

    Returns:
        The tables, sorted by name; a list of files keeps its order.

    Raises:
        FileNotFoundError: If there is no such file or folder, or the folder contains no table.
        ValueError: If a file has another format, or two files would give their rows the same ids.
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
        raise TypeError("A stream cannot be resumed or counted. Save it as JSONL or Parquet, and score the file.")
    assert isinstance(loaded, Dataset)
    return [DatasetTable(loaded, data if isinstance(data, str) else "data")]


def _files_in(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    # Readers of folders skip names that start with . or _: temporary files, manifests, logs.
    found = [file for file in found if not file.name.startswith((".", "_"))]
    if not found:
        raise FileNotFoundError(f"The folder {path} contains no {', '.join(SUFFIXES)} file.")
    require_inside(path, found)
    return found


def _of_files(paths: Sequence[Path]) -> list[Table]:
    if not paths:
        raise ValueError("The list of files is empty. Name one or more.")
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {str(path)!r} (looked in {Path.cwd()}).")
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{path} must be a {', '.join(SUFFIXES)} file, but its suffix is {path.suffix or 'empty'}."
                             f"{_remedy(path.suffix)}")  # fmt: skip
    kinds = {path.suffix for path in paths}
    if len(kinds) > 1:
        raise ValueError(f"All files of a run must have the same format, but found {', '.join(sorted(kinds))}. Score "
                         "each format separately.")  # fmt: skip
    stems = [path.stem for path in paths]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ValueError(
            f"Two files are named {', '.join(twice[:3])}, so their rows would get the same ids. Rename one."
        )
    for path in paths:
        if path.suffix != ".parquet":
            require_one_byte_units(path)
    return [_READERS[path.suffix](path) for path in paths]


def _remedy(suffix: str) -> str:
    if suffix in (".gz", ".zst", ".bz2", ".xz"):
        return " Decompress it: resuming needs random access, which a compressed file does not allow."
    if suffix == ".json":
        return " Write one object per line and name it .jsonl: a JSON list cannot be read in parts."
    return ""
