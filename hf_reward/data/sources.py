"""Load raw rows from a file, folder, Hub id, list, dataset or mixture, one dataset per source."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict, load_dataset

from hf_reward.data.encoded_images import undecoded
from hf_reward.data.fields import column_example, may_have_images
from hf_reward.data.file_rows import BUILDERS, from_rows, load_files
from hf_reward.data.interface import setting
from hf_reward.data.path_safety import require_inside
from hf_reward.data.preference_row import UNREADABLE, PreferenceFormatError, as_mapping, rename_columns
from hf_reward.data.python_values import require_unique_columns, rows_of
from hf_reward.data.ratings import to_pairs
from hf_reward.data.row_locations import RowLocations, remember_files
from hf_reward.metrics.counts import counted

RawDataset = Dataset | IterableDataset
DEMONSTRATION = "demonstration"
"""Name of the preference dataset that is bundled with the package, with the splits `train` and `test`."""

_SPLITS = {"train", "test", "validation", "valid", "val", "dev", "eval"}
_GENERIC = {*_SPLITS, "data", "pairs"}
"""File names that describe the rows less well than the name of their folder."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source of preference rows, alone or as a part of a mixture."""

    data: Any
    """A path, a Hub id, a `datasets` dataset, a pandas `DataFrame`, or a list of rows."""
    name: str = ""
    weight: float = 1.0
    """Number of times that each row is used per epoch: 2 is twice, 0.5 is a random half of the rows."""
    split: str = "train"
    """Split of a Hub id, or of a folder with several splits."""
    columns: Mapping[str, str] | None = None
    layout: str = "auto"
    min_gap: float | None = None
    """For rated rows: pair the responses to a prompt whose scores differ by at least this number; see `to_pairs`."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(
                f"The `weight` of a source must be above 0, but is {self.weight} for {self.name or self.data}. Correct "
                "it, or remove the source."
            )


def as_sources(
    data: Any,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    layout: str = "auto",
    min_gap: float | None = None,
) -> list[Source]:
    """Return the sources of `data`.

    Args:
        data: One source in any form, or a mixture: a list of `Source`s, paths, datasets or dicts with the fields of
            `Source` (`path` is accepted for `data`). A list of rows is one source.
        split: Split of sources without their own.
        columns: Field -> name of its column in the data, for sources without their own mapping.
        layout: Row layout of sources without their own.
        min_gap: Smallest score difference of pairs, for sources without their own. If it is set, the rated rows are
            read at once and the source is replaced by one with their pairs.

    Returns:
        One or more sources, each with a name.

    Raises:
        ValueError: If two sources have the same name, or rated rows give no pairs.
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
        raise ValueError(f"Sources of a mixture must have different names, but have {names}. Give each a `name`.")
    return [source if source.min_gap is None else _paired(source) for source in sources]


def _paired(source: Source) -> Source:
    """Convert a source of rated rows to a source of pairs. Rows without a usable rating are kept as unreadable rows."""
    gap = f"`{setting('min_gap', source.min_gap)}`"
    if source.layout not in ("auto", "ranked"):
        raise ValueError(
            f"{gap} requires rated or ranked rows, but the layout of {source.name!r} is {source.layout!r}. Remove "
            f"`{setting('min_gap')}`, or set `{setting('layout', 'ranked')}`."
        )
    rows: Any = load_source(source)
    if isinstance(rows, IterableDataset):
        raise ValueError(
            f"{gap} requires all responses to a prompt in memory, but {source.name!r} is a stream. Save the rows to a "
            "file and pass the file."
        )
    names = set(rename_columns(dict.fromkeys(rows.column_names), source.columns))
    if not names >= {"prompt", "response"} and not names >= {"prompt", "responses"}:
        raise ValueError(
            f"{gap} needs rows of `prompt`, `response` and `score`, or of `prompt`, `responses` and `scores` or "
            f"`ranks`, but {source.name!r} has {', '.join(sorted(names))}. If yours have different names, map each "
            f"with {column_example('response')}. For preference rows, remove `{setting('min_gap')}`."
        )
    refused: list[PreferenceFormatError] = []
    pairs = to_pairs(rows, min_gap=source.min_gap or 0.0, columns=source.columns, refused=refused)
    if not pairs:
        reason = f" The first unusable row: {refused[0]}" if refused else ""
        raise ValueError(
            f"{source.name}: at least two responses to a prompt must have scores that differ by {gap}, but in "
            f"{counted(len(rows), 'row')} none do. Lower `{setting('min_gap')}` or check the scores.{reason}"
        )
    places = RowLocations(rows)
    lost = [
        {UNREADABLE: f"{places.where(error.row_index or 0) or f'rated row {error.row_index}'}: {error.message}"}
        for error in refused
    ]
    return replace(source, data=from_rows([*pairs, *lost]), columns=None, layout="pairs", min_gap=None)


