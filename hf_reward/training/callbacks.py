"""Callbacks of a run: training curves, log entries of epochs, order of rows, and checks after resuming."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_reward.training.curves import CURVES_FILE, draw_curves


class TrainingCurves(TrainerCallback):
    """Draws training curves into the output folder at the end of training and after later evaluations."""

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the curves on the main process."""
        if state.is_world_process_zero and args.output_dir is not None:
            loss_type = getattr(args, "loss_type", "bradley_terry")
            draw_curves(state.log_history, Path(args.output_dir) / CURVES_FILE, loss_type=loss_type)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Draw the curves again with an evaluation after the last step."""
        if 0 < state.max_steps <= state.global_step:
            self.on_train_end(args, state, control)


def epoch_history(log_history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return training loss and accuracy of each finished epoch.

    Args:
        log_history: `TrainerState.log_history`, which survives resuming.

    Returns:
        One entry with `epoch`, `epoch_loss` and `epoch_accuracy` for each epoch.
    """
    return [entry for entry in log_history if "epoch_loss" in entry]


class EpochLog(TrainerCallback):
    """Logs the mean training loss and accuracy of each epoch; after resuming, of the rows since then.

    They are added to the log entry of the epoch's last step if there is one. After the last step of the run they are
    added to the next entry (an evaluation or the summary), so `log_history` ends with the same entries as with
    `Trainer`.

    Args:
        trainer: The trainer whose `statistics` are logged.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start counting tokens."""
        counted = args.include_num_input_tokens_seen == "no"  # else `Trainer` counts in this field, with padding
        self.trainer.statistics.begin(state.log_history, state.num_input_tokens_seen if counted else 0)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log the epoch."""
        statistics = self.trainer.statistics
        logs = statistics.since_last_epoch(self.trainer.accelerator)
        if not logs:
            return
        entries = state.log_history
        if entries and entries[-1]["step"] == state.global_step:
            entries[-1].update(logs)
            self.trainer.callback_handler.on_log(args, state, control, {**logs, "epoch": state.epoch})
        elif control.should_training_stop or control.should_evaluate or state.global_step >= state.max_steps:
            statistics.for_next_log = logs
        else:
            self.trainer.log(logs)


class EpochOrder(TrainerCallback):
    """Sets the epoch of the length-bucket sampler, which nothing else does when several processes resume.

    Args:
        trainer: The trainer with the `loader` of the run.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch."""
        sampler = self.trainer.loader.epoch_sampler
        if sampler is not None:
            sampler.set_epoch(int(state.epoch or 0))


class LoadedCheckpoint(TrainerCallback):
    """Completes the loading of a checkpoint to resume: checks its weights and restores several heads.

    Args:
        trainer: The trainer with the `checkpoints` and `heads` of the run.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check and restore after `Trainer` has loaded the checkpoint."""
        folder = self.trainer.checkpoints.resumed
        if folder is not None:
            self.trainer.checkpoints.require_finite(self.trainer.model)
            self.trainer.heads.restore(folder, self.trainer.model)
