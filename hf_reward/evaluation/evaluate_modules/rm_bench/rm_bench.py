"""Compute the table of RM-Bench from rewards.

An `evaluate` module. Its loader copies this file and scans it by line: imports must be absolute, one per line, and no
other line may start with the word `import` or `from`.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_reward.evaluation.benchmarks.base import Comparison
from hf_reward.evaluation.benchmarks.rm_bench import STYLES, RMBench
from hf_reward.evaluation.benchmarks.spreads import outcome_of

_DESCRIPTION = "RM-Bench: easy, normal, hard, the domains and their mean, with the arithmetic of the original code."
_INPUTS = """
Args:
    chosen: For each prompt, the rewards of the correct answer's three styles: concise, plain, markdown.
    rejected: The same for the wrong answer.
    domain: chat, math, code, safety-refuse or safety-response.
"""


class RMBenchMetric(evaluate.Metric):
    """RM-Bench's table."""

    def _info(self) -> evaluate.MetricInfo:
        numbers = datasets.Sequence(datasets.Value("float64"))
        features = datasets.Features({"chosen": numbers, "rejected": numbers, "domain": datasets.Value("string")})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=features)

    def _compute(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *, chosen: Any, rejected: Any, domain: Any, **others: Any
    ) -> dict[str, float]:
        # `others` are inputs of metrics that are combined with this one.
        rewards = np.concatenate([np.asarray(chosen, float), np.asarray(rejected, float)], axis=1)
        if rewards.shape[1] != 2 * STYLES or not np.isfinite(rewards).all():
            raise ValueError(f"`chosen` and `rejected` must hold {STYLES} finite rewards each, found {rewards.shape}.")
        benchmark = RMBench()
        unknown = set(domain) - benchmark.counts.keys()
        if unknown:
            raise ValueError(f"`domain` must be one of {', '.join(benchmark.counts)}, but holds {sorted(unknown)}.")
        rows = [_row(place, each) for place, each in enumerate(domain)]
        outcome = outcome_of(benchmark, rows, list(rewards))
        return {"overall": float(outcome.overall)} | {name: float(each) for name, each in outcome.sections.items()}


def _row(place: int, domain: str) -> Comparison:
    ranks = [0] * STYLES + [1] * STYLES
    return Comparison(id=str(place), prompt="", responses=[], ranks=ranks, subset=domain, cluster=str(place))
