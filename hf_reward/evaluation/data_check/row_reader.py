"""Preference data in any layout -> canonical rows by number, and the reasons why some are unusable."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from hf_reward.data.fields import require_decodable_images
from hf_reward.data.preference_row import (
    UNREADABLE,
    PreferenceFormatError,
    PreferenceRow,
    as_mapping,
    rename_columns,
)
from hf_reward.data.preferences import LAYOUTS, detect_layout, to_preference_row
from hf_reward.data.row_locations import RowLocations
from hf_reward.data.sources import Source, as_sources, load_source

_BATCH_SIZE = 1000


@dataclass(frozen=True, kw_only=True)
class ReadRow:
    """One raw row and its canonical row."""

    number: int
    """Row number; it continues through the sources of a mixture."""
    raw: Mapping[str, Any]
    """Its columns, renamed."""
    row: PreferenceRow | None
    layout: str
    problem: str = ""
    """Why it cannot be used, without the values of this row; empty for usable rows."""


class RowReader:
    """Rows of one data set, read again whenever they are needed; nothing is kept in memory.

    Args:
        data: A path, a Hub id, a dataset, rows, or a mixture (see `as_sources`); not a stream.
        **source_defaults: `split`, `columns` and `layout` for sources that name none.

    Raises:
        ValueError: If the data is streamed, already tokenised, empty, or cannot be read.
    """

    def __init__(self, data: Any, **source_defaults: Any) -> None:
        self.sources = as_sources(data, **source_defaults)
        for source in self.sources:  # otherwise every row would be unusable
            require_layout(source.layout)
        self._parts = [_require_raw(load_source(source), source) for source in self.sources]
        self._places = [RowLocations(part) for part in self._parts]
        self._starts = np.cumsum([0, *map(len, self._parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def name(self) -> str:
        """The names of the sources."""
        return " + ".join(source.name for source in self.sources)

    def batches(self) -> Iterator[list[ReadRow]]:
        """Yield all rows in order, in batches."""
        for source, part, start in zip(self.sources, self._parts, self._starts[:-1], strict=True):
            number = int(start)
            for batch in part.iter(batch_size=_BATCH_SIZE):
                columns: Any = batch
                rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
                yield [_read(row, source, number + place) for place, row in enumerate(rows)]
                number += len(rows)

    def row(self, number: int) -> PreferenceRow:
        """Return a usable row.

        Args:
            number: Row number.

        Returns:
            The canonical row.

        Raises:
            PreferenceFormatError: If it is not usable.
        """
        which, place = self._find(number)
        source = self.sources[which]
        raw: Any = self._parts[which][place]
        return to_preference_row(raw, layout=source.layout, columns=source.columns, row_index=number)

    def raw(self, number: int) -> Mapping[str, Any]:
        """Return the columns of a row, usable or not.

        Args:
            number: Row number.

        Returns:
            The columns, renamed if the row has them all.
        """
        which, place = self._find(number)
        raw: Any = self._parts[which][place]
        try:
            return rename_columns(as_mapping(raw), self.sources[which].columns)
        except PreferenceFormatError:
            return raw

    def place(self, number: int) -> str:
        """Return file and line of a row.

        Args:
            number: Row number.

        Returns:
            `train.jsonl, line 4`, from 1 as in an editor; `row 3`, from 0, for rows without lines.
        """
        which, place = self._find(number)
        return self._places[which].where(place, short=True) or f"row {number}"

    def _find(self, number: int) -> tuple[int, int]:
        which = int(np.searchsorted(self._starts, number, side="right")) - 1
        return which, number - int(self._starts[which])


def require_layout(layout: str) -> None:
    """Refuse an unknown layout.

    Args:
        layout: Name of a layout.

    Raises:
        ValueError: If it is neither `auto` nor a known layout.
    """
    if layout not in ("auto", *LAYOUTS):
        raise ValueError(f"`layout` must be auto, {', '.join(LAYOUTS)}, but is {layout!r}.")


def _require_raw(part: Any, source: Source) -> Dataset:
    if isinstance(part, IterableDataset):
        raise ValueError(
            f"The check reads its rows more than once, but {source.name!r} is a stream. Pass a file, a Hub id or a "
            "`Dataset` instead (`Dataset.from_generator` converts a stream)."
        )
    if "input_ids" in part.column_names:
        raise ValueError(f"The check reads texts, but {source.name!r} is already tokenised. Pass the raw rows.")
    if len(part) == 0:
        raise ValueError(f"The data {source.name!r} holds no rows.")
    if source.layout == "auto":  # columns that match no layout are one error instead of one per row
        detect_layout(rename_columns(dict.fromkeys(part.column_names), source.columns))
    return part


def _read(raw: Mapping[str, Any], source: Source, number: int) -> ReadRow:
    named: Mapping[str, Any] = raw
    layout = source.layout
    try:
        named = rename_columns(as_mapping(raw), source.columns)
        layout = detect_layout(named) if layout == "auto" else layout
        row = to_preference_row(named, layout=layout, row_index=number)
        require_decodable_images(row.prompt)
    except PreferenceFormatError as error:
        return ReadRow(number=number, raw=named, row=None, layout=layout, problem=_reason(error, named))
    return ReadRow(number=number, raw=named, row=row, layout=_describe(layout, row))


def _describe(layout: str, row: PreferenceRow) -> str:
    if row.token_ids is not None:
        return layout
    kind = "messages" if row.is_conversational() else "text"
    prompt = "" if row.prompt else ", no prompt"
    return f"{layout}, {kind}{prompt}" + (f", {len(row.responses)} responses" if len(row.responses) > 2 else "")


def _reason(error: PreferenceFormatError, raw: Mapping[str, Any]) -> str:
    """Return the message up to the value that was found, and the type of that value."""
    required = re.split(r" \(|, but |\. " if raw.get(UNREADABLE) else r", but |\. ", error.message, maxsplit=1)[0]
    required = required.rstrip(".")
    found = _odd(raw.get(error.field)) if error.field not in (None, "images") else None
    return f"{required}, but is {found}" if found else required


def _odd(value: Any) -> str | None:
    """Name the type of a value that is not text, or of the first such entry of a list."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return next((kind for part in value if not isinstance(part, Mapping) and (kind := _odd(part))), None)
    return None if isinstance(value, (str, Mapping)) else "missing" if value is None else type(value).__name__
