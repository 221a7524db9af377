"""Order of the rows: length buckets, prompts, a fixed order, and streams that are repeated.

With length buckets, each batch contains random groups of similar length. The number of groups in a batch stays fixed.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import Sampler
from xxhash import xxh3_64_intdigest

logger = logging.getLogger(__name__)

_BATCHES_PER_WINDOW = 32
_BLOCKS_AHEAD = 64
"""Blocks among which `PromptSampler` looks for one that fits a batch."""
_ROWS_AHEAD = 256
"""Rows of a prompt among which it looks for one that shares responses."""


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


def response_numbers(rows: Iterable[Sequence[Sequence[int]]]) -> list[list[int]]:
    """Number the token sequences of rows, so that equal sequences have equal numbers.

    Args:
        rows: Token ids of the sequences of each row.

    Returns:
        64-bit hashes of the sequences of each row.
    """
    return [[xxh3_64_intdigest(np.asarray(ids, dtype=np.int64).tobytes()) for ids in row] for row in rows]


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
        return iter(_shuffled_batches(ordered, self.batch_size, generator))


class PromptSampler(Sampler[int]):
    """Random order in which a batch contains several rows of a prompt, so that a packed batch computes them once.

    The rows of each prompt are shuffled and divided into blocks of at most half a batch (but of two rows in small
    batches): a block starts with any row and continues with those that share the most responses with it. The blocks are
    shuffled, and each batch is filled with blocks of different prompts; only if no other prompt is near in the order, a
    prompt has two blocks in a batch. The order is different in every epoch.
    """

    def __init__(
        self,
        prompts: Sequence[int] | np.ndarray,
        responses: Sequence[Collection[int]],
        batch_size: int,
        *,
        processes: int = 1,
        lengths: np.ndarray | None = None,
        seed: int = 0,
    ) -> None:
        """Create the sampler.

        Args:
            prompts: Number of the prompt of each row, shape `(R,)`.
            responses: Numbers of the responses of each row, length R.
            batch_size: Rows per batch on one process.
            processes: Number of processes, which take turns in reading batches.
            lengths: Tokens of each row, shape `(R,)`, for batches of similar length; None for random batches.
            seed: Random seed, combined with the epoch.
        """
        self.prompts, self.responses, self.lengths = np.asarray(prompts), responses, lengths
        self.batch_size, self.processes, self.seed = batch_size, processes, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; called by accelerate."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        ordered = np.array(list(self._filled(self._blocks(generator))), dtype=np.int64)
        return iter(_shuffled_batches(ordered, self.batch_size * self.processes, generator))

    def _blocks(self, generator: np.random.Generator) -> list[list[int]]:
        """Return the shuffled blocks, each with rows of one prompt; windows of them are sorted by length."""
        shuffled = generator.permutation(len(self.prompts))
        by_prompt = shuffled[np.argsort(self.prompts[shuffled], kind="stable")]
        starts = np.flatnonzero(np.diff(self.prompts[by_prompt])) + 1
        blocks = [block for rows in np.split(by_prompt, starts) for block in self._related(rows.tolist())]
        blocks = [blocks[place] for place in generator.permutation(len(blocks))]
        if self.lengths is None:
            return blocks
        lengths = [max(int(self.lengths[row]) for row in block) for block in blocks]
        window = self.batch_size * self.processes * _BATCHES_PER_WINDOW * len(blocks) // len(self.prompts)
        places = sorted(range(len(blocks)), key=lambda place: (place // max(1, window), lengths[place]))
        return [blocks[place] for place in places]

    def _related(self, rows: list[int]) -> Iterator[list[int]]:
        """Divide the rows of a prompt into blocks whose rows share responses."""
        size = max(2, self.batch_size // 2)
        while rows:
            block, present = [rows.pop()], set[int]()
            while rows and len(block) < size:
                present.update(self.responses[block[-1]])
                near = range(max(0, len(rows) - _ROWS_AHEAD), len(rows))
                shared = [len(present.intersection(self.responses[rows[place]])) for place in near]
                block.append(rows.pop(near[shared.index(max(shared))]))
            yield block

    def _filled(self, blocks: Sequence[list[int]]) -> Iterator[int]:
        """Yield the rows of batches, each filled with blocks of different prompts."""
        source, ahead = iter(blocks), list[list[int]]()
        room, present = self.batch_size, set[int]()
        while ahead := [*ahead, *islice(source, _BLOCKS_AHEAD - len(ahead))]:
            other = [place for place, block in enumerate(ahead) if int(self.prompts[block[0]]) not in present]
            whole = next((place for place in other if len(ahead[place]) <= room), None)
            block = ahead.pop(whole if whole is not None else next(iter(other), 0))
            yield from block[:room]
            present.add(int(self.prompts[block[0]]))
            if len(block) > room:
                ahead.insert(0, block[room:])
            room -= min(room, len(block))
            if room == 0:
                room, present = self.batch_size, set()


def _shuffled_batches(ordered: np.ndarray, batch_size: int, generator: np.random.Generator) -> list[int]:
    """Shuffle the full batches of an order. A partial batch stays last, because it would shift those after it."""
    full = len(ordered) // batch_size * batch_size
    batches = ordered[:full].reshape(-1, batch_size)
    return [int(place) for place in (*batches[generator.permutation(len(batches))].ravel(), *ordered[full:])]


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
