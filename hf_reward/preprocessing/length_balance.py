"""Tokenised rows -> those that stay so that length says nothing about which response is preferred.

A model can only learn "prefer the longer" from rows in which the longer response is preferred more often. Rows are
sorted into bins by how much the lengths differ, and in each bin surplus rows of the commoner direction go, at random.

Shapes: R rows.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from datasets import Dataset, IterableDataset

from hf_reward.metrics.arrays import FloatArray, IntArray

SURPLUS = "surplus of their length difference (balance_lengths)"
"""Why a row was dropped."""
_BATCH_SIZE = 10_000


def balanced_rows(differences: FloatArray | IntArray, *, seed: int = 0) -> IntArray:
    """Choose rows so that in each bin of the absolute length difference both directions are equally frequent.

    A bin is half an octave: 1, 2, 3, 4-5, 6-7, 8-11, 12-15, 16-22, ... tokens, bin = floor(2 log2 |difference|): five
    tokens more matter beside ten and not beside 500. Rows of difference 0 all stay.

    Args:
        differences: Length of the preferred response minus that of the other, shape `(R,)`.
        seed: Which of the surplus rows go.

    Returns:
        Places of the rows that stay, ascending, int64.

    Raises:
        ValueError: If a difference is not finite.

    Source:
        Singhal et al. (2023), "A long way to go", section 4.1, "length balancing", there in bins of ten tokens.
    """
    found = np.asarray(differences, dtype=np.float64)
    if not np.isfinite(found).all():
        raise ValueError(f"Length differences must be finite, but {int((~np.isfinite(found)).sum())} are not.")
    random = np.random.default_rng(seed)
    apart = found != 0
    bins = np.floor(2 * np.log2(np.abs(found), where=apart, out=np.zeros_like(found)))
    stays = ~apart
    for each in np.unique(bins[apart]):
        longer, shorter = (np.flatnonzero(apart & (bins == each) & (found * sign > 0)) for sign in (1, -1))
        count = min(len(longer), len(shorter))
        for members in (longer, shorter):
            stays[random.permutation(members)[:count]] = True
    return np.flatnonzero(stays)


def length_difference(lengths: Sequence[int], ranks: Sequence[int]) -> float:
    """How much longer preferred responses of a row are than those that they are preferred to.

    Args:
        lengths: Tokens of each response; what they share may be counted or not.
        ranks: Rank of each response, 0 is best.

    Returns:
        The mean of the difference over the strict pairs of the row, for a pair the difference itself; 0 without any.
    """
    gaps = [
        one - other
        for one, better in zip(lengths, ranks, strict=True)
        for other, worse in zip(lengths, ranks, strict=True)
        if better < worse
    ]
    return sum(gaps) / len(gaps) if gaps else 0.0


def length_differences(data: Dataset) -> FloatArray:
    """`length_difference` of each prepared row, in tokens, shape `(R,)`, float64.

    Args:
        data: Rows as `prepare_preferences` makes them.

    Returns:
        The differences; a row with a stated probability counts in the direction of the likelier side.
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
    """Mark rows so that the others are balanced; nothing is removed yet, so that drops can be counted.

    Args:
        data: Rows as `prepare_preferences` makes them; those with a `problem` are not counted.
        seed: Which of the surplus rows go.
        name: What to call the data in messages.

    Returns:
        The same rows, with `SURPLUS` as the `problem` of those that have to go.

    Raises:
        ValueError: If the data is a stream.
    """
    if not isinstance(data, Dataset):
        raise ValueError(
            f"`balance_lengths` needs all rows at once, but {name!r} is a stream. Load it without streaming, or "
            "write a balanced copy first."
        )
    problems = np.array(data["problem"][:], dtype=object)
    usable = np.flatnonzero(problems == "")
    surplus = np.ones(len(usable), dtype=bool)
    surplus[balanced_rows(length_differences(data.select(usable)), seed=seed)] = False
    problems[usable[surplus]] = SURPLUS
    return data.remove_columns("problem").add_column("problem", problems.tolist())
