"""Best-of-n curve of rewards.

An `evaluate` module. Its loader copies this file and scans it by line: imports must be absolute, one per line, and no
other line may start with the word `import` or `from`.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_reward.metrics.best_of_n import best_of_n_curve

_DESCRIPTION = (
    "Expected gold score of the response with the highest reward among n, for every n: the mean over all subsets of "
    "the responses and over prompts."
)
_INPUTS = """
Args:
    rewards: For each prompt, the rewards of its responses. All prompts need the same number of responses.
    gold: For each prompt, the gold scores of its responses, such as 1 for correct and 0 for wrong.
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
        # `others` are inputs of metrics that are combined with this one.
        counts = {len(each) for each in (*rewards, *gold)}
        if len(counts) != 1:
            raise ValueError(f"All prompts need the same number of responses, but have {sorted(counts)} responses.")
        gold_scores = np.asarray(gold, float)
        curve = best_of_n_curve(np.asarray(rewards, float), gold_scores).mean(axis=0)
        best, end = float(curve.max()), float(curve[-1])
        return {
            "best_of_n": [float(value) for value in curve],
            "highest": best,
            "highest_at_n": int(curve.argmax()) + 1,
            "end": end,
            "end_regret": best - end,
            "oracle_gap": float(gold_scores.max(axis=1).mean()) - end,
            "num_prompts": len(gold_scores),
        }
