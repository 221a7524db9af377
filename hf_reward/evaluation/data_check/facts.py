"""One pass over the rows -> the numbers and hashes that all findings are computed from; no text is kept."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hf_reward.data.near_duplicates import RowPool, text_hash
from hf_reward.data.preference_row import PreferenceRow
from hf_reward.data.row_remarks import RemarkTally, remarks_of
from hf_reward.data.row_text import prompt_text, response_text
from hf_reward.evaluation.data_check.histograms import Lengths, score_gaps_of
from hf_reward.evaluation.data_check.row_reader import ReadRow, RowReader
from hf_reward.evaluation.data_check.style_features import FEATURES, count_features
from hf_reward.evaluation.data_check.votes import read_votes

NAMED_ROWS = 5
"""Rows that a finding names at most."""


@dataclass
class RowFacts:
    """Rows of one data set as arrays: U usable rows, N responses of them, M strict pairs."""

    rows: int = 0
    layouts: dict[str, int] = field(default_factory=dict)
    unusable: dict[str, int] = field(default_factory=dict)
    """Reason -> rows."""
    unusable_rows: dict[str, list[int]] = field(default_factory=dict)
    """Reason -> the first few of them."""
    prompts_differed: list[int] = field(default_factory=list)
    """Rows whose sides have different prompts."""
    remarks: RemarkTally = field(default_factory=RemarkTally)
    """Remarks on usable rows."""
    transcripts: int = 0
    """Usable text rows that look like `\\n\\nHuman:` transcripts but were not read as such."""
    transcript_rows: list[int] = field(default_factory=list)
    """The first few of them."""
    number: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Row number of each usable row in the data, shape `(U,)`."""
    group: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    prompt: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Hash of the prompt's text."""
    prompt_length: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Characters of the prompt."""
    votes: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    preferred: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Which of two responses is preferred; -1 for a tie or a longer list."""
    response_row: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Index of each response's row among the usable rows, shape `(N,)`."""
    response: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Hash of each response's text."""
    rank: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.zeros((0, len(FEATURES)), np.int32))
    """Features of each response, shape `(N, F)`."""
    better: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Index of the preferred response of each strict pair, shape `(M,)`."""
    worse: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Index of the other response."""
    score_gap: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Score of the preferred minus that of the other response, NaN without scores, shape `(M,)`."""

    @property
    def usable(self) -> int:
        """Number of usable rows."""
        return len(self.number)

    @property
    def pairs(self) -> int:
        """Number of strict pairs."""
        return len(self.better)

    @property
    def pair_row(self) -> np.ndarray:
        """Index of each pair's row among the usable rows."""
        return self.response_row[self.better]

    @property
    def pair_group(self) -> np.ndarray:
        """Prompt group of each strict pair."""
        return self.group[self.pair_row]

    @property
    def gaps(self) -> np.ndarray:
        """Features of the preferred minus those of the other response of each strict pair, shape `(M, F)`."""
        return self.counts[self.better].astype(np.int64) - self.counts[self.worse]

    def lengths(self) -> Lengths:
        """Lengths in characters."""
        characters = self.counts[:, list(FEATURES).index("characters")]
        return Lengths("characters", self.prompt_length, characters[self.better], characters[self.worse])


def gather_facts(reader: RowReader, pool: RowPool, first_number: int = 0) -> RowFacts:
    """Read all rows once.

    Args:
        reader: The data.
        pool: Receives the texts of usable rows, to find duplicates.
        first_number: Number of the first row in the pool.

    Returns:
        The facts.
    """
    gatherer = _Gatherer()
    for batch in reader.batches():
        usable = [(read, read.row) for read in batch if read.row is not None]
        pool.add([row for _, row in usable], [first_number + read.number for read, _ in usable])
        for read in batch:
            gatherer.add(read)
        gatherer.pack()
    return gatherer.facts(len(reader))


class _Gatherer:
    """Columns that grow row by row. Each batch is packed: a list of Python numbers takes eight times the memory."""

    def __init__(self) -> None:
        self.result = RowFacts()
        self.layouts: Counter[str] = Counter()
        self.unusable: Counter[str] = Counter()
        self.usable = self.responses = 0
        self.open: dict[str, list] = {name: [] for name in _COLUMNS}
        self.packed: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}

    def add(self, read: ReadRow) -> None:
        self.layouts[read.layout] += 1 if read.row is not None else 0
        if read.row is None:
            self.unusable[read.problem] += 1
            examples = self.result.unusable_rows.setdefault(read.problem, [])
            examples += [read.number] if len(examples) < NAMED_ROWS else []
            return
        row, columns = read.row, self.open
        if row.prompts_differed:
            self.result.prompts_differed.append(read.number)
        self.result.remarks.add(read.number, remarks_of(row))
        if _looks_like_transcript(row):
            self.result.transcripts += 1
            self.result.transcript_rows += [read.number] if self.result.transcripts <= NAMED_ROWS else []
        columns["number"].append(read.number)
        columns["group"].append(text_hash(str(row.group)))
        prompt = prompt_text(row)
        columns["prompt"].append(text_hash(prompt))
        columns["prompt_length"].append(len(prompt))
        columns["votes"].append(read_votes(read.raw) or (0, 0, 0) if len(row.ranks) == 2 else (0, 0, 0))
        columns["preferred"].append(_preferred(row.ranks))
        pairs = [(i, j) for i, first in enumerate(row.ranks) for j, second in enumerate(row.ranks) if first < second]
        columns["score_gap"] += score_gaps_of(row, read.raw, pairs)
        columns["better"] += [self.responses + better for better, _ in pairs]
        columns["worse"] += [self.responses + worse for _, worse in pairs]
        for i, rank in enumerate(row.ranks):
            text = response_text(row, i)
            columns["response_row"].append(self.usable)
            columns["response"].append(text_hash(text))
            columns["rank"].append(rank)
            columns["counts"].append(count_features(text))
        self.usable += 1
        self.responses += len(row.ranks)

    def pack(self) -> None:
        for name, values in self.open.items():
            if values:
                self.packed[name].append(np.array(values, _COLUMNS[name]))
                values.clear()

    def facts(self, rows: int) -> RowFacts:
        self.result.rows = rows
        self.result.layouts = {name: count for name, count in self.layouts.most_common() if count}
        self.result.unusable = dict(self.unusable.most_common())
        for name, arrays in self.packed.items():
            if arrays:
                setattr(self.result, name, np.concatenate(arrays))
        return self.result


_COLUMNS: dict[str, type] = {
    **dict.fromkeys(("group", "prompt", "response"), np.uint64),
    **dict.fromkeys(("number", "preferred", "prompt_length", "response_row", "rank"), np.int64),
    **dict.fromkeys(("better", "worse", "votes"), np.int64),
    "score_gap": np.float64,
    "counts": np.int32,
}


def _preferred(ranks: Sequence[int]) -> int:
    if len(ranks) != 2 or ranks[0] == ranks[1]:
        return -1
    return int(ranks[1] < ranks[0])


def _looks_like_transcript(row: PreferenceRow) -> bool:
    texts = [response for response in row.responses if isinstance(response, str)]
    return bool(texts) and all(text.lstrip().startswith("Human:") and "\n\nAssistant:" in text for text in texts)
