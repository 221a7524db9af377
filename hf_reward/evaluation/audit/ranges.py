"""Largest minus smallest mean over groups, with a test that knows that such a range is above 0 by chance."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from hf_reward.evaluation.audit.findings import About, Finding, empty_finding
from hf_reward.evaluation.audit.inference import UNIT, Inference
from hf_reward.metrics.arrays import FloatArray
from hf_reward.metrics.intervals import FEW_CLUSTERS

PERMUTATIONS = 2000
_CHUNK = 100


def range_finding(
    inference: Inference,
    about: About,
    values: FloatArray,
    clusters: Sequence[str],
    *,
    delta: float,
    unit: str,
) -> Finding:
    """Largest minus smallest group mean, less what chance alone gives.

    The p-value is that of a permutation test: if the group makes no difference, its labels may be exchanged within each
    item. The mean range of the permutations is what chance gives; the estimate is what the observed range has beyond
    it, at least 0. The interval of the true range comes from simultaneous bounds on all differences of groups: observed
    range -/+ the quantile of max_{g,h} |(m*_g - m*_h) - (m_g - m_h)| over resamples. For rates it is at least as wide
    as what N items without a single difference leave open. So it is wide on purpose.

    Args:
        inference: Its resamples and, for effects in typical margins, its unit.
        about: Family, name and label.
        values: One for each item and group, shape `(N, K)`; each item is a cluster of its own.
        clusters: Cluster of each item.
        delta: How large a range may be and still not matter.
        unit: Of the estimate; rewards in `UNIT` are divided by the typical margin.

    Returns:
        The finding, without `q_value`.

    Source:
        Fisher (1935) for the permutation test; Phipson and Smyth (2010) for (b + 1) / (m + 1).
    """
    found = empty_finding(about, unit, n=len(values), clusters=len(set(clusters)), delta=delta)
    scaled = unit == UNIT
    if found.clusters < 2 or (scaled and inference.unit is None):
        return replace(found, note="There are too few items, or the typical margin is 0.")
    observed = float(np.ptp(values.mean(axis=0)))
    chance = permuted_ranges(values, seed=inference.bootstrap.seed)
    p_value = float((1 + np.sum(chance >= observed - 1e-12)) / (1 + len(chance)))
    size = inference.margin if scaled else 1.0
    spread = _spread(inference, values, clusters, scaled)
    observed, expected = observed / size, float(chance.mean()) / size
    count = found.clusters
    reach, inner = _reaches(spread, count, None if scaled else len(values))
    estimate, low = max(0.0, observed - expected), max(0.0, observed - reach)
    biased = p_value <= 0.05 and low > 0 and estimate > delta
    equivalent = observed + inner < delta
    settled = count >= FEW_CLUSTERS
    return replace(
        found,
        estimate=estimate,
        ci_low=low,
        ci_high=observed + reach,
        p_value=p_value,
        mde=reach + 0.84 * float(np.std(spread)),
        verdict="biased" if settled and biased else "equivalent" if settled and equivalent else "inconclusive",
        note=f"The range is {observed:.3f}, of which chance alone would give {expected:.3f} on average.",
    )


def _reaches(spread: FloatArray, clusters: int, items: int | None) -> tuple[float, float]:
    """Half widths of the 95% and the 90% interval; of `items` rates at least what they leave open if none differs."""
    # Resamples of few clusters vary too little: as t to the normal quantile, and C / (C - 1) for the variance.
    wider = np.sqrt(clusters / (clusters - 1)) * stats.t.ppf(0.975, clusters - 1) / stats.norm.ppf(0.975)
    reach, inner = wider * np.quantile(spread, [0.95, 0.90])
    if items is not None:
        reach, inner = (max(each, 1 - level ** (1 / items)) for each, level in ((reach, 0.05), (inner, 0.10)))
    return float(reach), float(inner)


def permuted_ranges(values: FloatArray, *, seed: int, permutations: int = PERMUTATIONS) -> FloatArray:
    """Ranges of the group means after the labels of the groups were exchanged within each item.

    Args:
        values: Shape `(N, K)`.
        seed: Of the permutations.
        permutations: How many.

    Returns:
        The ranges, shape `(permutations,)`.
    """
    generator = np.random.default_rng(seed)
    found = []
    for start in range(0, permutations, _CHUNK):  # some at a time: all would be large
        copies = np.broadcast_to(values, (min(_CHUNK, permutations - start), *values.shape))
        found.append(np.ptp(generator.permuted(copies, axis=2).mean(axis=1), axis=1))
    return np.concatenate(found)


def _spread(inference: Inference, values: FloatArray, clusters: Sequence[str], scaled: bool) -> FloatArray:
    """Largest error of a difference of two groups in each resample, shape `(B,)`."""
    weights = inference.bootstrap.weights(clusters)
    totals = weights.sum(axis=1)
    kept = totals > 0
    draws, means = weights[kept] @ values / totals[kept, None], values.mean(axis=0)
    if scaled and inference.unit is not None:
        units = inference.unit.draws[kept]
        usable = units > 0
        draws, means = draws[usable] / units[usable, None], means / inference.unit.value
    return np.ptp(draws - means, axis=1)
