"""Lock of an output folder: two runs in one folder would remove each other's checkpoints.

The lock is a lease of the `filelock` library: a small file that its holder touches every few seconds. On the same
machine, a killed holder is recognised by its process id and start time, and the lock is taken over at once. A holder
on another machine counts as alive if it touches the file within `LEASE_SECONDS`, and as dead otherwise. Only local
elapsed time counts, so clocks may differ. The file system need not support locking.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

LOCK_FILE = ".run.lock"
"""Lock file in an output folder; a killed run leaves it behind."""
LEASE_SECONDS = 60.0
"""Time without a heartbeat after which a holder on another machine counts as dead."""
HEARTBEAT_SECONDS = 10.0
_POLL_SECONDS = 0.5

logger = logging.getLogger(__name__)

_held: dict[Path, SoftFileLease] = {}
"""Locks of this process by folder."""


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; this process may enter again within the block.

    Args:
        folder: The output folder, which is created if needed. A read-only folder is not locked, because no run can
            change it.

    Yields:
        None: While the lock is held.

    Raises:
        RuntimeError: If another live process holds the lock.
    """
    path = folder.resolve()
    path.mkdir(parents=True, exist_ok=True)
    if path in _held or not os.access(path, os.W_OK):
        yield
        return
    _held[path] = _acquired(path / LOCK_FILE, folder)
    try:
        yield
    finally:
        _held.pop(path).release()


def require_held(folder: Path) -> None:
    """Check the lock before a checkpoint is written: reacquire a lost lock, or stop if another run has it.

    A lock is lost when the process was suspended for more than `LEASE_SECONDS`, or when its file was removed.

    Args:
        folder: The output folder.

    Raises:
        RuntimeError: If this process lost the lock and another live process holds it.
    """
    path = folder.resolve()
    lease = _held.get(path)
    if lease is None or lease.compromise is None:
        return
    logger.warning("The lock %s was lost (%s). Reacquiring it.", path / LOCK_FILE, lease.compromise.reason)
    _held[path] = _acquired(path / LOCK_FILE, folder)


def _acquired(path: Path, folder: Path) -> SoftFileLease:
    lease = SoftFileLease(path, lease_duration=LEASE_SECONDS, heartbeat_interval=HEARTBEAT_SECONDS, thread_local=False)
    first = _touched_at(path)

    def is_alive() -> bool:
        found = _touched_at(path)
        return None not in (first, found) and found != first

    try:
        lease.acquire(timeout=LEASE_SECONDS + 2 * HEARTBEAT_SECONDS, poll_interval=_POLL_SECONDS, cancel_check=is_alive)
    except Timeout as error:
        owner = lease.owner
        who = "" if owner is None else f" (process {owner.pid} on {owner.hostname.partition('?')[0]})"
        raise RuntimeError(
            f"Another run{who} is writing into {folder}; two runs would remove each other's checkpoints. Wait for it, "
            f"stop it, or set another `output_dir`. Nothing was changed in that folder."
        ) from error
    return lease


def _touched_at(path: Path) -> tuple[int, int] | None:
    """Return inode and modification time; the file is opened each time, because NFS revalidates only on open."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
