"""Compute the fraction of pairs in which the longer or more formatted response is preferred."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hf_reward.evaluation.data_check.facts import RowFacts
from hf_reward.evaluation.data_check.style_features import FEATURES, LENGTHS, WHAT_COUNTS
from hf_reward.metrics.intervals import Interval, mean_spread, rate_interval, rate_p_value
from hf_reward.metrics.preference import pairwise_credit

TOLERANCE = 0.05
"""Largest distance from one half of a balanced share; fixed in advance."""


@dataclass(frozen=True, kw_only=True)
class Imbalance:
    """How often the response with more of a feature is preferred.

    Pairs with equal counts are left out of `share` and count half in `share_ties_half`.
    """

    feature: str
    unit: str
    """Description of the feature."""
    share: float | None
    interval: Interval | None
    """95% interval of `share`, clustered by prompt."""
    share_ties_half: float | None
    pairs: int
    """Pairs with different counts."""
    ties: int
    p_value: float | None
    """For the null hypothesis that the share is one half, clustered by prompt."""
    adjusted_p_value: float | None
    """`p_value` corrected for the number of features (Holm, 1979)."""
    verdict: str
    """`imbalanced` if the interval excludes one half, the share differs from it by more than 0.05 and the corrected
    p-value is below 0.05; `balanced` if the interval is within 0.05 of one half; otherwise `inconclusive`; `none`
    without pairs."""


def find_imbalances(facts: RowFacts) -> list[Imbalance]:
    """Compare the preferred and the other response of each strict pair.

    Args:
        facts: Facts about the rows.

    Returns:
        One entry for each feature, lengths first.
    """
    gaps = facts.gaps
    return corrected([imbalance(name, gaps[:, i], facts.pair_group) for i, name in enumerate(FEATURES)])


def corrected(found: Sequence[Imbalance]) -> list[Imbalance]:
    """Correct p-values and verdicts for the number of features, because some differ from one half by chance.

    Args:
        found: Imbalances of one data set.

    Returns:
        The imbalances with `adjusted_p_value` and a verdict based on it.
    """
    p_values = {each.feature: each.p_value for each in found if each.p_value is not None}
    by_name = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return [
        replace(
            each,
            adjusted_p_value=by_name.get(each.feature),
            verdict=_verdict(each.share, each.interval, by_name.get(each.feature)),
        )
        for each in found
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for the number of tests.

    Args:
        p_values: P-values of all tests.

    Returns:
        The adjusted p-values in the same order.

    Source:
        Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    order = np.argsort(p_values)
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(np.take(p_values, order) * np.arange(len(order), 0, -1))
    return np.minimum(adjusted, 1).tolist()


def imbalance(feature: str, gaps: np.ndarray, groups: np.ndarray) -> Imbalance:
    """Compute the share of pairs whose preferred response has more of a feature.

    Args:
        feature: Name of the feature.
        gaps: Count of the preferred response minus that of the other, shape `(M,)`.
        groups: Prompt group of each pair, shape `(M,)`.

    Returns:
        The share, its interval and a verdict.
    """
    differ = gaps != 0
    share = interval = p_value = None
    if differ.any():
        credits = pairwise_credit(gaps[differ].astype(float))
        spread = mean_spread(credits, groups[differ])
        share, interval, p_value = spread.estimate, rate_interval(spread), rate_p_value(spread, 0.5)
    return Imbalance(
        feature=feature,
        unit=WHAT_COUNTS.get(feature, feature),
        share=share,
        interval=interval,
        share_ties_half=float(pairwise_credit(gaps.astype(float)).mean()) if len(gaps) else None,
        pairs=int(differ.sum()),
        ties=int((~differ).sum()),
        p_value=p_value,
        adjusted_p_value=p_value,
        verdict=_verdict(share, interval, p_value),
    )


def _verdict(share: float | None, interval: Interval | None, p_value: float | None) -> str:
    if share is None or interval is None:
        return "none"
    if np.isnan(interval.low):
        return "inconclusive"
    sure = (interval.low > 0.5 or interval.high < 0.5) and p_value is not None and p_value < 0.05
    if sure and abs(share - 0.5) > TOLERANCE:
        return "imbalanced"
    within = interval.low > 0.5 - TOLERANCE and interval.high < 0.5 + TOLERANCE
    return "balanced" if within else "inconclusive"


def is_length(found: Imbalance) -> bool:
    """Return whether a feature is a length."""
    return found.feature in (*LENGTHS, "tokens")
