"""Settings of a run -> settings of a few trial steps, for a dry run and for overfitting one batch."""

import copy
from typing import Any

from hf_reward.training.training_args import RewardConfig


def trial_config(args: RewardConfig, folder: str, **changes: Any) -> RewardConfig:
    """Return settings for a few trial steps: no schedule, evaluation, checkpoint, report or upload.

    Args:
        args: The caller's settings, not changed.
        folder: Output folder of the trial.
        **changes: Further settings, not checked.

    Returns:
        A copy.
    """
    trial = copy.copy(args)
    settings: dict[str, Any] = {
        "output_dir": folder,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "logging_steps": 1,
        "plot_curves": False,
        "push_to_hub": False,
        "report_to": [],
        "load_best_model_at_end": False,
        "resume_from_checkpoint": None,
        "eval_strategy": type(args.eval_strategy)("no"),
        "save_strategy": type(args.save_strategy)("no"),
        **changes,
    }
    for name, value in settings.items():
        setattr(trial, name, value)
    return trial
