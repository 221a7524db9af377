"""File, folder, Hub id, list, dataset or mixture -> raw `datasets` rows, one dataset per source."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset

from hf_reward.json_rows import read_json_rows, refuse_null_rows
from hf_reward.path_safety import refuse_archives, require_inside
from hf_reward.plain_values import rows_of
from hf_reward.preference_row import as_mapping

RawDataset = Dataset | IterableDataset
DEMONSTRATION = "demonstration"
"""Name of the preference set that the package carries, with the splits `train` and `test`."""

_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_SPLITS = {"train", "test", "validation", "valid", "val", "dev", "eval"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source of preference rows, alone or as a part of a mixture."""

    data: Any
    """A path, a Hub id, a `datasets` dataset, a pandas `DataFrame`, or a list of rows."""
    name: str = ""
    weight: float = 1.0
    """How often each row is seen in an epoch: 2 is twice, 0.5 is a random half."""
    split: str = "train"
    """Split of a Hub id or of a folder that has several."""
    columns: Mapping[str, str] | None = None
    layout: str = "auto"

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(
                f"The `weight` of a source must be above 0, but is {self.weight} for {self.name or self.data}."
            )


def as_sources(
    data: Any, *, split: str = "train", columns: Mapping[str, str] | None = None, layout: str = "auto"
) -> list[Source]:
    """List the sources that `data` names.

    Args:
        data: One source in any form, a `Source`, or a list of `Source`s, paths or dicts with the fields of `Source`
            (and `path` for `data`): a mixture. A list of rows is one source.
        split: Split of sources that name none.
        columns: Our name -> the data's own column name, for sources that name none.
        layout: Row layout of sources that name none.

    Returns:
        One or more sources, each with a name.

    Raises:
        ValueError: If there is nothing in the list, or two sources have the same name.
    """
    defaults = {"split": split, "columns": columns, "layout": layout}
    parts = list(data) if _is_mixture(data) else [data]
    sources = []
    for place, part in enumerate(parts):
        fields = _source_fields(part)
        name = fields.pop("name", "") or _name(fields["data"], place)
        sources.append(Source(**{**defaults, **fields, "name": name}))
    names = [source.name for source in sources]
    if len(set(names)) != len(names):
        raise ValueError(f"Sources of a mixture need different names, but got {names}. Give each a `name`.")
    return sources


def load_source(source: Source, *, streaming: bool = False) -> RawDataset:
    """Read one source.

    Args:
        source: Where the rows are.
        streaming: Read files and Hub ids as an `IterableDataset`.

    Returns:
        The raw rows.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder holds no data file.
        ValueError: If a file's kind is unknown, it cannot be read, or the split does not exist.
    """
    data = source.data
    if isinstance(data, (DatasetDict, IterableDatasetDict)):
        return _pick_split(data, source)
    if isinstance(data, (Dataset, IterableDataset)):
        return data
    if isinstance(data, (str, Path)):
        return _load_named(str(data), source, streaming)
    if isinstance(data, pd.DataFrame):
        return _from_frame(data)
    if isinstance(data, Sequence):
        if not data:
            raise ValueError(f"The data {source.name!r} holds no rows.")
        return _from_rows([as_mapping(row) for row in data])
    raise TypeError(
        "Data must be a path, a Hub id, a `datasets` dataset, a pandas `DataFrame` or a list of rows, but is a "
        f"{type(data).__name__}."
    )


def _load_named(name: str, source: Source, streaming: bool) -> RawDataset:
    path = Path(str(files("hf_reward"))) / DEMONSTRATION if name == DEMONSTRATION else Path(name)
    if path.is_file():
        return _load_files([path], source.name, streaming)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in _BUILDERS and file.is_file())
        if not found:
            raise FileNotFoundError(f"{path} holds no {', '.join(_BUILDERS)} file.")
        require_inside(path, found)
        return _load_files(_files_of_split(found, source), source.name, streaming)
    if path.suffix in _BUILDERS or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"There is no file or folder {name!r} (looked in {Path.cwd()}).")
    return load_dataset(name, split=source.split, streaming=streaming)


