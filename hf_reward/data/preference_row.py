"""The canonical preference row, its format errors and its prompt group."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import partial
from typing import Any, TypeGuard

from hf_reward.data.interface import setting

Message = dict[str, Any]

Prompt = str | list[Message]

Response = str | list[Message]

IMAGE_SOURCES = "image_sources"
"""Key of a message with the `ImageSource` of each reference in its content."""


UNREADABLE = "_unreadable"
"""Column with the reason why a line of a file cannot be read; only data with such lines has it."""


class PreferenceFormatError(ValueError):
    """A row that fits no layout. The message has the row, the field and the remedy."""

    def __init__(
        self,
        message: str,
        row_index: int | None = None,
        field: str | None = None,
        place: str | None = None,
        *,
        repeats: str = "",
    ) -> None:
        """Create the error.

        Args:
            message: The requirement, the value found and the remedy.
            row_index: Number of the row.
            field: Name of the field.
            place: File and line of the row, if known.
            repeats: The part of the message that quotes data, which a server does not send to clients.
        """
        where = place or ("" if row_index is None else f"Row {row_index}")
        super().__init__(f"{where}: {message}" if where else message)
        self.message, self.row_index, self.field, self.place = message, row_index, field, place
        self.repeats = repeats

    @property
    def public_message(self) -> str:
        """The message without quoted data."""
        return self.message.replace(self.repeats, "") if self.repeats else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Raised in worker processes of `datasets.map`, so it must pickle with its arguments.
        return partial(type(self), repeats=self.repeats), (self.message, self.row_index, self.field, self.place)


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """One human preference: for this prompt, `chosen` is better than `rejected`."""

    prompt: Prompt
    chosen: Response
    rejected: Response
    margin: float | None = None
    probability: float | None = None
    """P(chosen preferred), if known."""
    weight: float | None = None
    group: str | None = None
    source: str | None = None


@dataclass(kw_only=True)
class PreferenceRow:
    """The canonical row: one prompt, its responses and their ranks."""

    prompt: Prompt
    responses: list[Response]
    """Text, or the messages that follow the prompt; the same kind as the prompt."""
    ranks: list[int]
    """Rank of each response, 0 is best, equal ranks are a tie."""
    margin: float | None = None
    probability: float | None = None
    """P(first response preferred); only for rows with two responses."""
    weight: float = 1.0
    id: str | None = None
    group: str | None = None
    """Rows of a group always stay on the same side of a split; by default the hash of the prompt."""
    source: str | None = None
    prompts_differed: bool = False
    """Whether the two sides had different prompts; only their shared turns are then the prompt."""
    repeated_prompt: bool = False
    """Whether the sides also contained the prompt, which was removed; text sides then follow it without separator."""
    blank_prompt: bool = False
    """Whether the prompt is blank, which counts as no prompt."""
    token_ids: list[list[int]] | None = None
    """Full sequences of a tokenised row; `prompt` and `responses` are then empty."""
    template: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for the chat template, from the columns `tools` and `chat_template_kwargs`."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Every other column."""

    def is_conversational(self) -> bool:
        """Return whether prompt and responses are messages instead of text."""
        return not isinstance(self.prompt, str)


def as_mapping(row: Any) -> Mapping[str, Any]:
    """Convert a `PreferencePair` (or another dataclass) to a dict of its fields that are not None.

    Args:
        row: A mapping or a dataclass instance.

    Returns:
        The row's columns.

    Raises:
        PreferenceFormatError: If the row is neither, or its line of the file could not be read.
    """
    if is_dataclass(row) and not isinstance(row, type):
        return {name: value for name, value in asdict(row).items() if value is not None}
    if isinstance(row, Mapping):
        if row.get(UNREADABLE) is not None:
            raise PreferenceFormatError(f"{str(row[UNREADABLE]).removesuffix('.')}. Correct or drop the row.")
        return row
    raise PreferenceFormatError(f"A row must be a dict or a `PreferencePair`, but is a {type(row).__name__}.")


