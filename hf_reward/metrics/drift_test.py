"""Sequential test for a drift in a series of values: the false alarms of a whole run are bounded, at any step.

Null hypothesis: all values are independent and identically distributed, with any distribution. Then the ranks of new
values among earlier ones are independent and uniform, so their normal scores are independent standard normal numbers,
exactly. A martingale bets that these scores have another mean from some step on. Values that depend on those of the
previous step break the guarantee (`recipes/studies/reward_monitor_null.py`).
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from hf_reward.metrics.arrays import FloatArray, IntArray

_LEAST = 1e-12
"""Distance of a rank from 0 and 1, which have no finite normal score."""


@dataclass(frozen=True)
class DriftEvidence:
    """Evidence for a change in the mean of independent standard normal scores."""

    log_value: float
    """Logarithm of the martingale, in nats; 0 at the start. Under the null hypothesis it ever exceeds ln(1 / a) with
    probability at most a."""
    direction: int
    """1 if the scores rose, -1 if they fell, 0 without scores."""
    start: int
    """Index of the first step after the change that explains the scores best."""


def normal_scores(values: FloatArray, earlier: FloatArray, uniforms: FloatArray) -> FloatArray:
    """Normal score of the rank of each value among the values before it and itself.

    For a value with n values before it, u = (#{less} + U (#{equal} + 1)) / (n + 1) and z = Phi^-1(u). If all values are
    exchangeable and U is uniform, the u are uniform and independent.

    Args:
        values: New values in their order, finite, shape `(k,)`.
        earlier: Values before them, shape `(m,)`.
        uniforms: Random numbers from (0, 1), which order equal values, shape `(k,)`.

    Returns:
        z, independent and standard normal under the null hypothesis, shape `(k,)`.

    Source:
        Vovk, Gammerman and Shafer (2005), "Algorithmic learning in a random world", theorem 8.1.
    """
    everything = np.concatenate([earlier, values])
    numbers = len(earlier) + np.arange(len(values))
    is_before = np.arange(len(everything)) < numbers[:, None]
    less = ((everything < values[:, None]) & is_before).sum(1)
    equal = ((everything == values[:, None]) & is_before).sum(1)
    ranks = (less + uniforms * (equal + 1)) / (numbers + 1)
    return ndtri(np.clip(ranks, _LEAST, 1 - _LEAST))


def drift_evidence(sums: FloatArray, counts: IntArray) -> DriftEvidence:
    """Evidence that the mean of normal scores changed, at an unknown step and by an unknown amount.

    For a change before step j, let k be the number and S the sum of the scores from step j on. The likelihood ratio
    against no change, averaged over means from N(0, 1), is M_j = (1 + k)^-1/2 exp(S^2 / (2 (1 + k))). The result is the
    average over j = 0, 1, ... with the weights 1 / ((j + 1) (j + 2)). Changes after the last of n steps have M = 1 and
    the remaining weight 1 / (n + 1). An average of martingales is one, so Ville's inequality bounds the probability
    that it ever exceeds 1 / a by a.

    Args:
        sums: Sum of the normal scores of each step, shape `(n,)`.
        counts: Number of scores of each step, shape `(n,)`.

    Returns:
        The evidence after the last step.

    Source:
        Robbins (1970), "Statistical methods related to the law of the iterated logarithm", for the average over means;
        Ville (1939), "Etude critique de la notion de collectif", for the inequality.
    """
    n = len(sums)
    if n == 0:
        return DriftEvidence(0.0, 0, 0)
    totals, numbers = sums[::-1].cumsum()[::-1], counts[::-1].cumsum()[::-1]
    starts = np.arange(n)
    terms = totals**2 / (2 * (1 + numbers)) - np.log1p(numbers) / 2 - np.log((starts + 1) * (starts + 2))
    best = int(terms.argmax())
    value = np.logaddexp.reduce(np.append(terms, -np.log(n + 1)))
    return DriftEvidence(float(value), int(np.sign(totals[best])), best)
