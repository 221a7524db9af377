"""Which shards are this process's own, and how it keeps out of the way of others."""

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
class Crew:
    """This process among those that share a run."""

    number: int = 0
    count: int = 1
    apart: bool = False
    """Whether the others may not run at the same time, so that nobody can wait for them."""

    @classmethod
    def of(cls, settings: BulkSettings) -> "Crew":
        """Find out: a part that was asked for, else a process of `accelerate launch`, else the only one.

        Args:
            settings: The settings of the run.

        Returns:
            The crew.

        Raises:
            RuntimeError: If processes were launched that do not know of each other: each would do all of the work.
        """
        if settings.part is not None:
            return cls(number=settings.part[0], count=settings.part[1], apart=True)
        state = PartialState(cpu=not torch.accelerator.is_available())
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if state.num_processes == 1 < launched:
            raise RuntimeError(
                f"{launched} processes were launched, but `PartialState` was made for one. On CPUs, call "
                "`accelerate.PartialState(cpu=True)` before anything is loaded, or give each process its `part`."
            )
        return cls(number=state.process_index, count=state.num_processes)

    @property
    def leads(self) -> bool:
        """Whether this process plans the run and joins the shards."""
        return self.apart or self.number == 0

    def own(self, items: Sequence[Any]) -> list[Any]:
        """The shards of this process: every `count`-th."""
        return list(items[self.number :: self.count])

    def meet(self) -> None:
        """Wait until all processes of `accelerate launch` are here; the only collective operation of a run."""
        if not self.apart and self.count > 1:
            PartialState().wait_for_everyone()

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Look at the disk until what others write is there; if one of them fails, the launcher ends this one too."""
        while not done():
            time.sleep(_POLL_SECONDS)


@contextmanager
def claimed(folder: Path, crew: Crew) -> Iterator[None]:
    """Hold the lock of one part, so that a second start of the same part is refused; it ends with the process.

    Args:
        folder: Where the run's files are.
        crew: Which part.

    Yields:
        None: While it is held.

    Raises:
        RuntimeError: If another process holds it.
    """
    with _locked(folder / f".part-{crew.number}-of-{crew.count}.lock", wait=False) as held:
        if not held:
            raise RuntimeError(
                f"Another process is scoring into {folder} (part {crew.number} of {crew.count}). Wait for it or end it."
            )
        yield


def require_idle(folder: Path) -> None:
    """Stop before the files of a run that is alive are removed.

    Args:
        folder: Where the run's files are.

    Raises:
        RuntimeError: If a process holds the lock of a part of it.
    """
    for path in folder.glob(".part-*-of-*.lock"):
        with _locked(path, wait=False) as free:
            if not free:
                raise RuntimeError(f"Another process is scoring into {folder}. Wait for it or end it.")


@contextmanager
def planning_alone(folder: Path, crew: Crew) -> Iterator[None]:
    """Let one part at a time look for a plan and make it: hundreds of them would read all inputs at once.

    Args:
        folder: Where the run's files are.
        crew: Which part; processes that can wait for each other need no lock.

    Yields:
        None: While it is held.
    """
    if not crew.apart:
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
            pass  # a file system without locks: outputs are whole without them, but work may be done twice
        try:
            yield True
        finally:
            with suppress(OSError):
                path.unlink()


@contextmanager
def stopped_by_signal() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does, so that temporaries are removed; only where nobody else handles it.

    Yields:
        None: While it does.
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
    """Whether "-" was named, and not data, which may compare with a text value by value (a data frame)."""
    return isinstance(data, str) and data == "-"


@contextmanager
def spooled_input(data: Any, settings: BulkSettings, crew: Crew) -> Iterator[Any]:
    """Write standard input to a temporary file if the data is "-", for a run reads its rows more than once.

    Args:
        data: What was named.
        settings: What standard input holds.
        crew: Has to be alone.

    Yields:
        Any: The file, or the data as it was.

    Raises:
        ValueError: If the run is to be resumed or shared, which needs data that stays.
        OSError: If there is no room.
    """
    if not is_standard_input(data):
        yield data
        return
    if settings.resume or crew.count > 1:
        raise ValueError(
            "Standard input can be read once and by one process, so such a run is neither resumed nor shared. "
            "Save it to a file, and score that."
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
            message = f"Standard input does not fit into {folder}. Set TMPDIR to a folder with more room."
            raise OSError(error.errno, f"{message} ({os.strerror(error.errno or 0)})") from error
        yield path
