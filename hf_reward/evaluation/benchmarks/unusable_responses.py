"""Row with an empty response -> the row with a placeholder, so that its other fields can be read.

Training refuses such a row. A benchmark has to count it, because its preference is known and only a reward is missing.
"""

from collections.abc import Mapping
from typing import Any

from hf_reward.data.preference_row import Response

FILLING = "(no usable response)"
"""Placeholder for a response that is empty or not text; it is never scored."""
_COLUMNS = ("chosen", "rejected", "response_a", "response_b")


def fill_unusable_responses(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Replace responses that are empty or not text by a placeholder.

    Args:
        row: A row with our column names.

    Returns:
        A new row, or None if all responses are usable.
    """
    filled = {name: _filled(row[name]) for name in _COLUMNS if name in row}
    if isinstance(row.get("responses"), list):
        filled["responses"] = [_filled(each) for each in row["responses"]]
    return None if all(value == row[name] for name, value in filled.items()) else {**row, **filled}


def without_filling(response: Response) -> Response:
    """Return the response without the placeholder."""
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
    content = last.get("content")
    is_empty = content is None or (isinstance(content, str) and not content.strip())
    return [*value[:-1], {**last, "content": FILLING}] if is_empty and not last.get("tool_calls") else value
