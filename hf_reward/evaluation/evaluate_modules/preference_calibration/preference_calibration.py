"""Do reward differences mean what Bradley and Terry's model says?

An `evaluate` module: its loader copies this file and scans it by line, so imports are absolute, one to a line, and no
sentence begins a line with that word.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_reward.metrics.calibration import calibration_metrics

_DESCRIPTION = (
    "Calibration of sigmoid(reward difference): slope and temperature, debiased and naive calibration error with the "
    "floor that a calibrated model would have, Brier score and Spiegelhalter's test."
)
_INPUTS = """
Args:
    chosen: Rewards of the preferred responses.
    rejected: Rewards of the others, in the same order.
    groups: Optional, any integers: the prompt of each pair, by which intervals, errors and the test are clustered.
    num_bins: Optional: bins of the calibration errors; by default one for every 50 pairs, 15 at the most.
"""


class PreferenceCalibration(evaluate.Metric):
    """Calibration on pairs."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"chosen": datasets.Value("float64"), "rejected": datasets.Value("float64")})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=features)

    def _compute(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *, chosen: Any, rejected: Any, groups: Any = None, num_bins: int | None = None, **others: Any
    ) -> dict[str, float]:
        # `others` are inputs of the metrics that this one is combined with.
        gaps = np.asarray(chosen, float) - np.asarray(rejected, float)
        clusters = None if groups is None else np.asarray(groups)
        return calibration_metrics(gaps, clusters, num_bins=num_bins)
