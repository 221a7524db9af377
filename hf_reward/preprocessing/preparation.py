"""Convert raw datasets to tokenised datasets, with a summary of kept, cut, merged and dropped rows.

Rows are parsed and tokenised in one batched pass. Each input row gives exactly one output row with a `problem` column,
so that counts are correct with the cache and worker processes of `datasets`. Unusable rows are removed afterwards.
"""

import gc
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import (
    Dataset,
    Features,
    IterableDataset,
    List,
    Value,
    concatenate_datasets,
    interleave_datasets,
)
from transformers import PreTrainedTokenizerBase

from hf_reward.data.interface import setting
from hf_reward.data.preference_row import PreferenceFormatError, PreferenceRow, rename_columns
from hf_reward.data.preferences import detect_layout, to_preference_row
from hf_reward.data.row_locations import FileLines, RowLocations, remembered_files, with_row_locations
from hf_reward.data.row_remarks import remark_clauses
from hf_reward.data.sources import RawDataset, Source, as_sources, load_source
from hf_reward.preprocessing.data_summary import BATCH_SIZE, DataSummary, summarize, summarize_all
from hf_reward.preprocessing.image_columns import IMAGE_FEATURES, expanded_row, image_token_problems, with_image_columns
from hf_reward.preprocessing.length_balance import SURPLUS, mark_surplus
from hf_reward.preprocessing.tokenization import FormatRule, TokenizedRow, tokenize_rows

logger = logging.getLogger(__name__)

TOKENIZED_FEATURES = Features(
    {
        "input_ids": List(List(Value("int32"))),
        "token_type_ids": List(List(Value("int8"))),
        "ranks": List(Value("int32")),
        "prefix_length": Value("int32"),
        "words": List(Value("int32")),
        "characters": List(Value("int32")),
        "length": Value("int32"),
        "margin": Value("float32"),
        "probability": Value("float32"),
        "weight": Value("float32"),
        "group": Value("int64"),
        "row": Value("int64"),
        "id": Value("string"),
        "source": Value("string"),
        "content_hash": Value("int64"),
        "cut_tokens": Value("int32"),
        "merged": Value("int32"),
        "prompts_differed": Value("bool"),
        "conversational": Value("bool"),
        "remarks": List(Value("string")),
        "problem": Value("string"),
    }
)
"""Columns of a prepared dataset. `length` is the number of tokens of all sequences. `words` and `characters` have one
entry per response and are empty for tokenised input. `row` is the row number in the raw data."""


@dataclass(frozen=True, kw_only=True)
class PreparationRule:
    """Settings for the conversion of raw rows to training rows."""

    format: FormatRule = field(default_factory=FormatRule)
    models_ties: bool = False
    """Whether the loss can use rows without a strict preference."""
    strict_order: bool = False
    """Whether the loss cannot use rows with ties."""
    skip_bad_rows: bool = False
    """Drop and count unreadable rows instead of raising an error for the first one."""
    balance_lengths: bool = False
    """Drop rows of each source until length does not predict the preference; see `length_balance`."""
    balance_seed: int = 42
    """Random seed of the choice among surplus rows."""
    images: Any = None
    """`ImageProcessing` of a vision-language model."""


