"""Responses to other prompts as rejected responses and as ties: augmentation without a language model.

A model that reads only the response cannot tell a good answer to this prompt from a good answer to another one. Rows
that contrast the two teach it to read the prompt.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hf_reward.data.near_duplicates import RowPool
from hf_reward.data.preference_row import PreferenceRow, Response
from hf_reward.data.preferences import to_preference_row
from hf_reward.data.python_values import rows_of

_TRIES = 100


def off_prompt_rows(
    rows: Iterable[Any],
    *,
    rejected_share: float = 0.25,
    tie_share: float = 0.25,
    seed: int = 42,
    layout: str = "auto",
    columns: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Make rows that pair a prompt with responses to other prompts.

    A *rejected* row prefers a random response of a row to a random response of another row, whatever their ranks. A
    *tie* has random responses of two other rows and the probability 0.5. The other rows never belong to the same
    prompt group, nor to one that is linked to it by an equal or near-duplicate prompt or response (see `RowClusters`).
    A rejected response is therefore an answer to another question.

    Args:
        rows: Raw preference rows in any layout but token ids, or a pandas `DataFrame`.
        rejected_share: Number of rejected rows for each given row.
        tie_share: Number of ties for each given row.
        seed: Random seed; the same rows and seed give the same result.
        layout: Row layout.
        columns: Field -> name of its column in the rows.

    Returns:
        New rows with `prompt`, `chosen`, `rejected`, `probability` (0.5 for a tie, otherwise None), `group` and, where
        the given row has them, `tools` and `chat_template_kwargs`. Train on them together with the given rows.

    Raises:
        PreferenceFormatError: If a row cannot be read.
        ValueError: If a share is negative, a row has token ids, some rows are texts and others conversations, or all
            rows belong to linked prompts.
        MissingExtraError: If rensa is not installed.

    Source:
        Liu et al. (2024), "RRM: Robust reward model training mitigates reward hacking", arXiv:2409.13156: the
        non-contextual and neutral triplets, without their filter by a first reward model.
    """
    if min(rejected_share, tie_share) < 0:
        raise ValueError(
            f"`rejected_share` and `tie_share` must be 0 or more, but are {rejected_share} and {tie_share}."
        )
    given = [
        to_preference_row(row, layout=layout, columns=columns, row_index=index)
        for index, row in enumerate(rows_of(rows))
    ]
    if any(row.token_ids is not None for row in given):
        raise ValueError("Responses cannot be exchanged in rows of token ids. Pass the texts.")
    draw = _Draw(given, seed)
    made = [draw.rejected(place) for place in draw.places(rejected_share)]
    return made + [draw.tie(place) for place in draw.places(tie_share)]


class _Draw:
    """Random rows of other prompts."""

    def __init__(self, rows: Sequence[PreferenceRow], seed: int) -> None:
        self.rows, self.random = rows, np.random.default_rng(seed)
        pool = RowPool(lambda number: rows[number])
        pool.add(rows, range(len(rows)))
        linked = pool.clusters().joined_groups(np.array([row.group for row in rows], dtype=str))
        kinds = np.array([row.is_conversational() for row in rows])
        self.order = np.argsort(linked, kind="stable")
        self.size = np.bincount(linked)[linked]
        self.start = np.searchsorted(linked[self.order], linked)
        if len(rows) and (self.size == len(rows)).any():
            raise ValueError(
                "Responses to other prompts are required, but all rows have the same prompt or are linked by "
                "near-duplicate texts. Add rows with other prompts."
            )
        if kinds.any() and not kinds.all():
            raise ValueError("Rows must all be texts or all be conversations, but both kinds occur. Convert one kind.")

    def places(self, share: float) -> list[int]:
        """Return row numbers: every row equally often, up to one."""
        count, every = round(share * len(self.rows)), np.arange(len(self.rows))
        full, rest = divmod(count, max(1, len(self.rows)))
        return [*np.tile(every, full).tolist(), *np.sort(self.random.permutation(every)[:rest]).tolist()]

    def rejected(self, place: int) -> dict[str, Any]:
        return self._row(place, self._response(place), self._other(place), None)

    def tie(self, place: int) -> dict[str, Any]:
        first = second = self._other(place)
        for _ in range(_TRIES):
            if second != first:
                break
            second = self._other(place)  # training would drop a pair of equal texts
        return self._row(place, first, second, 0.5)

    def _row(self, place: int, first: Response, second: Response, probability: float | None) -> dict[str, Any]:
        row = self.rows[place]
        pair = {"prompt": row.prompt, "chosen": first, "rejected": second, "probability": probability}
        options = dict(row.template)
        template = {"tools": options.pop("tools", None), "chat_template_kwargs": options}
        return pair | {"group": row.group} | {name: value for name, value in template.items() if value}

    def _other(self, place: int) -> Response:
        number = int(self.random.integers(len(self.rows) - self.size[place]))
        number += int(self.size[place]) if number >= self.start[place] else 0
        return self._response(int(self.order[number]))

    def _response(self, place: int) -> Response:
        responses = self.rows[place].responses
        return responses[int(self.random.integers(len(responses)))]
