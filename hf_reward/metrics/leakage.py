"""Find evaluation rows that also occur in the training data, and compute the accuracy without them."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from hf_reward.metrics.preference import clustered_interval, strict_pairs

logger = logging.getLogger(__name__)

_KEYS = {"group": "prompt group", "content_hash": "identical content"}
"""Column of a prepared row -> description of rows with equal values in it."""


def shared_with_training(train: Any, held_out: Any) -> dict[str, np.ndarray]:
    """Find the evaluation rows whose prompt group or content occurs in training.

    Near-duplicates are not found, because this requires the texts: run `hf-reward check-data`.

    Args:
        train: Prepared training rows.
        held_out: Prepared evaluation rows.

    Returns:
        Kind of match -> whether each evaluation row has it, shape `(R,)`; empty for streams, which cannot be compared.
    """
    if not isinstance(train, Dataset) or not isinstance(held_out, Dataset):
        return {}
    known = [key for key in _KEYS if key in train.column_names and key in held_out.column_names]
    return {_KEYS[key]: np.isin(_column(held_out, key), _column(train, key)) for key in known}


def leaked_rows(train: Any, held_out: Any) -> np.ndarray | None:
    """Return whether each evaluation row shares its prompt group or content with training.

    Args:
        train: Prepared training rows.
        held_out: Prepared evaluation rows.

    Returns:
        Booleans, shape `(R,)`; None if no row does or the data are streams.
    """
    shared = list(shared_with_training(train, held_out).values())
    leaked = np.any(shared, axis=0) if shared else np.zeros(0, bool)
    return leaked if leaked.any() else None


def warn_about_leaks(train: Any, held_out: Any) -> None:
    """Warn about evaluation rows that occur in training, or about streams that cannot be checked.

    Args:
        train: Prepared training rows, or None.
        held_out: Prepared evaluation rows, a dict of several evaluation sets, or None.
    """
    if train is None or held_out is None:
        return
    for name, data in held_out.items() if isinstance(held_out, Mapping) else [("", held_out)]:
        what = f"the evaluation data {name!r}" if name else "the evaluation data"
        if isinstance(train, IterableDataset) or isinstance(data, IterableDataset):
            logger.warning(
                "Streams cannot be searched for rows that occur both in training and in %s, so no accuracy without "
                "leaks is reported. To check for leaks, run `hf-reward check-data` on files.",
                what,
            )
            continue
        shared = shared_with_training(train, data)
        leaked = leaked_rows(train, data)
        if leaked is not None:
            counts = ", ".join(f"{rows.sum()} by {kind}" for kind, rows in shared.items())
            logger.warning(
                "%d of %d rows of %s occur in training (%s), so their accuracy does not measure generalisation. "
                "Evaluation also reports `accuracy_without_leaks`. To split data without leaks, run `hf-reward split`.",
                *(leaked.sum(), len(leaked), what, counts),
            )


def metrics_without_leaks(
    rewards: np.ndarray, ranks: np.ndarray, groups: np.ndarray, leaked: np.ndarray
) -> dict[str, float]:
    """Compute the accuracy on rows that do not occur in training.

    Args:
        rewards: Rewards, shape `(R, K)`.
        ranks: Rank of each response, 0 is best, -100 is padding, shape `(R, K)`.
        groups: Prompt of each row, shape `(R,)`.
        leaked: Whether each row occurs in training, shape `(R,)`.

    Returns:
        `num_leaked_rows` and `num_pairs_without_leaks`. If such pairs exist, also `accuracy_without_leaks` (strict: a
        tie of rewards is wrong) with `accuracy_without_leaks_ci_low` and `accuracy_without_leaks_ci_high`, which are
        NaN for one prompt.
    """
    clean = ~leaked
    pairs = strict_pairs(ranks[clean])
    counts: dict[str, float] = {"num_leaked_rows": int(leaked.sum()), "num_pairs_without_leaks": len(pairs.row)}
    if len(pairs.row) == 0:
        return counts
    rewards = rewards[clean]
    correct = (rewards[pairs.row, pairs.better] > rewards[pairs.row, pairs.worse]).astype(float)
    interval = clustered_interval(correct, groups[clean][pairs.row])
    return {
        "accuracy_without_leaks": float(correct.mean()),
        "accuracy_without_leaks_ci_low": interval.low,
        "accuracy_without_leaks_ci_high": interval.high,
        **counts,
    }


def _column(data: Dataset, name: str) -> np.ndarray:
    return np.asarray(data.select_columns([name]).with_format("numpy")[:][name])
