"""Accuracy of a reward model on pairs, with its interval.

An `evaluate` module. Its loader copies this file and scans it by line: imports must be absolute, one per line, and no
other line may start with the word `import` or `from`.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_reward.metrics.preference import preference_metrics

_DESCRIPTION = (
    "Share of pairs whose preferred response has the higher reward: strict (ties are wrong) with a 95% interval "
    "clustered by prompt, with half-credit for ties, and the tie rate."
)
_INPUTS = """
Args:
    chosen: Rewards of the preferred responses.
    rejected: Rewards of the other responses, in the same order.
    groups: Optional, any integers: the prompt of each pair, by which the interval is clustered.
"""
_KEPT = (
    *("accuracy", "accuracy_ci_low", "accuracy_ci_high", "accuracy_half_credit", "tie_rate"),
    *("margin", "log_loss", "brier_score", "num_pairs", "num_prompts"),
)


class PreferenceAccuracy(evaluate.Metric):
    """Accuracy on pairs."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"chosen": datasets.Value("float64"), "rejected": datasets.Value("float64")})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=features)

    def _compute(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *, chosen: Any, rejected: Any, groups: Any = None, **others: Any
    ) -> dict[str, float]:
        # `others` are inputs of metrics that are combined with this one.
        rewards = np.stack([np.asarray(chosen, float), np.asarray(rejected, float)], axis=1)
        ranks = np.tile([0, 1], (len(rewards), 1))
        found = preference_metrics(rewards, ranks, groups=None if groups is None else np.asarray(groups))
        return {name: found[name] for name in _KEPT}
