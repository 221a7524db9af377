"""Split rows into training and held-out rows by prompt, never by row.

Rows of one prompt are similar: on UKPConvArg1 the same model scores 0.92 on a random split by row and 0.79 on held-out
debates. Rows with near-duplicate prompts or long responses are similar too.
"""

from collections.abc import Mapping

import numpy as np
from datasets import Dataset

from hf_reward.data.interface import setting
from hf_reward.data.near_duplicates import RowPool
from hf_reward.data.preference_row import PreferenceRow
from hf_reward.data.preferences import to_preference_row
from hf_reward.data.row_locations import with_row_locations
from hf_reward.metrics.counts import counted

_BATCH_SIZE = 1000


def split_by_prompt(
    data: Dataset,
    *,
    test_size: float | int = 0.1,
    seed: int = 42,
    layout: str = "auto",
    columns: Mapping[str, str] | None = None,
    near_duplicates: bool = False,
) -> tuple[Dataset, Dataset]:
    """Hold out complete prompt groups.

    The group of a row is the value of its `group` column, or otherwise its prompt.

    Args:
        data: Raw or prepared preference rows.
        test_size: Rows to hold out: a fraction in (0, 1), or a number of rows. Complete groups are held out in random
            order until this size is reached.
        seed: Random seed of the order of the groups.
        layout: Row layout of raw rows.
        columns: Field -> name of its column in raw rows.
        near_duplicates: Also keep groups together if their prompts, or responses of 20 words or more, are equal or
            near-duplicates: a Jaccard similarity of at least 0.8 of their word 5-grams
            (`hf_reward.data.near_duplicates`). Requires raw rows.

    Returns:
        Training rows and held-out rows, each in the data's order.

    Raises:
        ValueError: If there are fewer than two groups, or one side would be empty.
        MissingExtraError: If near-duplicates are to be kept together and rensa is not installed.
    """
    with with_row_locations(data):
        groups = _groups(data, layout, columns)
        if near_duplicates:
            groups = _joined_groups(data, groups, layout, columns)
    names, place, counts = np.unique(groups, return_inverse=True, return_counts=True)
    # Rounded, because 0.07 * 100 is slightly more than 7 in floating point.
    wanted = round(test_size * len(data), 6) if isinstance(test_size, float) else test_size
    if len(names) < 2 or not 0 < wanted < len(data):
        raise ValueError(
            f"Training and held-out rows need at least one prompt each, but `{setting('test_size', test_size)}` of "
            f"{counted(len(data), 'row')} with {counted(len(names), 'prompt')} does not allow this. Change "
            f"`{setting('test_size')}`, or use separate evaluation data."
        )
    order = np.random.default_rng(seed).permutation(len(names))
    reached = np.cumsum(counts[order])
    # At least one prompt is kept for training, whatever the sizes of the groups.
    num_held = min(int(np.searchsorted(reached, wanted)) + 1, len(names) - 1)
    held = np.isin(place, order[:num_held])
    return data.select(np.flatnonzero(~held)), data.select(np.flatnonzero(held))


def _joined_groups(data: Dataset, groups: np.ndarray, layout: str, columns: Mapping[str, str] | None) -> np.ndarray:
    """Return the prompt group of each row, after joining groups that near-duplicate texts link."""
    if "input_ids" in data.column_names:
        raise ValueError(
            f"`{setting('near_duplicates', True)}` requires texts, but the rows are tokenised. Split the raw rows."
        )

    def read(number: int) -> PreferenceRow:
        return to_preference_row(data[number], layout=layout, columns=columns, row_index=number)

    pool = RowPool(read)
    for start in range(0, len(data), _BATCH_SIZE):
        numbers = range(start, min(start + _BATCH_SIZE, len(data)))
        pool.add([read(number) for number in numbers], numbers)
    return pool.clusters().joined_groups(groups)


def _groups(data: Dataset, layout: str, columns: Mapping[str, str] | None) -> np.ndarray:
    """Return the prompt group of each row: the column `group` if no row lacks it, else the group of the parsed row."""
    if "group" in data.column_names and "group" not in (columns or {}):
        groups = data["group"][:]
        if None not in groups:
            return np.asarray(groups)
    rows = (to_preference_row(row, layout=layout, columns=columns, row_index=i) for i, row in enumerate(data))
    return np.asarray([row.group for row in rows])
