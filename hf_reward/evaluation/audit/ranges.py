"""Range of group means, with a permutation test, because the range is above 0 even without an effect."""

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
    """Return the largest minus the smallest group mean, minus the range expected by chance.

    The p-value comes from a permutation test: without an effect of the group, labels can be exchanged within each item.
    The estimate is the observed range minus the mean range of the permutations, at least 0. The interval of the true
    range comes from simultaneous bounds on all differences of groups: observed range -/+ the quantile of
    max_{g,h} |(m*_g - m*_h) - (m_g - m_h)| over resamples. For rates it is at least as wide as the bound for N items
    without any difference. It is therefore conservative.

    Args:
        inference: Resamples and, for effects in typical margins, the unit.
        about: Family, name and label.
        values: One value per item and group, shape `(N, K)`; each item is its own cluster.
        clusters: Cluster of each item.
        delta: Largest range that does not matter.
        unit: Unit of the estimate; rewards in `UNIT` are divided by the typical margin.

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
        note=f"The range is {observed:.3f}; {expected:.3f} is expected by chance.",
    )


def _reaches(spread: FloatArray, clusters: int, items: int | None) -> tuple[float, float]:
    """Half widths of the 95% and the 90% interval; for `items` rates at least the bound without any difference."""
    # Resamples of few clusters vary too little. The factor is t over normal quantile, and C / (C - 1) for the variance.
    wider = np.sqrt(clusters / (clusters - 1)) * stats.t.ppf(0.975, clusters - 1) / stats.norm.ppf(0.975)
    reach, inner = wider * np.quantile(spread, [0.95, 0.90])
    if items is not None:
        reach, inner = (max(each, 1 - level ** (1 / items)) for each, level in ((reach, 0.05), (inner, 0.10)))
    return float(reach), float(inner)


def permuted_ranges(values: FloatArray, *, seed: int, permutations: int = PERMUTATIONS) -> FloatArray:
    """Return ranges of the group means after permuting the group labels within each item.

    Args:
        values: Shape `(N, K)`.
        seed: Seed of the permutations.
        permutations: Number of permutations.

    Returns:
        The ranges, shape `(permutations,)`.
    """
    generator = np.random.default_rng(seed)
    found = []
    for start in range(0, permutations, _CHUNK):  # in chunks, to limit memory
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
