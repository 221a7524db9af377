"""Checkpoints of a run: written whole beside their place, resumed only if whole and of the same run, rotated.

`checkpoints` knows the folders; here they meet the state, the lock and the fingerprint of a run.
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

from hf_reward.modeling.adapters import require_whole_adapter
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
        """Of the run, on the main process; written into each checkpoint."""
        self.saved_step = -1
        """Step of the last checkpoint of this call of `train`."""
        self.resumed: Path | None = None
        """The checkpoint that this call of `train` resumes."""
        self.resumed_step = 0
        """Its step; the checkpoint itself may be removed meanwhile."""
        self._staging: Path | None = None

    @property
    def run_folder(self) -> Path:
        """The output folder."""
        return Path(self.args.output_dir or ".")

    # --- resuming ---

    def begin(self, wanted: str | bool | None, fingerprint: dict[str, Any] | None) -> Path | None:
        """Begin a call of `train`: find the checkpoint to resume.

        Args:
            wanted: What `train` was given as `resume_from_checkpoint`.
            fingerprint: Of the run, on the main process.

        Returns:
            The folder, None to begin at step 0.

        Raises:
            ValueError: If there is no such checkpoint, it is not whole, or it is of another run.
        """
        self.fingerprint, self.saved_step = fingerprint, -1
        self.resumed = self._to_resume(wanted)
        state = None if self.resumed is None else str(self.resumed / TRAINER_STATE_NAME)
        self.resumed_step = 0 if state is None else TrainerState.load_from_json(state).global_step
        return self.resumed

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the output folder: the main process for all; where it cannot, all of them stop."""
        with ExitStack() as held:
            problem = None
            if self.args.process_index == 0:
                try:
                    held.enter_context(run_lock(self.run_folder))
                except RuntimeError as error:
                    problem = str(error)
            [problem] = broadcast_object_list([problem])
            if problem is not None:
                raise RuntimeError(problem)
            yield

    def _to_resume(self, wanted: str | bool | None) -> Path | None:
        run = self.run_folder
        if self.args.should_save:
            remove_leftovers(run)
        PartialState().wait_for_everyone()
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
        found = (
            self._newest_complete(run, wanted) if wanted is True or wanted == "auto" else self._named_complete(wanted)
        )
        if found is not None:
            self._require_same_run(found)
        return found

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
            raise ValueError(f"The checkpoint {name} cannot be resumed: {problem}. Name another one.")
        return Path(name)

    def _newest_complete(self, run: Path, wanted: str | bool) -> Path | None:
        folders = checkpoints(run)
        [folders] = broadcast_object_list([folders])  # so that all processes look at the same ones
        found = newest_complete(folders, self._problem_anywhere)
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
        problem = checkpoint_problem(folder) if self.args.local_process_index == 0 else None
        return next((found for found in gather_object([problem]) if found is not None), None)

    def require_loadable(self, model: nn.Module, *, gathered: bool) -> None:
        """Refuse files that `Trainer` would load although they are unsafe, or incomplete for this model.

        Args:
            model: The model that the checkpoint to resume is loaded into.
            gathered: Whether FSDP or DeepSpeed reads it, which write tensors as pickles.

        Raises:
            ValueError: If the checkpoint cannot be loaded into the model.
        """
        if self.resumed is None:
            return
        require_safe_weights(str(self.resumed), allow_pickle=gathered)
        if isinstance(model, PeftModel) and not gathered:
            require_whole_adapter(model, self.resumed)

    def require_finite(self, model: nn.Module) -> None:
        """Refuse weights that were loaded and are not finite.

        Args:
            model: The model after loading.

        Raises:
            ValueError: If any is not, on any process.
        """
        found = gather_object(non_finite(model.named_parameters()))  # each process looks at its shards; all stop
        broken = list(dict.fromkeys(found))
        if broken:
            raise ValueError(
                f"The checkpoint {self.resumed} holds weights that are not finite ({broken[0]} and "
                f"{len(broken) - 1} others). Name an earlier one in `resume_from_checkpoint`."
            )

    # --- a checkpoint appears whole, before it is pushed and before older ones are removed ---

    def folder(self, final: str) -> str:
        """Where `Trainer` writes the checkpoints that belong into a folder: within `staged` beside their place."""
        return final if self._staging is None else str(self._staging)

    @contextmanager
    def staged(self, run: Path, state: TrainerState, model: nn.Module) -> Iterator[Path]:
        """Within this, `Trainer` writes a checkpoint beside its place; at the end it gets its name.

        Args:
            run: The folder of the run, or of the trial.
            state: State of the run; where this step is the best, its checkpoint is named by its final place.
            model: The model that is saved.

        Yields:
            Path: Where the checkpoint will be.

        Raises:
            FloatingPointError: If weights are not finite, before anything is written.
        """
        name = f"checkpoint-{state.global_step}"
        final, staging = run / name, staging_folder(run, name)
        self._require_sound(model, state)
        with self.locked():
            if self.args.should_save:
                remove_leftovers(run)  # what is left of an earlier attempt
            PartialState().wait_for_everyone()
            self._staging = staging
            try:
                yield final
                self._complete(staging / name, final, state)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)  # the disk may be full of it
                raise
            finally:
                self._staging = None
            self._publish(staging / name, final)
        self.saved_step = state.global_step

    def _complete(self, staged: Path, final: Path, state: TrainerState) -> None:
        """Add what `Trainer` does not know: the fingerprint, and the final name of the best checkpoint."""
        if self.args.process_index == 0 and self.fingerprint is not None:
            text = json.dumps(self.fingerprint, indent=2, ensure_ascii=False) + "\n"
            (staged / FINGERPRINT_FILE).write_text(text, encoding="utf-8")
        if state.best_global_step == state.global_step:
            state.best_model_checkpoint = str(final)  # `Trainer` has looked for it among the staged ones
            if self.args.should_save:
                state.save_to_json(str(staged / TRAINER_STATE_NAME))

    def _publish(self, staged: Path, final: Path) -> None:
        PartialState().wait_for_everyone()
        # The one that saves goes first. On another machine without a common disk its share still waits to be renamed.
        for mine in (self.args.should_save, self.args.local_process_index == 0):
            if mine and staged.is_dir():
                publish(staged, final)
                staged.parent.rmdir()
            PartialState().wait_for_everyone()

    def _require_sound(self, model: nn.Module, state: TrainerState) -> None:
        """Stop before weights that are lost push sound checkpoints out, or a second run's files are mixed with ours."""
        broken = non_finite(model.named_parameters())
        found: Any = reduce(torch.tensor(len(broken), device=self.args.device), reduction="sum")
        if found.item():
            names = f" ({broken[0]} and {len(broken) - 1} others)" if broken else ""
            raise FloatingPointError(
                f"After step {state.global_step} weights are not finite{names}, so no checkpoint was written; "
                f"earlier ones in {self.args.output_dir} are untouched. Go on from one of them with a lower learning "
                "rate, or in bfloat16 or float32 instead of float16."
            )
        if self.args.process_index == 0:
            require_held(self.run_folder)

    def remove_old(self, final: Path, best: str | None) -> None:
        """Remove the oldest checkpoints beyond `save_total_limit`; the newest and the best stay."""
        if self.args.should_save:
            remove_old(final.parent, self.args.save_total_limit, [final, *([Path(best)] if best else [])])


def since_resume(output: TrainOutput, first: int) -> TrainOutput:
    """The output of a resumed run: the step it resumed from, and no loss or speed if no step was left.

    Args:
        output: What `Trainer.train` returns.
        first: The step of the resumed checkpoint.

    Returns:
        The output with `resumed_from_step` among its metrics.
    """
    nothing_left = output.global_step == first
    metrics: Mapping[str, float] = output.metrics
    kept = {name: each for name, each in metrics.items() if not (nothing_left and name.startswith("train_"))}
    return output._replace(metrics={**kept, "resumed_from_step": first})
