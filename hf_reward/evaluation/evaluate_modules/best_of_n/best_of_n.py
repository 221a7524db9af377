"""What best-of-n by these rewards would bring.

An `evaluate` module: its loader copies this file and scans it by line, so imports are absolute, one to a line, and no
sentence begins a line with that word.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_reward.metrics.best_of_n import best_of_n_curve

_DESCRIPTION = (
    "Expected true worth of the response with the highest reward among n, for every n, as the mean over all subsets of "
    "the responses; the mean over prompts."
)
_INPUTS = """
Args:
    rewards: For each prompt the rewards of its responses; as many for every prompt.
    gold: For each prompt the worth of its responses, such as 1 for correct and 0 for wrong.
"""


class BestOfN(evaluate.Metric):
    """Best-of-n curve."""

    def _info(self) -> evaluate.MetricInfo:
        numbers = datasets.Sequence(datasets.Value("float64"))
        features = datasets.Features({"rewards": numbers, "gold": numbers})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=features)

    def _compute(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *, rewards: Any, gold: Any, **others: Any
    ) -> dict[str, Any]:
        # `others` are inputs of the metrics that this one is combined with.
        counts = {len(each) for each in (*rewards, *gold)}
        if len(counts) != 1:
            raise ValueError(f"Every prompt needs as many responses as the others, but there are {sorted(counts)}.")
        worth = np.asarray(gold, float)
        curve = best_of_n_curve(np.asarray(rewards, float), worth).mean(axis=0)
        best, end = float(curve.max()), float(curve[-1])
        return {
            "best_of_n": [float(value) for value in curve],
            "highest": best,
            "highest_at_n": int(curve.argmax()) + 1,
            "end": end,
            "end_regret": best - end,
            "oracle_gap": float(worth.max(axis=1).mean()) - end,
            "num_prompts": len(worth),
        }
