"""SIGTERM (a preempted Slurm job, a shrinking pod) -> all processes of a run agree to stop after the same step."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

import torch
from torch import distributed

logger = logging.getLogger(__name__)


class StopSignal:
    """Notes SIGTERM while it is entered; a second one ends the process at once, as without this class."""

    def __init__(self) -> None:
        self.received = False
        self._previous: Any = None
        self._group: Any = None

    def __enter__(self) -> "StopSignal":
        self.received = False
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread do this
            self._previous = signal.signal(signal.SIGTERM, self._note)
        if _is_distributed() and distributed.get_backend() != "gloo" and self._group is None:
            self._group = distributed.new_group(backend="gloo")  # on CPU tensors: no GPU has to be waited for
        return self

    def __exit__(self, *_: object) -> None:
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
        """Whether any process has received it; all processes must call this equally often."""
        if not _is_distributed():
            return self.received
        received = torch.tensor(int(self.received))
        distributed.all_reduce(received, distributed.ReduceOp.MAX, group=self._group)
        return bool(received)


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
