"""Prepared rows -> the data loaders of a run: batches, order of rows, and distribution over processes."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
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
    PromptSampler,
    counted_stream,
    longest_first,
    longest_sequences,
    response_numbers,
)
from hf_reward.training.collators import packs
from hf_reward.training.feature_store import DataCollatorForFeatures, FeatureRows, without_features
from hf_reward.training.training_args import RewardConfig

logger = logging.getLogger(__name__)

COLUMNS = (
    *("input_ids", "token_type_ids", "features", "ranks", "prefix_length", "length"),
    *("words", "characters", "margin", "probability", "weight", "group", "row", "source", "images"),
)
"""Columns that a collator receives; others are removed, unless `remove_unused_columns` is False."""
_COLUMNS_OF_METRICS = ("content_hash",)
"""Further columns kept in the rows of a loader; the leakage metrics use them to find rows seen in training."""


class BatchLoader:
    """Makes the data loaders of a run.

    Args:
        args: Settings of the run.
        accelerator: Of the run.
    """

    def __init__(self, args: RewardConfig, accelerator: Accelerator) -> None:
        self.args, self.accelerator = args, accelerator
        self.epoch_sampler: LengthBucketSampler | PromptSampler | None = None
        """The sampler of the training rows, if it sorts them by length or prompt; a callback sets its epoch."""
        self._kept: dict[str, tuple[Any, DataLoader]] = {}

    def training(
        self, data: Any, collator: Any, batch_size: int, sampler_of_strategy: Callable[[Any], Sampler | None]
    ) -> DataLoader:
        """Return the data loader of the training rows.

        Args:
            data: Prepared rows, with or without features.
            collator: The run's collator.
            batch_size: Rows in a batch on each process.
            sampler_of_strategy: Makes the sampler for `train_sampling_strategy`.

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
        """Return the data loader of all evaluation rows, sorted by length; streams keep their order.

        Args:
            data: Prepared rows, with or without features.
            collator: The run's collator.
            name: Name of a dataset that is evaluated repeatedly; its persistent workers are kept.

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
        """Whether rows of similar length share a batch; cached features do not change the answer."""
        choice = self.args.choice("length_bucketing")
        if not isinstance(without_features(data), Dataset) or choice is False:
            return False
        return choice is True or not packs(collator)

    def groups_prompts(self, data: Any, collator: Any) -> bool:
        """Whether rows of one prompt share a training batch; cached features do not change the answer."""
        return self.args.choice("group_by_prompt") is True and isinstance(without_features(data), Dataset)

    # --- order of rows ---

    def _training_sampler(
        self, data: Any, collator: Any, batch_size: int, sampler_of_strategy: Callable[[Any], Sampler | None]
    ) -> Sampler | None:
        rows: Any = without_features(data)
        self.epoch_sampler = None
        if self.args.train_sampling_strategy != "random":
            return sampler_of_strategy(rows)
        of_all_lengths = bool(self.args.length_penalty)  # the penalty needs rows of all lengths in a batch
        lengths = longest_sequences(rows) if self.buckets(rows, collator) and not of_all_lengths else None
        processes, seed = self.args.world_size, self.args.order_seed
        if self.groups_prompts(rows, collator):
            prompts, responses = np.asarray(rows["group"][:]), response_numbers(rows["input_ids"])
            self.epoch_sampler = PromptSampler(
                *(prompts, responses, batch_size), processes=processes, lengths=lengths, seed=seed
            )
        elif lengths is not None:
            self.epoch_sampler = LengthBucketSampler(lengths, batch_size * processes, seed=seed)
        return self.epoch_sampler or sampler_of_strategy(rows)

    def _evaluation_sampler(self, data: Any, collator: Any) -> Sampler:
        rows: Any = without_features(data)  # the strategy for training must not change the order of predictions
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
                "Streams are evaluated without data loader workers, because workers would change the order of rows."
            )
        read: Any = CountedStream(data) if self.args.world_size > 1 else data
        return self._prepared(read, collator, {**options, "pin_memory": self.args.dataloader_pin_memory})

    def require_same_rows(self, data: Any, description: str) -> None:
        """Refuse different rows on different processes: accelerate would split rows that are already split.

        Call this before features are computed, because they are stored for the rows of the main process.

        Args:
            data: Prepared rows.
            description: Purpose of the rows, for the error.

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
                f"{description}: the processes were given different rows{lengths}. All processes need the same rows in "
                "the same order, because the trainer splits them. Remove `split_dataset_by_node` and `shard`, and "
                "shuffle a stream with a `seed`."
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
        """Return the loader of a sampler that splits rows between processes itself; accelerate must not split again."""
        loader: Any = self._prepared(data, collator, {**options, "batch_sampler": sampler})
        batches = getattr(loader, "batch_sampler", None)
        if batches is not None and getattr(batches, "batch_sampler", None) is sampler:
            batches.num_processes, batches.process_index = 1, 0
        return loader


def first_rows(data: Any, count: int) -> list[dict[str, Any]]:
    """Return the first rows of a dataset or stream; fewer if there are fewer."""
    if isinstance(data, IterableDataset):
        return list(data.take(count))
    return [data[place] for place in range(min(count, len(data)))]


def rows_of(loader: DataLoader) -> Any:
    """Return the prepared rows of a data loader, without accelerate's wrappers and without features."""
    stream = counted_stream(loader)
    return without_features(loader.dataset) if stream is None else stream


def require_rows(data: Any) -> None:
    """Refuse an empty evaluation split, which would have no metrics.

    Args:
        data: Prepared evaluation rows.

    Raises:
        ValueError: If there are no rows.
    """
    if not isinstance(data, IterableDataset) and len(data) == 0:
        raise ValueError("The evaluation data has no rows. Check whether a filter has removed them.")


def number_of_passes(data: Any, args: RewardConfig) -> float:
    """Return the number of passes over the training rows; 0 for a stream or without rows.

    Args:
        data: The prepared training rows.
        args: Settings of the run.

    Returns:
        The number of passes, which may be a fraction.
    """
    if not isinstance(data, Dataset):
        return 0
    if args.max_steps <= 0:
        return args.num_train_epochs
    step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return args.max_steps * step / len(data)
