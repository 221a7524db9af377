"""Run bulk scoring, from the start or from the state of an interrupted run."""

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
    Worker,
    exit_on_sigterm,
    is_standard_input,
    part_lock,
    planning_lock,
    require_idle,
    spooled_input,
)
from hf_reward.scoring.bulk.row_requests import require_layout
from hf_reward.scoring.bulk.settings import BulkReport, BulkSettings, Counts
from hf_reward.scoring.bulk.shard_scoring import Marker, Scorer, ShardScorer, finished_shards, intact_shards
from hf_reward.scoring.bulk.target import Target, choose_target, find_earlier_run

logger = logging.getLogger(__name__)


def score_files(scorer: Scorer, data: Any, out: str | Path, settings: BulkSettings | None = None) -> BulkReport:
    """Score tables of any size, shard by shard. An interrupted run can be resumed.

    Shards are written atomically. A resumed run scores only the unfinished shards, and its output is byte-identical to
    that of an uninterrupted run on the same machine with the same versions. Under `accelerate launch` the processes
    share the shards, and the first process joins them.

    Args:
        scorer: A `RewardScorer`, or another `Scorer`.
        data: A JSONL, CSV or Parquet file, a folder of files of one format, a list of files, "-" for standard input, a
            Hub id, a `datasets.Dataset`, or a list of rows. For the layouts see `score_request.requests_of_row`.
        out: A .jsonl or .parquet file, or a folder for shards that are named after the inputs. Rows keep their order
            and columns; `id` (unless present) and the reward are added. Rejected rows, which have no reward, are
            written to `*.quarantine.jsonl` or `_quarantine/`.
        settings: The settings.

    Returns:
        A report.

    Raises:
        FileExistsError: If the output exists, and neither `resume` nor `overwrite` is set.
        ValueError: If the output belongs to another run, the data has no row that can be scored, or a file is damaged.
            Finished shards are kept.
        OSError: If a file cannot be written. Finished shards are kept.
        RuntimeError: If another process is scoring into the same output.
    """
    settings = settings or BulkSettings()
    worker = Worker.of(settings)
    if worker.count > 1 and getattr(scorer, "distributed", False):
        raise ValueError(
            "In bulk scoring each process scores its own shards: load the scorer without `distributed=True`."
        )
    with exit_on_sigterm(), spooled_input(data, settings, worker) as source:
        tables = open_tables(source, split=settings.split)
        target = choose_target(out, settings.output_format, tables, source)
        return _Run(scorer, tables, target, settings, worker, not is_standard_input(data)).score()


def check_before_scoring(data: Any, out: str | Path, settings: BulkSettings | None = None) -> None:
    """Check the arguments of a run before a model is loaded. Nothing is written or removed.

    Args:
        data: As for `score_files`; standard input is not checked.
        out: As for `score_files`.
        settings: The settings.

    Raises:
        FileExistsError: If the output exists, and neither `resume` nor `overwrite` is set.
        FileNotFoundError: If the data does not exist.
        ValueError: If the output or the data has an unknown format, or the columns of the data are wrong.
        OSError: If the output cannot be written.
    """
    settings = settings or BulkSettings()
    tables = [] if is_standard_input(data) else open_tables(data, split=settings.split)
    target = choose_target(out, settings.output_format, tables, data)
    require_writable(target.folder)
    if not settings.overwrite and Worker.of(settings).count == 1:  # else another process may have started the run
        find_earlier_run(target, resume=settings.resume or settings.part is not None, overwrite=False)
    if tables:
        require_layout(tables[0], settings)
        tables[0].close()


