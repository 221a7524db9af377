"""A bulk run from beginning to end, and from wherever an earlier start of it was interrupted."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub.utils import tqdm

from hf_reward.data.atomic_file import create_exclusive, is_disk_full, remove_temporaries
from hf_reward.data.interface import setting
from hf_reward.data.path_safety import require_writable
from hf_reward.data.tables.input_row import DamagedFile, Table
from hf_reward.scoring.bulk.inputs import open_tables
from hf_reward.scoring.bulk.joining import join_shards
from hf_reward.scoring.bulk.manifest import Manifest, Shard, identity_of, require_same
from hf_reward.scoring.bulk.planning import plan_run
from hf_reward.scoring.bulk.processes import (
    Crew,
    claimed,
    is_standard_input,
    planning_alone,
    require_idle,
    spooled_input,
    stopped_by_signal,
)
from hf_reward.scoring.bulk.row_requests import require_layout
from hf_reward.scoring.bulk.settings import BulkReport, BulkSettings, Counts
from hf_reward.scoring.bulk.shard_scoring import Marker, Scorer, ShardScorer, finished, sound
from hf_reward.scoring.bulk.target import Target, choose_target, find_earlier

logger = logging.getLogger(__name__)


def score_files(scorer: Scorer, data: Any, out: str | Path, settings: BulkSettings | None = None) -> BulkReport:
    """Score tables of any size, shard by shard; killed at any moment, it goes on where it was.

    A shard appears whole or not at all. A start that resumes does only the shards that are not finished, and what it
    writes is, byte for byte, what an undisturbed run would have written: same machine, same versions. Under
    `accelerate launch` the processes share the shards, and the first of them joins them.

    Args:
        scorer: A `RewardScorer`, or another `Scorer`.
        data: A JSONL, CSV or Parquet file, a folder of such files of one kind, a list of files, "-" for standard input,
            a Hub id, a `datasets.Dataset`, or a list of rows. Rows are read by `score_request.requests_of_row`.
        out: A .jsonl or .parquet file, or a folder, into which shards are written that are named after the inputs.
            Rows keep their order and columns; `id` (unless they have one) and the reward are added. Rows without a
            reward are put aside, into `*.quarantine.jsonl` or `_quarantine/`.
        settings: How.

    Returns:
        What was done.

    Raises:
        FileExistsError: If the output exists, and neither `resume` nor `overwrite` is asked for.
        ValueError: If the output is that of another run, the data has no rows that could be scored, or a file is
            damaged. Shards that are finished are kept.
        OSError: If something cannot be written; shards that are finished are kept.
        RuntimeError: If another process is at it.
    """
    settings = settings or BulkSettings()
    crew = Crew.of(settings)
    if crew.count > 1 and getattr(scorer, "distributed", False):
        raise ValueError("Here every process scores shards of its own: load the scorer without `distributed=True`.")
    with stopped_by_signal(), spooled_input(data, settings, crew) as source:
        tables = open_tables(source, split=settings.split)
        target = choose_target(out, settings.output_format, tables, source)
        return _Run(scorer, tables, target, settings, crew, not is_standard_input(data)).score()


def check_before_scoring(data: Any, out: str | Path, settings: BulkSettings | None = None) -> None:
    """Find what would stop a run, before a model is loaded for it. Nothing is written or removed.

    Args:
        data: As for `score_files`; standard input is not looked at.
        out: As for `score_files`.
        settings: How.

    Raises:
        FileExistsError: If the output exists, and neither `resume` nor `overwrite` is asked for.
        FileNotFoundError: If there is no such data.
        ValueError: If the output or the data is of no known kind, or the columns of the data are wrong.
        OSError: If the output cannot be written.
    """
    settings = settings or BulkSettings()
    tables = [] if is_standard_input(data) else open_tables(data, split=settings.split)
    target = choose_target(out, settings.output_format, tables, data)
    require_writable(target.folder)
    if not settings.overwrite and Crew.of(settings).count == 1:  # else the first process may have begun already
        find_earlier(target, resume=settings.resume or settings.part is not None, overwrite=False)
    if tables:
        require_layout(tables[0], settings)
        tables[0].close()


class _Run:
    """One start of a run."""

    def __init__(
        self,
        scorer: Scorer,
        tables: Sequence[Table],
        target: Target,
        settings: BulkSettings,
        crew: Crew,
        resumable: bool,
    ) -> None:
        self.scorer, self.tables, self.target, self.settings, self.crew = scorer, tables, target, settings, crew
        self.resumable = resumable
        self.manifest: Manifest | None = None
        self.began = time.monotonic()

    def score(self) -> BulkReport:
        with self._says_how_to_go_on():
            report = self._prepare()
            if report is not None:
                return report
            assert self.manifest is not None
            with claimed(self.target.folder, self.crew):
                self.crew.meet()  # nobody removes the shards' folder before everybody has seen it
                own = self.crew.own(self.manifest.shards)
                self.target.remove_temporaries(own)
                before = sound(self.target, self.manifest, own)
                damaged = self._score_shards([shard for shard in own if shard.name not in before], before)
                if damaged:
                    raise DamagedFile(self._damage(damaged))
                return self._finish(before)

    # --- before ------------------------------------------------------------------------------------------------------

    @cached_property
    def _identity(self) -> dict[str, Any]:
        settings = {**self.settings.deciding(), "output_format": self.target.format}
        return identity_of(self.scorer.fingerprint(), self.tables, settings)

    def _prepare(self) -> BulkReport | None:
        """Find or make the run's manifest, the first process for all; a report if the output is there already."""
        if not self.crew.leads:
            self.crew.meet()
            if self._is_finished_file():
                return self._report(Counts(), shards=0, before=0, complete=True)
            self.manifest = Manifest.load(self.target.manifest)
            scorer = identity_of(self.scorer.fingerprint(), [], {})["scorer"]
            require_same({"scorer": scorer}, self.manifest.identity, self.target.folder)
            return None
        report = self._report_of_record() if self.settings.resume and self._is_finished_file() else None
        if report is None:
            self.manifest = self._lead()
        self.crew.meet()
        return report

    def _is_finished_file(self) -> bool:
        return self.target.is_file and self.target.out.exists() and not self.target.manifest.is_file()

    def _report_of_record(self) -> BulkReport:
        """What to say of a file that is there already, made by the same run."""
        target = self.target
        try:
            record = json.loads(target.record.read_text(encoding="utf-8"))
            counts, earlier = Counts(**record["counts"]), {name: record[name] for name in self._identity}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise FileExistsError(
                f"The output {target.out} exists, but not what says how it was made ({target.record}: {error!r}), so "
                f"there is nothing to go on with. Replace it with `{setting('overwrite', True)}`, or name another."
            ) from error
        require_same(self._identity, earlier, target.out)
        target.remove_leftovers()
        return self._report(counts, shards=0, before=0, complete=True)

    def _lead(self) -> Manifest:
        target, settings = self.target, self.settings
        if self.crew.apart and target.is_file:
            raise ValueError("Parts of a run write into a folder, for nobody joins them. Name a folder as output.")
        joins = settings.resume or self.crew.apart  # parts of a run find each other's files
        if settings.overwrite:
            require_idle(target.folder)
        with planning_alone(target.folder, self.crew):
            earlier = find_earlier(target, resume=joins, overwrite=settings.overwrite)
            remove_temporaries(target.folder, {target.manifest.name})
            if earlier is None:
                planned = plan_run(self._identity, self.tables, settings, target.format)
                target.make_folders()
                if create_exclusive(target.manifest, planned.to_bytes()):
                    return planned
                earlier = Manifest.load(target.manifest)  # no locks here, and another part was faster
        require_same(self._identity, earlier.identity, target.folder)
        target.make_folders()
        return earlier

    # --- during ------------------------------------------------------------------------------------------------------

    def _score_shards(self, shards: Sequence[Shard], before: dict[str, Marker]) -> list[tuple[Shard, str]]:
        """Score shards one after the other; those that cannot be read are left out and said."""
        assert self.manifest is not None
        damaged = []
        done = sum(marker.counts.rows_in for marker in before.values())
        total = sum(shard.span.rows for shard in self.crew.own(self.manifest.shards))
        hidden = None if self.settings.show_progress is None else not self.settings.show_progress
        self.began = time.monotonic()
        with tqdm(total=total, initial=done, disable=hidden, desc="Scoring", unit="row", smoothing=0.1) as bar:
            shard_scorer = ShardScorer(
                scorer=self.scorer,
                settings=self.settings,
                target=self.target,
                manifest=self.manifest,
                progress=bar.update,
            )
            for number, shard in enumerate(shards):
                table = self.tables[shard.table]
                try:
                    shard_scorer.score(shard, table)
                except DamagedFile as error:
                    damaged.append((shard, str(error)))
                if number + 1 == len(shards) or shards[number + 1].table != shard.table:
                    table.close()
        return damaged

    @contextmanager
    def _says_how_to_go_on(self) -> Iterator[None]:
        """Whatever stops a run, say what is kept and how to go on."""
        try:
            yield
        except OSError as error:
            if is_disk_full(error):
                reason = f"There is no room for more in {self.target.folder} ({error.strerror})."
                raise OSError(error.errno, f"{reason} {self._state()} Make room first.") from error
            self._log_state()
            raise
        except DamagedFile:
            raise  # says it itself
        except BaseException:
            self._log_state()
            raise

    def _log_state(self) -> None:
        if self.manifest is not None:
            logger.warning("Stopped. %s", self._state())

    def _state(self) -> str:
        if self.manifest is None:
            return "Nothing is scored yet."
        if self._is_finished_file():
            return f"{self.target.out} is whole."
        own = self.crew.own(self.manifest.shards)
        done = f"{len(self._finished(own))} of {len(own)} shards are finished and kept in {self.target.folder}"
        if not self.resumable:
            return f"{done}; what came through standard input cannot be read again: start anew with `--overwrite`."
        return f"{done}: start again with `{setting('resume', True)}` to do the rest."

    def _damage(self, damaged: Sequence[tuple[Shard, str]]) -> str:
        shown = [f"  {shard.name}: {reason}" for shard, reason in damaged[:5]]
        more = [f"  and {len(damaged) - 5} more"] if len(damaged) > 5 else []
        return "\n".join([f"{len(damaged)} shards could not be read:", *shown, *more, self._state()])

    # --- after -------------------------------------------------------------------------------------------------------

    def _finish(self, before: dict[str, Marker]) -> BulkReport:
        """Join the shards if they are to be one file, and count."""
        assert self.manifest is not None
        shards, whole = self.manifest.shards, self.crew.leads and not self.crew.apart
        if whole:
            self.crew.wait_until(lambda: self._all_there() and len(self._finished(shards)) == len(shards))
        markers = self._finished(shards if whole else self.crew.own(shards))
        counts = Counts()
        for marker in markers.values():
            counts.add(marker.counts)
        new = sum(marker.counts.rows_in for name, marker in markers.items() if name not in before)
        complete = whole or self._all_there()
        if whole and self.target.is_file:
            join_shards(self.target, self.manifest, counts)
        return self._report(counts, shards=len(shards), before=len(before), complete=complete, new=new)

    def _finished(self, shards: Sequence[Shard]) -> dict[str, Marker]:
        assert self.manifest is not None
        return finished(self.target, self.manifest, shards)

    def _all_there(self) -> bool:
        """Whether each shard has a marker; listing them is cheap where reading them is not."""
        assert self.manifest is not None
        there = {path.stem for path in (self.target.folder / "_done").glob("*.json")}
        return all(shard.name in there for shard in self.manifest.shards)

    def _report(self, counts: Counts, *, shards: int, before: int, complete: bool, new: int = 0) -> BulkReport:
        seconds = time.monotonic() - self.began
        return BulkReport(
            out=str(self.target.out),
            quarantine=str(self.target.quarantine) if counts.quarantined else None,
            complete=complete,
            shards=shards,
            finished_before=before,
            counts=counts,
            seconds=seconds,
            rows_per_second=new / seconds if seconds else 0.0,
        )