def prepare_preferences(
    data: Any,
    tokenizer: PreTrainedTokenizerBase,
    rule: PreparationRule | None = None,
    *,
    name: str = "data",
    num_proc: int | None = None,
    seed: int = 42,
    **source_defaults: Any,
) -> tuple[RawDataset, DataSummary]:
    """Read, tokenise and filter preference data of any accepted form.

    Args:
        data: Data as accepted by `as_sources`, or a prepared dataset, which is returned unchanged unless
            `balance_lengths` is set.
        tokenizer: The model's tokenizer.
        rule: Length limit and properties of the loss.
        name: Name of the data in messages.
        num_proc: Number of processes for tokenisation.
        seed: Random seed of the rows that a mixture with weights selects.
        **source_defaults: `split`, `columns` and `layout` for sources without their own.

    Returns:
        The tokenised rows (a stream if the data is a stream) and the summary.

    Raises:
        PreferenceFormatError: If a row fits no layout and `skip_bad_rows` is off.
        ValueError: If no usable row is left, or `balance_lengths` is set for a stream.
    """
    rule = rule or PreparationRule()
    if is_prepared(data):
        marked = _balanced(data, rule, name)
        summary = summarize(marked, name)
        if rule.balance_lengths:
            logger.info("%s", summary)
        _require_rows(summary, rule, [marked])
        return (_usable(marked) if rule.balance_lengths else data), summary
    parts, marked_parts, places = [], [], []
    sources = as_sources(data, **source_defaults)
    for source in sources:
        raw = load_source(source)
        places.append(RowLocations(raw))
        mapped = tokenize_source(raw, source, tokenizer, rule, num_proc=num_proc)
        mapped = _balanced(mapped, rule, source.name)
        marked_parts.append(mapped)
        parts.append(_usable(mapped))
    summary = summarize_all(marked_parts, name, places, limit=rule.format.max_length)
    logger.info("%s", summary)
    for clause in remark_clauses(summary.remarks, summary.remark_places):
        logger.warning("Of %s rows of %s, %s.", summary.kept, name, clause)
    _require_rows(summary, rule, marked_parts)
    return _mix(parts, sources, seed), summary


def _balanced(data: RawDataset, rule: PreparationRule, name: str) -> RawDataset:
    """Balance each source separately, so that copies of it (see `weight`) are balanced too."""
    return mark_surplus(data, seed=rule.balance_seed, name=name) if rule.balance_lengths else data


def is_prepared(data: Any) -> bool:
    """Return whether a dataset has the columns of `prepare_preferences`."""
    names = getattr(data, "column_names", None)
    return isinstance(data, (Dataset, IterableDataset)) and {"input_ids", "ranks", "prefix_length"} <= set(names or [])


def tokenize_source(
    raw: RawDataset,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    rule: PreparationRule,
    *,
    num_proc: int | None = None,
) -> RawDataset:
    """Tokenise one raw dataset. Unusable rows are kept, with the reason in `problem`."""
    if isinstance(raw, Dataset) and len(raw) == 0:
        raise ValueError(f"The data {source.name!r} must have at least one row, but is empty.")
    columns = _column_names(raw, source.name)
    if source.layout == "auto":
        detect_layout(rename_columns(dict.fromkeys(columns), source.columns))
    # Balancing comes later, so it must not change the cache key of the tokenised rows.
    rule = replace(rule, balance_lengths=False, balance_seed=PreparationRule.balance_seed)
    settings: dict[str, Any] = {
        "function": _prepare_batch,
        "with_indices": True,
        "batched": True,
        "batch_size": BATCH_SIZE,
        "remove_columns": columns,
        "features": TOKENIZED_FEATURES if rule.images is None else Features({**TOKENIZED_FEATURES, **IMAGE_FEATURES}),
        "fn_kwargs": {"tokenizer": tokenizer, "rule": rule, "source": _fingerprintable(source)},
    }
    if isinstance(raw, Dataset):
        settings |= {"num_proc": num_proc, "desc": f"Tokenizing {source.name}"}
    elif files := remembered_files(raw):
        settings |= {"function": _prepare_streamed, "fn_kwargs": {"files": files, **settings["fn_kwargs"]}}
    with with_row_locations(raw):
        if isinstance(raw, Dataset) and (num_proc or 1) > 1:
            return _tokenize_in_workers(raw, settings)
        return raw.map(**settings)


def _tokenize_in_workers(raw: Dataset, settings: dict[str, Any]) -> Dataset:
    """Tokenise in several processes, and raise the error of the first unreadable row in this one.

    Workers count unreadable rows instead, because `datasets` may wait forever for a pool in which a worker has failed.
    """
    own = settings["fn_kwargs"]
    _prepare_batch(raw[:1], [0], **own)  # raises errors of the tokenizer
    tolerant = {**own, "rule": replace(own["rule"], skip_bad_rows=True)}
    mapped = raw.map(**{**settings, "fn_kwargs": tolerant})
    if not own["rule"].skip_bad_rows:
        for place, problem in enumerate(mapped["problem"][:]):
            if problem.startswith("unreadable"):
                _prepare_batch(raw[place : place + 1], [place], **own)
    return mapped


