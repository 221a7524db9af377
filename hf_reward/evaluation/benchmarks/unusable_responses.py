"""A row whose response says nothing -> the same row with a text in its place, so that all else of it can be read.

Training refuses such a row. A benchmark has to count it: which response is preferred is known, only a reward is not.
"""

from collections.abc import Mapping
from typing import Any

from hf_reward.data.preference_row import Response

FILLING = "(no usable response)"
"""Stands where a response is empty or no text; it is never scored."""
_COLUMNS = ("chosen", "rejected", "response_a", "response_b")


def fill_unusable_responses(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Put a text in the place of responses that are empty or no text.

    Args:
        row: A row by our names of columns.

    Returns:
        A new row, or None if every response can be read.
    """
    filled = {name: _filled(row[name]) for name in _COLUMNS if name in row}
    if isinstance(row.get("responses"), list):
        filled["responses"] = [_filled(each) for each in row["responses"]]
    return None if all(value == row[name] for name, value in filled.items()) else {**row, **filled}


def without_filling(response: Response) -> Response:
    """The response with nothing in the place of what was filled in."""
    if isinstance(response, str):
        return response.replace(FILLING, "")
    return [{**turn, "content": "" if turn.get("content") == FILLING else turn.get("content")} for turn in response]


def _filled(value: Any) -> Any:
    if isinstance(value, str):
        if not value.strip():
            return FILLING
        return f"{value} {FILLING}" if value.rstrip().endswith("\n\nAssistant:") else value
    if not isinstance(value, list) or not value or not isinstance(value[-1], Mapping):
        return FILLING
    last = value[-1]
    says = last.get("content")
    is_empty = says is None or (isinstance(says, str) and not says.strip())
    return [*value[:-1], {**last, "content": FILLING}] if is_empty and not last.get("tool_calls") else value
