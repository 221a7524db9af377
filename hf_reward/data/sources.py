"""File, folder, Hub id, list, dataset or mixture -> raw `datasets` rows, one dataset per source."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset

from hf_reward.data.fields import column_example
from hf_reward.data.file_rows import BUILDERS, from_rows, load_files
from hf_reward.data.interface import setting
from hf_reward.data.path_safety import require_inside
from hf_reward.data.preference_row import UNREADABLE, PreferenceFormatError, as_mapping, rename_columns
from hf_reward.data.python_values import require_unique_columns, rows_of
from hf_reward.data.ratings import to_pairs
from hf_reward.data.row_locations import RowLocations, remember_files

RawDataset = Dataset | IterableDataset
DEMONSTRATION = "demonstration"
"""Name of the preference set that the package carries, with the splits `train` and `test`."""

_SPLITS = {"train", "test", "validation", "valid", "val", "dev", "eval"}
_GENERIC = {*_SPLITS, "data", "pairs"}
"""File names that say less of the rows than their folder's."""


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
    min_gap: float | None = None
    """For rated rows: make pairs of the responses to a prompt whose scores differ by so much or more; see "
    "`to_pairs`."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(
                f"The `weight` of a source must be above 0, but is {self.weight} for {self.name or self.data}."
            )


def as_sources(
    data: Any,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    layout: str = "auto",
    min_gap: float | None = None,
) -> list[Source]:
    """List the sources that `data` names.

    Args:
        data: One source in any form, a `Source`, or a list of `Source`s, paths or dicts with the fields of `Source`
            (and `path` for `data`): a mixture. A list of rows is one source.
        split: Split of sources that name none.
        columns: Our name -> the data's own column name, for sources that name none.
        layout: Row layout of sources that name none.
        min_gap: The same; where it is set, the rated rows are read here and the source holds their pairs.

    Returns:
        One or more sources, each with a name.

    Raises:
        ValueError: If there is nothing in the list, or two sources have the same name.
    """
    defaults = {"split": split, "columns": columns, "layout": layout, "min_gap": min_gap}
    parts = list(data) if _is_mixture(data) else [data]
    sources = []
    for place, part in enumerate(parts):
        fields = _source_fields(part)
        name = fields.pop("name", "") or source_name(fields["data"], place)
        sources.append(Source(**{**defaults, **fields, "name": name}))
    names = [source.name for source in sources]
    if len(set(names)) != len(names):
        raise ValueError(f"Sources of a mixture need different names, but got {names}. Give each a `name`.")
    return [source if source.min_gap is None else _paired(source) for source in sources]


def _paired(source: Source) -> Source:
    """A source of rated rows as one of pairs; a row without a usable rating stays as an unreadable one."""
    gap = f"`{setting('min_gap', source.min_gap)}`"
    if source.layout not in ("auto", "ranked"):
        raise ValueError(f"{gap} is for rated or ranked rows, but the layout of {source.name!r} is {source.layout!r}.")
    rows: Any = load_source(source)
    if isinstance(rows, IterableDataset):
        raise ValueError(f"{gap} compares all responses to a prompt, which a stream does not hold. Save it to a file.")
    names = set(rename_columns(dict.fromkeys(rows.column_names), source.columns))
    if not names >= {"prompt", "response"} and not names >= {"prompt", "responses"}:
        raise ValueError(
            f"{gap} needs rows of `prompt`, `response` and `score`, or of `prompt`, `responses` and `scores` or "
            f"`ranks`, but {source.name!r} has {', '.join(sorted(names))}. Leave it out, or name the columns: "
            f"{column_example('response')}."
        )
    refused: list[PreferenceFormatError] = []
    pairs = to_pairs(rows, min_gap=source.min_gap or 0.0, columns=source.columns, refused=refused)
    if not pairs:
        reason = f" The first unusable row: {refused[0]}" if refused else ""
        raise ValueError(
            f"{source.name}: among {len(rows)} rows, no two responses to a prompt have scores that differ by {gap} or "
            f"more.{reason}"
        )
    places = RowLocations(rows)
    lost = [
        {UNREADABLE: f"{places.where(error.row_index or 0) or f'rated row {error.row_index}'}: {error.message}"}
        for error in refused
    ]
    return replace(source, data=from_rows([*pairs, *lost]), columns=None, layout="pairs", min_gap=None)


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
        return from_rows([as_mapping(row) for row in data])
    raise TypeError(
        "Data must be a path, a Hub id, a `datasets` dataset, a pandas `DataFrame` or a list of rows, but is a "
        f"{type(data).__name__}."
    )


def _load_named(name: str, source: Source, streaming: bool) -> RawDataset:
    files = files_of(source)
    if files:
        loaded = load_files(files, source.name, streaming=streaming, columns=source.columns)
        return remember_files(loaded, files)
    path = Path(name)
    if path.suffix in BUILDERS or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"There is no file or folder {name!r} (looked in {Path.cwd()}).")
    return load_dataset(name, split=source.split, streaming=streaming)


def files_of(source: Source) -> Sequence[Path]:
    """The files that a source names.

    Args:
        source: The source.

    Returns:
        Its files, in the order in which they are read; none for data of another kind.

    Raises:
        FileNotFoundError: If it is a folder that holds no data file.
        ValueError: If it is a folder without the split, with links out of it, or one that `save_to_disk` wrote.
    """
    if not isinstance(source.data, (str, Path)):
        return []
    name = str(source.data)
    path = Path(str(files("hf_reward.data"))) / DEMONSTRATION if name == DEMONSTRATION else Path(name)
    if not path.is_dir():
        return [path] if path.is_file() else []
    found = sorted(file for file in path.iterdir() if file.suffix in BUILDERS and file.is_file())
    if not found:
        raise FileNotFoundError(f"{path} holds no {', '.join(BUILDERS)} file.")
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise ValueError(
            f"{path} was written by `save_to_disk` of `datasets`, and no data file. Load it with `load_from_disk` and "
            "pass the dataset, or write it with `to_parquet` and name that file."
        )
    require_inside(path, found)
    return _files_of_split(found, source)


def _files_of_split(found: Sequence[Path], source: Source) -> Sequence[Path]:
    """`train.jsonl` and `train-00000-of-00002.parquet` are of the split `train`; without such names all files are."""
    named = [file for file in found if file.stem == source.split or file.stem.startswith(f"{source.split}-")]
    splits = {file.stem.split("-")[0] for file in found} & _SPLITS
    if splits and not named:
        # Falling back to all files would mix the test split into the training data.
        _require_split(sorted(splits), source)
    return named or found


def _from_frame(frame: pd.DataFrame) -> Dataset:
    require_unique_columns(frame)
    try:
        return Dataset.from_pandas(frame, preserve_index=False)
    except Exception:  # Arrow wants one type per column
        return from_rows(rows_of(frame))


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


def source_name(data: Any, place: int = 0) -> str:
    """A short name of data: of a file its name, or its folder's if that says more.

    Args:
        data: One source.
        place: Which of several it is, for data without a name.

    Returns:
        The name; `data` for rows at hand.
    """
    if not isinstance(data, (str, Path)):
        return f"source{place}" if place else "data"
    path = Path(str(data))
    # train.jsonl in a folder is better told by its folder.
    folder = path.expanduser().parent
    says_more = path.stem in _GENERIC and folder.name and folder != Path.home()  # whose name is the user's
    return folder.name if says_more else path.stem
