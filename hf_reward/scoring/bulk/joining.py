"""Join finished shards into one file, atomically."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from hf_reward.data.atomic_file import HashedFile, atomic_writer
from hf_reward.data.interface import setting
from hf_reward.data.tables.row_writers import copy_json_lines, copy_parquet
from hf_reward.scoring.bulk.manifest import Manifest, Shard
from hf_reward.scoring.bulk.settings import Counts
from hf_reward.scoring.bulk.shard_scoring import Marker
from hf_reward.scoring.bulk.target import Target


def join_shards(target: Target, manifest: Manifest, counts: Counts) -> None:
    """Join the shards of a run into its output file, then remove them.

    The quarantine file is written first, then the output, then the record of the run. If the process is killed between
    these steps, the shards still exist and are joined again.

    Args:
        target: The output, a file.
        manifest: The run; all its shards are finished.
        counts: Counts over all shards.

    Raises:
        ValueError: If the content of a shard has changed.
        OSError: If a file cannot be written.
    """
    target.remove_leftovers()
    for shard in manifest.shards:
        _require_unchanged(target, shard, manifest.run)
    with atomic_writer(target.quarantine, keep_empty=False) as rejected:
        parts = (target.shard_quarantine(shard) for shard in manifest.shards)
        copy_json_lines(_opened([path for path in parts if path.is_file()]), cast(BinaryIO, rejected))
    with atomic_writer(target.out) as file:
        _copy([target.shard(shard) for shard in manifest.shards], file, manifest)
    content = {**manifest.identity, "counts": vars(counts), "size": file.size, "sha256": file.sha256}
    with atomic_writer(target.record) as record:
        record.write((json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode("utf-8"))
    target.remove_joined()


def _copy(paths: Sequence[Path], file: HashedFile, manifest: Manifest) -> None:
    sink = cast(BinaryIO, file)
    if manifest.schema is None:
        copy_json_lines(_opened(paths), sink)
    else:
        copy_parquet(_opened(paths), sink, manifest.schema)


def _opened(paths: Sequence[Path]) -> Iterator[BinaryIO]:
    for path in paths:
        with path.open("rb") as file:
            yield file


def _require_unchanged(target: Target, shard: Shard, run: str) -> None:
    path, marker = target.shard(shard), Marker.load(target, shard, run)
    if marker is not None and marker.matches(target, shard):
        return
    target.marker(shard).unlink(missing_ok=True)  # so that a resumed run scores it again
    raise ValueError(
        f"The content of {path} has changed since it was written: it was edited, or the disk is failing. All other "
        f"shards are kept; start again with `{setting('resume', True)}` to score this one again."
    )