def _fingerprintable(source: Source) -> dict[str, Any]:
    """Return the fields of a source that affect its tokens, without the data, which `datasets` hashes itself."""
    return {"name": source.name, "columns": dict(source.columns or {}), "layout": source.layout}


def _column_names(raw: RawDataset, name: str) -> list[str]:
    names = raw.column_names
    if names is None:  # a stream of unknown features
        names = next(iter(raw), None)
    if names is None:
        raise ValueError(f"The data {name!r} must have at least one row, but is empty.")
    return list(names)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disable garbage collection, which takes 25% longer: a batch creates many small lists but no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_garbage_collection()
def _prepare_batch(
    batch: Mapping[str, Sequence[Any]],
    indices: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    rule: PreparationRule,
    source: Mapping[str, Any],
) -> dict[str, list[Any]]:
    names = list(batch)
    rows: list[PreferenceRow] = []
    problems: dict[int, str] = {}
    for place, values in enumerate(zip(*batch.values(), strict=True)):
        try:
            raw = dict(zip(names, values, strict=True))
            row = to_preference_row(raw, layout=source["layout"], columns=source["columns"], row_index=indices[place])
            row = row if rule.images is None else expanded_row(row, rule.images, indices[place])
        except PreferenceFormatError as error:
            if not rule.skip_bad_rows:
                raise
            problems[place] = f"unreadable ({error.field or 'row'})"
            row = PreferenceRow(prompt="", responses=["", ""], ranks=[0, 1], token_ids=[[0], [1]])
        rows.append(row)
    tokenized = _tokenize(rows, tokenizer, rule, indices)
    if rule.images is not None:
        problems |= image_token_problems(tokenized, rule.images, None if rule.skip_bad_rows else indices)
    for place, result in enumerate(tokenized):
        result.problem = problems.get(place) or result.problem or _unusable_for_loss(rows[place], result, rule)
    columns = _as_columns(rows, tokenized, indices, source["name"])
    return columns if rule.images is None else with_image_columns(columns, tokenized, rule.images)


def _prepare_streamed(
    batch: Mapping[str, Sequence[Any]], indices: Sequence[int], files: Sequence[Path], **settings: Any
) -> dict[str, list[Any]]:
    """Run `_prepare_batch` and add the line to errors: a streamed row's number depends on workers and shuffling."""
    try:
        return _prepare_batch(batch, indices, **settings)
    except PreferenceFormatError as error:
        if error.row_index is None:
            raise
        number = list(indices).index(error.row_index)
        place = FileLines(files).find({name: values[number] for name, values in batch.items()})
        raise PreferenceFormatError(error.message, error.row_index, error.field, place) from None


def _tokenize(
    rows: Sequence[PreferenceRow], tokenizer: PreTrainedTokenizerBase, rule: PreparationRule, indices: Sequence[int]
) -> list[TokenizedRow]:
    """Tokenise a batch. If it fails, tokenise its rows one by one to find the row for the error or the count."""
    try:
        return tokenize_rows(rows, tokenizer, rule.format)
    except PreferenceFormatError as error:
        if error.field is not None:  # an error of the tokenizer, not of one row
            raise
    results = []
    for row, index in zip(rows, indices, strict=True):
        try:
            results += tokenize_rows([row], tokenizer, rule.format)
        except PreferenceFormatError as error:
            if not rule.skip_bad_rows:
                raise PreferenceFormatError(error.message, index, error.field) from None
            results.append(TokenizedRow(problem="unreadable (chat template or length)"))
    return results


