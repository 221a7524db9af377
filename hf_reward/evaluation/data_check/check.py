"""Preference data -> a report of its problems."""

from dataclasses import replace
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_reward.data.extras import optional
from hf_reward.data.near_duplicates import GRAM, MIN_RESPONSE_WORDS, SIMILARITY, RowPool
from hf_reward.evaluation.data_check.consistency import find_contradictions
from hf_reward.evaluation.data_check.duplicates import find_duplicates
from hf_reward.evaluation.data_check.example_rows import DataSide
from hf_reward.evaluation.data_check.facts import NAMED_ROWS, RowFacts, gather_facts
from hf_reward.evaluation.data_check.fix_first import fix_first
from hf_reward.evaluation.data_check.histograms import all_histograms
from hf_reward.evaluation.data_check.imbalance import find_imbalances
from hf_reward.evaluation.data_check.leakage import find_leakage
from hf_reward.evaluation.data_check.report import DataReport, RowCounts
from hf_reward.evaluation.data_check.row_reader import RowReader
from hf_reward.evaluation.data_check.shift import measure_shift
from hf_reward.evaluation.data_check.token_fit import measure_tokens
from hf_reward.evaluation.data_check.trivial_baselines import score_trivial_baselines
from hf_reward.evaluation.data_check.votes import vote_agreement
from hf_reward.preprocessing.tokenization import FormatRule
from hf_reward.preprocessing.tokenizer import prepare_tokenizer


def check_data(
    data: Any,
    *,
    eval_data: Any = None,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    rule: FormatRule | None = None,
    max_baseline_rows: int = 20_000,
    seed: int = 42,
    **source_defaults: Any,
) -> DataReport:
    """Check preference data.

    Without rensa the check does not look for near duplicates; without scikit-learn it leaves out the baselines that
    learn from texts. Rows are read several times, and only the rows of the trivial baselines are held in memory. Memory
    grows by about a kilobyte per row, not with the texts.

    Args:
        data: A path, a Hub id, a dataset, rows, or a mixture (see `as_sources`); not a stream.
        eval_data: Evaluation data, to find rows that also occur in `data`.
        tokenizer: A name or a tokenizer, to measure lengths in tokens as training would.
        rule: Length limit and over-length policy; by default 1024 tokens and truncated prompts.
        max_baseline_rows: Most rows for the trivial baselines, in complete prompt groups drawn at random.
        seed: For drawing these groups and for cross-validation.
        **source_defaults: `split`, `columns` and `layout` for sources that name none.

    Returns:
        The report.

    Raises:
        ValueError: If the data cannot be read, is a stream or tokenised, or `max_baseline_rows` is below 2.
        PreferenceFormatError: If its columns do not match any layout.
    """
    if max_baseline_rows < 2:
        raise ValueError(f"`max_baseline_rows` must be 2 or more, but is {max_baseline_rows}.")
    reader = RowReader(data, **source_defaults)
    eval_reader = None if eval_data is None else RowReader(eval_data, **source_defaults)
    rule = rule or FormatRule()
    ready = _tokenizer(tokenizer)
    near = optional("rensa", "data", "Near duplicates are not looked for.") is not None
    pool = RowPool(lambda number: _row(reader, eval_reader, number), near=near)
    facts = gather_facts(reader, pool)
    held = None if eval_reader is None else (gather_facts(eval_reader, pool, first_number=len(reader)), eval_reader)
    clusters, train = pool.clusters(), (facts, reader)
    fit, lengths = (None, facts.lengths()) if ready is None else measure_tokens(reader, ready, rule)
    sides = DataSide(_row_counts(*train), *train), None if held is None else DataSide(_row_counts(*held), *held)
    shallow_rules, label_noise = score_trivial_baselines(train, held, max_rows=max_baseline_rows, seed=seed)
    report = DataReport(
        data=sides[0].counts,
        eval_data=None if sides[1] is None else sides[1].counts,
        duplicates=find_duplicates(facts, clusters),
        contradictions=find_contradictions(facts),
        leakage=None if held is None else find_leakage(facts, held[0], clusters, len(reader)),
        shift=measure_shift(train, held, seed) if held is not None and facts.usable and held[0].usable else None,
        histograms=all_histograms(lengths, facts.score_gap),
        imbalances=find_imbalances(facts),
        shallow_rules=shallow_rules,
        label_noise=label_noise,
        votes=vote_agreement(facts.votes, facts.preferred, facts.group),
        tokens=fit,
        fix_first=[],
        settings={**_near_settings(near), "max_baseline_rows": max_baseline_rows, "seed": seed, **rule.to_dict()},
    )
    return replace(report, fix_first=fix_first(report, *sides))


def _near_settings(near: bool) -> dict[str, Any]:
    return {
        "near_duplicate_gram_words": GRAM if near else None,
        "near_duplicate_jaccard": SIMILARITY if near else None,
        "shortest_response_compared_words": MIN_RESPONSE_WORDS,
    }


def _row(reader: RowReader, eval_reader: RowReader | None, number: int) -> Any:
    """Return a row by its number in the pool, where evaluation rows follow the others."""
    if number < len(reader) or eval_reader is None:
        return reader.row(number)
    return eval_reader.row(number - len(reader))


def _tokenizer(tokenizer: str | PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase | None:
    if tokenizer is None:
        return None
    return prepare_tokenizer(AutoTokenizer.from_pretrained(tokenizer) if isinstance(tokenizer, str) else tokenizer)


def _row_counts(facts: RowFacts, reader: RowReader) -> RowCounts:
    lists = (facts.prompts_differed[:NAMED_ROWS], *facts.unusable_rows.values(), *facts.remarks.rows.values())
    named = {row for rows in lists for row in rows}
    return RowCounts(
        name=reader.name,
        rows=facts.rows,
        usable=facts.usable,
        strict_pairs=facts.pairs,
        tied_rows=facts.usable - len(np.unique(facts.pair_row)),
        layouts=facts.layouts,
        unusable=facts.unusable,
        unusable_rows=facts.unusable_rows,
        prompts_differed=len(facts.prompts_differed),
        prompts_differed_rows=facts.prompts_differed[:NAMED_ROWS],
        remarks=facts.remarks.counts,
        remark_rows=facts.remarks.rows,
        transcripts=facts.transcripts,
        places={row: reader.place(row) for row in sorted(named)},
    )
