"""The trainer's part that survives: checkpoints that appear whole, resuming from a whole one, an orderly end.

`checkpoint_folders` knows the folders, `stop_signal` the signal; here they meet `Trainer`.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from peft import PeftModel
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from hf_reward.modeling.adapters import require_whole_adapter
from hf_reward.modeling.weight_safety import non_finite, require_safe_weights
from hf_reward.training.background_push import HubTrainer
from hf_reward.training.checkpoints import (
    checkpoints,
    newest_whole,
    publish,
    remove_old,
    staging_folder,
    tidy,
    why_not_whole,
)
from hf_reward.training.feature_cache import without_features
from hf_reward.training.run_fingerprint import FILE as FINGERPRINT_FILE
from hf_reward.training.run_fingerprint import require_same_run, run_fingerprint
from hf_reward.training.run_lock import require_held, run_lock
from hf_reward.training.stop_signal import StopSignal

logger = logging.getLogger(__name__)

STOPPED = 143
"""Exit code after SIGTERM: 128 + 15, as a shell gives it."""


class ResumableTrainer(HubTrainer):
    """Adds to `HubTrainer` that a killed run goes on as if it had not been, and that SIGTERM saves before the end."""

    _staging: Path | None = None
    _stop_signal: StopSignal | None = None
    _saved_step = -1
    _fingerprint: dict[str, Any] | None = None

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
        with self._alone_in_output_dir():
            if self.args.process_index == 0:
                model: Any = self.model
                data: Any = self.train_dataset
                by_length = self._buckets(without_features(data))
                self._fingerprint = run_fingerprint(self.args, model, data, self.eval_dataset, rows_by_length=by_length)
            resume = self._checkpoint_to_resume(resume_from_checkpoint)
            first = None if resume is None else self._step_of(resume)
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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        gathered = self.is_fsdp_enabled or self.is_deepspeed_enabled  # these write files of tensors as pickles
        require_safe_weights(resume_from_checkpoint, allow_pickle=gathered)
        loaded: Any = self.model if model is None else model
        if isinstance(loaded, PeftModel) and not gathered:
            require_whole_adapter(loaded, Path(resume_from_checkpoint))
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        found = gather_object(non_finite(loaded.named_parameters()))  # each process looks at its shards; all stop
        broken = list(dict.fromkeys(found))
        if broken:
            raise ValueError(
                f"The checkpoint {resume_from_checkpoint} holds weights that are not finite ({broken[0]} and "
                f"{len(broken) - 1} others). Name an earlier one in `resume_from_checkpoint`."
            )

    @contextmanager
    def _alone_in_output_dir(self) -> Iterator[None]:
        """Hold the lock of the output folder: the main process for all; where it cannot, all of them stop."""
        with ExitStack() as held:
            problem = None
            if self.args.process_index == 0:
                try:
                    held.enter_context(run_lock(self._run_folder()))
                except RuntimeError as error:
                    problem = str(error)
            [problem] = broadcast_object_list([problem])
            if problem is not None:
                raise RuntimeError(problem)
            yield

    def _run_folder(self) -> Path:
        return Path(self.args.output_dir or ".")

    def _checkpoint_to_resume(self, wanted: str | bool | None) -> str | None:
        run = self._run_folder()
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
        found = self._newest_whole(run, wanted) if wanted is True or wanted == "auto" else self._named_whole(wanted)
        if found is not None:
            problem = None
            if self.args.process_index == 0:
                try:
                    require_same_run(found, self._fingerprint or {}, allow=self.args.allow_changed_run)
                except ValueError as error:
                    problem = str(error)
            [problem] = broadcast_object_list([problem])
            if problem is not None:
                raise ValueError(problem)
        return None if found is None else str(found)

    def _named_whole(self, name: str) -> Path:
        problem = self._problem_anywhere(Path(name))
        if problem is not None:
            raise ValueError(f"The checkpoint {name} cannot be resumed: {problem}. Name another one.")
        return Path(name)

    def _newest_whole(self, run: Path, wanted: str | bool) -> Path | None:
        folders = checkpoints(run)
        [folders] = broadcast_object_list([folders])  # so that all processes look at the same ones
        found = newest_whole(folders, self._problem_anywhere)
        if found is None and wanted is True:
            raise ValueError(
                f"There is no whole checkpoint in {run}, so there is nothing to go on from. Leave "
                "`resume_from_checkpoint` out, or set it to 'auto' to start at the beginning where there is none."
            )
        if self.args.should_log:
            why = f"none of the {len(folders)} checkpoints is whole" if folders else "there is no checkpoint yet"
            logger.info("Going on from %s.", found or f"the beginning: {why}")
        return found

    def _problem_anywhere(self, folder: Path) -> str | None:
        """What is wrong with a checkpoint on any machine; the first process of each reads the files."""
        problem = why_not_whole(folder) if self.args.local_process_index == 0 else None
        return next((found for found in gather_object([problem]) if found is not None), None)

    def _step_of(self, checkpoint: str) -> int:
        return TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)).global_step

    # --- a checkpoint appears whole, before it is pushed and before older ones go ---

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        name = f"checkpoint-{self.state.global_step}"
        run = Path(self._get_output_dir(trial))
        final = run / name
        self._require_sound()
        with self._alone_in_output_dir(), self._staged(staging_folder(run, name), final):
            super()._save_checkpoint(model, trial)
            if self.args.process_index == 0 and self._fingerprint is not None:
                text = json.dumps(self._fingerprint, indent=2, ensure_ascii=False) + "\n"
                (Path(self._get_output_dir(trial)) / name / FINGERPRINT_FILE).write_text(text, encoding="utf-8")
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

    def _require_sound(self) -> None:
        """Stop before weights that are lost push sound checkpoints out, or a second run's files are mixed with ours."""
        model: Any = self.model
        broken = non_finite(model.named_parameters())
        found: Any = self.accelerator.reduce(torch.tensor(len(broken), device=self.args.device), reduction="sum")
        if found.item():
            names = f" ({broken[0]} and {len(broken) - 1} others)" if broken else ""
            raise FloatingPointError(
                f"After step {self.state.global_step} weights are not finite{names}, so no checkpoint was written; "
                f"earlier ones in {self.args.output_dir} are untouched. Go on from one of them with a lower learning "
                "rate, or in bfloat16 or float32 instead of float16."
            )
        if self.args.process_index == 0:
            require_held(self._run_folder())

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