def rename_columns(row: Mapping[str, Any], columns: Mapping[str, str] | None) -> dict[str, Any]:
    """Rename a row's columns to field names.

    Args:
        row: The raw row.
        columns: Field -> name of its column in the data.

    Returns:
        A new dict. Other columns keep their names, unless a renamed column takes the name.

    Raises:
        PreferenceFormatError: If a mapped column is missing.
    """
    row = {name: value for name, value in row.items() if name != UNREADABLE} if UNREADABLE in row else dict(row)
    if not columns:
        return row
    missing = [column for column in columns.values() if column not in row]
    if missing:
        raise PreferenceFormatError(
            f"`{setting('columns')}` names {', '.join(map(repr, missing))}, which the data lacks. Columns found: "
            f"{', '.join(map(str, row))}. Correct the mapping.",
            field=missing[0],
        )
    kept = {name: value for name, value in row.items() if name not in columns.values() and name not in columns}
    return kept | {field: row[column] for field, column in columns.items()}


def prompt_group(row: PreferenceRow) -> str:
    """Return a hash that rows with the same prompt share.

    Differences in white space are ignored, see `prompt_hash`. For text rows without a prompt column, the prompt is the
    common start of the responses up to the last line break or sentence end. Use a `group` column if that is too coarse.

    Args:
        row: A canonical row.

    Returns:
        16 hexadecimal digits.
    """
    if row.token_ids is not None:
        key = json.dumps(common_prefix(row.token_ids)[:64] or row.token_ids)
    elif row.prompt:
        return prompt_hash(row.prompt)
    elif row.is_conversational():
        key = ""
    else:
        key = " ".join(shared_text([str(response) for response in row.responses]).split())
    # Without a common start, the row is a group of its own.
    return _digits(key or _json_key(row.responses))


def prompt_hash(prompt: Prompt) -> str:
    """Return a hash of a prompt that ignores differences in white space.

    Args:
        prompt: Text or messages.

    Returns:
        16 hexadecimal digits.
    """
    return _digits(_json_key(prompt))


def _json_key(value: Any) -> str:
    """Return the JSON of a value with every run of white space replaced by one space."""
    return json.dumps(_normalised(value), sort_keys=True, default=str)


def _normalised(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, Mapping):
        return {name: _normalised(part) for name, part in value.items()}
    return [_normalised(part) for part in value] if isinstance(value, (list, tuple)) else value


def _digits(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def common_prefix(sequences: Sequence[Any]) -> Sequence[Any]:
    """Return the longest common prefix: text for texts, a list for lists."""
    first, last = min(sequences), max(sequences)  # the common prefix of these two is common to all
    # Bisection: comparing slices is far faster than a loop over characters or tokens.
    same, differ = 0, min(len(first), len(last)) + 1
    while differ - same > 1:
        middle = (same + differ) // 2
        if first[same:middle] == last[same:middle]:
            same = middle
        else:
            differ = middle
    return first[:same]


def shared_text(texts: Sequence[str]) -> str:
    """Return the common prefix of texts up to the last line break or sentence end."""
    shared = str(common_prefix(texts))
    end = max(shared.rfind(mark) for mark in "\n:.?!")
    return shared[: end + 1] if end >= 0 else shared


def dense_ranks(keys: Sequence[float]) -> list[int]:
    """Return ranks without gaps: 0 for the smallest key, equal ranks for equal keys."""
    order = {key: rank for rank, key in enumerate(sorted(set(keys)))}
    return [order[key] for key in keys]


def has_images(prompt: Prompt) -> TypeGuard[list[Message]]:
    """Return whether a canonical prompt has images.

    Args:
        prompt: Text or messages.

    Returns:
        False for text.
    """
    return not isinstance(prompt, str) and any(message.get(IMAGE_SOURCES) for message in prompt)
