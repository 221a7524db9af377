"""The trainer's part that survives: checkpoints that appear whole, resuming from a whole one, an orderly end.

`checkpoint_folders` knows the folders, `stop_signal` the signal; here they meet `Trainer`.
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from hf_reward.checkpoint_folders import (
    checkpoints,
    newest_whole,
    publish,
    remove_old,
    staging_folder,
    tidy,
    why_not_whole,
)
from hf_reward.hub_trainer import HubTrainer
from hf_reward.stop_signal import StopSignal

logger = logging.getLogger(__name__)

STOPPED = 143
"""Exit code after SIGTERM: 128 + 15, as a shell gives it."""


class ResumableTrainer(HubTrainer):
    """Adds to `HubTrainer` that a killed run goes on as if it had not been, and that SIGTERM saves before the end."""

    _staging: Path | None = None
    _stop_signal: StopSignal | None = None
    _saved_step = -1

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train.

        Args:
            resume_from_checkpoint: A checkpoint's folder, True for the newest whole one in `output_dir`, or 'auto' for
                that one if there is any and the beginning otherwise, which suits jobs that may be started again.
            trial: As in `Trainer`.
            ignore_keys_for_eval: As in `Trainer`.

        Returns:
            Steps, loss and metrics. Of a run that was resumed they are those of the steps since then, and
            `resumed_from_step` says which; where none was left there is no `train_loss`.

        Raises:
            ValueError: If there is no such checkpoint, or it is not whole.
            SystemExit: With code 143 after SIGTERM, when a checkpoint of the step is saved.
        """
        self._saved_step = -1
        resume = self._checkpoint_to_resume(resume_from_checkpoint)
        first = (
            None if resume is None else TrainerState.load_from_json(str(Path(resume) / TRAINER_STATE_NAME)).global_step
        )
        self._stop_signal = StopSignal()
        with self._stop_signal:
            output = super().train(resume, trial, ignore_keys_for_eval)
            self._stop_if_asked(self.model_wrapped, trial)
        return output if first is None else _since_resume(output, first)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, as `Trainer` does. After training, SIGTERM saves a checkpoint when the evaluation is done.

        Args:
            *args: As in `Trainer`.
            **kwargs: As in `Trainer`.

        Returns:
            The metrics.

        Raises:
            SystemExit: With code 143 after SIGTERM, if this trainer has trained.
        """
        if self.is_in_train or self._stop_signal is None:
            return super().evaluate(*args, **kwargs)
        with self._stop_signal:
            metrics = super().evaluate(*args, **kwargs)
            self._stop_if_asked(self.model_wrapped, None)
        return metrics

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except torch.OutOfMemoryError:
            raise  # the file is sound
        except (UnpicklingError, EOFError, RuntimeError) as error:  # what torch raises at damaged bytes
            reason = str(error).split("\n")[0][:200] or type(error).__name__
            raise ValueError(
                f"The optimizer's state in {checkpoint} cannot be read ({reason}). If it is damaged, name an earlier "
                "checkpoint in `resume_from_checkpoint`."
            ) from error

    def _checkpoint_to_resume(self, wanted: str | bool | None) -> str | None:
        run = Path(self.args.output_dir or ".")
        if self.args.should_save:
            tidy(run)
        self.accelerator.wait_for_everyone()
        if not wanted:
            stale = checkpoints(run)
            if stale and self.args.should_save:
                logger.warning(
                    "%s holds checkpoints of an earlier run (%s, ...). Remove them, or resuming this run may go on "
                    "from one of those.",
                    run,
                    stale[-1].name,
                )
            return None
        if wanted is not True and wanted != "auto":
            problem = why_not_whole(Path(wanted))
            if problem is not None:
                raise ValueError(f"The checkpoint {wanted} cannot be resumed: {problem}. Name another one.")
            return str(wanted)
        found = newest_whole(run)
        if found is None and wanted is True:
            raise ValueError(
                f"There is no whole checkpoint in {run}, so there is nothing to go on from. Leave "
                "`resume_from_checkpoint` out, or set it to 'auto' to start at the beginning where there is none."
            )
        if self.args.should_log:
            damaged = len(checkpoints(run))
            why = f"none of the {damaged} checkpoints is whole" if damaged else "there is no checkpoint yet"
            logger.info("Going on from %s.", found or f"the beginning: {why}")
        return None if found is None else str(found)

    # --- a checkpoint appears whole, before it is pushed and before older ones go ---

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        name = f"checkpoint-{self.state.global_step}"
        run = Path(self._get_output_dir(trial))
        final = run / name
        with self._staged(staging_folder(run, name), final):
            super()._save_checkpoint(model, trial)
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(final)  # `Trainer` has looked for it among the staged ones
                if self.args.should_save:
                    self.state.save_to_json(str(Path(self._get_output_dir(trial)) / name / TRAINER_STATE_NAME))
        self._saved_step = self.state.global_step
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            remove_old(run, self.args.save_total_limit, [final, *([Path(best)] if best else [])])

    @contextmanager
    def _staged(self, staging: Path, final: Path) -> Iterator[None]:
        """Within this, `Trainer` writes elsewhere; at its end the checkpoint takes its place."""
        if self.args.should_save:
            tidy(staging.parent)  # what is left of an earlier attempt
        self.accelerator.wait_for_everyone()
        self._staging = staging
        try:
            yield
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)  # the disk may be full of it
            raise
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        # The one that saves goes first. On another machine without a common disk its share still waits to be renamed.
        for mine in (self.args.should_save, self.args.local_process_index == 0):
            if mine and (staging / final.name).is_dir():
                publish(staging / final.name, final)
                staging.rmdir()
            self.accelerator.wait_for_everyone()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:  # else `Trainer` asks while the checkpoint is still being written
            super()._push_from_checkpoint(checkpoint_folder)

    # --- the end ---

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # a finished run over a stream that is resumed
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, *rest: Any, **more: Any
    ) -> None:
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *rest, **more)
        self._stop_if_asked(model, trial)

    def _stop_if_asked(self, model: Any, trial: Any) -> None:
        if self._stop_signal is not None and self._stop_signal.is_agreed():
            if self._saved_step != self.state.global_step:
                self._save_checkpoint(model, trial)
            self._say_stopped(self._get_output_dir(trial))
            raise SystemExit(STOPPED)

    def _say_stopped(self, run: str) -> None:
        if self.args.should_log:
            logger.warning(
                "Stopped by SIGTERM after step %s of %s. %s/checkpoint-%s is whole; start the same command with "
                "`--resume_from_checkpoint true` (or 'auto') to go on from there.",
                self.state.global_step,
                self.state.max_steps,
                run,
                self.state.global_step,
            )


def _since_resume(output: TrainOutput, first: int) -> TrainOutput:
    """What a resumed run reports: the step it went on from, and no loss or speed if no step was left."""
    nothing_left = output.global_step == first
    metrics = {name: each for name, each in output.metrics.items() if not (nothing_left and name.startswith("train_"))}
    return output._replace(metrics={**metrics, "resumed_from_step": first})