def _files_of_split(found: Sequence[Path], source: Source) -> Sequence[Path]:
    """`train.jsonl` and `train-00000-of-00002.parquet` are of the split `train`; without such names all files are."""
    named = [file for file in found if file.stem == source.split or file.stem.startswith(f"{source.split}-")]
    splits = {file.stem.split("-")[0] for file in found} & _SPLITS
    if splits and not named:
        # Falling back to all files would mix the test split into the training data.
        _require_split(sorted(splits), source)
    return named or found


def _load_files(files: Sequence[Path], name: str, streaming: bool) -> RawDataset:
    suffixes = {file.suffix for file in files}
    if len(suffixes) > 1 or not suffixes <= set(_BUILDERS):
        raise ValueError(f"{name}: data files must be all of one kind out of {', '.join(_BUILDERS)}, found {suffixes}.")
    refuse_archives(files)
    builder = _BUILDERS[suffixes.pop()]
    if builder == "json":
        refuse_null_rows(files)
    try:
        return load_dataset(builder, data_files=[str(file) for file in files], split="train", streaming=streaming)
    except Exception as error:
        if builder != "json" or streaming:
            raise ValueError(f"{name}: the {builder} reader of `datasets` failed: {_root(error)}") from error
    # Arrow wants one type per column; rows that mix types in one (a boolean among texts) are still JSON.
    return _from_rows(read_json_rows(files))


def _from_rows(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    """A dataset in memory whose columns are those of all rows, not only of the first."""
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        return Dataset.from_list([{name: row.get(name) for name in names} for row in rows], on_mixed_types="use_json")
    except Exception as error:  # whatever Arrow and `datasets` raise for names and numbers that they cannot hold
        raise ValueError(
            f"The rows, with the columns {', '.join(map(repr, names))}, do not fit into a table: {_root(error)}"
        ) from error


def _from_frame(frame: pd.DataFrame) -> Dataset:
    try:
        return Dataset.from_pandas(frame, preserve_index=False)
    except Exception:  # Arrow wants one type per column
        return _from_rows(rows_of(frame))


def _pick_split(data: DatasetDict | IterableDatasetDict, source: Source) -> RawDataset:
    _require_split(sorted(map(str, data)), source)
    return data[source.split]


def _require_split(splits: Sequence[str], source: Source) -> None:
    if source.split not in splits:
        raise ValueError(
            f"{source.name or 'The data'} has the splits {splits}, not {source.split!r}. Name one of them."
        )


def _is_mixture(data: Any) -> bool:
    if not isinstance(data, (list, tuple)) or not data:
        return False
    return all(
        isinstance(part, (Source, str, Path, Dataset, IterableDataset, pd.DataFrame))
        or (isinstance(part, Mapping) and bool(part.keys() & {"path", "data"}) and "chosen" not in part)
        for part in data
    )


def _source_fields(part: Any) -> dict[str, Any]:
    if isinstance(part, Source):
        return {name: getattr(part, name) for name in Source.__dataclass_fields__}
    if isinstance(part, str) and part.lstrip().startswith("{"):
        part = json.loads(part)
    if isinstance(part, Mapping) and part.keys() & {"path", "data"}:
        fields = dict(part)
        if "path" in fields:
            fields["data"] = fields.pop("path")
        unknown = fields.keys() - Source.__dataclass_fields__.keys()
        if unknown:
            known = ", ".join(["path", *Source.__dataclass_fields__])
            raise ValueError(f"A source has no {', '.join(sorted(unknown))}. It has: {known}.")
        return fields
    return {"data": part}


def _name(data: Any, place: int) -> str:
    if not isinstance(data, (str, Path)):
        return f"source{place}" if place else "data"
    path = Path(str(data))
    # train.jsonl in a folder is better told by its folder.
    return path.parent.name or path.stem if path.stem in ("train", "test", "validation", "data") else path.stem


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"
