"""Summary of prepared rows: kept, cut and dropped rows with reasons, lengths and remarks."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from datasets import IterableDataset

from hf_reward.data.interface import setting
from hf_reward.data.row_locations import RowLocations
from hf_reward.data.row_remarks import RemarkTally, remark_clauses
from hf_reward.data.sources import RawDataset
from hf_reward.metrics.counts import counted
from hf_reward.metrics.preference import length_rule_credit, strict_pairs

BATCH_SIZE = 1000
_SAMPLE_SIZE = 1000


@dataclass
class DataSummary:
    """Counts and lengths of the rows of one dataset after preparation."""

    name: str
    rows: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason -> number of rows. Unreadable rows are counted only with `skip_bad_rows`."""
    cut: int = 0
    """Kept rows whose prompt was cut to fit `max_length`."""
    merged: int = 0
    """Responses that were equal to a different response of their row."""
    prompts_differed: int = 0
    remarks: dict[str, int] = field(default_factory=dict)
    """Remark of `row_remarks`, such as `blank_prompt` -> number of kept rows."""
    remark_rows: dict[str, list[int]] = field(default_factory=dict)
    """Remark -> numbers of the first such rows in the raw data of their source, from 0."""
    remark_places: dict[str, list[str]] = field(default_factory=dict)
    """Remark -> file and line (from 1) of these rows, or their numbers if the format has no lines."""
    kind: str | None = None
    """Kind of the kept rows: `conversations`, `text` or `mixed`; None for token ids, whose kind is unknown."""
    duplicates: int = 0
    """Kept rows with the same tokens as an earlier row."""
    prompts: int = 0
    sources: list[str] = field(default_factory=list)
    token_quantiles: dict[str, int] = field(default_factory=dict)
    """Quantiles of the number of tokens of a row's longest sequence."""
    length_for_99_percent: int | None = None
    """The `max_length` that would keep 99% of the rows uncut; set only if rows were cut or dropped for their length."""
    longer_preferred: float = float("nan")
    """Share of strict pairs whose preferred response has more tokens; ties count half."""
    num_pairs: int = 0
    sampled: bool = False
    """Whether only the first rows of a stream were summarised."""

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items())) or "none"
        quantiles = ", ".join(f"{name} {value}" for name, value in self.token_quantiles.items()) or "none is left"
        scope = f"{'the first ' if self.sampled else ''}{counted(self.rows, 'row')}"
        remarks = "".join(f" {clause}." for clause in remark_clauses(self.remarks, self.remark_places))
        return (
            f"{self.name}: {self.kept:,} of {scope} kept ({counted(self.prompts, 'prompt')}); dropped: {dropped}; "
            f"{self.cut} cut to fit, {counted(self.merged, 'equal response')} merged, "
            f"{counted(self.duplicates, 'duplicate row')}, {counted(self.prompts_differed, 'row')} whose sides had "
            "different prompts. Tokens of the longest sequence: "
            f"{quantiles}{self._enough()}. "
            + (
                f"The longer response (in tokens, ties half) is preferred in {self.longer_preferred:.1%} of "
                f"{counted(self.num_pairs, 'pair')}."
                if self.num_pairs
                else "No strict pair is left."
            )
            + remarks
        )

    def _enough(self) -> str:
        if self.length_for_99_percent is None:
            return ""
        return f"; `{setting('max_length', self.length_for_99_percent)}` would keep 99% of the rows uncut"


def summarize(prepared: RawDataset, name: str) -> DataSummary:
    """Summarise a prepared dataset.

    Args:
        prepared: Tokenised rows.
        name: Name of the data in messages.

    Returns:
        The summary, without rows that were dropped earlier.
    """
    return summarize_all([prepared], name)


def summarize_all(
    marked: Sequence[RawDataset], name: str, places: Sequence[RowLocations] | None = None, *, limit: int | None = None
) -> DataSummary:
    """Summarise the parts of one dataset.

    Args:
        marked: Tokenised rows of each source, including unusable rows.
        name: Name of the data in messages.
        places: Locations of the rows of each source in its files.
        limit: `max_length` of the run.

    Returns:
        The summary.
    """
    streamed = any(isinstance(part, IterableDataset) for part in marked)
    tally = _Tally(limit)
    for part, known in zip(marked, places or [RowLocations(None)] * len(marked), strict=True):
        for batch in _batches(part):
            tally.add(batch)
        tally.remarks.add_places(lambda row, known=known: known.where(row, short=True) or f"row {row}")
    return tally.summary(name, sampled=streamed)


_SUMMARY_COLUMNS = (
    *("problem", "input_ids", "prefix_length", "ranks", "cut_tokens", "merged"),
    *("prompts_differed", "conversational", "content_hash", "group", "source", "row", "remarks"),
)


