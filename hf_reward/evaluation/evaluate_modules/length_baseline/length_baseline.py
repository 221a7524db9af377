"""Accuracy of the length baseline, which prefers the longer response.

An `evaluate` module. Its loader copies this file and scans it by line: imports must be absolute, one per line, and no
other line may start with the word `import` or `from`.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_reward.metrics.preference import clustered_interval, pairwise_credit

_DESCRIPTION = (
    "Accuracy of the rule 'prefer the longer response', in characters, with half-credit for ties and a 95% interval "
    "clustered by prompt. Compare a reward model with this accuracy and with one minus it."
)
_INPUTS = """
Args:
    chosen_texts: The preferred responses.
    rejected_texts: The other responses, in the same order.
    groups: Optional, any integers: the prompt of each pair, by which the interval is clustered.
"""


class LengthBaseline(evaluate.Metric):
    """Accuracy of the length rule."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = datasets.Features({"chosen_texts": text, "rejected_texts": text})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=features)

    def _compute(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *, chosen_texts: Any, rejected_texts: Any, groups: Any = None, **others: Any
    ) -> dict[str, float]:
        # `others` are inputs of metrics that are combined with this one.
        gaps = np.array([len(a) - len(b) for a, b in zip(chosen_texts, rejected_texts, strict=True)], float)
        if len(gaps) == 0:
            raise ValueError("There are no pairs. Pass `chosen_texts` and `rejected_texts` of at least one pair.")
        credit = pairwise_credit(gaps)
        found = clustered_interval(credit, np.arange(len(gaps)) if groups is None else np.asarray(groups))
        return {
            "length_baseline": float(credit.mean()),
            "length_baseline_ci_low": found.low,
            "length_baseline_ci_high": found.high,
            "equal_length_rate": float(np.mean(gaps == 0)),
        }
