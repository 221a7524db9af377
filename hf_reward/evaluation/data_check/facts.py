"""One pass over the rows -> what the findings are computed from: numbers and hashes, never the texts themselves."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hf_reward.data.near_duplicates import RowPool, text_hash
from hf_reward.data.preference_row import PreferenceRow
from hf_reward.data.row_remarks import RemarkTally, remarks_of
from hf_reward.data.row_text import prompt_text, response_text
from hf_reward.evaluation.data_check.row_reader import ReadRow, RowReader
from hf_reward.evaluation.data_check.style_features import FEATURES, count_features
from hf_reward.evaluation.data_check.votes import read_votes

EXAMPLES = 5
"""Rows named for each finding."""


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
    """Rows whose sides came with different prompts."""
    remarks: RemarkTally = field(default_factory=RemarkTally)
    """What was seen of usable rows when they were read."""
    transcripts: int = 0
    """Usable text rows that look like `\\n\\nHuman:` transcripts but were not read as such."""
    number: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Place of each usable row in the data, shape `(U,)`."""
    group: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    prompt: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Hash of the prompt's text."""
    votes: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    preferred: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Which of two responses is preferred; -1 for a tie or a longer list."""
    response_row: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Place of its row among the usable ones, shape `(N,)`."""
    response: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Hash of each response's text."""
    rank: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.zeros((0, len(FEATURES)), np.int32))
    """Features of each response, shape `(N, F)`."""
    better: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Which response is the preferred one of each strict pair, shape `(M,)`."""
    worse: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

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
        """Place of each pair's row among the usable ones."""
        return self.response_row[self.better]

    @property
    def pair_group(self) -> np.ndarray:
        """Prompt group of each strict pair."""
        return self.group[self.pair_row]


def gather_facts(reader: RowReader, pool: RowPool, first_number: int = 0) -> RowFacts:
    """Read all rows once.

    Args:
        reader: The data.
        pool: Takes in the texts of usable rows, to find those that are alike.
        first_number: What the pool calls the first row.

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
    """Columns that grow row by row; each batch is packed, because a list of Python numbers takes eight times more."""

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
            examples += [read.number] if len(examples) < EXAMPLES else []
            return
        row, columns = read.row, self.open
        if row.prompts_differed:
            self.result.prompts_differed.append(read.number)
        self.result.remarks.add(read.number, remarks_of(row))
        self.result.transcripts += _looks_like_transcript(row)
        columns["number"].append(read.number)
        columns["group"].append(text_hash(str(row.group)))
        columns["prompt"].append(text_hash(prompt_text(row)))
        columns["votes"].append(read_votes(read.raw) or (0, 0, 0) if len(row.ranks) == 2 else (0, 0, 0))
        columns["preferred"].append(_preferred(row.ranks))
        for i, first in enumerate(row.ranks):
            text = response_text(row, i)
            columns["response_row"].append(self.usable)
            columns["response"].append(text_hash(text))
            columns["rank"].append(first)
            columns["counts"].append(count_features(text))
            worse = [self.responses + j for j, second in enumerate(row.ranks) if first < second]
            columns["better"] += [self.responses + i] * len(worse)
            columns["worse"] += worse
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
    **dict.fromkeys(("number", "preferred", "response_row", "rank", "better", "worse", "votes"), np.int64),
    "counts": np.int32,
}


def _preferred(ranks: Sequence[int]) -> int:
    if len(ranks) != 2 or ranks[0] == ranks[1]:
        return -1
    return int(ranks[1] < ranks[0])


def _looks_like_transcript(row: PreferenceRow) -> bool:
    texts = [response for response in row.responses if isinstance(response, str)]
    return bool(texts) and all(text.lstrip().startswith("Human:") and "\n\nAssistant:" in text for text in texts)
