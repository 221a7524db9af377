"""A file appears whole or not at all, and what has appeared survives a crash of the machine."""

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
    """An open file that is written from beginning to end, and knows the hash and size of what went in."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self.size = file, hashlib.sha256(), 0
        self.abandoned = False
        """Whether writing has failed: what a library still wants to write while it is torn down goes nowhere."""

    def write(self, data: Any) -> int:
        """Append bytes."""
        if self.abandoned:
            return len(data)
        self._digest.update(data)
        self.size += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        """Bytes written."""
        return self.size

    def flush(self) -> None:
        """Hand over to the operating system what is buffered here."""
        if not self.abandoned:
            self._file.flush()

    def close(self) -> None:
        """Nothing: whoever opened the file closes it, once all of it is on the disk."""

    def writable(self) -> bool:
        """Yes."""
        return True

    @property
    def sha256(self) -> str:
        """Hash of what was written so far, hexadecimal."""
        return self._digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path whose file takes the place of another one when all is well: a reader never meets half a file.

    Args:
        path: The final file; one that is there is replaced, and keeps its permissions.

    Yields:
        Path: Where to write, in the same folder.

    Raises:
        OSError: If it cannot be written; nothing is left behind, and a file that was there is as it was.
    """
    with _temporary(path) as temporary:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            shutil.copymode(path, temporary)
        _rename(temporary, path)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file that appears whole or not at all.

    Args:
        path: The file; one that is there is replaced.
        content: Text is written as UTF-8; half surrogate pairs in it are escaped, so that they stay readable.

    Raises:
        OSError: If it cannot be written; a file that was there is as it was.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


@contextmanager
def atomic_writer(path: Path, *, keep_empty: bool = True) -> Iterator[HashedFile]:
    """Give a file that takes its place when all is well: written beside it, flushed, synchronised, renamed.

    Args:
        path: The final file; one that is there is replaced.
        keep_empty: Whether a file of 0 bytes appears too. If not, one that is there is removed.

    Yields:
        HashedFile: What to write to.

    Raises:
        OSError: If it cannot be written; nothing is left behind, and a file that was there is as it was.
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
    """Write a small file unless there is one: of several processes that try, one succeeds.

    Args:
        path: The file.
        content: What to write.

    Returns:
        Whether this call wrote it.
    """
    with _temporary(path) as temporary:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike a rename, it refuses where a file is
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
    """A name beside a file; what still has it at the end is removed."""
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
    """Make the names in a folder survive a crash: a rename alone may be forgotten.

    Args:
        folder: The folder.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_temporaries(folder: Path, names: set[str]) -> None:
    """Remove what killed writers left behind.

    Args:
        folder: Where to look, not below it.
        names: The final names of the files whose temporaries go; those of others may be in use.
    """
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        found = _TEMPORARY.fullmatch(path.name)
        if found and found["name"] in names:
            path.unlink(missing_ok=True)


def is_disk_full(error: OSError) -> bool:
    """Whether an error means that there is no room: disk, quota or the size that a process may write."""
    return error.errno in _FULL
