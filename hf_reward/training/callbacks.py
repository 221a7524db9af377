"""Training events -> history and curves."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.training.curves import CURVES_FILE, draw_curves


class TrainingCurves(TrainerCallback):
    """Draws loss, accuracy, margin and learning rate into the output folder when training ends, and after it."""

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the curves of the main process's history."""
        if state.is_world_process_zero and args.output_dir is not None:
            loss_type = getattr(args, "loss_type", "bradley_terry")
            draw_curves(state.log_history, Path(args.output_dir) / CURVES_FILE, loss_type=loss_type)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Draw again with an evaluation made after the last step."""
        if 0 < state.max_steps <= state.global_step:
            self.on_train_end(args, state, control)


def epoch_history(log_history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Training loss and accuracy of each finished epoch.

    Args:
        log_history: `TrainerState.log_history`, which survives resuming.

    Returns:
        One entry with `epoch`, `epoch_loss` and `epoch_accuracy` for each epoch.
    """
    return [entry for entry in log_history if "epoch_loss" in entry]


class EpochLog(TrainerCallback):
    """Logs the training loss and accuracy of each epoch when it ends (after a resume, of the rows since).

    They are added to the entry of that step if there is one, and after the last step to the next one (an evaluation or
    the summary): code that counts entries from the end of `log_history` finds what it finds with `Trainer`.

    Args:
        trainer: The trainer whose `statistics` are logged.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to count tokens."""
        counted = args.include_num_input_tokens_seen == "no"  # else `Trainer` counts there, padding included
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
    """Sets the epoch of the sampler that sorts rows by length: after a resume with several processes nothing else does.

    Args:
        trainer: The trainer with the `loader` of the run.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set it."""
        sampler = self.trainer.loader.bucket_sampler
        if sampler is not None:
            sampler.set_epoch(int(state.epoch or 0))


class LoadedCheckpoint(TrainerCallback):
    """Completes what `Trainer` has loaded: checks the weights, restores several heads and the best evaluation.

    Args:
        trainer: The trainer with the `checkpoints` and `heads` of the run.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After a checkpoint to resume was loaded."""
        folder = self.trainer.checkpoints.resumed
        if folder is not None:
            self.trainer.checkpoints.require_finite(self.trainer.model)
            self.trainer.heads.restore(folder, self.trainer.model)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After the best checkpoint was loaded."""
        # A trial of a search that is pruned ends without a summary in the log, and keeps the weights at hand.
        finished = bool(state.log_history) and "train_runtime" in state.log_history[-1]
        if not finished or not args.load_best_model_at_end or state.best_model_checkpoint is None:
            return
        self.trainer.heads.restore(Path(state.best_model_checkpoint), self.trainer.model)
        record = CheckpointRecord.load(state.best_model_checkpoint)
        if record is not None:  # the rewards of the last evaluation belong to weights that are gone
            self.trainer.reward_statistics, self.trainer.evaluation = record.reward_statistics, record.evaluation
