"""One shard: rows in, requests, rewards, rows out. It ends with a marker that says that it is finished."""

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
    AskedRow,
    added_columns,
    ask,
    distinct,
    passes,
    quarantine_record,
    unscored,
)
from hf_reward.scoring.bulk.settings import BulkSettings, Counts
from hf_reward.scoring.bulk.target import Target
from hf_reward.scoring.results import ScoreResult

logger = logging.getLogger(__name__)


class Scorer(Protocol):
    """What scores: `RewardScorer`, or anything else that gives a number for a text and can say what it is."""

    def score_requests(
        self, requests: Sequence[ScoreRequest], *, allow_empty: bool = False, show_progress: bool | None = None
    ) -> ScoreResult:
        """Reward of each request, or what is wrong with it; the same requests give the same bits."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What decides a reward, as JSON values."""
        ...


@dataclass(frozen=True, kw_only=True)
class Marker:
    """What is known of a finished shard."""

    run: str
    """Of which run it is, see `Manifest.run`."""
    counts: Counts
    size: int
    """Bytes of the shard."""
    sha256: str

    def to_bytes(self) -> bytes:
        """JSON, UTF-8."""
        return (json.dumps(asdict(self), ensure_ascii=False) + "\n").encode("utf-8")

    @classmethod
    def load(cls, target: Target, shard: Shard, run: str) -> "Marker | None":
        """Read the marker of a shard, None unless the shard is finished and its files are there.

        Args:
            target: The output.
            shard: The shard.
            run: Of which run it has to be.

        Returns:
            The marker.
        """
        try:
            content = json.loads(target.marker(shard).read_text(encoding="utf-8"))
            marker = cls(counts=Counts(**content.pop("counts")), **content)
            whole = target.shard(shard).stat().st_size == marker.size and marker.run == run
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return marker if whole and (not marker.counts.quarantined or target.put_aside(shard).is_file()) else None

    def fits(self, target: Target, shard: Shard) -> bool:
        """Whether the shard still holds what was written; reads all of it."""
        with target.shard(shard).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256


@dataclass(frozen=True, kw_only=True)
class ShardScorer:
    """Scores the shards of one run."""

    scorer: Scorer
    settings: BulkSettings
    target: Target
    manifest: Manifest
    progress: Callable[[int], Any]
    """Called with the number of rows that are done."""

    def score(self, shard: Shard, table: Table) -> Counts:
        """Score a shard and write what belongs to it: the rows put aside, the rows with rewards, and the marker.

        Args:
            shard: Which rows.
            table: Where they are.

        Returns:
            What was counted.

        Raises:
            DamagedFile: If the table cannot be read.
            OSError: If a file cannot be written.
        """
        counts = Counts()
        # The inner one appears first; the marker, last of all, says that both are whole.
        with (
            atomic_writer(self.target.shard(shard)) as file,
            atomic_writer(self.target.put_aside(shard), keep_empty=False) as aside,
        ):
            writer = self._writer(cast(BinaryIO, file))
            for rows in passes((ask(row, self.settings) for row in table.read(shard.span)), self.settings):
                scored, refused = self._score_pass(rows, table, counts)
                writer.write(scored)
                for row in refused:
                    aside.write(json_line(quarantine_record(row, table)))
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
        self, rows: Sequence[AskedRow], table: Table, counts: Counts
    ) -> tuple[list[ScoredRow], list[AskedRow]]:
        requests, where = distinct([request for row in rows for request in row.requests])
        result = ScoreResult(np.zeros(0, dtype=np.float32))
        if requests:
            allow_empty = self.settings.allow_empty
            result = self.scorer.score_requests(requests, allow_empty=allow_empty, show_progress=False)
        counts.responses, counts.distinct = counts.responses + len(where), counts.distinct + len(requests)
        counts.cut, counts.tokens = counts.cut + result.cut, counts.tokens + result.tokens
        scored, refused, done = [], [], 0
        for row in rows:
            places = where[done : done + len(row.requests)]
            done += len(places)
            problems = list(_problems(result, places))
            if row.problem or problems:
                refused.append(row if row.problem else unscored(row, problems))
            else:
                added = added_columns(row, table.name, result.rewards[places], self.settings, as_list=self._as_list)
                scored.append(ScoredRow(row.source, added))
        return scored, refused

    @property
    def _as_list(self) -> bool:
        """Whether the reward's column holds lists."""
        schema = self.manifest.schema
        return schema is not None and pa.types.is_list(schema.field(self.settings.reward_column).type)


def _problems(result: ScoreResult, places: Sequence[int]) -> Iterator[tuple[int, str]]:
    for number, place in enumerate(places):
        if place in result.problems:
            yield number, result.problems[place]
        elif not np.isfinite(result.rewards[place]):
            yield number, f"its reward is {result.rewards[place]}, no number"


def finished(target: Target, manifest: Manifest, shards: Sequence[Shard]) -> dict[str, Marker]:
    """Find the shards that are finished.

    Args:
        target: The output.
        manifest: The run.
        shards: Which of its shards to look for.

    Returns:
        Name -> marker.
    """
    there = {path.name for path in (target.folder / "_done").glob("*.json")}
    found = {shard.name: Marker.load(target, shard, manifest.run) for shard in shards if f"{shard.name}.json" in there}
    return {name: marker for name, marker in found.items() if marker is not None}


def sound(target: Target, manifest: Manifest, shards: Sequence[Shard]) -> dict[str, Marker]:
    """Find the finished shards whose content is what was written; the markers of others are removed.

    Args:
        target: The output.
        manifest: The run.
        shards: Which of its shards to look for; no other process may be writing them.

    Returns:
        Name -> marker.
    """
    found = finished(target, manifest, shards)
    for shard in shards:
        if shard.name in found and not found[shard.name].fits(target, shard):
            logger.warning("%s is not what was written there, and is scored again.", target.shard(shard))
            target.marker(shard).unlink()
            del found[shard.name]
    return found
