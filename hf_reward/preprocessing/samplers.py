"""Which rows share a batch, and which rows of a batch share a forward pass: length buckets and token budgets.

A batch keeps its number of groups whatever their lengths. Buckets choose them, about equally long ones at random;
budgets split the batch into micro-batches whose gradients add up to its own.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from torch.utils.data import Sampler

logger = logging.getLogger(__name__)

_BATCHES_PER_WINDOW = 32


def longest_sequences(data: Dataset) -> np.ndarray:
    """Tokens of the longest sequence of each prepared row: what its group costs in a padded batch, per response.

    Args:
        data: Rows as `prepare_preferences` makes them.

    Returns:
        Lengths, shape `(R,)`, int64.
    """
    parts = []
    for batch in data.select_columns("input_ids").with_format("arrow").iter(10_000):
        table: Any = batch
        for rows in pa.table(table).column("input_ids").chunks:
            lengths = np.asarray(rows.flatten().value_lengths())
            first = np.cumsum(np.asarray(rows.value_lengths())) - np.asarray(rows.value_lengths())
            parts.append(np.maximum.reduceat(lengths, first))
    return np.concatenate(parts).astype(np.int64)


class LengthBucketSampler(Sampler[int]):
    """Rows in random order, except that the rows of a batch are about equally long.

    Shuffled rows are cut into windows of 32 batches; each window is sorted by length and its batches are shuffled. A
    row may meet every other row of about its length, and every epoch draws anew.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, batch_size: int, *, seed: int = 0) -> None:
        """Take the lengths of the rows.

        Args:
            lengths: Tokens of each row, shape `(R,)`.
            batch_size: Rows that are computed at once, over all processes.
            seed: Seed of the order; each epoch has an order of its own.
        """
        self.lengths, self.batch_size, self.seed = np.asarray(lengths), batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; accelerate calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        shuffled = generator.permutation(len(self.lengths))
        size = self.batch_size * _BATCHES_PER_WINDOW
        windows = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
        ordered = np.concatenate([window[np.argsort(self.lengths[window], kind="stable")] for window in windows])
        # Whole batches trade places; what is left over stays last, or every later batch would straddle two buckets.
        whole = len(ordered) // self.batch_size * self.batch_size
        batches = ordered[:whole].reshape(-1, self.batch_size)
        order = [*batches[generator.permutation(len(batches))].ravel(), *ordered[whole:]]
        return iter([int(place) for place in order])


class FixedOrderSampler(Sampler[int]):
    """Rows in a stated order."""

    def __init__(self, order: Sequence[int] | np.ndarray) -> None:
        self.order = [int(place) for place in order]

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)


def fixed_order(loader: Any) -> np.ndarray | None:
    """The order of a data loader's `FixedOrderSampler`, which accelerate may have wrapped; None if it has another."""
    batches: Any = getattr(loader, "batch_sampler", None)
    while hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler
    sampler = getattr(batches, "sampler", None)
    return np.asarray(sampler.order) if isinstance(sampler, FixedOrderSampler) else None


def longest_first(lengths: np.ndarray) -> np.ndarray:
    """Order in which to evaluate: equally long rows together, and what could run out of memory at once.

    Args:
        lengths: Tokens of each row, shape `(R,)`.

    Returns:
        Places of the rows, shape `(R,)`.
    """
    return np.argsort(-lengths, kind="stable")


# --- token budgets ---------------------------------------------------------------------------------------------------
