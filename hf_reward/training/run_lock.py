"""One run at a time in an output folder: two would remove each other's checkpoints.

The lock is a lease of the `filelock` library: a small file that its holder touches every few seconds. On one machine a
holder that was killed is known by its process id and start time, and the file is taken over at once. A holder on
another machine is watched: if the file is touched meanwhile it is alive, if not for `LEASE_SECONDS` it is gone. Only
the time that passes here counts, so clocks may differ, and the file system needs no locks of its own.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease, Timeout

LOCK_FILE = ".run.lock"
"""In an output folder while a run writes into it; left behind by one that was killed."""
LEASE_SECONDS = 60.0
"""A holder on another machine that was not heard of for so long is gone."""
HEARTBEAT_SECONDS = 10.0
_POLL_SECONDS = 0.5

logger = logging.getLogger(__name__)

_held: dict[Path, SoftFileLease] = {}
"""Locks of this process by their folder."""


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keep other processes from writing checkpoints into a folder; within it, this process may enter again.

    Args:
        folder: The output folder, which is made if it does not exist. One that cannot be written is not locked, for no
            run can harm it.

    Yields:
        None: While it is held.

    Raises:
        RuntimeError: If another process that is alive holds it.
    """
    place = folder.resolve()
    place.mkdir(parents=True, exist_ok=True)
    if place in _held or not os.access(place, os.W_OK):
        yield
        return
    _held[place] = _acquired(place / LOCK_FILE, folder)
    try:
        yield
    finally:
        _held.pop(place).release()


def require_held(folder: Path) -> None:
    """Before a checkpoint is written: if the lock was lost, take it again, or stop if another run has it.

    A lock is lost when the process was suspended for more than `LEASE_SECONDS`, or its file was removed.

    Args:
        folder: The output folder.

    Raises:
        RuntimeError: If this process held the lock and another one that is alive holds it now.
    """
    place = folder.resolve()
    lease = _held.get(place)
    if lease is None or lease.compromise is None:
        return
    logger.warning("The lock %s was lost (%s) and is taken again.", place / LOCK_FILE, lease.compromise.reason)
    _held[place] = _acquired(place / LOCK_FILE, folder)


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
            f"Another run{who} is writing into {folder}: two would remove each other's checkpoints. Wait for it, end "
            f"it, or name another `output_dir`. Nothing was changed there."
        ) from error
    return lease


def _touched_at(path: Path) -> tuple[int, int] | None:
    """File and time of the last sign of life; opened anew, because NFS looks at a file again only then."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
