"""Values as Arrow, pandas and numpy hold them -> the Python values that they stand for.

Arrow gives every struct of a column the fields of all of them, and fills those that a row lacks with null. A chat
template would print them, in training and not in scoring. So a field that is null counts as absent, at any depth.
"""

import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from hf_reward.data.preference_row import PreferenceFormatError

_AS_THEY_ARE = {"chosen_ids", "rejected_ids", "chosen_input_ids", "rejected_input_ids"}
"""Long lists of numbers."""


def columns_to_python(row: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Make the named columns of a row plain.

    Args:
        row: The row; it is not changed.
        names: The columns whose content is read; all others are handed on as they are.

    Returns:
        A new dict, in the order of the row.

    Raises:
        PreferenceFormatError: If a value is nested too deeply.
    """
    read = set(names) - _AS_THEY_ARE
    result = {}
    for name, value in row.items():
        try:
            result[name] = to_python(value) if name in read else value
        except RecursionError:
            raise PreferenceFormatError(
                f"`{name}` is nested too deeply. Correct or drop the row.", field=name
            ) from None
    return result


def rows_of(data: Any) -> Any:
    """See a pandas `DataFrame` as its rows.

    Args:
        data: A data frame, or anything else, which is handed back.

    Returns:
        A list of dicts, with None where a value is missing.

    Raises:
        ValueError: If two of its columns have the same name.
    """
    if not isinstance(data, pd.DataFrame):
        return data
    require_unique_columns(data)
    return data.astype(object).where(data.notna(), None).to_dict("records")


def require_unique_columns(frame: pd.DataFrame) -> None:
    """Stop at a data frame of which one column would silently hide another.

    Args:
        frame: The data frame.

    Raises:
        ValueError: If two of its columns have the same name.
    """
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise ValueError(f"The data frame has two columns with the same name: {twice[0]}. Rename one.")


def to_python(value: Any) -> Any:
    """See a value as the Python value that it stands for.

    Args:
        value: Any value.

    Returns:
        Binary data that is UTF-8 as text, arrays and tuples as lists, numpy's numbers and decimals as numbers, and
        mappings as dicts without the fields that are null, at any depth; anything else as it is.
    """
    if isinstance(value, Mapping):
        return {name: to_python(part) for name, part in value.items() if part is not None}
    if isinstance(value, (list, tuple)):
        return [to_python(part) for part in value]
    if isinstance(value, np.ndarray):
        return to_python(value.tolist())
    return _plain_scalar(value)


def _plain_scalar(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _decoded(bytes(value))
    if isinstance(value, Decimal):
        return _number(value)
    return value


def _number(value: Decimal) -> int | float:
    if value.is_nan():
        return math.nan
    whole = value.is_finite() and abs(value) < 2**63 and value == value.to_integral_value()
    return int(value) if whole else float(value)


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:  # left to the reader of the field, which knows its name
        return value


def json_value(value: Any) -> Any:
    """JSON values of dicts, sequences and numbers; a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(name): json_value(part) for name, part in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [json_value(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
