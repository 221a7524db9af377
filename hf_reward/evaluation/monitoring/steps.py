"""The responses of one step -> means, margin, and association of features with the reward."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hf_reward.evaluation.monitoring.features import MONITORED
from hf_reward.metrics.arrays import FloatArray, IntArray

StepRow = Mapping[str, Any]
"""Statistics of a step, from `step_row`; JSON values, NaN where there are none."""

SERIES = (*MONITORED, "reward", "margin")
"""Series that are tested for a drift."""

_MOST_UNITS = 16
"""Values of a step that are tested. More prompts are averaged in blocks, which bounds the memory of a long run."""


class MeasuredResponse(NamedTuple):
    """A response as the monitor sees it. It holds no text, so it is small enough to send between processes."""

    prompt: Hashable
    """Equal for responses to the same prompt."""
    features: tuple[float, ...]
    """In the order of `MONITORED`."""
    reward: float


def step_row(responses: Sequence[MeasuredResponse], step: int) -> dict[str, Any]:
    """Summarise the responses of a step.

    Args:
        responses: The responses, with finite rewards, N > 0.
        step: Number of the step.

    Returns:
        `step`; `responses` (N); the mean of each of `SERIES`; `association` and `association_score`: feature -> value;
        and `units`: series -> its means over blocks of equally many prompts, in their order.
    """
    values = np.array([[*each.features, each.reward] for each in responses], dtype=np.float64)
    numbers: dict[Hashable, int] = {}
    groups = np.array([numbers.setdefault(each.prompt, len(numbers)) for each in responses])
    margins = reward_margins(values[:, -1], groups)
    by_prompt = np.column_stack([_group_means(values, groups), margins])
    means = [*values.mean(0), np.mean(margins[np.isfinite(margins)]) if np.isfinite(margins).any() else math.nan]
    correlations, scores = within_group_association(values[:, :-1], values[:, -1], groups)
    return {
        "step": step,
        "responses": len(responses),
        **dict(zip(SERIES, map(float, means), strict=True)),
        "association": dict(zip(MONITORED, correlations.tolist(), strict=True)),
        "association_score": dict(zip(MONITORED, scores.tolist(), strict=True)),
        "units": {name: block_means(column).tolist() for name, column in zip(SERIES, by_prompt.T, strict=True)},
    }


def reward_margins(rewards: FloatArray, groups: IntArray) -> FloatArray:
    """Best minus median reward of the responses to each prompt.

    Args:
        rewards: Rewards, shape `(N,)`.
        groups: Index of the prompt of each, shape `(N,)`.

    Returns:
        The margins in reward units, shape `(P,)`; NaN for a prompt with one response.
    """
    order = np.lexsort((rewards, groups))
    ordered, counts = rewards[order], np.bincount(groups)
    ends = counts.cumsum()
    starts = ends - counts
    medians = (ordered[starts + (counts - 1) // 2] + ordered[starts + counts // 2]) / 2
    return np.where(counts > 1, ordered[ends - 1] - medians, math.nan)


def within_group_association(
    features: FloatArray, rewards: FloatArray, groups: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Association of features and reward among responses to the same prompt.

    Both are centred at the mean of the prompt, so differences between prompts play no part. With the sums of squares
    and products Sxx, Syy and Sxy of a prompt with n responses, the correlation is sum(Sxy) / sqrt(sum(Sxx) sum(Syy)),
    and the score is sum(Sxy) / sqrt(sum(Sxx Syy / (n - 1))), whose denominator is the standard deviation over all
    permutations of the rewards of each prompt.

    Args:
        features: Features, shape `(N, F)`.
        rewards: Rewards, shape `(N,)`.
        groups: Index of the prompt of each response, shape `(N,)`. If no prompt has two responses, all are one group.

    Returns:
        Correlations, and scores with mean 0 and variance 1 if the reward does not depend on the feature; shape `(F,)`.
        Both are NaN for a feature that is the same in all responses to each prompt.

    Source:
        Strasser and Weber (1999), "On the asymptotic theory of permutation statistics", for the variance.
    """
    if np.bincount(groups).max() < 2:
        groups = np.zeros_like(groups)
    values = np.column_stack([features, rewards])
    centred = values - _group_means(values, groups)[groups]
    # A mean of equal numbers differs from them by rounding, which would correlate at random.
    centred[np.abs(centred) <= 1e-9 * (1 + np.abs(values))] = 0
    squares = _group_sums(centred**2, groups)
    sxx, syy, sxy = squares[:, :-1], squares[:, -1:], _group_sums(centred[:, :-1] * centred[:, -1:], groups).sum(0)
    freedom = np.maximum(1, np.bincount(groups) - 1)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return sxy / np.sqrt(sxx.sum(0) * syy.sum()), sxy / np.sqrt((sxx * syy / freedom).sum(0))


def block_means(values: FloatArray) -> FloatArray:
    """Means of consecutive blocks of equal size, at most 16 of them.

    Args:
        values: One value for each prompt; NaN is left out.

    Returns:
        The means. The values of an incomplete last block are left out, so that all means have the same distribution.
    """
    values = values[np.isfinite(values)]
    size = max(1, math.ceil(len(values) / _MOST_UNITS))
    return values[: len(values) // size * size].reshape(-1, size).mean(1)


def _group_sums(values: FloatArray, groups: IntArray) -> FloatArray:
    sums = np.zeros((groups.max() + 1, values.shape[1]))
    np.add.at(sums, groups, values)
    return sums


def _group_means(values: FloatArray, groups: IntArray) -> FloatArray:
    return _group_sums(values, groups) / np.bincount(groups)[:, None]
