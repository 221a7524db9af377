"""Poisson bootstrap over clusters, and the resampled median margin, which is the unit of reward effects.

Shapes: N cases, C clusters, B resamples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from hf_reward.metrics.arrays import FloatArray

_BLOCK = 4096
"""Most clusters whose weights are in memory at once."""
_VALUES = 1 << 20
"""Most pair weights in memory at once."""


class Bootstrap:
    """Weights of clusters in each resample (the Poisson bootstrap).

    Source:
        Chamandy et al. (2012), "Estimating uncertainty for massive data streams", section 3.
    """

    def __init__(self, resamples: int = 2000, seed: int = 0) -> None:
        self.resamples, self.seed = resamples, seed
        self._known: dict[str, np.ndarray] = {}

    def weights(self, clusters: Sequence[str]) -> FloatArray:
        """How often each cluster is drawn in each resample, shape `(B, C)`."""
        return np.stack([self._of(name) for name in clusters], axis=1).astype(np.float64)

    def blocks(self, clusters: Sequence[str], size: int) -> Iterator[np.ndarray]:
        """The weights of `size` resamples at a time, shape `(size, C)`; the last block may be smaller."""
        for start in range(0, self.resamples, size):
            yield np.stack([self._of(name)[start : start + size] for name in clusters], axis=1)

    def weighted(self, clusters: Sequence[str], sums: FloatArray) -> FloatArray:
        """Sum values over the drawn clusters in each resample: `(C, M)` to `(B, M)`, with bounded memory."""
        total = np.zeros((self.resamples, sums.shape[1]))
        for start in range(0, len(clusters), _BLOCK):
            total += self.weights(clusters[start : start + _BLOCK]) @ sums[start : start + _BLOCK]
        return total

    def _of(self, name: str) -> np.ndarray:
        if name not in self._known:
            entropy = xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"), seed=self.seed)
            self._known[name] = np.random.default_rng(entropy).poisson(1.0, self.resamples).astype(np.uint8)
        return self._known[name]


@dataclass(frozen=True)
class Unit:
    """The median absolute margin of the evaluation pairs, and its value in each resample."""

    value: float
    draws: FloatArray


def median_margin(bootstrap: Bootstrap, gaps: Sequence[float] | FloatArray, clusters: Sequence[str]) -> Unit | None:
    """Compute the unit of reward effects: the median absolute margin of the evaluation pairs.

    Args:
        bootstrap: The resamples.
        gaps: Reward of the preferred response minus reward of the rejected response, shape `(N,)`.
        clusters: Cluster of each pair.

    Returns:
        The unit with its value in each resample; None if it is 0 or there are no pairs.
    """
    sizes = np.abs(np.asarray(gaps, dtype=np.float64))
    if not len(sizes) or not np.median(sizes) > 0:
        return None
    order = np.argsort(sizes, kind="stable")
    ordered = sizes[order]
    names, place = np.unique(np.asarray(clusters)[order], return_inverse=True)
    draws = []
    for weights in bootstrap.blocks(names.tolist(), max(1, _VALUES // len(place))):  # bounds memory
        total = np.cumsum(weights[:, place], axis=1, dtype=np.int64)
        half = (total >= total[:, -1:] / 2).argmax(axis=1)
        draws.append(np.where(total[:, -1] > 0, ordered[half], np.nan))
    return Unit(float(np.median(sizes)), np.concatenate(draws))
