"""The canonical preference row, and what can be said of it without knowing where it came from."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import partial
from typing import Any

from hf_reward.data.interface import setting

Message = dict[str, Any]

Prompt = str | list[Message]

Response = str | list[Message]


UNREADABLE = "_unreadable"
"""Column with the reason why a line of a file is no row; only data that holds such lines has it."""


class PreferenceFormatError(ValueError):
    """A row that fits no layout: says which row, which field, and what to do."""

    def __init__(
        self,
        message: str,
        row_index: int | None = None,
        field: str | None = None,
        place: str | None = None,
        *,
        repeats: str = "",
    ) -> None:
        """Say what is wrong.

        Args:
            message: What is required, what was found, and the remedy.
            row_index: Number of the row.
            field: Name of the field.
            place: File and line of the row, where it has one.
            repeats: The part of the message that repeats data, which a server does not send back.
        """
        where = place or ("" if row_index is None else f"Row {row_index}")
        super().__init__(f"{where}: {message}" if where else message)
        self.message, self.row_index, self.field, self.place = message, row_index, field, place
        self.repeats = repeats

    @property
    def public_message(self) -> str:
        """The message without data."""
        return self.message.replace(self.repeats, "") if self.repeats else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Raised in worker processes of `datasets.map`, so it has to pickle with its arguments.
        return partial(type(self), repeats=self.repeats), (self.message, self.row_index, self.field, self.place)


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """One human preference: for this prompt, `chosen` is better than `rejected`."""

    prompt: Prompt
    chosen: Response
    rejected: Response
    margin: float | None = None
    probability: float | None = None
    """P(chosen preferred) where it is known."""
    weight: float | None = None
    group: str | None = None
    source: str | None = None


@dataclass(kw_only=True)
class PreferenceRow:
    """The canonical row: one prompt, its responses, and how they rank."""

    prompt: Prompt
    responses: list[Response]
    """Text, or the messages that follow the prompt; all of the prompt's kind."""
    ranks: list[int]
    """Rank of each response, 0 is best, equal ranks are a tie."""
    margin: float | None = None
    probability: float | None = None
    """P(first response preferred); only rows of two responses state one."""
    weight: float = 1.0
    id: str | None = None
    group: str | None = None
    """Rows of one group never fall on both sides of a split; the prompt's hash unless the row says otherwise."""
    source: str | None = None
    prompts_differed: bool = False
    """Whether the two sides came with different prompts, of which only the shared turns were kept."""
    repeated_prompt: bool = False
    """Whether the sides held the prompt too, which is now read once; text sides then follow it without separator."""
    blank_prompt: bool = False
    """Whether there is a prompt that says nothing, and so is read as none."""
    token_ids: list[list[int]] | None = None
    """Whole sequences, where the row came already tokenised; `prompt` and `responses` are then empty."""
    template: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for the chat template, from the columns `tools` and `chat_template_kwargs`."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Every other column."""

    def is_conversational(self) -> bool:
        """Whether prompt and responses are messages rather than text."""
        return not isinstance(self.prompt, str)


def as_mapping(row: Any) -> Mapping[str, Any]:
    """See a `PreferencePair` (or another dataclass) as the dict of its fields that are set.

    Args:
        row: A mapping or a dataclass instance.

    Returns:
        The row's columns.

    Raises:
        PreferenceFormatError: If the row is neither, or its line of a file could not be read.
    """
    if is_dataclass(row) and not isinstance(row, type):
        return {name: value for name, value in asdict(row).items() if value is not None}
    if isinstance(row, Mapping):
        if row.get(UNREADABLE) is not None:
            raise PreferenceFormatError(f"{str(row[UNREADABLE]).removesuffix('.')}. Correct or drop the row.")
        return row
    raise PreferenceFormatError(f"A row must be a dict or a `PreferencePair`, but is a {type(row).__name__}.")


def rename_columns(row: Mapping[str, Any], columns: Mapping[str, str] | None) -> dict[str, Any]:
    """Give a row's columns our names.

    Args:
        row: The raw row.
        columns: Our name -> the row's own column name.

    Returns:
        A new dict; columns that are not mapped keep their names, unless a mapped one takes the name.

    Raises:
        PreferenceFormatError: If a mapped column is missing.
    """
    row = {name: value for name, value in row.items() if name != UNREADABLE} if UNREADABLE in row else dict(row)
    if not columns:
        return row
    missing = [theirs for theirs in columns.values() if theirs not in row]
    if missing:
        raise PreferenceFormatError(
            f"`{setting('columns')}` names {', '.join(map(repr, missing))}, which the data lacks. "
            f"Found: {', '.join(map(str, row))}. Correct the mapping.",
            field=missing[0],
        )
    kept = {name: value for name, value in row.items() if name not in columns.values() and name not in columns}
    return kept | {ours: row[theirs] for ours, theirs in columns.items()}


def prompt_group(row: PreferenceRow) -> str:
    """Hash what identifies the prompt of a row, so that rows of one prompt share it.

    White space does not tell prompts apart, see `prompt_hash`. Text rows without a prompt column share whatever their
    responses have in common up to the last line break or sentence end; give a `group` column where that is too coarse.

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
    # Nothing shared: a prompt of its own.
    return _digits(key or _json_key(row.responses))


def prompt_hash(prompt: Prompt) -> str:
    """Hash a prompt, so that prompts which differ in nothing but white space are one wherever rows are clustered.

    Args:
        prompt: Text or messages.

    Returns:
        16 hexadecimal digits.
    """
    return _digits(_json_key(prompt))


def _json_key(value: Any) -> str:
    """JSON of a value in which every run of white space is one space."""
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
    """Longest prefix that all sequences share, as a part of one of them: text of texts, a list of lists."""
    first, last = min(sequences), max(sequences)  # any other lies between these two, and shares what they share
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
    """What texts have in common, cut back to the last line break or sentence end."""
    shared = str(common_prefix(texts))
    end = max(shared.rfind(mark) for mark in "\n:.?!")
    return shared[: end + 1] if end >= 0 else shared


def dense_ranks(keys: Sequence[float]) -> list[int]:
    """Rank 0 for the smallest key, equal keys equal ranks, no gaps."""
    order = {key: rank for rank, key in enumerate(sorted(set(keys)))}
    return [order[key] for key in keys]