def _unusable_for_loss(row: PreferenceRow, result: TokenizedRow, rule: PreparationRule) -> str:
    """Return the reason why the loss cannot use a row, or ""."""
    if row.probability is not None and len(result.ranks) == 2:
        return ""
    distinct = len(set(result.ranks))
    if distinct < 2 and not rule.models_ties:
        return "tied"
    if distinct < len(result.ranks) and rule.strict_order:
        return "with ties, where the loss needs a strict order"
    return ""


def _as_columns(
    rows: Sequence[PreferenceRow], tokenized: Sequence[TokenizedRow], indices: Sequence[int], source: str
) -> dict[str, list[Any]]:
    return {
        **{name: [getattr(result, name) for result in tokenized] for name in _TOKENIZED_COLUMNS},
        **{name: [getattr(row, name) for row in rows] for name in _ROW_COLUMNS},
        "length": [sum(map(len, result.input_ids)) for result in tokenized],
        "group": [_group_number(row.group) for row in rows],
        "row": list(indices),
        "source": [row.source or source for row in rows],
        # In Python, hashes of tuples of integers are the same in every process.
        "content_hash": [hash(tuple(map(tuple, result.input_ids))) for result in tokenized],
        "conversational": [None if row.token_ids is not None else row.is_conversational() for row in rows],
    }


_TOKENIZED_COLUMNS = [each.name for each in fields(TokenizedRow) if each.name != "images"]
_ROW_COLUMNS = ("id", "margin", "probability", "weight", "prompts_differed")


def _group_number(group: str | None) -> int:
    """Hash a group's name to a positive 60-bit integer, which fits a tensor."""
    return int(hashlib.sha256(str(group).encode()).hexdigest()[:15], 16)


def _usable(mapped: RawDataset) -> RawDataset:
    if isinstance(mapped, IterableDataset):
        return mapped.filter(lambda problem: problem == "", input_columns=["problem"])
    usable = np.flatnonzero([problem == "" for problem in mapped["problem"][:]])  # [:] reads the column at once
    return mapped if len(usable) == len(mapped) else mapped.select(usable)


def _mix(parts: Sequence[RawDataset], sources: Sequence[Source], seed: int) -> RawDataset:
    streams = [part for part in parts if isinstance(part, IterableDataset)]
    if len(streams) == len(parts):
        if len(streams) == 1:
            return streams[0]
        total = sum(source.weight for source in sources)
        shares = [source.weight / total for source in sources]
        return interleave_datasets(streams, probabilities=shares, seed=seed, stopping_strategy="all_exhausted")
    datasets = [part for part in parts if isinstance(part, Dataset)]
    if len(datasets) < len(parts):
        raise ValueError(
            "The sources of a mixture must all be streams or all be datasets, but this mixture has both. Load all "
            "sources in the same way."
        )
    weighted = [_repeat(part, source.weight, seed) for part, source in zip(datasets, sources, strict=True)]
    return weighted[0] if len(weighted) == 1 else concatenate_datasets(weighted)


def _repeat(data: Dataset, weight: float, seed: int) -> Dataset:
    """Repeat each row `weight` times: full copies, plus a random part of the rows for the fraction."""
    copies, part = divmod(weight, 1)
    rest = np.random.default_rng(seed).permutation(len(data))[: round(part * len(data))]
    places = np.concatenate([np.tile(np.arange(len(data)), int(copies)), np.sort(rest)])
    return data if weight == 1 else data.select(places.astype(int))


def _require_rows(summary: DataSummary, rule: PreparationRule, marked: Sequence[RawDataset]) -> None:
    if summary.kept:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(summary.dropped.items())) or "there were none"
    remedy = "Check the data."
    if summary.dropped.get(SURPLUS):
        remedy = (
            f"No bin of length differences has rows in both directions. Train without `{setting('balance_lengths')}`."
        )
    if summary.dropped.get("too long"):
        remedy = (
            f"`{setting('max_length', rule.format.max_length)}` is shorter than the responses. To keep 99% of the rows "
            f"uncut, set `{setting('max_length', summary.length_for_99_percent)}`."
        )
    raise ValueError(f"{summary.name}: none of {summary.rows} rows can be used ({reasons}). {remedy}")
