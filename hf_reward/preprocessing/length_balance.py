"""Balance the training data so that length does not predict the preference.

A model can learn "prefer the longer response" if longer responses are preferred more often. Rows are sorted into bins
by the difference of the lengths. If longer responses are preferred more often in a bin, random rows that prefer the
longer response are dropped, and vice versa.

Shapes: R rows.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from datasets import Dataset, IterableDataset

from hf_reward.data.interface import setting
from hf_reward.metrics.arrays import FloatArray, IntArray

SURPLUS = "surplus of their length difference (balance_lengths)"
"""Reason for dropping a row, in `DataSummary.dropped`."""
_BATCH_SIZE = 10_000


def balanced_rows(differences: FloatArray | IntArray, *, seed: int = 0) -> IntArray:
    """Choose rows so that both directions are equally frequent in each bin of the absolute length difference.

    Bins are logarithmic, because five more tokens matter for a difference of ten but not of 500. The bin of a row is
    floor(2 log2 |difference|): 1, 2, 3, 4-5, 6-7, 8-11, 12-15, 16-22, ... tokens. All rows with difference 0 are kept.

    Args:
        differences: Length of the preferred response minus length of the rejected response, shape `(R,)`.
        seed: Random seed of the choice among surplus rows.

    Returns:
        Indices of the kept rows, ascending, int64.

    Raises:
        ValueError: If a difference is not finite.

    Source:
        Singhal et al. (2023), "A long way to go", section 4.1, "length balancing", which uses bins of ten tokens.
    """
    found = np.asarray(differences, dtype=np.float64)
    if not np.isfinite(found).all():
        count = int((~np.isfinite(found)).sum())
        raise ValueError(f"`differences` must be finite, but {count} are NaN or infinite. Leave out these rows.")
    random = np.random.default_rng(seed)
    differs = found != 0
    bins = np.floor(2 * np.log2(np.abs(found), where=differs, out=np.zeros_like(found)))
    kept = ~differs
    for each in np.unique(bins[differs]):
        longer, shorter = (np.flatnonzero(differs & (bins == each) & (found * sign > 0)) for sign in (1, -1))
        count = min(len(longer), len(shorter))
        for members in (longer, shorter):
            kept[random.permutation(members)[:count]] = True
    return np.flatnonzero(kept)


def length_difference(lengths: Sequence[int], ranks: Sequence[int]) -> float:
    """Return the mean length difference of preferred and rejected responses over the strict pairs of a row.

    Args:
        lengths: Tokens of each response, with or without their common prefix.
        ranks: Rank of each response, 0 is best.

    Returns:
        The mean difference; 0 without strict pairs.
    """
    gaps = [
        one - other
        for one, better in zip(lengths, ranks, strict=True)
        for other, worse in zip(lengths, ranks, strict=True)
        if better < worse
    ]
    return sum(gaps) / len(gaps) if gaps else 0.0


def length_differences(data: Dataset) -> FloatArray:
    """Return the `length_difference` of each prepared row, in tokens, shape `(R,)`, float64.

    Args:
        data: Rows of `prepare_preferences`.

    Returns:
        The differences. For a row with a probability, the likelier side is the preferred one.
    """
    found: list[float] = []
    for batch in data.select_columns(["input_ids", "ranks"]).with_format("arrow").iter(_BATCH_SIZE):
        for part in pa.table(batch).to_batches():  # pyright: ignore[reportArgumentType]
            ids, ranks = part.column("input_ids"), part.column("ranks")
            sizes = np.asarray(ids.flatten().value_lengths())
            ends = np.cumsum(np.asarray(ids.value_lengths()))
            rows = np.split(sizes, ends[:-1])
            found += [length_difference(row.tolist(), each) for row, each in zip(rows, ranks.to_pylist(), strict=True)]
    return np.asarray(found, dtype=np.float64)


def mark_surplus(data: Dataset | IterableDataset, *, seed: int, name: str = "data") -> Dataset:
    """Mark the rows to drop in the column `problem`, so that they can be counted before they are removed.

    Args:
        data: Rows of `prepare_preferences`; rows with a `problem` are ignored.
        seed: Random seed of the choice among surplus rows.
        name: Name of the data in messages.

    Returns:
        The same rows, with `SURPLUS` as the `problem` of rows to drop.

    Raises:
        ValueError: If the data is a stream.
    """
    if not isinstance(data, Dataset):
        raise ValueError(
            f"`{setting('balance_lengths', True)}` requires all rows, but {name!r} is a stream. Load it without "
            "streaming."
        )
    problems = np.array(data["problem"][:], dtype=object)
    usable = np.flatnonzero(problems == "")
    surplus = np.ones(len(usable), dtype=bool)
    surplus[balanced_rows(length_differences(data.select(usable)), seed=seed)] = False
    problems[usable[surplus]] = SURPLUS
    return data.remove_columns("problem").add_column("problem", problems.tolist())
