"""SIGTERM (a preempted Slurm job, a terminated pod) -> all processes of a run stop after the same saved step."""

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
"""Exit code after SIGTERM: 128 + 15, as in a shell."""


class StopSignal:
    """Context manager that records SIGTERM; a second SIGTERM ends the process at once."""

    def __init__(self) -> None:
        self.received = False
        self.used = False
        """Whether the context was ever entered."""
        self.entered = False
        """Whether the context is active."""
        self._previous: Any = None
        self._group: Any = None

    def __enter__(self) -> "StopSignal":
        self.received, self.used, self.entered = False, True, True
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers only there
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        if _is_distributed() and distributed.get_backend() != "gloo" and self._group is None:
            self._group = distributed.new_group(backend="gloo")  # CPU tensors: no synchronisation with the GPU
        return self

    def __exit__(self, *_: object) -> None:
        self.entered = False
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        self._restore()
        logger.warning("SIGTERM received. The run saves a checkpoint after this step (and its evaluation) and exits.")

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def is_agreed(self) -> bool:
        """Whether any process has received the signal; all processes must call this the same number of times."""
        if not self.entered or not _is_distributed():
            return self.entered and self.received
        received = torch.tensor(int(self.received))
        distributed.all_reduce(received, distributed.ReduceOp.MAX, group=self._group)
        return bool(received)


class StopAfterCheckpoint(TrainerCallback):
    """After SIGTERM, lets `Trainer` evaluate and save the current step, and then ends the process.

    Args:
        stop_signal: Records the signal.
    """

    def __init__(self, stop_signal: StopSignal) -> None:
        self.stop_signal = stop_signal
        self._waited = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Reset the callback."""
        self._waited = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Request a checkpoint of this step.

        With `save_strategy="best"`, an evaluation decides whether its step is saved. The run then continues to the next
        step. If that step is due for evaluation too, it is saved without one.
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
        """Request a checkpoint if the signal came during the evaluation; the next step is saved without evaluation."""
        if self.stop_signal.is_agreed():
            control.should_save = self._waited = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End all processes, with exit code 143."""
        if self.stop_signal.is_agreed():
            log_stopped(state, args.output_dir or ".", args.should_log)
            raise SystemExit(STOPPED)


def log_stopped(state: TrainerState, folder: str, should_log: bool) -> None:
    """Log how to resume a run after SIGTERM.

    Args:
        state: State of the run.
        folder: Its output folder.
        should_log: Whether this process logs.
    """
    if should_log:
        logger.warning(
            "Stopped by SIGTERM after step %s of %s. %s/checkpoint-%s is complete; to resume from it, start the same "
            "command with `--resume_from_checkpoint true` (or 'auto').",
            state.global_step,
            state.max_steps,
            folder,
            state.global_step,
        )


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