class _Run:
    """One execution of a run."""

    def __init__(
        self,
        scorer: Scorer,
        tables: Sequence[Table],
        target: Target,
        settings: BulkSettings,
        worker: Worker,
        resumable: bool,
    ) -> None:
        self.scorer, self.tables, self.target, self.settings, self.worker = scorer, tables, target, settings, worker
        self.resumable = resumable
        self.manifest: Manifest | None = None
        self.began = time.monotonic()

    def score(self) -> BulkReport:
        with self._reporting_state():
            report = self._prepare()
            if report is not None:
                return report
            assert self.manifest is not None
            with part_lock(self.target.folder, self.worker):
                self.worker.wait_for_everyone()  # the shards' folder must not be removed before all have opened it
                own = self.worker.own(self.manifest.shards)
                self.target.remove_temporaries(own)
                before = intact_shards(self.target, self.manifest, own)
                damaged = self._score_shards([shard for shard in own if shard.name not in before], before)
                if damaged:
                    raise DamagedFile(self._damage(damaged))
                return self._finish(before)

    # --- before ------------------------------------------------------------------------------------------------------

    @cached_property
    def _identity(self) -> dict[str, Any]:
        settings = {**self.settings.for_identity(), "output_format": self.target.format}
        return identity_of(self.scorer.fingerprint(), self.tables, settings)

    def _prepare(self) -> BulkReport | None:
        """Load or create the manifest (the leader creates it); return a report if the output is complete already."""
        if not self.worker.is_leader:
            self.worker.wait_for_everyone()
            if self._is_finished_file():
                return self._report(Counts(), shards=0, before=0, complete=True)
            self.manifest = Manifest.load(self.target.manifest)
            scorer = identity_of(self.scorer.fingerprint(), [], {})["scorer"]
            require_same({"scorer": scorer}, self.manifest.identity, self.target.folder)
            return None
        report = self._report_of_record() if self.settings.resume and self._is_finished_file() else None
        if report is None:
            self.manifest = self._lead()
        self.worker.wait_for_everyone()
        return report

    def _is_finished_file(self) -> bool:
        return self.target.is_file and self.target.out.exists() and not self.target.manifest.is_file()

    def _report_of_record(self) -> BulkReport:
        """Return the report of a finished output file of the same run."""
        target = self.target
        try:
            record = json.loads(target.record.read_text(encoding="utf-8"))
            counts, earlier = Counts(**record["counts"]), {name: record[name] for name in self._identity}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise FileExistsError(
                f"The output {target.out} exists, but its record cannot be read ({target.record}: {error!r}), so it "
                f"cannot be resumed. Set `{setting('overwrite', True)}` to replace it, or use another output."
            ) from error
        require_same(self._identity, earlier, target.out)
        target.remove_leftovers()
        return self._report(counts, shards=0, before=0, complete=True)

    def _lead(self) -> Manifest:
        target, settings = self.target, self.settings
        if self.worker.is_independent and target.is_file:
            raise ValueError("The output of a run with `part` must be a folder, because parts are not joined.")
        joins = settings.resume or self.worker.is_independent  # parts of a run share their folder
        if settings.overwrite:
            require_idle(target.folder)
        with planning_lock(target.folder, self.worker):
            earlier = find_earlier_run(target, resume=joins, overwrite=settings.overwrite)
            remove_temporaries(target.folder, {target.manifest.name})
            if earlier is None:
                planned = plan_run(self._identity, self.tables, settings, target.format)
                target.make_folders()
                if create_exclusive(target.manifest, planned.to_bytes()):
                    return planned
                earlier = Manifest.load(target.manifest)  # file system without locks: another part was faster
        require_same(self._identity, earlier.identity, target.folder)
        target.make_folders()
        return earlier

    # --- during ------------------------------------------------------------------------------------------------------

    def _score_shards(self, shards: Sequence[Shard], before: dict[str, Marker]) -> list[tuple[Shard, str]]:
        """Score shards in order; return those that cannot be read, with the reasons."""
        assert self.manifest is not None
        damaged = []
        done = sum(marker.counts.rows_in for marker in before.values())
        total = sum(shard.span.rows for shard in self.worker.own(self.manifest.shards))
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
    def _reporting_state(self) -> Iterator[None]:
        """Log or add to the error which shards are kept and how to resume."""
        try:
            yield
        except OSError as error:
            if is_disk_full(error):
                reason = f"There is no space left in {self.target.folder} ({error.strerror})."
                raise OSError(error.errno, f"{reason} {self._state()} Free some space first.") from error
            self._log_state()
            raise
        except DamagedFile:
            raise  # its message contains the state
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
            return f"{self.target.out} is complete."
        own = self.worker.own(self.manifest.shards)
        done = f"{len(self._finished(own))} of {len(own)} shards are finished and kept in {self.target.folder}"
        if not self.resumable:
            return f"{done}; standard input cannot be read again: start over with `{setting('overwrite', True)}`."
        return f"{done}: start again with `{setting('resume', True)}` to do the rest."

    def _damage(self, damaged: Sequence[tuple[Shard, str]]) -> str:
        shown = [f"  {shard.name}: {reason}" for shard, reason in damaged[:5]]
        more = [f"  and {len(damaged) - 5} more"] if len(damaged) > 5 else []
        return "\n".join([f"{len(damaged)} shards could not be read:", *shown, *more, self._state()])

    # --- after -------------------------------------------------------------------------------------------------------

    def _finish(self, before: dict[str, Marker]) -> BulkReport:
        """Join the shards if they are to be one file, and count."""
        assert self.manifest is not None
        shards, is_joining = self.manifest.shards, self.worker.is_leader and not self.worker.is_independent
        if is_joining:
            self.worker.wait_until(lambda: self._all_finished() and len(self._finished(shards)) == len(shards))
        markers = self._finished(shards if is_joining else self.worker.own(shards))
        counts = Counts()
        for marker in markers.values():
            counts.add(marker.counts)
        new = sum(marker.counts.rows_in for name, marker in markers.items() if name not in before)
        complete = is_joining or self._all_finished()
        if is_joining and self.target.is_file:
            join_shards(self.target, self.manifest, counts)
        return self._report(counts, shards=len(shards), before=len(before), complete=complete, new=new)

    def _finished(self, shards: Sequence[Shard]) -> dict[str, Marker]:
        assert self.manifest is not None
        return finished_shards(self.target, self.manifest, shards)

    def _all_finished(self) -> bool:
        """Whether each shard has a marker. Listing markers is cheaper than reading them."""
        assert self.manifest is not None
        found = {path.stem for path in (self.target.folder / "_done").glob("*.json")}
        return all(shard.name in found for shard in self.manifest.shards)

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
