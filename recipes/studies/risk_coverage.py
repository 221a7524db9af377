"""Errors and confidences -> risk-coverage curves of abstaining from uncertain pairs.

Shapes: P pairs, M heads.
"""

from collections.abc import Sequence

import numpy as np

from hf_reward.metrics.intervals import Interval, t_interval
from hf_reward.metrics.spread import Spread, jackknife

_FEWEST = 100


def agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute the agreement of the heads on a pair: |mean of their gaps| / standard deviation of their gaps.

    Args:
        first: Rewards of the first response of each pair by each head, shape `(P, M)`.
        second: Rewards of the second response.

    Returns:
        Confidence, infinite if all heads give the same nonzero gap, and 0 if every gap is 0, shape `(P,)`.
    """
    gaps = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    mean, spread = np.abs(gaps.mean(1)), gaps.std(1, ddof=1)
    return np.divide(mean, spread, out=np.where(mean > 0, np.inf, 0.0), where=spread > 0)


def risk_coverage(errors: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Compute the error rate among the k most confident pairs, for every k.

    Pairs of equal confidence get the mean of their errors, the expected value under a random order.

    Args:
        errors: 1 where the model is wrong, 0 where it is right, 0.5 for equal rewards, shape `(P,)`.
        confidence: Larger values mean higher confidence, shape `(P,)`.

    Returns:
        Risk at coverage 1/P, 2/P, ..., 1, shape `(P,)`, float64.

    Raises:
        ValueError: If there is no pair, the shapes differ, or a confidence is NaN.

    Source:
        Geifman and El-Yaniv (2017), "Selective classification for deep neural networks", section 2.
    """
    errors, confidence = np.asarray(errors, dtype=np.float64), np.asarray(confidence, dtype=np.float64)
    if errors.shape != confidence.shape or errors.ndim != 1 or not len(errors) or np.isnan(confidence).any():
        raise ValueError(
            f"`errors` and `confidence` must have one number per pair, at least one pair and no NaN, but have "
            f"shapes {errors.shape} and {confidence.shape} and {int(np.isnan(confidence).sum())} NaN."
        )
    _, level = np.unique(-confidence, return_inverse=True)
    mean = np.bincount(level, errors) / np.bincount(level)
    ordered = mean[np.sort(level)]
    return np.cumsum(ordered) / np.arange(1, len(errors) + 1)


def risk_at(risks: np.ndarray, coverage: float) -> float:
    """Return the risk if only the most confident share of pairs is answered.

    Args:
        risks: Result of `risk_coverage`.
        coverage: The share, above 0 and at most 1; rounded up to whole pairs.

    Returns:
        The error rate among them.

    Raises:
        ValueError: If the share is out of range.
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"`coverage` must be above 0 and at most 1, but is {coverage}.")
    return float(risks[int(np.ceil(coverage * len(risks) - 1e-9)) - 1])


def aurc(errors: np.ndarray, confidence: np.ndarray) -> float:
    """Compute the area under the risk-coverage curve: the mean risk over all coverages. Smaller is better.

    Uninformative confidence gives the error rate itself.

    Args:
        errors: As in `risk_coverage`.
        confidence: As in `risk_coverage`.

    Returns:
        The area.

    Source:
        Geifman, Uziel and El-Yaniv (2019), "Bias-reduced uncertainty estimation for deep neural classifiers",
        section 3.
    """
    return float(risk_coverage(errors, confidence).mean())


def aurc_spread(ways: Sequence[tuple[np.ndarray, np.ndarray]], clusters: np.ndarray) -> Spread:
    """Compute the spread of an area, or of the difference of two, by a jackknife over clusters.

    Args:
        ways: Errors and confidence of one rule for abstaining, or of two rules to compare; as in `aurc`.
        clusters: Cluster of each pair, shape `(P,)`.

    Returns:
        The spread of AURC, or of the first AURC minus the second.

    Raises:
        ValueError: If there are more than two rules.
    """
    if len(ways) not in (1, 2):
        raise ValueError(f"`ways` must hold one rule for abstaining, or two to compare, but holds {len(ways)}.")
    place = np.unique(clusters, return_inverse=True)[1]
    sizes = np.bincount(place).astype(np.float64)
    kept = [place != each for each in range(len(sizes))] if len(sizes) > 1 else []
    estimate, left_out = 0.0, np.zeros(len(sizes))
    for sign, (errors, confidence) in zip((1, -1), ways, strict=False):
        estimate += sign * aurc(errors, confidence)
        left_out[: len(kept)] += [sign * aurc(errors[rest], confidence[rest]) for rest in kept]
    return jackknife(estimate, left_out, sizes / sizes.sum(), sizes)


def aurc_interval(ways: Sequence[tuple[np.ndarray, np.ndarray]], clusters: np.ndarray) -> Interval | None:
    """Compute the 95% interval of `aurc_spread`.

    Args:
        ways: As in `aurc_spread`.
        clusters: As in `aurc_spread`.

    Returns:
        The interval; None below 100 clusters, where it is too narrow (docs/reference/statistics.md).
    """
    spread = aurc_spread(ways, clusters)
    return t_interval(spread) if spread.num_clusters >= _FEWEST else None
