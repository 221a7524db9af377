"""Calibration of reward differences under the Bradley-Terry model.

An `evaluate` module. Its loader copies this file and scans it by line: imports must be absolute, one per line, and no
other line may start with the word `import` or `from`.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_reward.metrics.calibration import calibration_metrics

_DESCRIPTION = (
    "Calibration of sigmoid(reward difference): slope and temperature, debiased and naive calibration error with the "
    "floor of a calibrated model, Brier score and Spiegelhalter's test."
)
_INPUTS = """
Args:
    chosen: Rewards of the preferred responses.
    rejected: Rewards of the other responses, in the same order.
    groups: Optional, any integers: the prompt of each pair, by which intervals, errors and the test are clustered.
    num_bins: Optional: bins of the calibration errors; by default one per 50 pairs, at most 15.
"""


class PreferenceCalibration(evaluate.Metric):
    """Calibration on pairs."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"chosen": datasets.Value("float64"), "rejected": datasets.Value("float64")})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=features)

    def _compute(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *, chosen: Any, rejected: Any, groups: Any = None, num_bins: int | None = None, **others: Any
    ) -> dict[str, float]:
        # `others` are inputs of metrics that are combined with this one.
        gaps = np.asarray(chosen, float) - np.asarray(rejected, float)
        clusters = None if groups is None else np.asarray(groups)
        return calibration_metrics(gaps, clusters, num_bins=num_bins)
