"""Score one shard and write its rows, its rejected rows and a marker that it is finished."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
import pyarrow as pa

from hf_reward.data.atomic_file import atomic_writer
from hf_reward.data.score_request import ScoreRequest
from hf_reward.data.tables.input_row import Table
from hf_reward.data.tables.row_writers import JsonLinesWriter, ParquetWriter, RowWriter, ScoredRow, json_line
from hf_reward.scoring.bulk.manifest import Manifest, Shard
from hf_reward.scoring.bulk.row_requests import (
    ParsedRow,
    added_columns,
    distinct,
    parse_row,
    passes,
    quarantine_record,
    unscored,
)
from hf_reward.scoring.bulk.settings import BulkSettings, Counts
from hf_reward.scoring.bulk.target import Target
from hf_reward.scoring.results import ScoreResult

logger = logging.getLogger(__name__)


class Scorer(Protocol):
    """Interface of scorers for bulk scoring, implemented by `RewardScorer`."""

    def score_requests(
        self, requests: Sequence[ScoreRequest], *, allow_empty: bool = False, show_progress: bool | None = None
    ) -> ScoreResult:
        """Return the reward of each request or its problem; equal requests give bitwise equal rewards."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Describe everything that determines a reward, as JSON values."""
        ...


@dataclass(frozen=True, kw_only=True)
class Marker:
    """Marker of a finished shard."""

    run: str
    """Id of the run, see `Manifest.run`."""
    counts: Counts
    size: int
    """Size of the shard in bytes."""
    sha256: str

    def to_bytes(self) -> bytes:
        """Serialise to JSON, UTF-8."""
        return (json.dumps(asdict(self), ensure_ascii=False) + "\n").encode("utf-8")

    @classmethod
    def load(cls, target: Target, shard: Shard, run: str) -> "Marker | None":
        """Load the marker of a shard.

        Args:
            target: The output.
            shard: The shard.
            run: Id of the run.

        Returns:
            The marker, or None unless the shard is finished and its files exist.
        """
        try:
            content = json.loads(target.marker(shard).read_text(encoding="utf-8"))
            marker = cls(counts=Counts(**content.pop("counts")), **content)
            is_complete = target.shard(shard).stat().st_size == marker.size and marker.run == run
        except (OSError, ValueError, TypeError, KeyError):
            return None
        has_rejected = not marker.counts.quarantined or target.shard_quarantine(shard).is_file()
        return marker if is_complete and has_rejected else None

    def matches(self, target: Target, shard: Shard) -> bool:
        """Whether the content of the shard is unchanged. Reads all of it."""
        with target.shard(shard).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256


@dataclass(frozen=True, kw_only=True)
class ShardScorer:
    """Scorer of the shards of one run."""

    scorer: Scorer
    settings: BulkSettings
    target: Target
    manifest: Manifest
    progress: Callable[[int], Any]
    """Called with the number of processed rows."""

    def score(self, shard: Shard, table: Table) -> Counts:
        """Score a shard and write its rejected rows, its rows with rewards and its marker.

        Args:
            shard: The shard.
            table: Its table.

        Returns:
            The counts.

        Raises:
            DamagedFile: If the table cannot be read.
            OSError: If a file cannot be written.
        """
        counts = Counts()
        # The inner file is renamed first, the marker is written last, when both files are complete.
        with (
            atomic_writer(self.target.shard(shard)) as file,
            atomic_writer(self.target.shard_quarantine(shard), keep_empty=False) as quarantine,
        ):
            writer = self._writer(cast(BinaryIO, file))
            for rows in passes((parse_row(row, self.settings) for row in table.read(shard.span)), self.settings):
                scored, rejected = self._score_pass(rows, table, counts)
                writer.write(scored)
                for row in rejected:
                    quarantine.write(json_line(quarantine_record(row, table)))
                    counts.quarantine(row.kind)
                counts.rows_in, counts.rows_out = counts.rows_in + len(rows), counts.rows_out + len(scored)
                self.progress(len(rows))
            writer.close()
        with atomic_writer(self.target.marker(shard)) as marker:
            marker.write(Marker(run=self.manifest.run, counts=counts, size=file.size, sha256=file.sha256).to_bytes())
        return counts

    def _writer(self, file: BinaryIO) -> RowWriter:
        schema = self.manifest.schema
        return JsonLinesWriter(file) if schema is None else ParquetWriter(file, schema)

    def _score_pass(
        self, rows: Sequence[ParsedRow], table: Table, counts: Counts
    ) -> tuple[list[ScoredRow], list[ParsedRow]]:
        requests, where = distinct([request for row in rows for request in row.requests])
        result = ScoreResult(np.zeros(0, dtype=np.float32))
        if requests:
            allow_empty = self.settings.allow_empty
            result = self.scorer.score_requests(requests, allow_empty=allow_empty, show_progress=False)
        counts.responses, counts.distinct = counts.responses + len(where), counts.distinct + len(requests)
        counts.cut, counts.tokens = counts.cut + result.cut, counts.tokens + result.tokens
        scored, rejected, done = [], [], 0
        for row in rows:
            places = where[done : done + len(row.requests)]
            done += len(places)
            problems = list(_problems(result, places))
            if row.problem or problems:
                rejected.append(row if row.problem else unscored(row, problems))
            else:
                added = added_columns(row, table.name, result.rewards[places], self.settings, as_list=self._as_list)
                scored.append(ScoredRow(row.source, added))
        return scored, rejected

    @property
    def _as_list(self) -> bool:
        """Whether the column of rewards contains lists."""
        schema = self.manifest.schema
        return schema is not None and pa.types.is_list(schema.field(self.settings.reward_column).type)


def _problems(result: ScoreResult, places: Sequence[int]) -> Iterator[tuple[int, str]]:
    for number, place in enumerate(places):
        if place in result.problems:
            yield number, result.problems[place]
        elif not np.isfinite(result.rewards[place]):
            yield number, f"its reward is {result.rewards[place]}, not a finite number"


def finished_shards(target: Target, manifest: Manifest, shards: Sequence[Shard]) -> dict[str, Marker]:
    """Find finished shards.

    Args:
        target: The output.
        manifest: The run.
        shards: The shards to look for.

    Returns:
        Name -> marker.
    """
    names = {path.name for path in (target.folder / "_done").glob("*.json")}
    found = {shard.name: Marker.load(target, shard, manifest.run) for shard in shards if f"{shard.name}.json" in names}
    return {name: marker for name, marker in found.items() if marker is not None}


def intact_shards(target: Target, manifest: Manifest, shards: Sequence[Shard]) -> dict[str, Marker]:
    """Find finished shards with unchanged content, and remove the markers of changed ones.

    Args:
        target: The output.
        manifest: The run.
        shards: The shards to look for; no other process may be writing them.

    Returns:
        Name -> marker.
    """
    found = finished_shards(target, manifest, shards)
    for shard in shards:
        if shard.name in found and not found[shard.name].matches(target, shard):
            logger.warning(
                "The content of %s has changed since it was written; the shard is scored again.", target.shard(shard)
            )
            target.marker(shard).unlink()
            del found[shard.name]
    return found
