"""Votes of several people on one pair -> their agreement, which limits the accuracy of any model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_reward.data.fields import read_number
from hf_reward.data.preference_row import PreferenceFormatError
from hf_reward.data.python_values import to_python
from hf_reward.metrics.preference import Interval, clustered_interval

_NUMBERED = re.compile(r"annotator_?\d+")
_NAMES = (
    ("votes_chosen", "votes_rejected", ("votes_equal", "votes_tie")),
    ("votes_a", "votes_b", ("votes_equal", "votes_tie")),
)
_FIRST, _SECOND = ("a", "A", "1", "first", "model_a", "response_a"), ("b", "B", "2", "second", "model_b", "response_b")

Votes = tuple[int, int, int]
"""Votes for the first response, for the second, and for neither."""


@dataclass(frozen=True, kw_only=True)
class VoteAgreement:
    """Agreement of raters on the rows with more than one vote."""

    rows: int
    votes: int
    unanimous: float
    """Share of rows with identical votes."""
    rater_vs_label: float | None
    """Share of votes for the preferred response of the row; a vote for neither counts against it."""
    rater_vs_rest: float | None
    """Share of votes that equal the majority of the row's other votes, without votes whose others have no majority."""
    rater_vs_rest_interval: Interval | None
    num_rater_vs_rest: int
    ceiling: float | None
    """Mean of max(p, 1 - p), where p is the share of the first response among the votes for one of the two: the
    accuracy on single votes of a model that always agrees with the majority. Few votes per row make it too high."""
    num_ceiling: int


def read_votes(row: Mapping[str, Any]) -> Votes | None:
    """Find the votes of a row.

    Supported columns: `votes_chosen`, `votes_rejected` and optionally `votes_equal` or `votes_tie`; the same with
    `votes_a` and `votes_b`; `votes` as a list of these numbers; a list `annotators` of single votes; or the columns
    `annotator1`, `annotator2`, ... with one vote each.

    Args:
        row: Its columns, renamed.

    Returns:
        The votes for the first response, the second response and neither; None without votes or if they are not
        numbers.
    """
    for first, second, equal in _NAMES:
        if row.get(first) is not None and row.get(second) is not None:
            ties = next((row[name] for name in equal if row.get(name) is not None), 0)
            return _counts([row[first], row[second], ties])
    votes = to_python(row.get("votes"))
    if isinstance(votes, Sequence) and not isinstance(votes, str) and len(votes) in (2, 3):
        return _counts([*votes, 0][:3])
    single = to_python(row.get("annotators"))
    if not isinstance(single, Sequence) or isinstance(single, str):
        single = [value for name, value in row.items() if _NUMBERED.fullmatch(name) and value is not None]
    if not single:
        return None
    single = [to_python(vote) for vote in single]
    sides = ["1" if str(vote) in _FIRST else "2" if str(vote) in _SECOND else "0" for vote in single]
    return sides.count("1"), sides.count("2"), sides.count("0")


def _counts(values: Sequence[Any]) -> Votes | None:
    try:
        numbers = [read_number(to_python(value), "votes") for value in values]
    except PreferenceFormatError:
        return None
    if not all(value >= 0 and value == int(value) for value in numbers):
        return None
    first, second, equal = map(int, numbers)
    return first, second, equal


def vote_agreement(votes: np.ndarray, preferred: np.ndarray, groups: np.ndarray) -> VoteAgreement | None:
    """Measure the agreement of raters.

    Args:
        votes: Votes for the first response, for the second and for neither, shape `(R, 3)`.
        preferred: Which response the row prefers, 0 or 1, or -1 for a tie, shape `(R,)`.
        groups: Prompt group of each row, shape `(R,)`.

    Returns:
        The agreement, or None if no row has two votes.
    """
    several = votes.sum(axis=1) > 1
    if not several.any():
        return None
    votes, preferred, groups = votes[several], preferred[several], groups[several]
    total = votes.sum(axis=1)
    labelled = preferred >= 0
    credits, clusters = _rater_vs_rest(votes, groups)
    decisive = votes[:, :2].sum(axis=1)
    top = votes[:, :2].max(axis=1)[decisive > 0] / decisive[decisive > 0]
    with_label = votes[labelled, np.maximum(preferred[labelled], 0)].sum()
    return VoteAgreement(
        rows=len(votes),
        votes=int(total.sum()),
        unanimous=float(np.mean(votes.max(axis=1) == total)),
        rater_vs_label=float(with_label / total[labelled].sum()) if labelled.any() else None,
        rater_vs_rest=float(credits.mean()) if len(credits) else None,
        rater_vs_rest_interval=clustered_interval(credits, clusters) if len(credits) else None,
        num_rater_vs_rest=len(credits),
        ceiling=float(top.mean()) if len(top) else None,
        num_ceiling=len(top),
    )


def _rater_vs_rest(votes: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each vote equals the unique majority of the row's other votes, and its prompt group."""
    credits, clusters = [], []
    for side in range(votes.shape[1]):
        rest = votes.copy()
        rest[:, side] -= 1
        top = rest.max(axis=1)
        counted = (votes[:, side] > 0) & ((rest == top[:, None]).sum(axis=1) == 1)
        times = votes[counted, side]
        credits.append(np.repeat((rest[counted, side] == top[counted]).astype(float), times))
        clusters.append(np.repeat(groups[counted], times))
    return np.concatenate(credits), np.concatenate(clusters)
