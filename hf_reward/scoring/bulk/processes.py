"""Coordination of the processes that share a run: shards, locks, signals and standard input."""

import fcntl
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState

from hf_reward.data.atomic_file import is_disk_full
from hf_reward.scoring.bulk.settings import BulkSettings

_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Worker:
    """This process among those that share a run."""

    number: int = 0
    count: int = 1
    is_independent: bool = False
    """Whether the other processes may run at other times, so that this one cannot wait for them."""

    @classmethod
    def of(cls, settings: BulkSettings) -> "Worker":
        """Determine the worker: the requested `part`, else a process of `accelerate launch`, else the only one.

        Args:
            settings: The settings of the run.

        Returns:
            The worker.

        Raises:
            RuntimeError: If several processes were launched without a process group: each would do all of the work.
        """
        if settings.part is not None:
            return cls(number=settings.part[0], count=settings.part[1], is_independent=True)
        state = PartialState(cpu=not torch.accelerator.is_available())
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if state.num_processes == 1 < launched:
            raise RuntimeError(
                f"{launched} processes were launched, but `PartialState` was created for one. On CPUs, call "
                "`accelerate.PartialState(cpu=True)` before anything is loaded, or give each process a `part`."
            )
        return cls(number=state.process_index, count=state.num_processes)

    @property
    def is_leader(self) -> bool:
        """Whether this process plans the run and joins the shards."""
        return self.is_independent or self.number == 0

    def own(self, items: Sequence[Any]) -> list[Any]:
        """Return the items of this process: every `count`-th."""
        return list(items[self.number :: self.count])

    def wait_for_everyone(self) -> None:
        """Wait for all processes of `accelerate launch`; the only collective operation of a run."""
        if not self.is_independent and self.count > 1:
            PartialState().wait_for_everyone()

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Poll until the other processes have written their files; if one fails, the launcher stops this one too."""
        while not done():
            time.sleep(_POLL_SECONDS)


@contextmanager
def part_lock(folder: Path, worker: Worker) -> Iterator[None]:
    """Hold the lock of one part, so that the same part cannot run twice. The lock ends with the process.

    Args:
        folder: Folder of the run's files.
        worker: The worker of that part.

    Yields:
        None: While the lock is held.

    Raises:
        RuntimeError: If another process holds the lock.
    """
    with _locked(folder / f".part-{worker.number}-of-{worker.count}.lock", wait=False) as held:
        if not held:
            raise RuntimeError(
                f"Another process is scoring into {folder} (part {worker.number} of {worker.count}). Wait for it or "
                "stop it."
            )
        yield


def require_idle(folder: Path) -> None:
    """Raise an error if a run is in progress, before its files are removed.

    Args:
        folder: Folder of the run's files.

    Raises:
        RuntimeError: If a process holds the lock of any part.
    """
    for path in folder.glob(".part-*-of-*.lock"):
        with _locked(path, wait=False) as free:
            if not free:
                raise RuntimeError(f"Another process is scoring into {folder}. Wait for it or stop it.")


@contextmanager
def planning_lock(folder: Path, worker: Worker) -> Iterator[None]:
    """Let one part at a time look for a plan and make one, so that the inputs are read once.

    Args:
        folder: Folder of the run's files.
        worker: The worker; processes of `accelerate launch` need no lock.

    Yields:
        None: While the lock is held.
    """
    if not worker.is_independent:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / ".plan.lock", wait=True):
        yield


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[bool]:
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass  # file system without locks: outputs are still complete, but work may be done twice
        try:
            yield True
        finally:
            with suppress(OSError):
                path.unlink()


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that temporary files are removed, unless the program has its own handler.

    Yields:
        None: While the handler is installed.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def is_standard_input(data: Any) -> bool:
    """Whether `data` is "-". A data frame would compare element by element."""
    return isinstance(data, str) and data == "-"


@contextmanager
def spooled_input(data: Any, settings: BulkSettings, worker: Worker) -> Iterator[Any]:
    """Write standard input to a temporary file if the data is "-", because a run reads its rows more than once.

    Args:
        data: The data argument.
        settings: The settings, with the format of standard input.
        worker: The worker; standard input needs a single one.

    Yields:
        Any: The file, or the unchanged data.

    Raises:
        ValueError: If the run is to be resumed or shared.
        OSError: If the disk is full.
    """
    if not is_standard_input(data):
        yield data
        return
    if settings.resume or worker.count > 1:
        raise ValueError(
            "Standard input can be read only once and by one process, so its run cannot be resumed or shared. Save it "
            "to a file, and score the file."
        )
    with tempfile.TemporaryDirectory(prefix="hf-reward-") as folder:
        path = Path(folder) / f"stdin.{settings.input_format}"
        try:
            with path.open("wb") as file:
                while block := sys.stdin.buffer.read(2**20):
                    file.write(block)
        except OSError as error:
            if not is_disk_full(error):
                raise
            message = f"Standard input does not fit into {folder}. Set TMPDIR to a folder with more space."
            raise OSError(error.errno, f"{message} ({os.strerror(error.errno or 0)})") from error
        yield path