def _batches(data: RawDataset) -> Iterator[Mapping[str, list[Any]]]:
    """Yield the columns of a dataset in batches; for a stream, only its first rows."""
    if isinstance(data, IterableDataset):
        sample = list(data.take(_SAMPLE_SIZE))
        if sample:
            yield {name: [row.get(name) for row in sample] for name in _SUMMARY_COLUMNS}
        return
    missing = set(_SUMMARY_COLUMNS) - set(data.column_names)  # rows may have been prepared by an earlier version
    present: Any = data.select_columns([name for name in _SUMMARY_COLUMNS if name not in missing])
    for batch in present.iter(batch_size=BATCH_SIZE):
        yield {**batch, **{name: [None] * len(batch["problem"]) for name in missing}}


class _Tally:
    """Running counts over batches of rows, with about 20 bytes of memory per row."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.uncut_lengths: list[np.ndarray] = []
        self.problems: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.remarks = RemarkTally()
        self.sources: set[str] = set()
        self.kinds: set[bool | None] = set()
        self.hashes: list[np.ndarray] = []
        self.groups: list[np.ndarray] = []
        self.longest: list[np.ndarray] = []
        self.credit = 0.0

    def add(self, batch: Mapping[str, list[Any]]) -> None:
        """Count a batch."""
        self.problems.update(batch["problem"])
        self.counts["merged"] += sum(batch["merged"])
        self.uncut_lengths.append(np.asarray(self._uncut_lengths(batch), np.int32))
        places = [place for place, problem in enumerate(batch["problem"]) if not problem]
        if not places:
            return
        kept = {name: [values[place] for place in places] for name, values in batch.items()}
        self.counts["cut"] += sum(cut > 0 for cut in kept["cut_tokens"])
        self.counts["prompts_differed"] += sum(kept["prompts_differed"])
        for row, remarks in zip(kept["row"], kept["remarks"], strict=True):
            self.remarks.add(row, remarks)
        self.sources |= set(kept["source"])
        self.kinds |= set(kept["conversational"])
        self.hashes.append(np.asarray(kept["content_hash"], np.int64))
        self.groups.append(np.asarray(kept["group"], np.int64))
        sizes = [[len(ids) for ids in row] for row in kept["input_ids"]]
        self.longest.append(np.asarray([max(row) for row in sizes], np.int32))
        self._add_lengths(sizes, kept["prefix_length"], kept["ranks"])

    def _uncut_lengths(self, batch: Mapping[str, list[Any]]) -> list[int]:
        """Return the tokens of the longest sequence of each tokenised row before truncation."""
        rows = zip(batch["problem"], batch["input_ids"], batch["cut_tokens"], strict=True)
        return [
            (self.limit or 0) + cut if problem == "too long" else max(map(len, ids)) + cut
            for problem, ids, cut in rows
            if not problem or problem == "too long"
        ]

    def _add_lengths(self, sizes: Sequence[list[int]], prefixes: Sequence[int], ranks: Sequence[list[int]]) -> None:
        width = max(map(len, ranks))
        lengths, padded = np.zeros((len(ranks), width), int), np.full((len(ranks), width), -100)
        for place, (row, prefix, rank) in enumerate(zip(sizes, prefixes, ranks, strict=True)):
            lengths[place, : len(row)] = np.asarray(row) - prefix
            padded[place, : len(rank)] = rank
        pairs = strict_pairs(padded)
        self.counts["pairs"] += len(pairs.row)
        self.credit += float(length_rule_credit(lengths, pairs).sum()) if len(pairs.row) else 0.0

    def summary(self, name: str, *, sampled: bool) -> DataSummary:
        """Return the summary of all batches."""
        summary = DataSummary(name=name, rows=self.problems.total(), kept=self.problems[""], sampled=sampled)
        summary.dropped = {reason: count for reason, count in self.problems.items() if reason}
        summary.cut, summary.merged = self.counts["cut"], self.counts["merged"]
        summary.prompts_differed, summary.num_pairs = self.counts["prompts_differed"], self.counts["pairs"]
        summary.remarks, summary.remark_rows = self.remarks.counts, self.remarks.rows
        summary.remark_places = self.remarks.places
        summary.kind, summary.sources = _kind(self.kinds), sorted(self.sources)
        if summary.cut or summary.dropped.get("too long"):
            summary.length_for_99_percent = int(
                np.quantile(np.concatenate(self.uncut_lengths), 0.99, method="inverted_cdf")
            )
        if summary.kept:
            summary.duplicates = summary.kept - len(np.unique(np.concatenate(self.hashes)))
            summary.prompts = len(np.unique(np.concatenate(self.groups)))
            longest = np.concatenate(self.longest)
            points = {"median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
            summary.token_quantiles = {point: int(np.quantile(longest, share)) for point, share in points.items()}
        if summary.num_pairs:
            summary.longer_preferred = self.credit / summary.num_pairs
        return summary


def _kind(conversational: set[bool | None]) -> str | None:
    if conversational == {True}:
        return "conversations"
    if conversational == {False}:
        return "text"
    return "mixed" if conversational - {None} else None
