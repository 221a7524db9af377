"""Prepared rows -> the data loaders of a run: which rows share a batch, in which order, on which process."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers.trainer_pt_utils import BatchRebalanceSampler
from transformers.trainer_utils import RemoveColumnsCollator, seed_worker

from hf_reward.preprocessing.samplers import (
    CountedStream,
    EndlessStream,
    FixedOrderSampler,
    LengthBucketSampler,
    counted_stream,
    longest_first,
    longest_sequences,
)
from hf_reward.training.collators import packs
from hf_reward.training.feature_store import DataCollatorForFeatures, FeatureRows, without_features
from hf_reward.training.training_args import RewardConfig

logger = logging.getLogger(__name__)

COLUMNS = (
    *("input_ids", "token_type_ids", "features", "ranks", "prefix_length", "length"),
    *("words", "characters", "margin", "probability", "weight", "group", "row", "source"),
)
"""Columns that a collator gets; others are removed, unless `remove_unused_columns` is False."""
_COLUMNS_OF_METRICS = ("content_hash",)
"""Further columns that stay in the rows of a loader, by which `rows_of` tells the rows that training has seen."""


class BatchLoader:
    """Makes the data loaders of a run.

    Args:
        args: Settings of the run.
        accelerator: Of the run.
    """

    def __init__(self, args: RewardConfig, accelerator: Accelerator) -> None:
        self.args, self.accelerator = args, accelerator
        self.bucket_sampler: LengthBucketSampler | None = None
        """The sampler of the training rows, if it sorts them by length; a callback sets its epoch."""
        self._kept: dict[str, tuple[Any, DataLoader]] = {}

    def training(
        self, data: Any, collator: Any, batch_size: int, sampler_of_strategy: Callable[[Any], Sampler | None]
    ) -> DataLoader:
        """Data loader of the training rows.

        Args:
            data: Prepared rows, perhaps with features.
            collator: The run's collator.
            batch_size: Rows of a batch on each process.
            sampler_of_strategy: Makes the sampler of the settings' `train_sampling_strategy`.

        Returns:
            The data loader, prepared by accelerate.
        """
        if isinstance(data, IterableDataset):
            return self._prepared(self._endless(data), collator, {"batch_size": batch_size, **self._workers()})
        sampler = self._training_sampler(data, collator, batch_size, sampler_of_strategy)
        options = {**self._workers(), "worker_init_fn": self._seed_workers()}
        if isinstance(sampler, BatchRebalanceSampler):
            return self._rebalanced(data, collator, sampler, options)
        options |= {"batch_size": batch_size, "drop_last": self.args.dataloader_drop_last, "sampler": sampler}
        return self._prepared(data, collator, options)

    def evaluation(self, data: Any, collator: Any, name: str | None = None) -> DataLoader:
        """Data loader that reads every row, those of like length together; streams keep their order.

        Args:
            data: Prepared rows, perhaps with features.
            collator: The run's collator.
            name: Of a dataset that is evaluated again and again, whose persistent workers are kept.

        Returns:
            The data loader, prepared by accelerate.
        """
        if name is not None and name in self._kept and self._kept[name][0] is data:
            return self._kept[name][1]
        options: dict[str, Any] = {"batch_size": self.args.eval_batch_size}
        if isinstance(data, IterableDataset):
            loader = self._evaluated_stream(data, collator, options)
        else:
            options |= {**self._workers(), "sampler": self._evaluation_sampler(data, collator), "drop_last": False}
            loader = self._prepared(data, collator, options)
        if name is not None and self.args.dataloader_persistent_workers:
            self._kept[name] = (data, loader)
        return loader

    def buckets(self, data: Any, collator: Any) -> bool:
        """Whether rows of like length share a batch; with features too, so that caching changes nothing else."""
        choice = self.args.choice("length_bucketing")
        if not isinstance(without_features(data), Dataset) or choice is False:
            return False
        return choice is True or not packs(collator)

    # --- which rows, in which order ---

    def _training_sampler(
        self, data: Any, collator: Any, batch_size: int, sampler_of_strategy: Callable[[Any], Sampler | None]
    ) -> Sampler | None:
        rows: Any = without_features(data)
        of_all_lengths = bool(self.args.length_penalty)  # which needs rows of all lengths in a batch
        self.bucket_sampler = None
        if self.args.train_sampling_strategy != "random" or of_all_lengths or not self.buckets(rows, collator):
            return sampler_of_strategy(rows)
        size = batch_size * self.args.world_size
        self.bucket_sampler = LengthBucketSampler(longest_sequences(rows), size, seed=self.args.order_seed)
        return self.bucket_sampler

    def _evaluation_sampler(self, data: Any, collator: Any) -> Sampler:
        rows: Any = without_features(data)  # the strategy for training must not permute predictions
        if self.buckets(rows, collator):
            return FixedOrderSampler(longest_first(longest_sequences(rows)))
        return SequentialSampler(rows)

    def _endless(self, stream: IterableDataset) -> EndlessStream:
        shuffles = self.args.train_sampling_strategy == "random"
        size = self.args.shuffle_buffer_size if shuffles else 0
        return EndlessStream(stream, buffer_size=size, seed=self.args.order_seed)

    def _evaluated_stream(self, data: IterableDataset, collator: Any, options: dict[str, Any]) -> DataLoader:
        if self.args.dataloader_num_workers > 0:
            logger.info(
                "Streams are evaluated without data loader workers, which would mix up the order of their rows."
            )
        read: Any = CountedStream(data) if self.args.world_size > 1 else data
        return self._prepared(read, collator, {**options, "pin_memory": self.args.dataloader_pin_memory})

    def require_same_rows(self, data: Any, description: str) -> None:
        """Stop where processes hold different rows: accelerate would divide what was divided before.

        Called before features are computed, which would be stored for the rows of the main process.

        Args:
            data: Prepared rows.
            description: What they are for.

        Raises:
            ValueError: If the rows of any process differ.
        """
        if self.args.world_size == 1 or not isinstance(data, (Dataset, IterableDataset)):
            return
        length = len(data) if isinstance(data, Dataset) else None
        found = gather_object([(length, [row["input_ids"] for row in first_rows(data, 8)])])
        if any(each != found[0] for each in found):
            lengths = "" if length is None else f" ({', '.join(str(each[0]) for each in found)} rows)"
            raise ValueError(
                f"{description}: the processes were given different rows{lengths}. Give all of them the same rows in "
                "the same order: they are divided here. Leave out `split_dataset_by_node` and `shard`, and shuffle a "
                "stream with a `seed`."
            )

    # --- torch's data loader ---

    def _workers(self) -> dict[str, Any]:
        return {
            "num_workers": self.args.dataloader_num_workers,
            "pin_memory": self.args.dataloader_pin_memory,
            "persistent_workers": self.args.dataloader_persistent_workers,
            "multiprocessing_context": self.args.dataloader_multiprocessing_context,
            "prefetch_factor": self.args.dataloader_prefetch_factor,
            "in_order": self.args.dataloader_in_order,
        }

    def _seed_workers(self) -> Callable[[int], None]:
        return partial(seed_worker, num_workers=self.args.dataloader_num_workers, rank=self.args.process_index)

    def _prepared(self, data: Any, collator: Any, options: dict[str, Any]) -> Any:
        if isinstance(data, FeatureRows):
            collator = DataCollatorForFeatures(collator)
        if self.args.remove_unused_columns:
            collator = RemoveColumnsCollator(collator, COLUMNS)
            if isinstance(data, Dataset):
                kept = (*COLUMNS, *_COLUMNS_OF_METRICS)
                data = data.select_columns([name for name in kept if name in data.column_names])
        return self.accelerator.prepare(DataLoader(data, collate_fn=collator, **options))

    def _rebalanced(self, data: Any, collator: Any, sampler: Any, options: dict[str, Any]) -> Any:
        """The loader of a sampler that divides rows among processes itself, which accelerate must not do again."""
        loader: Any = self._prepared(data, collator, {**options, "batch_sampler": sampler})
        batches = getattr(loader, "batch_sampler", None)
        if batches is not None and getattr(batches, "batch_sampler", None) is sampler:
            batches.num_processes, batches.process_index = 1, 0
        return loader


def first_rows(data: Any, count: int) -> list[dict[str, Any]]:
    """The first rows of a dataset or stream; fewer if there are fewer."""
    if isinstance(data, IterableDataset):
        return list(data.take(count))
    return [data[place] for place in range(min(count, len(data)))]


def rows_of(loader: DataLoader) -> Any:
    """The prepared rows that a data loader reads, which accelerate may have wrapped; without their features."""
    stream = counted_stream(loader)
    return without_features(loader.dataset) if stream is None else stream


def require_rows(data: Any) -> None:
    """Refuse an empty split, of which no metrics would be reported.

    Args:
        data: Prepared evaluation rows.

    Raises:
        ValueError: If there are none.
    """
    if not isinstance(data, IterableDataset) and len(data) == 0:
        raise ValueError(
            "The evaluation data holds no rows, so there is nothing to measure. Check how it was filtered."
        )


def passes_over(data: Any, args: RewardConfig) -> float:
    """How often training reads its rows; 0 without rows at hand.

    Args:
        data: The prepared training rows.
        args: Settings of the run.

    Returns:
        The number of passes, perhaps a fraction.
    """
    if not isinstance(data, Dataset):
        return 0
    if args.max_steps <= 0:
        return args.num_train_epochs
    step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return args.max_steps * step / len(data)
