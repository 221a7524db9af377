"""Order of the rows: length buckets, a fixed order, and streams that are repeated.

With length buckets, each batch contains random groups of similar length. The number of groups in a batch stays fixed.
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
    """Return the tokens of the longest sequence of each row, which determine the cost of its group in a padded batch.

    Args:
        data: Rows of `prepare_preferences`.

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
    """Random order in which the rows of a batch have similar lengths.

    Shuffled rows are divided into windows of 32 batches. Each window is sorted by length, and the batches are shuffled.
    The order is different in every epoch.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, batch_size: int, *, seed: int = 0) -> None:
        """Create the sampler.

        Args:
            lengths: Tokens of each row, shape `(R,)`.
            batch_size: Rows per batch, over all processes.
            seed: Random seed, combined with the epoch.
        """
        self.lengths, self.batch_size, self.seed = np.asarray(lengths), batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; called by accelerate."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        shuffled = generator.permutation(len(self.lengths))
        size = self.batch_size * _BATCHES_PER_WINDOW
        windows = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
        ordered = np.concatenate([window[np.argsort(self.lengths[window], kind="stable")] for window in windows])
        # Only full batches are shuffled. A partial batch stays last, because it would shift the batches after it.
        full = len(ordered) // self.batch_size * self.batch_size
        batches = ordered[:full].reshape(-1, self.batch_size)
        order = [*batches[generator.permutation(len(batches))].ravel(), *ordered[full:]]
        return iter([int(place) for place in order])


class FixedOrderSampler(Sampler[int]):
    """Rows in a given order."""

    def __init__(self, order: Sequence[int] | np.ndarray) -> None:
        self.order = [int(place) for place in order]

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)


def fixed_order(loader: Any) -> np.ndarray | None:
    """Return the order of a data loader's `FixedOrderSampler`, which accelerate may have wrapped; None without one."""
    batches: Any = getattr(loader, "batch_sampler", None)
    while hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler
    sampler = getattr(batches, "sampler", None)
    return np.asarray(sampler.order) if isinstance(sampler, FixedOrderSampler) else None


def longest_first(lengths: np.ndarray) -> np.ndarray:
    """Return the order of evaluation: longest rows first, so that a lack of memory shows at the start.

    Args:
        lengths: Tokens of each row, shape `(R,)`.

    Returns:
        Indices of the rows, shape `(R,)`.
    """
    return np.argsort(-lengths, kind="stable")


# --- streams ---------------------------------------------------------------------------------------------------------


class EndlessStream(torch.utils.data.IterableDataset[dict[str, Any]]):
    """Repeated passes over a stream, each in a different order.

    `Trainer` starts every pass at batch 0 and stores only the number of steps, so a run that resumes in its second pass
    would restart at the first row. With this class, the number of steps alone determines the row.
    """

    def __init__(self, stream: IterableDataset, *, buffer_size: int, seed: int) -> None:
        """Create the dataset.

        Args:
            stream: Rows of `prepare_preferences`.
            buffer_size: Size of the shuffle buffer; below 2, rows are not shuffled. With shuffling, the order of the
                stream's files also changes in each pass.
            seed: Random seed of the order.
        """
        self.stream = stream.shuffle(seed=seed, buffer_size=buffer_size) if buffer_size > 1 else stream

    def __iter__(self) -> Iterator[dict[str, Any]]:
        number, found = 0, True
        while found:  # ends for a stream without rows, such as that of a worker without a file
            found = False
            self.stream.set_epoch(number)
            for row in self.stream:
                found = True
                yield dict(row)
            number += 1


class CountedStream(torch.utils.data.IterableDataset[dict[str, Any]]):
    """A stream that counts its rows, so that each row is evaluated exactly once.

    With several processes, accelerate pads the last round with rows of the first one and drops them only if the length
    is known. It would divide a stream of `datasets` by shards, whose lengths differ, and a process could then wait for
    one that has finished.
    """

    def __init__(self, stream: IterableDataset) -> None:
        """Create the dataset.

        Args:
            stream: Rows of `prepare_preferences`, the same in every process.
        """
        self.stream, self.count = stream, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.count = 0
        for row in self.stream:
            self.count += 1
            yield row


def counted_stream(loader: Any) -> CountedStream | None:
    """Return a data loader's `CountedStream`, which accelerate may have wrapped; None if its dataset is different.

    Args:
        loader: The data loader.

    Returns:
        The stream.
    """
    data: Any = getattr(loader, "dataset", None)
    data = getattr(data, "dataset", data)
    return data if isinstance(data, CountedStream) else None
