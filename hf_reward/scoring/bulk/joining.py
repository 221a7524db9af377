"""Finished shards -> one file, which appears whole."""

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
    """Join the shards of a run into its file, then remove them.

    The rows put aside appear first, the rows with rewards next, then the record of what made them; a run that is killed
    in between still has its shards, and joins them again.

    Args:
        target: The output, a file.
        manifest: The run, every shard of it finished.
        counts: Of all shards.

    Raises:
        ValueError: If a shard is not what was written.
        OSError: If a file cannot be written.
    """
    target.remove_leftovers()
    for shard in manifest.shards:
        _require_as_written(target, shard, manifest.run)
    with atomic_writer(target.quarantine, keep_empty=False) as aside:
        bad = (target.put_aside(shard) for shard in manifest.shards)
        copy_json_lines(_opened([path for path in bad if path.is_file()]), cast(BinaryIO, aside))
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


def _require_as_written(target: Target, shard: Shard, run: str) -> None:
    path, marker = target.shard(shard), Marker.load(target, shard, run)
    if marker is not None and marker.fits(target, shard):
        return
    target.marker(shard).unlink(missing_ok=True)  # so that the next start does it again
    raise ValueError(
        f"{path} is not what was written there: it was changed since, or the disk is failing. Every other shard is "
        f"kept; start again with `{setting('resume', True)}` to score this one anew."
    )
