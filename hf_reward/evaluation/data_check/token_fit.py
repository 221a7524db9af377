"""Rows + tokenizer -> how long they are in tokens, and what `max_length` would cut or drop."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_reward.data.near_duplicates import text_hash
from hf_reward.data.path_safety import shown_name
from hf_reward.data.preference_row import PreferenceFormatError, PreferenceRow
from hf_reward.data.row_remarks import RemarkTally, remarks_of
from hf_reward.evaluation.data_check.imbalance import Imbalance, imbalance
from hf_reward.evaluation.data_check.row_reader import RowReader
from hf_reward.metrics.preference import strict_pairs
from hf_reward.preprocessing.tokenization import FormatRule, TokenizedRow, tokenize_rows

_POINTS = {"median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, kw_only=True)
class TokenFit:
    """What tokenising does to the usable rows."""

    tokenizer: str
    max_length: int | None
    over_length: str
    """What is done with longer rows; see `FormatRule`."""
    rows: int
    quantiles: dict[str, int]
    """Tokens of the longest sequence of a row, before anything is cut."""
    cut_rows: int
    """Rows whose prompt is cut to fit."""
    cut_tokens: int
    dropped: dict[str, int]
    """Reason -> rows that training would leave out."""
    remarks: dict[str, int]
    """`lost_text`, `doubled_bos`, `doubled_end`: rows of which that is to be said; see `row_remarks`."""
    remark_rows: dict[str, list[int]]
    """Remark -> the first of these rows."""
    length: Imbalance
    """How often the longer response is preferred, in tokens, of the rows that are kept."""
    places: dict[int, str] = field(default_factory=dict)
    """Number of a row that is named here -> its file and line."""


@dataclass
class _Tally:
    longest: list[int] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    gaps: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    remarks: RemarkTally = field(default_factory=RemarkTally)


def measure_tokens(reader: RowReader, tokenizer: PreTrainedTokenizerBase, rule: FormatRule) -> TokenFit:
    """Tokenise all usable rows as training would.

    Args:
        reader: The data.
        tokenizer: The model's tokenizer.
        rule: Length limit and what is done beyond it.

    Returns:
        Lengths and counts.

    Raises:
        PreferenceFormatError: If the rows hold messages and the tokenizer has no chat template.
    """
    tally = _Tally()
    unlimited = FormatRule(max_length=None, separator=rule.separator)
    # `error` would stop the count at its first row; it refuses what `drop` drops.
    counted = FormatRule(
        max_length=rule.max_length,
        over_length="drop" if rule.over_length == "error" else rule.over_length,
        separator=rule.separator,
    )
    for batch in reader.batches():
        rows = [read.row for read in batch if read.row is not None]
        numbers = [read.number for read in batch if read.row is not None]
        whole = _tokenize(rows, tokenizer, unlimited)
        long = [place for place, full in enumerate(whole) if _longest(full) > (rule.max_length or np.inf)]
        fitted = dict(zip(long, _tokenize([rows[place] for place in long], tokenizer, counted), strict=True))
        for place, (row, full) in enumerate(zip(rows, whole, strict=True)):
            tally.longest.append(_longest(full))
            _count(tally, row, fitted.get(place, full))
            tally.remarks.add(numbers[place], sorted({*full.remarks} - {*remarks_of(row)}))
    gaps, groups = np.array(tally.gaps, np.int64), np.array(tally.groups, np.uint64)
    return TokenFit(
        tokenizer=shown_name(tokenizer.name_or_path or type(tokenizer).__name__),
        max_length=rule.max_length,
        over_length=rule.over_length,
        rows=len(tally.cut),
        quantiles={name: int(np.quantile(tally.longest, point)) for name, point in _POINTS.items()}
        if tally.longest
        else {},
        cut_rows=sum(cut > 0 for cut in tally.cut),
        cut_tokens=sum(tally.cut),
        dropped=dict(tally.dropped.most_common()),
        remarks=tally.remarks.counts,
        remark_rows=tally.remarks.rows,
        places={row: reader.place(row) for rows in tally.remarks.rows.values() for row in rows},
        length=imbalance("tokens", gaps, groups),
    )


def _tokenize(rows: list[PreferenceRow], tokenizer: PreTrainedTokenizerBase, rule: FormatRule) -> list[TokenizedRow]:
    """Tokenise a batch; rows that the tokenizer or its template refuses are marked, not raised."""
    if not rows:
        return []
    try:
        return tokenize_rows(rows, tokenizer, rule)
    except PreferenceFormatError as error:
        if error.field is not None:  # concerns the tokenizer, not one row
            raise
        if len(rows) == 1:
            unusable = TokenizedRow(input_ids=[], token_type_ids=None, ranks=[], prefix_length=0)
            unusable.problem = "refused by the chat template"
            return [unusable]
    middle = len(rows) // 2
    return _tokenize(rows[:middle], tokenizer, rule) + _tokenize(rows[middle:], tokenizer, rule)


def _longest(row: TokenizedRow) -> int:
    return max(map(len, row.input_ids), default=0)


def _count(tally: _Tally, row: PreferenceRow, fitted: TokenizedRow) -> None:
    tally.cut.append(0 if fitted.problem else fitted.cut_tokens)
    if fitted.problem:
        tally.dropped[fitted.problem] += 1
        return
    lengths = [len(ids) for ids in fitted.input_ids]
    pairs = strict_pairs(np.array([fitted.ranks]))
    tally.gaps += [lengths[better] - lengths[worse] for better, worse in zip(pairs.better, pairs.worse, strict=True)]
    tally.groups += [text_hash(str(row.group))] * len(pairs.row)
