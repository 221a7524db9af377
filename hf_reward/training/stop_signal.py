"""SIGTERM (a preempted Slurm job, a shrinking pod) -> all processes of a run stop after the same saved step."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

logger = logging.getLogger(__name__)

STOPPED = 143
"""Exit code after SIGTERM: 128 + 15, as a shell gives it."""


class StopSignal:
    """Notes SIGTERM while it is entered; a second one ends the process at once, as without this class."""

    def __init__(self) -> None:
        self.received = False
        self.used = False
        """Whether it was ever entered."""
        self.entered = False
        """Whether it is entered now."""
        self._previous: Any = None
        self._group: Any = None

    def __enter__(self) -> "StopSignal":
        self.received, self.used, self.entered = False, True, True
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread do this
            self._previous = signal.signal(signal.SIGTERM, self._note)
        if _is_distributed() and distributed.get_backend() != "gloo" and self._group is None:
            self._group = distributed.new_group(backend="gloo")  # on CPU tensors: no GPU has to be waited for
        return self

    def __exit__(self, *_: object) -> None:
        self.entered = False
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        self._restore()
        logger.warning("SIGTERM: a checkpoint is saved after this step (and its evaluation), then the run ends.")

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def is_agreed(self) -> bool:
        """Whether any process has received it while entered; all processes must call this equally often."""
        if not self.entered or not _is_distributed():
            return self.entered and self.received
        received = torch.tensor(int(self.received))
        distributed.all_reduce(received, distributed.ReduceOp.MAX, group=self._group)
        return bool(received)


class StopAfterCheckpoint(TrainerCallback):
    """After SIGTERM, lets `Trainer` save the step at hand, after its evaluation, and ends the process then.

    Args:
        stop_signal: What notes the signal.
    """

    def __init__(self, stop_signal: StopSignal) -> None:
        self.stop_signal = stop_signal
        self._waited = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin anew."""
        self._waited = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint of this step.

        With `save_strategy="best"` an evaluation decides whether its step is saved, so the next step is taken; if that
        one is to be evaluated too, it is saved without.
        """
        if not self.stop_signal.is_agreed():
            return
        if control.should_evaluate and args.save_strategy == SaveStrategy.BEST:
            if not self._waited:
                self._waited = True
                return
            control.should_evaluate = False
        control.should_save = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint where the signal came during a long evaluation; the next step waits for no other one."""
        if self.stop_signal.is_agreed():
            control.should_save = self._waited = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End all processes, with exit code 143."""
        if self.stop_signal.is_agreed():
            log_stopped(state, args.output_dir or ".", args.should_log)
            raise SystemExit(STOPPED)


def log_stopped(state: TrainerState, folder: str, should_log: bool) -> None:
    """Tell how to resume a run that SIGTERM has stopped.

    Args:
        state: State of the run.
        folder: Its output folder.
        should_log: Whether this process logs.
    """
    if should_log:
        logger.warning(
            "Stopped by SIGTERM after step %s of %s. %s/checkpoint-%s is whole; start the same command with "
            "`--resume_from_checkpoint true` (or 'auto') to go on from there.",
            state.global_step,
            state.max_steps,
            folder,
            state.global_step,
        )


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
