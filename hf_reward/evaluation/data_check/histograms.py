"""Lengths and gaps of all pairs -> the counts of their histograms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_reward.data.fields import read_list, read_number
from hf_reward.data.preference_row import PreferenceFormatError, PreferenceRow
from hf_reward.metrics.arrays import FloatArray, IntArray

BINS = 24
"""Bins that a histogram has at most, before the last one is completed."""
COVERED = 0.99
"""Share of the values that the bins cover; longer tails are counted but not drawn."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of one quantity in bins of equal width."""

    name: str
    """`prompt`, `chosen`, `rejected`, `length gap` or `score gap`; a gap is chosen minus rejected."""
    unit: str
    """`tokens`, `characters` or `score`."""
    edges: list[float]
    """Edges of the bins, one more than `counts`. A value on an edge is in the bin on the side away from zero."""
    counts: list[int]
    below: int
    """Values below the first bin."""
    above: int
    """Values above the last bin."""
    median: float
    negative: int
    """Values below zero."""
    zero: int
    positive: int

    @property
    def values(self) -> int:
        """Number of all values."""
        return self.negative + self.zero + self.positive


@dataclass
class Lengths:
    """Lengths of one data set in one unit: U usable rows, M strict pairs."""

    unit: str
    prompt: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Shape `(U,)`."""
    chosen: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Shape `(M,)`; a response counts once for each of its pairs."""
    rejected: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))


def all_histograms(lengths: Lengths, score_gaps: FloatArray) -> list[Histogram]:
    """Count lengths, length gaps and score gaps in bins.

    Args:
        lengths: Of prompts and of the responses of strict pairs.
        score_gaps: Score of the chosen minus the rejected response of each strict pair, NaN where a row has no scores.

    Returns:
        The histograms of those quantities that have values. Chosen and rejected responses have the same bins.
    """
    gaps = (lengths.chosen - lengths.rejected).astype(float)
    both = np.concatenate([lengths.chosen, lengths.rejected])
    scores = score_gaps[np.isfinite(score_gaps)]
    wanted = [
        ("prompt", lengths.unit, lengths.prompt, length_edges(lengths.prompt)),
        ("chosen", lengths.unit, lengths.chosen, length_edges(both)),
        ("rejected", lengths.unit, lengths.rejected, length_edges(both)),
        ("length gap", lengths.unit, gaps, gap_edges(gaps, smallest=1)),
        ("score gap", "score", scores, gap_edges(scores)),
    ]
    return [histogram(name, unit, values, edges) for name, unit, values, edges in wanted if len(values)]


def histogram(name: str, unit: str, values: FloatArray | IntArray, edges: FloatArray) -> Histogram:
    """Count values in bins.

    Args:
        name: Of the quantity.
        unit: Of the values.
        values: One or more finite numbers, shape `(V,)`.
        edges: Edges of the bins in ascending order, shape `(B + 1,)`.

    Returns:
        The counts.
    """
    # A value on an edge goes to the side away from zero, so that gaps of -5 and +5 are treated the same.
    low, high = np.digitize(values, edges, right=True) - 1, np.digitize(values, edges) - 1
    place = np.where(np.asarray(values) < 0, low, high)
    inside = (place >= 0) & (place < len(edges) - 1)
    return Histogram(
        name=name,
        unit=unit,
        edges=[float(edge) for edge in edges],
        counts=np.bincount(place[inside], minlength=len(edges) - 1).tolist(),
        below=int((place < 0).sum()),
        above=int((place >= len(edges) - 1).sum()),
        median=float(np.median(values)),
        negative=int((values < 0).sum()),
        zero=int((values == 0).sum()),
        positive=int((values > 0).sum()),
    )


def length_edges(lengths: IntArray) -> FloatArray:
    """Choose bins for lengths: they start at 0, have a round width, and cover 99% of the values.

    Args:
        lengths: Whole numbers from 0 on, shape `(V,)`.

    Returns:
        The edges, shape `(B + 1,)`.
    """
    top = float(np.quantile(lengths, COVERED)) if len(lengths) else 0.0
    width = max(1.0, round_width(top / BINS))
    return width * np.arange(int(top // width) + 2)


def gap_edges(gaps: FloatArray, smallest: float = 0.0) -> FloatArray:
    """Choose bins for differences: as many below zero as above, with one bin around zero.

    Args:
        gaps: Differences, shape `(V,)`.
        smallest: Width that a bin has at least.

    Returns:
        The edges, shape `(B + 1,)`.
    """
    reach = float(np.quantile(np.abs(gaps), COVERED)) if len(gaps) else 0.0
    width = max(smallest, round_width(2 * reach / BINS)) or 1.0
    side = int(np.ceil(reach / width - 0.5)) + 1
    return width * (np.arange(-side, side) + 0.5)


def round_width(width: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten.

    Args:
        width: A number of 0 or more.

    Returns:
        The rounded number; 0 for 0.
    """
    if width <= 0:
        return 0.0
    power = 10.0 ** np.floor(np.log10(width))
    factor = next(factor for factor in (1, 2, 5, 10) if factor * power >= width * (1 - 1e-9))
    return float(factor * power)


_VERDICTS = ("winner", "probability", "annotators", "votes_a", "votes_b")
"""Columns that decide the preference; a `score` beside them may have another meaning."""


def score_gaps_of(row: PreferenceRow, raw: Mapping[str, Any], pairs: Sequence[tuple[int, int]]) -> list[float]:
    """Return how far the scores of each pair's responses are apart.

    Args:
        row: The canonical row.
        raw: Its columns by our names: `margin`, `scores` (one for each response), `score_chosen` and `score_rejected`,
            `chosen_score` and `rejected_score`, or `score` of a row with two responses and a signed verdict.
        pairs: Preferred and other response of each strict pair.

    Returns:
        Score of the preferred minus that of the other response, NaN where the row has no scores.
    """
    if row.margin is not None:
        return [row.margin] * len(pairs)
    try:
        scores = _scores(row, raw)
    except PreferenceFormatError:  # a column with one of these names and another meaning
        scores = None
    return [float("nan") if scores is None else scores[better] - scores[worse] for better, worse in pairs]


def _scores(row: PreferenceRow, raw: Mapping[str, Any]) -> list[float] | None:
    if raw.get("scores") is not None:
        scores = [read_number(score, "scores") for score in read_list(raw["scores"], "scores")]
        return scores if len(scores) == len(row.responses) else None
    if len(row.responses) != 2:
        return None
    for first, second in (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score")):
        if raw.get(first) is not None and raw.get(second) is not None:
            scores = [read_number(raw[first], first), read_number(raw[second], second)]
            return scores if row.ranks[0] <= row.ranks[1] else scores[::-1]
    if (
        raw.get("score") is not None
        and "response_a" in raw
        and not any(raw.get(name) is not None for name in _VERDICTS)
    ):
        return [read_number(raw["score"], "score"), 0.0]  # how far the first response leads
    return None
