"""Expected gold score of best-of-n selection by a reward, for every n.

Shapes: R prompts, N responses to each.
"""

import numpy as np
from scipy.special import gammaln
from scipy.stats import rankdata

from hf_reward.metrics.arrays import FloatArray, IntArray


def best_of_n_curve(rewards: FloatArray, gold: FloatArray) -> FloatArray:
    """Expected gold score of the response with the highest reward among n drawn without replacement, for n = 1 to N.

    With responses sorted by reward, V_n = sum_{i=n}^{N} C(i-1, n-1) / C(N, n) gold_(i). This is the exact mean over all
    subsets of size n, without sampling. Responses with equal rewards share their mean gold score, which is the
    expectation of a random choice among them.

    Args:
        rewards: Finite rewards, shape `(R, N)` or `(N,)`.
        gold: Gold score of each response, such as 1 for correct and 0 for wrong, same shape.

    Returns:
        V_1 ... V_N, float64, shape `(R, N)` or `(N,)`.

    Raises:
        ValueError: If the shapes differ, there are no responses, or a value is not finite.

    Source:
        Gao et al. (2022), "Scaling laws for reward model overoptimization", appendix A, after Nakano et al. (2021).
    """
    rewards, gold = np.asarray(rewards, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if rewards.shape != gold.shape or rewards.ndim not in (1, 2) or rewards.shape[-1] == 0:
        raise ValueError(
            "`rewards` and `gold` must both have shape (N,) or (R, N) with N > 0, but have "
            f"{rewards.shape} and {gold.shape}. Call the function once for each number of responses N."
        )
    for name, values in (("rewards", rewards), ("gold", gold)):
        if not np.isfinite(values).all():
            raise ValueError(f"`{name}` must be finite, but has NaN or infinity. Leave out these prompts.")
    if rewards.ndim == 1:
        return best_of_n_curve(rewards[None], gold[None])[0]
    order = np.argsort(rewards, axis=1, kind="stable")
    scores = np.take_along_axis(_mean_of_equals(rewards, gold), order, axis=1)
    return scores @ _probabilities(rewards.shape[1])


def kl_of_best_of_n(n: IntArray) -> FloatArray:
    """KL divergence of best-of-n from the sampled policy: ln n - (n - 1) / n, in nats.

    Args:
        n: Numbers of responses, 1 or more.

    Returns:
        The divergence for each n, same shape.

    Source:
        Stiennon et al. (2020), appendix G.3; an upper bound if responses repeat (Beirami et al., 2024).
    """
    numbers = np.asarray(n, dtype=np.float64)
    return np.log(numbers) - (numbers - 1) / numbers


def _probabilities(count: int) -> FloatArray:
    """P(the i-th lowest of N is the highest of n drawn) in row i - 1 and column n - 1, shape `(N, N)`."""
    i, n = np.arange(1, count + 1)[:, None], np.arange(1, count + 1)[None, :]
    spare = np.maximum(i - n, 0)
    logs = (gammaln(i) - gammaln(n) - gammaln(spare + 1)) - (
        gammaln(count + 1) - gammaln(n + 1) - gammaln(count - n + 1)
    )
    return np.where(i >= n, np.exp(logs), 0.0)


def _mean_of_equals(rewards: FloatArray, gold: FloatArray) -> FloatArray:
    """Gold score of each response, averaged over the responses of its prompt with the same reward."""
    ranks = rankdata(rewards, method="dense", axis=1).astype(int) - 1
    rows = np.arange(len(rewards))[:, None]
    flat = (rows * rewards.shape[1] + ranks).ravel()
    totals, counts = (np.bincount(flat, weights=each, minlength=rewards.size) for each in (gold.ravel(), None))
    return (totals / np.maximum(counts, 1))[flat].reshape(rewards.shape)
