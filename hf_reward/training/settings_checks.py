"""Refuse or report settings without effect, or with an unexpected effect, before a run starts."""

import copy
import logging
from typing import Any

from datasets import Dataset, IterableDataset

from hf_reward.data.interface import setting
from hf_reward.training.training_args import RewardConfig

logger = logging.getLogger(__name__)

_FEW_ROWS = 8
"""Number of rows below which unrelated rewards and lengths of pairs have an average correlation above 0.2."""


def check_settings(args: RewardConfig, optimizer: Any) -> None:
    """Check settings that depend on the machine or on the trainer's other arguments.

    Args:
        args: Settings of the run.
        optimizer: The caller's optimizer, if any.

    Raises:
        ValueError: If one process sees several GPUs, or the head's learning rate would have no effect.
    """
    _refuse_data_parallel(args)
    _refuse_ignored_head_rate(args, optimizer)
    _warn_of_partial_penalties(args)


def _refuse_data_parallel(args: RewardConfig) -> None:
    """Refuse several GPUs in one process, for which `Trainer` uses `nn.DataParallel`."""
    if args.n_gpu > 1:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs. `Trainer` would use `nn.DataParallel`, which splits pairs "
            "incorrectly. Start with `accelerate launch` (or `torchrun`), or set CUDA_VISIBLE_DEVICES to one GPU."
        )


def _refuse_ignored_head_rate(args: RewardConfig, optimizer: Any) -> None:
    """Refuse a learning rate of the head that would have no effect."""
    if args.head_learning_rate is not None and optimizer is not None:
        raise ValueError(
            f"`head_learning_rate={args.head_learning_rate}` has no effect on the optimizer in `optimizers`. Add a "
            "parameter group for the head there and remove the setting, or pass `optimizer_cls_and_kwargs` instead."
        )


def _warn_of_partial_penalties(args: RewardConfig) -> None:
    """Warn if the length penalty is computed over fewer rows than an optimizer step has."""
    parts = args.gradient_accumulation_steps * args.world_size
    if not args.length_penalty or not args.should_log:
        return
    rows = args.per_device_train_batch_size
    if parts > 1:
        logger.warning(
            "`length_penalty=%s` is not a sum over rows: each of the %s parts of a step (accumulation, processes) "
            "computes a correlation over %s rows, and the mean is added to the loss. So batch 8 is not equal to batch "
            "2 x accumulation 4: make `per_device_train_batch_size` as large as memory allows.",
            args.length_penalty,
            parts,
            rows,
        )
    elif rows < _FEW_ROWS:
        logger.warning(
            "`length_penalty=%s` uses the correlation over %s rows at a time, which is mostly noise: set "
            "`per_device_train_batch_size` to %s or more.",
            args.length_penalty,
            rows,
            _FEW_ROWS,
        )


def require_a_batch(args: RewardConfig, rows: Any) -> None:
    """Refuse settings that would drop every training batch as incomplete.

    Args:
        args: Settings of the run.
        rows: The prepared training rows.

    Raises:
        ValueError: If there are fewer rows than the batches of all processes need.
    """
    size = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and isinstance(rows, Dataset) and len(rows) < size:
        raise ValueError(
            f"`{setting('dataloader_drop_last', True)}` drops the last batch unless it has {size} rows, but the "
            f"training data has only {len(rows)} rows: no batch would be left. Leave it unset, or lower "
            f"`{setting('per_device_train_batch_size')}`."
        )


def with_even_batches(args: RewardConfig) -> RewardConfig:
    """Let each process load its own rows, in the same number of batches.

    accelerate's main process cannot concatenate and slice ragged batches, and processes with different numbers of
    batches would wait for each other forever. This also applies to map datasets, because `evaluate` may get a stream.

    Args:
        args: Settings of the run; changed in place.

    Returns:
        The settings.
    """
    config: Any = copy.copy(args.accelerator_config)
    if config.dispatch_batches and args.should_log:
        logger.warning(
            "`dispatch_batches=True` in `accelerator_config` is not possible, because rows differ in length. Each "
            "process loads its own rows instead. Leave it unset."
        )
    if not config.even_batches and args.world_size > 1:
        if args.should_log:
            logger.warning(
                "`even_batches=False` in `accelerator_config` is not possible with several processes: one would wait "
                "for a batch that another does not have. Leave it unset; evaluation counts each row once."
            )
        config.even_batches = True
    config.dispatch_batches = False
    args.accelerator_config = config
    return args


def refuse_to_sort_a_stream(args: RewardConfig, rows: Any) -> None:
    """Refuse to sort a stream by length or prompt.

    Args:
        args: Settings of the run.
        rows: Prepared rows.

    Raises:
        ValueError: If the rows are a stream and `length_bucketing` or `group_by_prompt` is set.
    """
    for name in ("length_bucketing", "group_by_prompt"):
        if args.choice(name) is True and isinstance(rows, IterableDataset):
            raise ValueError(
                f"`{setting(name, True)}` needs rows that can be sorted, which a stream does not allow. Use "
                f"`{setting(name, 'auto')}`."
            )
