"""Convert input rows to score requests, and rewards to output columns or rejection records."""

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
class ParsedRow:
    """A row and its requests, or the problem why it has none."""

    source: InputRow
    requests: Sequence[ScoreRequest] = ()
    is_list: bool = False
    """Whether the row has a list of responses, so that its reward is a list."""
    problem: str = ""
    kind: str = ""
    """Category of the problem, for the counts."""
    size: int = 0
    """Bytes of the row and its texts, with the prompt counted once per response."""


class LayoutError(PreferenceFormatError):
    """The columns of a row are wrong, rather than their values, so other rows probably fail too."""


def parse_row(source: InputRow, settings: BulkSettings) -> ParsedRow:
    """Convert a row to requests, or to a problem.

    Args:
        source: The row.
        settings: Names of columns and format of the output.

    Returns:
        The row with its requests, or with a problem.
    """
    if source.row is None:
        return ParsedRow(source, problem=source.problem, kind=f"unreadable: {_category(source.problem)}")
    try:
        requests, is_list = _read(source.row, settings)
    except PreferenceFormatError as error:
        kind = "unusable columns" if isinstance(error, LayoutError) else f"unusable `{error.field}`"
        return ParsedRow(source, problem=error.message[:_REASON_SHOWN], kind=kind)
    texts = sum(content_size(request.prompt) + content_size(request.response) for request in requests)
    return ParsedRow(source, requests, is_list, size=source.size + texts)


def _read(row: dict[str, Any], settings: BulkSettings) -> tuple[list[ScoreRequest], bool]:
    require_free_columns(row, settings)
    try:
        named = rename_columns(row, settings.columns)
    except PreferenceFormatError as error:
        raise LayoutError(error.message, field=error.field) from None
    try:
        requests = requests_of_row(named, local_files=True)
    except PreferenceFormatError as error:
        if error.field in REQUEST_COLUMNS:
            raise
        raise LayoutError(error.message, field=error.field) from None
    is_list = named.get("messages") is None and named.get("prompt") is not None and named.get("responses") is not None
    if settings.rank and not is_list:
        raise LayoutError(
            "Ranking needs the columns `prompt` and `responses` (a list). If yours has a different name, map it with "
            f"{column_example('responses')}."
        )
    return requests, is_list


def require_free_columns(names: Collection[str], settings: BulkSettings) -> None:
    """Raise an error if an added column exists in the data.

    Args:
        names: Columns of the data.
        settings: Names of the added columns.

    Raises:
        LayoutError: If a column exists. The message names the option that renames the added column.
    """
    taken = [name for name in settings.added_columns if name in names]
    if taken:
        options = {settings.reward_column: "reward", settings.rank_column: "rank", settings.best_column: "best"}
        raise LayoutError(
            f"The data already has a column {taken[0]!r}. Use another name for the added column: "
            f"`{setting(f'{options[taken[0]]}_column', 'another_name')}`."
        )


def require_layout(table: Table, settings: BulkSettings) -> None:
    """Raise an error if no row at the start of a table has the required columns.

    Args:
        table: The first of the inputs.
        settings: Names of columns and format of the output.

    Raises:
        LayoutError: If none of the first hundred readable rows has the required columns.
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


def passes(rows: Iterable[ParsedRow], settings: BulkSettings) -> Iterator[list[ParsedRow]]:
    """Split rows into lists that are scored together. The rows alone determine the split.

    Args:
        rows: The rows of a shard.
        settings: The limits of a pass.

    Yields:
        list[ParsedRow]: One or more rows.
    """
    held: list[ParsedRow] = []
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
    """Remove duplicate requests.

    Args:
        requests: Requests in any order.

    Returns:
        The distinct requests in order of first occurrence, and the index of each given request among them.
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
    row: ParsedRow, table: str, rewards: np.ndarray, settings: BulkSettings, *, as_list: bool
) -> dict[str, Any]:
    """Return the columns that are added to a row.

    Args:
        row: The row.
        table: Name of its table.
        rewards: Reward of each of its responses, shape `(K,)`, float32.
        settings: Names of columns and format of the output.
        as_list: Whether the reward must be a list even for one response, because other rows have several.

    Returns:
        `id` unless the row has one, the reward, and with `settings.rank` `rank` (0 is best, ties share) and `best`.
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
    """Return the id of a row: its own, else the table's name and the row number from 0.

    Args:
        source: The row.
        name: The table's name.

    Returns:
        The id, as text.
    """
    own = None if source.row is None else to_python(source.row.get("id"))
    return f"{name}:{source.number}" if own is None else str(own)


def quarantine_record(row: ParsedRow, table: Table) -> dict[str, Any]:
    """Return the quarantine record of a rejected row.

    Args:
        row: The row.
        table: Its table.

    Returns:
        `id`, `file`, `row` (from 0), `line` (from 1, for text files), `reason` and `raw`, the start of the row.
    """
    source = row.source
    raw = source.raw if source.row is None else json.dumps(source.row, ensure_ascii=False, default=str)
    place = {"id": row_id(source, table.name), "file": table.name, "row": source.number}
    line = {} if source.line is None else {"line": source.line}
    return {**place, **line, "reason": row.problem[:_REASON_SHOWN], "raw": raw[:RAW_SHOWN]}


def unscored(row: ParsedRow, problems: Sequence[tuple[int, str]]) -> ParsedRow:
    """Mark a row as rejected because of responses without a reward.

    Args:
        row: The row.
        problems: Index of each such response in the row, and the reason; at least one.

    Returns:
        The row with a problem instead of requests.
    """
    place, reason = problems[0]
    where = f"response {place}: " if row.is_list else ""
    more = f" (and {len(problems) - 1} more of its responses)" if len(problems) > 1 else ""
    return ParsedRow(row.source, problem=f"{where}{reason}{more}", kind=f"not scored: {_category(reason)}")


def _category(reason: str) -> str:
    """Return a reason without the parts that differ between rows."""
    return re.sub(r"\d+", "N", re.split(r"[;:(,]", reason, maxsplit=1)[0]).strip()[:100]
