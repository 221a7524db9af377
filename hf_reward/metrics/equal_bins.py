"""Values -> bins of about equally many, the same in whatever order the values come."""

import numpy as np

from hf_reward.metrics.arrays import FloatArray, IntArray


def equal_bins(values: FloatArray, num_bins: int) -> list[IntArray]:
    """Deal values out to bins in ascending order, equal values always to one bin.

    Equal values have no order, so which of them would fall on which side of a bin's end would depend on the order of
    rows. They go where the middle one of them would; a bin of which less than two are left by that joins the one
    before.

    Args:
        values: Shape `(M,)`.
        num_bins: How many bins, from 1 to M.

    Returns:
        Places of the values of each bin, as many bins as are not empty.
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
