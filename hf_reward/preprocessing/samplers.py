"""The order in which rows are read: length buckets, a fixed order, and streams that start again.

A batch keeps its number of groups whatever their lengths; buckets choose groups of about equal length at random.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, IterableDataset
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


class EndlessStream(torch.utils.data.IterableDataset[dict[str, Any]]):
    """Passes over a stream, one after the other, each shuffled in its own way.

    `Trainer` begins every pass at batch 0 and remembers only the number of steps, so a run that was resumed in its
    second pass would start again at the first row. Here the number of steps alone tells the row.
    """

    def __init__(self, stream: IterableDataset, *, buffer_size: int, seed: int) -> None:
        """Take a stream.

        Args:
            stream: Rows as `prepare_preferences` makes them.
            buffer_size: Each row is drawn at random out of so many that were read; below 2 the order stays. The order
                of the stream's files is drawn anew for each pass too.
            seed: Seed of the order.
        """
        self.stream = stream.shuffle(seed=seed, buffer_size=buffer_size) if buffer_size > 1 else stream

    def __iter__(self) -> Iterator[dict[str, Any]]:
        number, found = 0, True
        while found:  # a stream without rows, such as that of a worker without a file, ends
            found = False
            self.stream.set_epoch(number)
            for row in self.stream:
                found = True
                yield dict(row)
            number += 1


class CountedStream(torch.utils.data.IterableDataset[dict[str, Any]]):
    """A stream that knows, once it was read, how many rows it has, so that each is evaluated once.

    accelerate fills the last round of several processes with rows of the first one, and drops these only where it knows
    the length. A stream of `datasets` itself it would divide by its shards, which differ in length, so that one process
    waits for another that has finished.
    """

    def __init__(self, stream: IterableDataset) -> None:
        """Take a stream.

        Args:
            stream: Rows as `prepare_preferences` makes them, the same in every process.
        """
        self.stream, self.count = stream, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.count = 0
        for row in self.stream:
            self.count += 1
            yield row


def counted_stream(loader: Any) -> CountedStream | None:
    """The stream that a data loader reads, which accelerate may have wrapped; None if it has another dataset.

    Args:
        loader: The data loader.

    Returns:
        The stream.
    """
    data: Any = getattr(loader, "dataset", None)
    data = getattr(data, "dataset", data)
    return data if isinstance(data, CountedStream) else None
