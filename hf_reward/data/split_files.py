"""Split preference data into a training file and a test file without common prompts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from hf_reward.data.atomic_file import replacing
from hf_reward.data.interface import setting
from hf_reward.data.path_safety import require_writable
from hf_reward.data.preference_row import UNREADABLE, PreferenceFormatError
from hf_reward.data.preferences import to_preference_row
from hf_reward.data.python_values import to_python
from hf_reward.data.sources import Source, as_sources, load_source
from hf_reward.data.splits import split_by_prompt
from hf_reward.metrics.counts import counted

FORMATS = ("jsonl", "parquet")


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """Settings of a split and its output files."""

    test_size: float | int = 0.1
    near_duplicates: bool = False
    seed: int = 42
    skip_bad_rows: bool = False
    """Skip unreadable rows instead of raising an error for the first one."""
    format: str = "jsonl"
    """One of `FORMATS`."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"`{setting('format')}` must be one of {', '.join(FORMATS)}, but is {self.format!r}.")


def write_split(
    data: Any, folder: str | Path, rule: SplitRule | None = None, *, overwrite: bool = False, **source_defaults: Any
) -> dict[str, Any]:
    """Split data and write `train` and `test` files with all columns of the rows.

    Args:
        data: One source as accepted by `as_sources`, but not a stream.
        folder: Output folder; created if missing.
        rule: Settings of the split.
        overwrite: Replace files of an earlier split.
        **source_defaults: `split`, `columns` and `layout`.

    Returns:
        `file`, `rows` and `prompt_groups` of `train` and `test`; `skipped_rows`; and the `settings`.

    Raises:
        FileExistsError: If such files exist and `overwrite` is off.
        ValueError: If the data cannot be read or split.
    """
    rule = rule or SplitRule()
    folder = Path(folder)
    paths = {side: folder / f"{side}.{rule.format}" for side in ("train", "test")}
    taken = [path for side in paths for path in folder.glob(f"{side}.*") if path.suffix[1:] in FORMATS]
    if taken and not overwrite:
        raise FileExistsError(
            f"{folder} already has {', '.join(path.name for path in sorted(taken))}. Name another folder, or set "
            f"`{setting('overwrite', True)}` to replace these files."
        )
    require_writable(folder / "train.jsonl")
    source, rows = _load(data, source_defaults)
    total = len(rows)
    if rule.skip_bad_rows:
        rows, _ = readable_rows(rows, source)
    reading: dict[str, Any] = {"layout": source.layout, "columns": source.columns}
    train, test = split_by_prompt(
        rows, test_size=rule.test_size, seed=rule.seed, near_duplicates=rule.near_duplicates, **reading
    )
    folder.mkdir(parents=True, exist_ok=True)
    for side, part in (("train", train), ("test", test)):
        _write(part, paths[side])
    for path in set(taken) - set(paths.values()):  # files of the other format would be mixed in when the folder is read
        path.unlink()
    counts = {
        side: {"file": str(paths[side]), "rows": len(part), "prompt_groups": _count_groups(part, source)}
        for side, part in (("train", train), ("test", test))
    }
    settings = {"test_size": rule.test_size, "near_duplicates": rule.near_duplicates, "seed": rule.seed}
    return {**counts, "skipped_rows": total - len(rows), "settings": settings}


def _load(data: Any, source_defaults: dict[str, Any]) -> tuple[Source, Dataset]:
    sources = as_sources(data, **source_defaults)
    if len(sources) > 1:
        raise ValueError(
            f"A split takes one source, because sources may have different columns, but got {len(sources)}. Split each "
            "source separately."
        )
    rows = load_source(sources[0])
    if not isinstance(rows, Dataset):
        raise ValueError(
            f"Splitting by prompt requires all rows, but {sources[0].name!r} is a stream. Pass a file or a `Dataset`."
        )
    return sources[0], rows


def readable_rows(rows: Dataset, source: Source) -> tuple[Dataset, Dataset]:
    """Separate readable from unreadable rows.

    Args:
        rows: Raw rows.
        source: Source with their layout and columns.

    Returns:
        The readable and the unreadable rows, each in order.

    Raises:
        ValueError: If no row can be read.
    """
    kept, bad = [], []
    for number, row in enumerate(rows):
        try:
            to_preference_row(row, layout=source.layout, columns=source.columns, row_index=number)
        except PreferenceFormatError:
            bad.append(number)
        else:
            kept.append(number)
    if not kept:
        raise ValueError(
            f"None of the {counted(len(rows), 'row')} of {source.name!r} can be read. Check `{setting('layout')}` and "
            f"`{setting('columns')}`."
        )
    return (rows.select(np.array(kept)) if bad else rows), rows.select(np.array(bad, dtype=int))


def _count_groups(rows: Dataset, source: Source) -> int:
    read = (to_preference_row(row, layout=source.layout, columns=source.columns) for row in rows)
    return len({row.group for row in read})


def _json_value(value: Any) -> Any:
    """Convert a value that JSON does not support: bytes and decimals as in `to_python`, anything else to text."""
    converted = to_python(value)
    return str(value) if converted is value else converted


def _write(rows: Dataset, path: Path) -> None:
    if UNREADABLE in rows.column_names:
        rows = rows.remove_columns(UNREADABLE)
    with replacing(path) as temporary:
        if path.suffix == ".parquet":
            rows.to_parquet(str(temporary))
        else:
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False, default=_json_value) + "\n" for row in rows)
