"""Settings and number of rows -> number of steps of a run, and of checkpoints on disk."""

import math

from hf_reward.training.training_args import RewardConfig


def total_steps(args: RewardConfig, rows: int) -> int:
    """Return the number of optimizer steps of a run in one process.

    Args:
        args: Settings of the run.
        rows: Number of training rows.

    Returns:
        The number of steps.
    """
    if args.max_steps > 0:
        return args.max_steps
    batches = rows // args.train_batch_size if args.dataloader_drop_last else math.ceil(rows / args.train_batch_size)
    return math.ceil(args.num_train_epochs * max(math.ceil(batches / args.gradient_accumulation_steps), 1))


def checkpoints_kept(args: RewardConfig, steps: int) -> int:
    """Return the largest number of checkpoints on disk at one time.

    With a limit there is one more, because an older checkpoint is removed after the new one is complete, and another
    one if the best checkpoint is kept.

    Args:
        args: Settings of the run.
        steps: Number of its optimizer steps.

    Returns:
        The number of checkpoints.
    """
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    every = args.save_steps if args.save_steps >= 1 else max(math.ceil(args.save_steps * steps), 1)
    written = {"no": 0, "epoch": math.ceil(args.num_train_epochs)}.get(strategy, math.ceil(steps / every))
    if not args.save_total_limit:
        return written
    return min(written, args.save_total_limit + 1 + bool(args.load_best_model_at_end))
