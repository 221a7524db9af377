"""Convert values of a record to numbers, lists or formatted text; None for missing values."""

from collections.abc import Callable
from typing import Any

from hf_reward.data.fields import is_finite
from hf_reward.metrics import counts

NO_VALUE = "-"
"""Table cell for a missing value."""


def number(value: Any) -> float | None:
    """Return a finite number, or None for any other value."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and is_finite(value) else None


def whole_number(value: Any) -> int | None:
    """Return a count, or None."""
    found = number(value)
    return None if found is None else int(found)


def rounded_bounds(bounds: list[Any]) -> list[float] | None:
    """Return both bounds of an interval with four decimals, or None if one is missing."""
    values = [value for value in map(number, bounds) if value is not None]
    return [round(value, 4) for value in values] if len(bounds) == len(values) == 2 else None


def as_list(value: Any) -> list[Any]:
    """Return one or several values as a list."""
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def share(value: Any) -> str | None:
    """Format a fraction as a percentage, and any other number as a number."""
    found = number(value)
    if found is None:
        return None
    return f"{found:.1%}" if 0 <= found <= 1 else f"{found:.4g}"


def signed(value: Any) -> str | None:
    """Format a number with its sign."""
    found = number(value)
    return None if found is None else f"{found:+.3g}"


def decimals(value: Any) -> str | None:
    """Format a number with three decimals."""
    found = number(value)
    return None if found is None else f"{found:.3f}"


def interval(low: Any, high: Any, form: Callable[[Any], str | None] = share) -> str | None:
    """Format two bounds, or return None if one is missing."""
    bounds = [form(low), form(high)]
    return f"{bounds[0]} to {bounds[1]}" if None not in bounds else None


def counted(value: Any, noun: str) -> str | None:
    """Format a number of things, such as "3 pairs"."""
    found = number(value)
    return None if found is None else counts.counted(found, noun)


def cells(*values: str | None) -> list[str]:
    """Return the cells of a table row, with a dash for missing values."""
    return [value or NO_VALUE for value in values]
