"""Collator that splits the groups of a step into micro-batches with a token budget."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from datasets import Dataset

from hf_reward.data.interface import setting
from hf_reward.preprocessing.data_collator import group_columns

logger = logging.getLogger(__name__)


class CountsTokens(Protocol):
    """A collator that can count the tokens of a batch of rows."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows."""
        ...

    def tokens(self, rows: Sequence[dict[str, Any]]) -> int:
        """Count the tokens that the model processes for these rows, including padding."""
        ...


def consecutive_batches(
    data: Dataset,
    places: Iterable[int],
    tokens: Callable[[Sequence[dict[str, Any]]], int],
    batch_size: int,
    max_tokens: int | None,
) -> Iterator[list[dict[str, Any]]]:
    """Divide rows into batches in the given order.

    Args:
        data: Rows of `prepare_preferences`.
        places: Indices of the rows, in order.
        tokens: Function that counts the tokens of a batch.
        batch_size: Largest number of rows per batch.
        max_tokens: Largest number of tokens per batch, unless a single row has more; None for no limit.

    Yields:
        list[dict[str, Any]]: The rows of a batch.
    """
    batch: list[dict[str, Any]] = []
    for place in places:
        row: Any = data[int(place)]
        full = len(batch) == batch_size
        if batch and (full or (max_tokens is not None and tokens([*batch, row]) > max_tokens)):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@dataclass
class DataCollatorWithTokenBudget:
    """Collate a batch as micro-batches of at most `max_tokens` tokens each.

    A group is never split, because its loss requires all its rewards. A group that exceeds the budget is a separate
    micro-batch, and the first one is logged as a warning.
    """

    collator: CountsTokens
    max_tokens: int
    _warned: bool = field(default=False, init=False, repr=False)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Args:
            rows: Rows of `prepare_preferences`.

        Returns:
            The tensors of `group_columns`; `micro_batches`, a list of batches of the inner collator; `micro_rows`, the
            row indices of each micro-batch, int64; and `input_ids`, all tokens, `(1, T)`.
        """
        parts = self._split(rows)
        batches = [self.collator([rows[place] for place in part]) for part in parts]
        return {
            **group_columns(rows),
            "input_ids": torch.cat([batch["input_ids"].view(-1) for batch in batches])[None],  # for `Trainer` to count
            "micro_batches": batches,
            "micro_rows": [torch.tensor(part) for part in parts],
        }

    def _split(self, rows: Sequence[dict[str, Any]]) -> list[list[int]]:
        """Assign rows to micro-batches, longest first, each to the first one with enough room (first fit)."""
        costs = [self.collator.tokens([row]) for row in rows]
        if max(costs) > self.max_tokens and not self._warned:
            self._warned = True
            logger.warning(
                "A row has %s tokens, above `%s`. Such rows are separate batches and may need more memory. To bound "
                "memory, lower `%s`.",
                max(costs),
                setting("max_tokens_per_batch", self.max_tokens),
                setting("max_length"),
            )
        parts: list[list[int]] = []
        for place in sorted(range(len(rows)), key=lambda place: -costs[place]):
            for part in parts:
                if self.collator.tokens([rows[i] for i in (*part, place)]) <= self.max_tokens:
                    part.append(place)
                    break
            else:
                parts.append([place])
        return parts
