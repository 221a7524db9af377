"""Rows whose label a cross-fitted model contradicts, with the probability that the label is right."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from hf_reward.evaluation.baselines import CrossFitted
from hf_reward.evaluation.data_check.row_reader import RowReader
from hf_reward.metrics.calibration import fit_slope

LIMIT = 0.2
"""Probability of the label up to which a row is listed; fixed in advance."""
_MOST_LISTED = 200
"""Rows that a report lists at most."""


@dataclass(frozen=True, kw_only=True)
class SuspectLabel:
    """A row whose label is probably wrong."""

    row: int
    place: str
    """File and line, or the row's number again."""
    id: str | None
    """The row's `id`; its number if it has none."""
    label_probability: float
    """Calibrated probability of the label, under a model that has not seen the row's prompt group; of the least
    probable pair in a list."""


@dataclass(frozen=True, kw_only=True)
class LabelNoise:
    """Rows that a TF-IDF Bradley-Terry model with length, cross-fitted by prompt group, contradicts."""

    rows: int
    """Rows with a strict preference that were predicted."""
    suspect_rows: int
    """Rows whose label has a probability of at most `limit`."""
    limit: float
    slope: float
    """Calibration slope of the cross-fitted reward gaps, by which they are multiplied."""
    assessed: bool
    """Whether the interval of the slope is above 0. If not, the model predicts no better than chance, and no row is
    listed."""
    suspects: list[SuspectLabel]
    """At most 200 of them, least probable label first."""


def find_label_noise(found: CrossFitted, numbers: Sequence[int], reader: RowReader) -> LabelNoise | None:
    """List the rows whose label a model of the other prompts contradicts.

    The probability of a label is sigmoid(b * gap). gap is the reward of the preferred response minus that of the other
    response, from a model of the other folds. b is the slope that calibrates all gaps of the data (`fit_slope`). It
    includes the labels under test: wrong labels lower b, so fewer rows are listed, with more caution.

    Args:
        found: The cross-fitted gaps.
        numbers: Row number of each row in `found.row`.
        reader: The data, for places and ids.

    Returns:
        The rows; None if all gaps are 0.

    Source:
        Northcutt, Jiang and Chuang (2021), "Confident learning: estimating uncertainty in dataset labels",
        arXiv:1911.00068: out-of-sample probability of the given label; with one limit for both sides, because a pair
        has no class of its own.
    """
    if not found.gaps.any():
        return None
    slope = fit_slope(found.gaps, found.group)
    assessed = slope.suggests_temperature
    probability = expit(slope.value * found.gaps) if assessed else np.ones(len(found.gaps))
    rows, place = np.unique(found.row, return_inverse=True)
    of_rows = np.ones(len(rows))
    np.minimum.at(of_rows, place, probability)
    order = np.argsort(of_rows, kind="stable")
    order = order[of_rows[order] <= LIMIT]
    listed = [(numbers[int(rows[each])], float(of_rows[each])) for each in order[:_MOST_LISTED]]
    return LabelNoise(
        rows=len(rows),
        suspect_rows=len(order),
        limit=LIMIT,
        slope=slope.value,
        assessed=assessed,
        suspects=[
            SuspectLabel(row=number, place=reader.place(number), id=reader.row(number).id, label_probability=value)
            for number, value in listed
        ],
    )
