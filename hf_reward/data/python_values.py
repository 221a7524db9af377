"""Convert values of Arrow, pandas and numpy to Python values.

Arrow gives every struct in a column the same fields and fills missing ones with null. Chat templates would print these
nulls in training but not in scoring. Null fields are therefore removed at any depth.
"""

import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from hf_reward.data.preference_row import PreferenceFormatError

_NOT_CONVERTED = {"chosen_ids", "rejected_ids", "chosen_input_ids", "rejected_input_ids"}
"""Columns of token ids, which are long lists of plain integers."""


def columns_to_python(row: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Convert the named columns of a row to Python values.

    Args:
        row: The row; it is not changed.
        names: The columns to convert; all others are returned unchanged.

    Returns:
        A new dict, in the order of the row.

    Raises:
        PreferenceFormatError: If a value is nested too deeply.
    """
    converted = set(names) - _NOT_CONVERTED
    result = {}
    for name, value in row.items():
        try:
            result[name] = to_python(value) if name in converted else value
        except RecursionError:
            raise PreferenceFormatError(
                f"`{name}` is nested too deeply. Correct or drop the row.", field=name
            ) from None
    return result


def rows_of(data: Any) -> Any:
    """Convert a pandas `DataFrame` to a list of rows.

    Args:
        data: A data frame; anything else is returned unchanged.

    Returns:
        A list of dicts, with None for missing values.

    Raises:
        ValueError: If two of its columns have the same name.
    """
    if not isinstance(data, pd.DataFrame):
        return data
    require_unique_columns(data)
    return data.astype(object).where(data.notna(), None).to_dict("records")


def require_unique_columns(frame: pd.DataFrame) -> None:
    """Refuse a data frame in which one column would silently hide another.

    Args:
        frame: The data frame.

    Raises:
        ValueError: If two of its columns have the same name.
    """
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise ValueError(f"Column names must be unique, but the data frame has two columns {twice[0]!r}. Rename one.")


def to_python(value: Any) -> Any:
    """Convert a value to plain Python values, at any depth.

    Args:
        value: Any value.

    Returns:
        UTF-8 bytes become text, arrays and tuples become lists, numpy numbers and decimals become numbers, and mappings
        become dicts without null fields. Other values are returned unchanged.
    """
    if isinstance(value, Mapping):
        return {name: to_python(part) for name, part in value.items() if part is not None}
    if isinstance(value, (list, tuple)):
        return [to_python(part) for part in value]
    if isinstance(value, np.ndarray):
        return to_python(value.tolist())
    return _plain_scalar(value)


def without_arrays(value: Any) -> Any:
    """Convert arrays and tuples to lists, at any depth, and leave all other values, such as bytes, unchanged."""
    if isinstance(value, Mapping):
        return {name: without_arrays(part) for name, part in value.items()}
    if isinstance(value, np.ndarray):
        return without_arrays(value.tolist())
    return [without_arrays(part) for part in value] if isinstance(value, (list, tuple)) else value


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
    is_integer = value.is_finite() and abs(value) < 2**63 and value == value.to_integral_value()
    return int(value) if is_integer else float(value)


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:  # refused when the field is validated, with its name
        return value


def json_value(value: Any) -> Any:
    """Convert dicts, sequences and numbers to JSON values; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(name): json_value(part) for name, part in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [json_value(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
