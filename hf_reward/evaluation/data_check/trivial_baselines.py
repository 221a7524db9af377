"""Rows -> accuracies of trivial baselines, the excess accuracy of a random split, and labels that they contradict."""

from dataclasses import dataclass

import numpy as np

from hf_reward.data.extras import optional
from hf_reward.evaluation.baselines import (
    Baseline,
    cross_fitted_tfidf,
    cross_validated_name,
    cross_validated_tfidf,
    length_rule,
    tfidf_bradley_terry,
)
from hf_reward.evaluation.data_check.facts import RowFacts
from hf_reward.evaluation.data_check.label_noise import LabelNoise, find_label_noise
from hf_reward.evaluation.data_check.row_reader import RowReader

_SHARED = 0.05
"""Smallest share of rows with a shared prompt for which the two ways to split are compared."""


@dataclass(frozen=True, kw_only=True)
class TrivialBaselines:
    """Accuracies of trivial baselines, with half-credit for ties and 95% intervals clustered by prompt."""

    rows: int
    """Rows that they were computed on; of large data a random part in complete prompt groups."""
    sampled: bool
    length: Baseline
    """Prefer the response with more characters."""
    by_prompt: Baseline | None
    """TF-IDF Bradley-Terry with length, cross-validated by prompt group; None for a single group. This and the next two
    are None without scikit-learn."""
    by_row: Baseline | None
    """The same, cross-validated by row, as a random split would show it. None if fewer than 5% of the rows share their
    prompt."""
    on_eval: Baseline | None
    """The same, fitted on these rows and scored on the evaluation rows."""
    eval_length: Baseline | None
    """Prefer the response with more characters, on the evaluation rows."""

    @property
    def leak(self) -> float | None:
        """Accuracy by row minus accuracy by prompt."""
        if self.by_prompt is None or self.by_row is None:
            return None
        return self.by_row.accuracy - self.by_prompt.accuracy


def score_trivial_baselines(
    train: tuple[RowFacts, RowReader],
    held: tuple[RowFacts, RowReader] | None,
    *,
    max_rows: int,
    seed: int,
) -> tuple[TrivialBaselines | None, LabelNoise | None]:
    """Fit and score the baselines.

    Args:
        train: Training rows.
        held: Evaluation rows, if there are any.
        max_rows: Most rows of each to use; complete prompt groups are drawn at random up to this number.
        seed: For drawing groups and assigning them to folds.

    Returns:
        The accuracies (None if no row holds a strict preference), and the rows whose label the baseline contradicts
        (None without predictions for held-out prompts).
    """
    facts = train[0]
    if not facts.pairs:
        return None, None
    numbers = _sample(facts, max_rows, seed)
    rows = [train[1].row(number) for number in numbers]
    eval_rows = (
        [held[1].row(number) for number in _sample(held[0], max_rows, seed)]
        if held is not None and held[0].pairs
        else []
    )
    sizes = np.unique([str(row.group) for row in rows], return_counts=True)[1]
    learned = optional("sklearn", "data", "The TF-IDF baseline is left out.") is not None
    several = learned and len(sizes) > 1
    # Where few rows share their prompt, both splits differ only by chance.
    shared = sizes[sizes > 1].sum() >= _SHARED * len(rows)
    fitted = cross_fitted_tfidf(rows, seed=seed, sees_length=True) if several else None
    name = cross_validated_name(by_row=False, sees_length=True)
    scores = TrivialBaselines(
        rows=len(rows),
        sampled=len(rows) < len(np.unique(facts.pair_row)),
        length=length_rule(rows),
        by_prompt=fitted.baseline(name) if fitted is not None else None,
        by_row=cross_validated_tfidf(rows, seed=seed, by_row=True, sees_length=True) if several and shared else None,
        on_eval=tfidf_bradley_terry(rows, eval_rows, sees_length=True) if learned and eval_rows else None,
        eval_length=length_rule(eval_rows) if eval_rows else None,
    )
    return scores, None if fitted is None else find_label_noise(fitted, numbers, train[1])


def _sample(facts: RowFacts, max_rows: int, seed: int) -> list[int]:
    """Draw rows with a strict preference, in complete prompt groups unless the first group is too large."""
    strict = np.unique(facts.pair_row)
    groups, sizes = np.unique(facts.group[strict], return_inverse=True, return_counts=True)[1:]
    order = np.random.default_rng(seed).permutation(len(sizes))
    taken = max(1, int(np.searchsorted(np.cumsum(sizes[order]), max_rows, side="right")))
    chosen = strict[np.isin(groups, order[:taken])][:max_rows]
    return facts.number[chosen].tolist()
