"""Settings that would have no effect, or another one than meant, are refused or reported before a run begins."""

import copy
import logging
from typing import Any

from datasets import Dataset, IterableDataset

from hf_reward.data.interface import setting
from hf_reward.training.training_args import RewardConfig

logger = logging.getLogger(__name__)

_FEW_ROWS = 8
"""Below it the correlation of unrelated rewards and lengths of pairs is beyond 0.2 on average."""


def check_settings(args: RewardConfig, optimizer: Any) -> None:
    """Check settings that depend on the machine or on the trainer's other arguments.

    Args:
        args: Settings of the run.
        optimizer: The caller's own optimizer, if any.

    Raises:
        ValueError: If one process sees several GPUs, or the head's learning rate would have no effect.
    """
    _refuse_data_parallel(args)
    _refuse_two_head_rates(args, optimizer)
    _warn_of_partial_penalties(args)


def _refuse_data_parallel(args: RewardConfig) -> None:
    """Stop where `Trainer` would fall back to `nn.DataParallel`."""
    if args.n_gpu > 1:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs, which `Trainer` would use through `nn.DataParallel`; it splits pairs "
            "wrongly. Start with `accelerate launch` (or `torchrun`), or set CUDA_VISIBLE_DEVICES to one GPU."
        )


def _refuse_two_head_rates(args: RewardConfig, optimizer: Any) -> None:
    """Stop where a learning rate for the head would have no effect."""
    if args.head_learning_rate is not None and optimizer is not None:
        raise ValueError(
            f"`head_learning_rate={args.head_learning_rate}` has no effect on the ready-made optimizer in "
            "`optimizers`. "
            "Give the head a group of its own there and drop the setting, or pass `optimizer_cls_and_kwargs` instead."
        )


def _warn_of_partial_penalties(args: RewardConfig) -> None:
    """Say once where the length penalty sees less than the rows of an optimizer step."""
    parts = args.gradient_accumulation_steps * args.world_size
    if not args.length_penalty or not args.should_log:
        return
    rows = args.per_device_train_batch_size
    if parts > 1:
        logger.warning(
            "`length_penalty=%s` is no sum over rows: each of the %s parts of a step (accumulation, processes) has a "
            "correlation of its own, over %s rows, and their mean is added to the loss. So batch 8 is not batch 2 x "
            "accumulation 4 here: make `per_device_train_batch_size` as large as memory allows.",
            args.length_penalty,
            parts,
            rows,
        )
    elif rows < _FEW_ROWS:
        logger.warning(
            "`length_penalty=%s` sees the correlation over %s rows at a time, which is mostly chance: use %s or more "
            "in `per_device_train_batch_size`.",
            args.length_penalty,
            rows,
            _FEW_ROWS,
        )


def require_a_batch(args: RewardConfig, rows: Any) -> None:
    """Stop where every training batch would be dropped for being smaller than the others.

    Args:
        args: Settings of the run.
        rows: The prepared training rows.

    Raises:
        ValueError: If there are fewer rows than a batch of all processes takes.
    """
    size = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and isinstance(rows, Dataset) and len(rows) < size:
        raise ValueError(
            f"`{setting('dataloader_drop_last', True)}` drops the last batch unless it has {size} rows, and the "
            f"training data has {len(rows)} in all: nothing would be learned. Leave it unset, or lower "
            f"`{setting('per_device_train_batch_size')}`."
        )


def with_rows_in_even_rounds(args: RewardConfig) -> RewardConfig:
    """Let each process read its own rows, as many as each other one.

    accelerate's main process cannot concatenate and slice ragged batches, and processes with batches of different
    sizes wait for each other for ever. This holds for map datasets too, because `evaluate` may get a stream later.

    Args:
        args: Settings of the run; changed in place.

    Returns:
        The settings.
    """
    config: Any = copy.copy(args.accelerator_config)
    if config.dispatch_batches and args.should_log:
        logger.warning(
            "`dispatch_batches=True` in `accelerator_config` is not possible, because rows differ in length: each "
            "process reads its own rows. Leave it unset."
        )
    if not config.even_batches and args.world_size > 1:
        if args.should_log:
            logger.warning(
                "`even_batches=False` in `accelerator_config` is not possible with several processes: one would wait "
                "for the batch that another does not have. Leave it unset; evaluation counts each row once."
            )
        config.even_batches = True
    config.dispatch_batches = False
    args.accelerator_config = config
    return args


def refuse_to_sort_a_stream(args: RewardConfig, rows: Any) -> None:
    """Stop where a stream is to be sorted by length.

    Args:
        args: Settings of the run.
        rows: Prepared rows.

    Raises:
        ValueError: If they are a stream and `length_bucketing` is set.
    """
    if args.choice("length_bucketing") is True and isinstance(rows, IterableDataset):
        raise ValueError(
            f"`{setting('length_bucketing', True)}` needs rows that can be sorted; a stream has none. Use "
            f"`{setting('length_bucketing', 'auto')}`."
        )
