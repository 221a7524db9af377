"""Rows -> what rules that never read score on them, and how much of it a random split would invent."""

from dataclasses import dataclass

import numpy as np

from hf_reward.data.extras import optional
from hf_reward.data.preference_row import PreferenceRow
from hf_reward.evaluation.baselines import Baseline, cross_validated_tfidf, length_rule, tfidf_bradley_terry
from hf_reward.evaluation.data_check.facts import RowFacts
from hf_reward.evaluation.data_check.row_reader import RowReader

_SHARED = 0.05
"""Share of rows that have a prompt in common with another from which on the two ways to split are compared."""


@dataclass(frozen=True, kw_only=True)
class ShallowRules:
    """Accuracy of rules that never read, ties half, with 95% intervals that have prompts as clusters."""

    rows: int
    """Rows they were computed on; of large data a random part in whole prompt groups."""
    sampled: bool
    length: Baseline
    """Prefer the response with more characters."""
    by_prompt: Baseline | None
    """TF-IDF Bradley-Terry that sees length, cross-validated by prompt group; None for one group, or without
    scikit-learn, as the next two."""
    by_row: Baseline | None
    """The same, cross-validated by row: what a random split would show. None if hardly a
    row shares its prompt."""
    on_eval: Baseline | None
    """The same, fitted on these rows and scored on the evaluation rows."""
    eval_length: Baseline | None
    """Prefer the response with more characters, on the evaluation rows."""

    @property
    def leak(self) -> float | None:
        """Accuracy that a split by row adds to the split by prompt."""
        if self.by_prompt is None or self.by_row is None:
            return None
        return self.by_row.accuracy - self.by_prompt.accuracy


def score_shallow_rules(
    train: tuple[RowFacts, RowReader],
    held: tuple[RowFacts, RowReader] | None,
    *,
    max_rows: int,
    seed: int,
) -> ShallowRules | None:
    """Fit and score the rules.

    Args:
        train: Training rows.
        held: Evaluation rows, if there are any.
        max_rows: Most rows of each to use; whole prompt groups are taken at random until it is reached.
        seed: Which groups, and how they are dealt out.

    Returns:
        The accuracies, or None if no row holds a strict preference.
    """
    facts = train[0]
    if not facts.pairs:
        return None
    rows = _sample(*train, max_rows, seed)
    eval_rows = _sample(*held, max_rows, seed) if held is not None and held[0].pairs else []
    sizes = np.unique([str(row.group) for row in rows], return_counts=True)[1]
    learned = optional("sklearn", "data", "The TF-IDF baseline is left out.") is not None
    several = learned and len(sizes) > 1
    # Where hardly a row shares its prompt, both ways of dealing out are the same but for chance.
    shared = sizes[sizes > 1].sum() >= _SHARED * len(rows)
    return ShallowRules(
        rows=len(rows),
        sampled=len(rows) < len(np.unique(facts.pair_row)),
        length=length_rule(rows),
        by_prompt=cross_validated_tfidf(rows, seed=seed, sees_length=True) if several else None,
        by_row=cross_validated_tfidf(rows, seed=seed, by_row=True, sees_length=True) if several and shared else None,
        on_eval=tfidf_bradley_terry(rows, eval_rows, sees_length=True) if learned and eval_rows else None,
        eval_length=length_rule(eval_rows) if eval_rows else None,
    )


def _sample(facts: RowFacts, reader: RowReader, max_rows: int, seed: int) -> list[PreferenceRow]:
    """Rows that hold a strict preference, of whole prompt groups; part of a group only if the first is too large."""
    strict = np.unique(facts.pair_row)
    groups, sizes = np.unique(facts.group[strict], return_inverse=True, return_counts=True)[1:]
    order = np.random.default_rng(seed).permutation(len(sizes))
    taken = max(1, int(np.searchsorted(np.cumsum(sizes[order]), max_rows, side="right")))
    chosen = strict[np.isin(groups, order[:taken])][:max_rows]
    return [reader.row(int(number)) for number in facts.number[chosen]]
