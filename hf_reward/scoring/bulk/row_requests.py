"""Input rows -> what is to be scored, and rewards -> the columns that are added, or why a row has none."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from hf_reward.data.fields import column_example
from hf_reward.data.interface import setting
from hf_reward.data.preference_row import PreferenceFormatError, dense_ranks, rename_columns
from hf_reward.data.python_values import to_python
from hf_reward.data.score_request import REQUEST_COLUMNS, ScoreRequest, requests_of_row
from hf_reward.data.tables.arrow_rows import content_size
from hf_reward.data.tables.input_row import RAW_SHOWN, InputRow, Table
from hf_reward.scoring.bulk.settings import BulkSettings

_REASON_SHOWN = 500
_PEEKED = 100


@dataclass(frozen=True, slots=True)
class AskedRow:
    """A row and its requests, or why it has none."""

    source: InputRow
    requests: Sequence[ScoreRequest] = ()
    is_list: bool = False
    """Whether it holds a list of responses, so that its reward is a list."""
    problem: str = ""
    kind: str = ""
    """What sort of problem it is, for counting."""
    size: int = 0
    """Bytes that the row and its texts take, each prompt as often as it is asked for."""


class LayoutError(PreferenceFormatError):
    """A row whose columns are wrong, rather than what they hold: other rows are likely the same."""


def ask(source: InputRow, settings: BulkSettings) -> AskedRow:
    """Read what a row wants scored; a row that wants nothing usable says why.

    Args:
        source: The row.
        settings: Names of columns and form of the output.

    Returns:
        The row with its requests.
    """
    if source.row is None:
        return AskedRow(source, problem=source.problem, kind=f"unreadable: {_gist(source.problem)}")
    try:
        requests, is_list = _read(source.row, settings)
    except PreferenceFormatError as error:
        kind = "unusable columns" if isinstance(error, LayoutError) else f"unusable `{error.field}`"
        return AskedRow(source, problem=error.message[:_REASON_SHOWN], kind=kind)
    texts = sum(content_size(request.prompt) + content_size(request.response) for request in requests)
    return AskedRow(source, requests, is_list, size=source.size + texts)


def _read(row: dict[str, Any], settings: BulkSettings) -> tuple[list[ScoreRequest], bool]:
    require_free_columns(row, settings)
    try:
        named = rename_columns(row, settings.columns)
    except PreferenceFormatError as error:
        raise LayoutError(error.message, field=error.field) from None
    try:
        requests = requests_of_row(named)
    except PreferenceFormatError as error:
        if error.field in REQUEST_COLUMNS:
            raise
        raise LayoutError(error.message, field=error.field) from None
    is_list = named.get("messages") is None and named.get("prompt") is not None and named.get("responses") is not None
    if settings.rank and not is_list:
        raise LayoutError(
            "Ranking needs the columns `prompt` and `responses` (a list). If yours has a different name: "
            f"{column_example('responses')}."
        )
    return requests, is_list


def require_free_columns(names: Collection[str], settings: BulkSettings) -> None:
    """Stop before a column is written over.

    Args:
        names: Columns of the data.
        settings: Names of the columns to be added.

    Raises:
        LayoutError: If there is one of that name, with the option that names the new one.
    """
    taken = [name for name in settings.added_columns if name in names]
    if taken:
        options = {settings.reward_column: "reward", settings.rank_column: "rank", settings.best_column: "best"}
        raise LayoutError(
            f"The data has a column {taken[0]!r} already, which is not written over. Name the new one: "
            f"`{setting(f'{options[taken[0]]}_column', 'another_name')}`."
        )


def require_layout(table: Table, settings: BulkSettings) -> None:
    """Stop before a whole run is put aside: if the columns of the first rows are all wrong, say why.

    Args:
        table: The first of the inputs.
        settings: Names of columns and form of the output.

    Raises:
        LayoutError: If there are rows among the first hundred, and none of them has the needed columns.
    """
    first = next(table.spans(_PEEKED), None)
    if first is None:
        return
    reasons = []
    for source in islice(table.read(first), _PEEKED):
        if source.row is None:
            continue
        try:
            _read(source.row, settings)
        except LayoutError as error:
            reasons.append(error.message)
        except PreferenceFormatError:
            return
        else:
            return
    if reasons:
        raise LayoutError(f"{table.name}: none of its first {len(reasons)} rows can be scored. {reasons[0]}")


def passes(rows: Iterable[AskedRow], settings: BulkSettings) -> Iterator[list[AskedRow]]:
    """Cut rows into lists that are scored at once; where the cuts are follows from the rows alone.

    Args:
        rows: The rows of a shard.
        settings: The bounds.

    Yields:
        list[AskedRow]: One or more rows.
    """
    held: list[AskedRow] = []
    requests = size = 0
    for row in rows:
        over = requests + len(row.requests) > settings.requests_per_pass or size + row.size > settings.bytes_per_pass
        if held and over:
            yield held
            held, requests, size = [], 0, 0
        held.append(row)
        requests, size = requests + len(row.requests), size + row.size
    if held:
        yield held


def distinct(requests: Sequence[ScoreRequest]) -> tuple[list[ScoreRequest], list[int]]:
    """Keep equal requests once.

    Args:
        requests: Requests in any order.

    Returns:
        Each distinct request, in the order in which they first occur, and for each given one its place there.
    """
    places: dict[Any, int] = {}
    kept = []
    where = []
    for request in requests:
        place = places.setdefault(_key(request), len(kept))
        if place == len(kept):
            kept.append(request)
        where.append(place)
    return kept, where


def _key(request: ScoreRequest) -> Any:
    parts = (request.prompt, request.response, request.formatted)
    if isinstance(request.prompt, str) and isinstance(request.response, str) and not request.template:
        return parts
    return json.dumps([*parts, dict(request.template)], sort_keys=True, default=str)


def added_columns(
    row: AskedRow, table: str, rewards: np.ndarray, settings: BulkSettings, *, as_list: bool
) -> dict[str, Any]:
    """What a row gains.

    Args:
        row: The row.
        table: Name of its table.
        rewards: Reward of each of its responses, shape `(K,)`, float32.
        settings: Names of columns and form of the output.
        as_list: Whether the reward is a list though the row has one response, as other rows of the output have several.

    Returns:
        `id` unless the row has one, the reward, and in the rank form `rank` (0 best, ties share) and `best`.
    """
    source, values = row.source, rewards.tolist()
    columns = source.row or {}
    added: dict[str, Any] = {}
    if "id" not in columns or (columns["id"] is None and source.arrow is None):
        added["id"] = f"{table}:{source.number}"
    added[settings.reward_column] = values if row.is_list or as_list else values[0]
    if settings.rank:
        added[settings.rank_column] = dense_ranks([-value for value in values])
        added[settings.best_column] = int(np.argmax(rewards))
    return added


def row_id(source: InputRow, name: str) -> str:
    """The id of a row: its own, else its table's name and its number from 0.

    Args:
        source: The row.
        name: The table's name.

    Returns:
        The id, as text.
    """
    own = None if source.row is None else to_python(source.row.get("id"))
    return f"{name}:{source.number}" if own is None else str(own)


def quarantine_record(row: AskedRow, table: Table) -> dict[str, Any]:
    """What is kept of a row that has no reward.

    Args:
        row: The row.
        table: Where it comes from.

    Returns:
        `id`, `file`, `row` (from 0), `line` (from 1, for text files), `reason` and `raw`, the beginning of the row.
    """
    source = row.source
    raw = source.raw if source.row is None else json.dumps(source.row, ensure_ascii=False, default=str)
    place = {"id": row_id(source, table.name), "file": table.name, "row": source.number}
    line = {} if source.line is None else {"line": source.line}
    return {**place, **line, "reason": row.problem[:_REASON_SHOWN], "raw": raw[:RAW_SHOWN]}


def unscored(row: AskedRow, problems: Sequence[tuple[int, str]]) -> AskedRow:
    """See a row whose responses the scorer refused as a problem.

    Args:
        row: The row.
        problems: Place of a response in the row, and why it has no reward; one or more.

    Returns:
        The row without requests.
    """
    place, reason = problems[0]
    where = f"response {place}: " if row.is_list else ""
    more = f" (and {len(problems) - 1} more of its responses)" if len(problems) > 1 else ""
    return AskedRow(row.source, problem=f"{where}{reason}{more}", kind=f"not scored: {_gist(reason)}")


def _gist(reason: str) -> str:
    """A reason without what differs from row to row."""
    return re.sub(r"\d+", "N", re.split(r"[;:(,]", reason, maxsplit=1)[0]).strip()[:100]
