"""Interval for pairs that share responses, from resampled responses, and the number of responses."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_reward.data.near_duplicates import text_hash
from hf_reward.data.row_text import contents_of
from hf_reward.evaluation.benchmarks.base import Comparison, pair_credit
from hf_reward.metrics.arrays import FloatArray
from hf_reward.metrics.counts import counted
from hf_reward.metrics.intervals import FEW_CLUSTERS, rate_interval
from hf_reward.metrics.shared_responses import response_spread


def shared_responses(comparisons: Sequence[Comparison], rewards: Sequence[FloatArray]) -> dict[str, Any] | None:
    """Describe how far pairs share responses.

    Args:
        comparisons: The rows that count.
        rewards: The rewards of each.

    Returns:
        `responses` (different texts of a prompt), `pairs`, `ci` of the mean over rows with responses as clusters (see
        `response_spread`), `ci_method`, and `too_few_responses`; None if every response occurs in one pair only.
    """
    ends: list[tuple[Any, Any]] = []
    weights: list[float] = []
    credits: list[float] = []
    for row, given in zip(comparisons, rewards, strict=True):
        names = [(row.cluster, text_hash(contents_of(response))) for response in row.responses]
        pairs = row.pairs()
        ends += [(names[i], names[j]) for i, j in pairs]
        weights += [1 / len(pairs)] * len(pairs)
        credits += [pair_credit(given[i], given[j], 0.0) for i, j in pairs]
    responses = len({name for pair in ends for name in pair})
    if responses == 2 * len(ends):
        return None
    first, second = zip(*ends, strict=True)
    found = rate_interval(response_spread(np.array(credits), first, second, np.array(weights)))
    return {
        "responses": responses,
        "pairs": len(ends),
        "ci": found.bounds,
        "ci_method": f"{counted(responses, 'response')} resampled, of the same prompts ({found.method})",
        "too_few_responses": responses < FEW_CLUSTERS,
    }