def _storable(row: Mapping[str, Any]) -> Mapping[str, Any]:
    if not may_have_images(row):
        return row
    from hf_reward.data.images import storable  # noqa: PLC0415 - not for texts

    return storable(row)


def load_source(source: Source, *, streaming: bool = False) -> RawDataset:
    """Read one source. Images stay encoded; `datasets` would decode them without a limit and stop at a broken one.

    Args:
        source: The source.
        streaming: Read files and Hub ids as an `IterableDataset`.

    Returns:
        The raw rows.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder has no data file.
        ValueError: If a file has an unknown format or cannot be read, or the split does not exist.
    """
    return undecoded(_loaded(source, streaming))


def _loaded(source: Source, streaming: bool) -> RawDataset:
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
            raise ValueError(f"The data {source.name!r} must have at least one row, but is empty.")
        return from_rows([_storable(as_mapping(row)) for row in data])
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
        raise FileNotFoundError(f"There is no file or folder {name!r} (looked in {Path.cwd()}). Check the path.")
    return load_dataset(name, split=source.split, streaming=streaming)


def files_of(source: Source) -> Sequence[Path]:
    """Return the files of a source.

    Args:
        source: The source.

    Returns:
        The files in reading order; empty for data that is not a file or folder.

    Raises:
        FileNotFoundError: If a folder has no data file.
        ValueError: If a folder lacks the split, has links to files outside of it, or was written by `save_to_disk`.
    """
    if not isinstance(source.data, (str, Path)):
        return []
    name = str(source.data)
    path = Path(str(files("hf_reward.data"))) / DEMONSTRATION if name == DEMONSTRATION else Path(name)
    if not path.is_dir():
        return [path] if path.is_file() else []
    found = sorted(file for file in path.iterdir() if file.suffix in BUILDERS and file.is_file())
    if not found:
        raise FileNotFoundError(
            f"The folder {path} must have a data file ({', '.join(BUILDERS)}), but has none. Check the path."
        )
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise ValueError(
            f"A data folder must have data files ({', '.join(BUILDERS)}), but {path} was written by `save_to_disk` of "
            "`datasets`. Load it with `load_from_disk` and pass the dataset, or convert it with `to_parquet` and pass "
            "the Parquet file."
        )
    require_inside(path, found)
    return _files_of_split(found, source)


def _files_of_split(found: Sequence[Path], source: Source) -> Sequence[Path]:
    """Select files such as `train.jsonl` and `train-00000-of-00002.parquet`; all files if no name has a split."""
    named = [file for file in found if file.stem == source.split or file.stem.startswith(f"{source.split}-")]
    splits = {file.stem.split("-")[0] for file in found} & _SPLITS
    if splits and not named:
        # A fallback to all files would mix the test split into the training data.
        _require_split(sorted(splits), source)
    return named or found


def _from_frame(frame: pd.DataFrame) -> Dataset:
    require_unique_columns(frame)
    try:
        return Dataset.from_pandas(frame, preserve_index=False)
    except Exception:  # Arrow requires one type per column
        return from_rows(rows_of(frame))


def _pick_split(data: DatasetDict | IterableDatasetDict, source: Source) -> RawDataset:
    _require_split(sorted(map(str, data)), source)
    return data[source.split]


def _require_split(splits: Sequence[str], source: Source) -> None:
    if source.split not in splits:
        raise ValueError(
            f"{source.name or 'The data'} has the splits {splits}, not {source.split!r}. Choose one of "
            "them as the split."
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
            raise ValueError(
                f"The keys of a source must be among {known}, but one has {', '.join(sorted(map(str, unknown)))}. "
                "Correct or remove it."
            )
        return fields
    return {"data": part}


def source_name(data: Any, place: int = 0) -> str:
    """Return a short name of a source: the name of its file, or of its folder if the file's name is generic.

    Args:
        data: One source.
        place: Index in the mixture, for data without a name.

    Returns:
        The name; `data` for rows in memory.
    """
    if not isinstance(data, (str, Path)):
        return f"source{place}" if place else "data"
    path = Path(str(data))
    folder = path.expanduser().parent
    # The home folder's name is the user's and does not describe the data.
    use_folder = path.stem in _GENERIC and folder.name and folder != Path.home()
    return folder.name if use_folder else path.stem
