"""A collator that splits a step's groups into batches of at most so many tokens."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from datasets import Dataset

from hf_reward.preprocessing.data_collator import group_columns

logger = logging.getLogger(__name__)


class CountsTokens(Protocol):
    """A collator that can say what a batch of rows would cost."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows."""
        ...

    def tokens(self, rows: Sequence[dict[str, Any]]) -> int:
        """Tokens that the model computes for these rows, padding included."""
        ...


def consecutive_batches(
    data: Dataset,
    places: Iterable[int],
    tokens: Callable[[Sequence[dict[str, Any]]], int],
    batch_size: int,
    max_tokens: int | None,
) -> Iterator[list[dict[str, Any]]]:
    """Cut rows into batches that keep their order, one after the other.

    Args:
        data: Rows as `prepare_preferences` makes them.
        places: Which of them, in which order.
        tokens: Tokens that the model computes for some rows.
        batch_size: At most so many rows.
        max_tokens: At most so many tokens, unless one row alone has more; None for no limit.

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
    """Collates a batch as micro-batches of at most `max_tokens` tokens each.

    A group is never split, because its loss needs all its rewards: a larger one is a micro-batch of its own, with a
    warning for the first.
    """

    collator: CountsTokens
    max_tokens: int
    _warned: bool = field(default=False, init=False, repr=False)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Args:
            rows: Rows as `prepare_preferences` makes them.

        Returns:
            What `group_columns` returns, `micro_batches`, a list of batches of the inner collator, `micro_rows`, for
            each the places of its rows in the batch, int64, and `input_ids`, all their tokens `(1, T)`.
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
        """First fit, longest first: each row goes into the first micro-batch that has room for it."""
        costs = [self.collator.tokens([row]) for row in rows]
        if max(costs) > self.max_tokens and not self._warned:
            self._warned = True
            logger.warning(
                "A row has %s tokens, more than `max_tokens_per_batch=%s`; such rows run alone. To bound memory, lower "
                "`max_length` or raise the budget to what fits.",
                max(costs),
                self.max_tokens,
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
