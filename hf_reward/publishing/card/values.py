"""Anything that a record may hold in a place -> a number, a list, or words; None for what is not there."""

from collections.abc import Callable
from typing import Any

from hf_reward.data.fields import is_finite
from hf_reward.metrics import counts

NO_VALUE = "-"
"""What a table shows for what is missing."""


def number(value: Any) -> float | None:
    """A finite number, or None for everything else that a record may hold in its place."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and is_finite(value) else None


def whole_number(value: Any) -> int | None:
    """A count."""
    found = number(value)
    return None if found is None else int(found)


def rounded_bounds(bounds: list[Any]) -> list[float] | None:
    """Both bounds of an interval with four decimals, None where one is missing."""
    values = [value for value in map(number, bounds) if value is not None]
    return [round(value, 4) for value in values] if len(bounds) == len(values) == 2 else None


def as_list(value: Any) -> list[Any]:
    """One value or several, as a list."""
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def share(value: Any) -> str | None:
    """A fraction as a percentage; what is no fraction stays as it is."""
    found = number(value)
    if found is None:
        return None
    return f"{found:.1%}" if 0 <= found <= 1 else f"{found:.4g}"


def signed(value: Any) -> str | None:
    """A number with its sign."""
    found = number(value)
    return None if found is None else f"{found:+.3g}"


def decimals(value: Any) -> str | None:
    """A number with three decimals."""
    found = number(value)
    return None if found is None else f"{found:.3f}"


def interval(low: Any, high: Any, form: Callable[[Any], str | None] = share) -> str | None:
    """Two bounds in words, None where one is missing."""
    bounds = [form(low), form(high)]
    return f"{bounds[0]} to {bounds[1]}" if None not in bounds else None


def counted(value: Any, noun: str) -> str | None:
    """A number of things."""
    found = number(value)
    return None if found is None else counts.counted(found, noun)


def cells(*values: str | None) -> list[str]:
    """Cells of a table's row, with a dash for what is missing."""
    return [value or NO_VALUE for value in values]
