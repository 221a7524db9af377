"""Hashes of files, full or sampled, to detect whether a file has changed."""

import hashlib
from pathlib import Path
from typing import Any

import xxhash

FULL_HASH_LIMIT = 16 * 2**20
"""Size in bytes up to which `file_identity` hashes the full file."""
_SAMPLES, _SAMPLE_BYTES = 4, 16 * 2**10


def content_hash(path: Path) -> str:
    """Hash the full content of a file, to detect accidental changes (not forgery).

    Args:
        path: The file.

    Returns:
        XXH3-128 of its bytes, hexadecimal.
    """
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def file_identity(path: Path) -> dict[str, Any]:
    """Return a fingerprint of a file without reading all of a large file.

    Args:
        path: The file.

    Returns:
        `name`, `size` in bytes, and `sample`, a hash of up to four 16 KiB blocks: the first, the last and two in
        between. A file of at most `FULL_HASH_LIMIT` bytes also has `content`, a hash of all its bytes. A larger file
        has `modified`, the modification time in nanoseconds, which detects an edit outside the sampled blocks.
    """
    status = path.stat()
    size = status.st_size
    step = max(_SAMPLE_BYTES, (size - _SAMPLE_BYTES) / (_SAMPLES - 1))
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            if (place := int(number * step)) >= size:
                break
            file.seek(place)
            digest.update(file.read(_SAMPLE_BYTES))
    known = {"name": path.name, "size": size, "sample": digest.hexdigest()}
    if size <= FULL_HASH_LIMIT:
        return known | {"content": content_hash(path)}
    return known | {"modified": status.st_mtime_ns}
