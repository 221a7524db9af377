"""Checkpoints of a run: atomic writing, resuming only from a complete checkpoint of the same run, rotation.

`checkpoints` handles the folders. This module adds the state, the lock and the fingerprint of the run.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from peft import PeftModel
from torch import nn
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from hf_reward.modeling.adapters import require_complete_adapter
from hf_reward.modeling.weight_safety import non_finite, require_safe_weights
from hf_reward.training.checkpoints import (
    checkpoint_problem,
    checkpoints,
    newest_complete,
    publish,
    remove_leftovers,
    remove_old,
    staging_folder,
)
from hf_reward.training.run_fingerprint import FILE as FINGERPRINT_FILE
from hf_reward.training.run_fingerprint import require_same_run
from hf_reward.training.run_lock import require_held, run_lock
from hf_reward.training.training_args import RewardConfig

logger = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes, finds and removes the checkpoints of a run.

    Args:
        args: Settings of the run.
    """

    def __init__(self, args: RewardConfig) -> None:
        self.args = args
        self.fingerprint: dict[str, Any] | None = None
        """Fingerprint of the run, on the main process; written into each checkpoint."""
        self.saved_step = -1
        """Step of the last checkpoint of this call of `train`."""
        self.resumed: Path | None = None
        """The checkpoint that this call of `train` resumes."""
        self.resumed_step = 0
        """Its step; the checkpoint itself may be removed during training."""
        self._staging: Path | None = None

    @property
    def run_folder(self) -> Path:
        """The output folder."""
        return Path(self.args.output_dir or ".")

    # --- resuming ---

    def find(self, wanted: str | bool | None) -> Path | None:
        """Find the checkpoint to resume from.

        Args:
            wanted: The argument `resume_from_checkpoint` of `train`.

        Returns:
            The folder, None to start at step 0.

        Raises:
            ValueError: If the checkpoint does not exist or is not complete.
        """
        run = self.run_folder
        if self.args.should_save:
            remove_leftovers(run)
        PartialState().wait_for_everyone()
        if not wanted:
            stale = checkpoints(run)
            if stale and self.args.should_save:
                logger.warning(
                    "%s has checkpoints of an earlier run (%s, ...). Remove them; otherwise this run may later resume "
                    "from one of them.",
                    run,
                    stale[-1].name,
                )
            return None
        return (
            self._newest_complete(run, wanted) if wanted is True or wanted == "auto" else self._named_complete(wanted)
        )

    def begin(self, found: Path | None, fingerprint: dict[str, Any] | None) -> None:
        """Start a call of `train`.

        Args:
            found: The checkpoint to resume from.
            fingerprint: Fingerprint of the run, on the main process.

        Raises:
            ValueError: If the checkpoint belongs to another run.
        """
        self.fingerprint, self.saved_step, self.resumed = fingerprint, -1, found
        if found is not None:
            self._require_same_run(found)
        state = None if found is None else str(found / TRAINER_STATE_NAME)
        self.resumed_step = 0 if state is None else TrainerState.load_from_json(state).global_step

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the output folder on the main process; if another run has it, stop all processes."""
        with ExitStack() as stack:
            problem = None
            if self.args.process_index == 0:
                try:
                    stack.enter_context(run_lock(self.run_folder))
                except RuntimeError as error:
                    problem = str(error)
            [problem] = broadcast_object_list([problem])
            if problem is not None:
                raise RuntimeError(problem)
            yield

    def _require_same_run(self, found: Path) -> None:
        problem = None
        if self.args.process_index == 0:
            try:
                require_same_run(found, self.fingerprint or {}, allow=self.args.allow_changed_run)
            except ValueError as error:
                problem = str(error)
        [problem] = broadcast_object_list([problem])
        if problem is not None:
            raise ValueError(problem)

    def _named_complete(self, name: str) -> Path:
        problem = self._problem_anywhere(Path(name))
        if problem is not None:
            raise ValueError(
                f"The checkpoint {name} cannot be resumed: {problem}. Set `resume_from_checkpoint` to another one."
            )
        return Path(name)

    def _newest_complete(self, run: Path, wanted: str | bool) -> Path | None:
        folders = checkpoints(run)
        [folders] = broadcast_object_list([folders])  # all processes must check the same folders
        found = newest_complete(folders, self._problem_anywhere)
        if found is None and wanted is True:
            raise ValueError(
                f"There is no complete checkpoint in {run} to resume from. Leave `resume_from_checkpoint` out, or set "
                "it to 'auto' to start at step 0 when there is no complete checkpoint."
            )
        if self.args.should_log:
            if found is not None:
                logger.info("Resuming from %s.", found)
            else:
                reason = f"none of the {len(folders)} checkpoints is complete" if folders else "no checkpoint yet"
                logger.info("Starting at step 0: %s.", reason)
        return found

    def _problem_anywhere(self, folder: Path) -> str | None:
        """Return the problem of a checkpoint on any machine; the first process of each machine reads the files."""
        problem = checkpoint_problem(folder) if self.args.local_process_index == 0 else None
        return next((found for found in gather_object([problem]) if found is not None), None)

    def require_loadable(self, model: nn.Module, *, gathered: bool) -> None:
        """Refuse unsafe files, or files incomplete for this model, that `Trainer` would load.

        Args:
            model: The model that will load the checkpoint.
            gathered: Whether FSDP or DeepSpeed loads it; both store tensors as pickles.

        Raises:
            ValueError: If the checkpoint cannot be loaded into the model.
        """
        if self.resumed is None:
            return
        require_safe_weights(str(self.resumed), allow_pickle=gathered)
        if isinstance(model, PeftModel) and not gathered:
            require_complete_adapter(model, self.resumed)

    def require_finite(self, model: nn.Module) -> None:
        """Refuse loaded weights that are not finite.

        Args:
            model: The model after loading.

        Raises:
            ValueError: If a weight on any process is not finite.
        """
        found = gather_object(non_finite(model.named_parameters()))  # each process checks its shards; all stop
        broken = list(dict.fromkeys(found))
        if broken:
            raise ValueError(
                f"The checkpoint {self.resumed} has weights that are not finite ({broken[0]} and "
                f"{len(broken) - 1} others). Set `resume_from_checkpoint` to an earlier one."
            )

    # --- writing: a checkpoint is complete before it is pushed and before older ones are removed ---

    def folder(self, final: str) -> str:
        """Return the folder that `Trainer` writes checkpoints into: within `staged`, the temporary one."""
        return final if self._staging is None else str(self._staging)

    @contextmanager
    def staged(self, run: Path, state: TrainerState, model: nn.Module) -> Iterator[Path]:
        """Let `Trainer` write a checkpoint to a temporary folder within the block, and rename it at the end.

        Args:
            run: The folder of the run, or of the trial.
            state: State of the run; if this step is the best, it gets the final path of its checkpoint.
            model: The model that is saved.

        Yields:
            Path: The final path of the checkpoint.

        Raises:
            FloatingPointError: If weights are not finite; nothing is written.
        """
        name = f"checkpoint-{state.global_step}"
        final, staging = run / name, staging_folder(run, name)
        self._require_finite_and_locked(model, state)
        with self.locked():
            if self.args.should_save:
                remove_leftovers(run)
            PartialState().wait_for_everyone()
            self._staging = staging
            try:
                yield final
                self._complete(staging / name, final, state)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)  # the disk may be full
                raise
            finally:
                self._staging = None
            self._publish(staging / name, final)
        self.saved_step = state.global_step

    def _complete(self, staged: Path, final: Path, state: TrainerState) -> None:
        """Add the fingerprint, and the final path of the best checkpoint."""
        if self.args.process_index == 0 and self.fingerprint is not None:
            text = json.dumps(self.fingerprint, indent=2, ensure_ascii=False) + "\n"
            (staged / FINGERPRINT_FILE).write_text(text, encoding="utf-8")
        if state.best_global_step == state.global_step:
            state.best_model_checkpoint = str(final)  # `Trainer` set the temporary path
            if self.args.should_save:
                state.save_to_json(str(staged / TRAINER_STATE_NAME))

    def _publish(self, staged: Path, final: Path) -> None:
        PartialState().wait_for_everyone()
        # First the saving process. On a machine with a disk of its own, the folder still has to be renamed afterwards.
        for renames in (self.args.should_save, self.args.local_process_index == 0):
            if renames and staged.is_dir():
                publish(staged, final)
                staged.parent.rmdir()
            PartialState().wait_for_everyone()

    def _require_finite_and_locked(self, model: nn.Module, state: TrainerState) -> None:
        """Stop before non-finite weights displace good checkpoints, or two runs write into one folder."""
        broken = non_finite(model.named_parameters())
        found: Any = reduce(torch.tensor(len(broken), device=self.args.device), reduction="sum")
        if found.item():
            names = f" ({broken[0]} and {len(broken) - 1} others)" if broken else ""
            raise FloatingPointError(
                f"After step {state.global_step} weights are not finite{names}, so no checkpoint was written. "
                f"Earlier checkpoints in {self.args.output_dir} are unchanged: resume from one of them with a lower "
                "learning rate, or in bfloat16 or float32 instead of float16."
            )
        if self.args.process_index == 0:
            require_held(self.run_folder)

    def remove_old(self, final: Path, best: str | None) -> None:
        """Remove the oldest checkpoints beyond `save_total_limit`; the newest and the best stay."""
        if self.args.should_save:
            remove_old(final.parent, self.args.save_total_limit, [final, *([Path(best)] if best else [])])


def since_resume(output: TrainOutput, first: int) -> TrainOutput:
    """Add `resumed_from_step` to the output of a resumed run, and drop loss and speed if no step was left.

    Args:
        output: Output of `Trainer.train`.
        first: The step of the resumed checkpoint.

    Returns:
        The output with changed metrics.
    """
    nothing_left = output.global_step == first
    metrics: Mapping[str, float] = output.metrics
    kept = {name: each for name, each in metrics.items() if not (nothing_left and name.startswith("train_"))}
    return output._replace(metrics={**kept, "resumed_from_step": first})
