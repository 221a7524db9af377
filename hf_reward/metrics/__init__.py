"""Statistics of rewards with confidence intervals, without torch."""

from hf_reward.metrics.arrays import FloatArray, IntArray
from hf_reward.metrics.preference import (
    LENGTH_BASELINES,
    PADDING_RANK,
    LengthComparison,
    StrictPairs,
    accuracy_reading,
    brier_score,
    compare_with_length,
    doubts,
    length_rule_credit,
    log_loss,
    not_shown,
    pairwise_credit,
    preference_metrics,
    strict_pairs,
    strongest_rule,
)

__all__ = [
    "LENGTH_BASELINES",
    "PADDING_RANK",
    "FloatArray",
    "IntArray",
    "LengthComparison",
    "StrictPairs",
    "accuracy_reading",
    "brier_score",
    "compare_with_length",
    "doubts",
    "length_rule_credit",
    "log_loss",
    "not_shown",
    "pairwise_credit",
    "preference_metrics",
    "strict_pairs",
    "strongest_rule",
]
