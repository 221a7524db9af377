"""Rows + tokenizer -> their lengths in tokens, and the rows that `max_length` would cut or drop."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from hf_reward.data.near_duplicates import text_hash
from hf_reward.data.path_safety import shown_name
from hf_reward.data.preference_row import PreferenceFormatError, PreferenceRow
from hf_reward.data.row_remarks import RemarkTally, remarks_of
from hf_reward.evaluation.data_check.facts import NAMED_ROWS
from hf_reward.evaluation.data_check.histograms import Lengths
from hf_reward.evaluation.data_check.imbalance import Imbalance, imbalance
from hf_reward.evaluation.data_check.row_reader import RowReader
from hf_reward.evaluation.data_check.token_sharing import SAMPLE, TokenSharing, token_sharing
from hf_reward.metrics.preference import strict_pairs
from hf_reward.preprocessing.tokenization import FormatRule, TokenizedRow, tokenize_rows

_POINTS = {"median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, kw_only=True)
class TokenFit:
    """Effects of tokenising the usable rows."""

    tokenizer: str
    max_length: int | None
    over_length: str
    """Policy for longer rows; see `FormatRule`."""
    rows: int
    quantiles: dict[str, int]
    """Tokens of the longest sequence of a row, before any cut."""
    cut_rows: int
    """Rows whose prompt is cut to fit."""
    cut_row_numbers: list[int]
    """The first few of them."""
    cut_tokens: int
    dropped: dict[str, int]
    """Reason -> rows that training would leave out."""
    dropped_rows: dict[str, list[int]]
    """Reason -> the first few of them."""
    remarks: dict[str, int]
    """Remark (`lost_text`, `doubled_bos` or `doubled_end`; see `row_remarks`) -> number of rows."""
    remark_rows: dict[str, list[int]]
    """Remark -> the first of these rows."""
    length: Imbalance
    """How often the longer response is preferred, in tokens, among the rows that are kept."""
    sharing: TokenSharing
    """Tokens given and tokens computed in training."""
    places: dict[int, str] = field(default_factory=dict)
    """Number of a row that is named here -> its file and line."""


@dataclass
class _Tally:
    longest: list[int] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    cut_rows: list[int] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_rows: dict[str, list[int]] = field(default_factory=dict)
    gaps: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    sample: list[list[list[int]]] = field(default_factory=list)
    sample_prompts: list[int] = field(default_factory=list)
    remarks: RemarkTally = field(default_factory=RemarkTally)


def measure_tokens(reader: RowReader, tokenizer: PreTrainedTokenizerBase, rule: FormatRule) -> tuple[TokenFit, Lengths]:
    """Tokenise all usable rows as training would.

    Args:
        reader: The data.
        tokenizer: The model's tokenizer.
        rule: Length limit and over-length policy.

    Returns:
        Counts, and the lengths in tokens before any cut. The tokens that all sequences of a row share count as its
        prompt, the others as its responses.

    Raises:
        PreferenceFormatError: If the rows hold messages and the tokenizer has no chat template.
    """
    tally = _Tally()
    unlimited = FormatRule(max_length=None, separator=rule.separator)
    # `error` would stop at the first row; it refuses the rows that `drop` drops.
    counted = FormatRule(
        max_length=rule.max_length,
        over_length="drop" if rule.over_length == "error" else rule.over_length,
        separator=rule.separator,
    )
    for batch in reader.batches():
        rows = [read.row for read in batch if read.row is not None]
        numbers = [read.number for read in batch if read.row is not None]
        uncut = _tokenize(rows, tokenizer, unlimited)
        long = [i for i, full in enumerate(uncut) if _longest(full) > (rule.max_length or np.inf)]
        fitted = dict(zip(long, _tokenize([rows[i] for i in long], tokenizer, counted), strict=True))
        for i, (row, full) in enumerate(zip(rows, uncut, strict=True)):
            _add_lengths(tally, full)
            _count(tally, numbers[i], row, fitted.get(i, full))
            tally.remarks.add(numbers[i], sorted({*full.remarks} - {*remarks_of(row)}))
    gaps, groups = np.array(tally.gaps, np.int64), np.array(tally.groups, np.uint64)
    fit = TokenFit(
        tokenizer=shown_name(tokenizer.name_or_path or type(tokenizer).__name__),
        max_length=rule.max_length,
        over_length=rule.over_length,
        rows=len(tally.cut),
        quantiles={name: int(np.quantile(tally.longest, point)) for name, point in _POINTS.items()}
        if tally.longest
        else {},
        cut_rows=sum(cut > 0 for cut in tally.cut),
        cut_row_numbers=tally.cut_rows,
        cut_tokens=sum(tally.cut),
        dropped=dict(tally.dropped.most_common()),
        dropped_rows=tally.dropped_rows,
        remarks=tally.remarks.counts,
        remark_rows=tally.remarks.rows,
        places={row: reader.place(row) for rows in tally.remarks.rows.values() for row in rows},
        length=imbalance("tokens", gaps, groups),
        sharing=token_sharing(tally.sample, tally.sample_prompts),
    )
    return fit, Lengths("tokens", *(np.array(each, np.int64) for each in (tally.prompt, tally.chosen, tally.rejected)))


def _tokenize(rows: list[PreferenceRow], tokenizer: PreTrainedTokenizerBase, rule: FormatRule) -> list[TokenizedRow]:
    """Tokenise a batch; a row that the tokenizer or its template refuses gets a `problem` instead of an error."""
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


def _add_lengths(tally: _Tally, full: TokenizedRow) -> None:
    tally.longest.append(_longest(full))
    if full.problem:
        return
    tally.prompt.append(full.prefix_length)
    for better, worse in _pairs(full):
        tally.chosen.append(len(full.input_ids[better]) - full.prefix_length)
        tally.rejected.append(len(full.input_ids[worse]) - full.prefix_length)


def _count(tally: _Tally, number: int, row: PreferenceRow, fitted: TokenizedRow) -> None:
    tally.cut.append(0 if fitted.problem else fitted.cut_tokens)
    if fitted.problem:
        tally.dropped[fitted.problem] += 1
        _name(tally.dropped_rows.setdefault(fitted.problem, []), number)
        return
    if fitted.cut_tokens:
        _name(tally.cut_rows, number)
    prompt = text_hash(str(row.group))
    if len(tally.sample) < SAMPLE:
        tally.sample.append(fitted.input_ids)
        tally.sample_prompts.append(prompt)
    gaps = [len(fitted.input_ids[better]) - len(fitted.input_ids[worse]) for better, worse in _pairs(fitted)]
    tally.gaps += gaps
    tally.groups += [prompt] * len(gaps)


def _name(rows: list[int], number: int) -> None:
    rows += [number] if len(rows) < NAMED_ROWS else []


def _pairs(row: TokenizedRow) -> list[tuple[int, int]]:
    pairs = strict_pairs(np.array([row.ranks]))
    return list(zip(pairs.better.tolist(), pairs.worse.tolist(), strict=True))
