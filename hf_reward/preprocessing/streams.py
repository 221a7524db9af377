"""A stream of prepared rows -> a training stream without an end, or an evaluation stream that counts its rows."""

from collections.abc import Iterator
from typing import Any

import torch
from datasets import IterableDataset


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
