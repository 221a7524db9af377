"""Atomic and durable file writes: readers see the old file or the complete new one, even after a crash."""

import errno
import hashlib
import io
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.tmp")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class HashedFile(io.RawIOBase):
    """A file that is written sequentially and records the hash and size of the written bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self.size = file, hashlib.sha256(), 0
        self.abandoned = False
        """Whether writing has failed: later writes, such as those of a library's cleanup, are then discarded."""

    def write(self, data: Any) -> int:
        """Append bytes and return their number."""
        if self.abandoned:
            return len(data)
        self._digest.update(data)
        self.size += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self.size

    def flush(self) -> None:
        """Pass buffered bytes to the operating system."""
        if not self.abandoned:
            self._file.flush()

    def close(self) -> None:
        """Do nothing: `atomic_writer` closes the file after syncing it to disk."""

    def writable(self) -> bool:
        """Return True."""
        return True

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes written so far, hexadecimal."""
        return self._digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path whose file replaces the final one if no error is raised.

    Args:
        path: The final file. An existing one is replaced; its permissions are kept.

    Yields:
        Path: The temporary path, in the same folder.

    Raises:
        OSError: If the file cannot be written; an existing file is then unchanged.
    """
    with _temporary(path) as temporary:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            shutil.copymode(path, temporary)
        _rename(temporary, path)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file atomically.

    Args:
        path: The file; an existing one is replaced.
        content: Text is written as UTF-8, with lone surrogates escaped.

    Raises:
        OSError: If the file cannot be written; an existing file is then unchanged.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


@contextmanager
def atomic_writer(path: Path, *, keep_empty: bool = True) -> Iterator[HashedFile]:
    """Open a file for atomic and durable writing: written in the same folder, flushed, synced, renamed.

    Args:
        path: The final file; an existing one is replaced.
        keep_empty: Whether to keep a file of 0 bytes. If not, an existing file is removed.

    Yields:
        HashedFile: The open file.

    Raises:
        OSError: If the file cannot be written; an existing file is then unchanged.
    """
    with _temporary(path) as temporary:
        with temporary.open("xb", buffering=2**20) as file:
            hashed = HashedFile(file)
            try:
                yield hashed
                file.flush()
                os.fsync(file.fileno())
            finally:
                hashed.abandoned = True
        if hashed.size or keep_empty:
            _rename(temporary, path)
        else:
            path.unlink(missing_ok=True)


def create_exclusive(path: Path, content: bytes) -> bool:
    """Create a small file unless it exists. If several processes try, exactly one succeeds.

    Args:
        path: The file.
        content: Its content.

    Returns:
        Whether this call created the file.
    """
    with _temporary(path) as temporary:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike a rename, fails if the file exists
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS or path.exists():
                raise
            os.replace(temporary, path)
        sync_folder(path.parent)
        return True


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; a file that is left there at the end is removed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink()


def _rename(temporary: Path, path: Path) -> None:
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder to disk, because a rename may otherwise be lost in a crash.

    Args:
        folder: The folder.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_temporaries(folder: Path, names: set[str]) -> None:
    """Remove temporary files of killed writers.

    Args:
        folder: The folder; subfolders are not searched.
        names: Final names of the files whose temporary files are removed. Others may be in use.
    """
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        found = _TEMPORARY.fullmatch(path.name)
        if found and found["name"] in names:
            path.unlink(missing_ok=True)


def is_disk_full(error: OSError) -> bool:
    """Return whether an error means that the disk, the quota or the file size limit is exhausted."""
    return error.errno in _FULL
