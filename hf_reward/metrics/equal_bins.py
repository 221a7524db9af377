"""Bins with about equal numbers of values, independent of the order of the values."""

import numpy as np

from hf_reward.metrics.arrays import FloatArray, IntArray


def equal_bins(values: FloatArray, num_bins: int) -> list[IntArray]:
    """Assign values to bins in ascending order, equal values to the same bin.

    Splitting equal values at a bin edge would make the bins depend on the order of the rows. All of them therefore go
    to the bin of their middle value. A bin that is left with fewer than two values is merged into the previous one.

    Args:
        values: Shape `(M,)`.
        num_bins: Number of bins, from 1 to M.

    Returns:
        Indices of the values in each nonempty bin.
    """
    _, level, counts = np.unique(values, return_inverse=True, return_counts=True)
    sizes = np.array([len(each) for each in np.array_split(np.arange(len(values)), num_bins)])
    middle = np.cumsum(counts) - counts + (counts - 1) // 2
    found = np.searchsorted(np.cumsum(sizes), middle, side="right")
    held = np.bincount(found, weights=counts, minlength=num_bins)
    for place in np.flatnonzero((held < 2) & (sizes >= 2) & (held > 0)):
        others = np.flatnonzero(held * (np.arange(num_bins) != place))
        if len(others):
            target = others[others < place][-1] if (others < place).any() else others[0]
            found[found == place] = target
            held[target], held[place] = held[target] + held[place], 0
    bins = found[level]
    return [np.flatnonzero(bins == place) for place in range(num_bins) if held[place]]
