"""Rows -> which resemble each other by prompt or by response, so that none of a kind is on both sides of a split.

A response counts here only if it is too long to be a stock phrase: "I'm sorry, but I can't help with that" comes back
under many prompts and would tie all of them together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_reward.data.near_duplicates import IntArray, TextClusters, TextPool, joined
from hf_reward.data.preference_row import PreferenceRow
from hf_reward.data.row_text import prompt_text, response_text, words_of

STOCK_PHRASE = 20
"""Responses of fewer words are not compared."""

_PROMPT = -1


@dataclass(frozen=True)
class RowClusters:
    """Prompts and responses of rows, and which of them are alike."""

    prompts: TextClusters
    responses: TextClusters

    def joined_groups(self, groups: np.ndarray) -> IntArray:
        """Join the prompt groups that equal or nearly equal texts link.

        Args:
            groups: Prompt group of each row, of any type, shape `(R,)`; rows are numbered as in `RowPool.add`.

        Returns:
            Number of the joined group of each row, shape `(R,)`.
        """
        own = (np.arange(len(groups)), np.unique(groups, return_inverse=True)[1])
        alike = [(texts.rows, texts.near) for texts in (self.prompts, self.responses)]
        return joined(len(groups), own, *alike)


class RowPool:
    """Gathers rows batch by batch, then says which are alike.

    Args:
        read: Gives a row back by its number, to verify a candidate.
    """

    def __init__(self, read: Callable[[int], PreferenceRow]) -> None:
        self._prompts = TextPool(lambda row, _: prompt_text(read(row)))
        self._responses = TextPool(lambda row, place: response_text(read(row), place))

    def add(self, rows: Sequence[PreferenceRow], numbers: Sequence[int]) -> None:
        """Take in a batch.

        Args:
            rows: Canonical rows; they are not kept.
            numbers: What `read` calls them.
        """
        prompts = [(prompt_text(row), number) for row, number in zip(rows, numbers, strict=True)]
        prompts = [(text, number) for text, number in prompts if text.strip()]
        self._prompts.add([text for text, _ in prompts], [number for _, number in prompts], [_PROMPT] * len(prompts))
        responses = [
            (response_text(row, place), number, place)
            for row, number in zip(rows, numbers, strict=True)
            for place in range(len(row.responses))
        ]
        kept = [part for part in responses if len(words_of(part[0])) >= STOCK_PHRASE]
        self._responses.add(
            [text for text, _, _ in kept], [number for _, number, _ in kept], [place for _, _, place in kept]
        )

    def clusters(self) -> RowClusters:
        """Find the texts that are alike among all that were added."""
        return RowClusters(self._prompts.clusters(), self._responses.clusters())
