"""Reward differences -> do they mean what Bradley and Terry's model says, and by what would they have to be divided?

The probability that the preferred response of a pair wins is sigmoid(gap). Nothing here depends on which side of a pair
comes first, so pairs may all be stored preferred first. A tie of rewards says 0.5 and is half right.

Shapes: M pairs. A gap is the reward of the preferred response minus that of the other.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from hf_reward.metrics import brier_score, log_loss, pairwise_credit

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.integer]
MOST_BINS = 15
PAIRS_PER_BIN = 50


@dataclass(frozen=True)
class Slope:
    """By what reward differences have to be multiplied to be log-odds."""

    value: float
    """1 is calibrated, less is overconfident; infinite where no pair is wrong."""
    low: float
    """95% interval, clustered by prompt; NaN where there is none."""
    high: float

    @property
    def temperature(self) -> float:
        """By what rewards have to be divided: 1 / slope, as in temperature scaling; NaN for a slope of 0 or less."""
        return 1 / self.value if self.value > 0 else float("nan")

    @property
    def suggests_temperature(self) -> bool:
        """Whether dividing by the temperature is advised: only where the whole interval of a finite slope is above 0.

        Else higher rewards are not shown to go with preference, and a temperature would make noise look calibrated.
        """
        return bool(np.isfinite(self.value) and self.low > 0)


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs of about the same confidence."""

    confidence: float
    """Mean probability of the side with the higher reward."""
    accuracy: float
    """How often that side is the preferred one, ties half."""
    count: int
    low: float
    """95% Wilson interval of the accuracy."""
    high: float


def fit_slope(gaps: FloatArray, clusters: IntArray | None = None) -> Slope:
    """Fit P(preferred response wins) = sigmoid(b * gap) without intercept, by maximum likelihood.

    The likelihood of b is concave, so b is the one root of its derivative sum_i gap_i sigmoid(-b gap_i), which is
    bracketed and bisected; Newton steps can diverge here. The interval is b +- t * sqrt(meat) / information with
    meat = G / (G - 1) * sum over prompts of (sum of score)^2 and G - 1 degrees of freedom.

    Args:
        gaps: Finite gaps, shape `(M,)`.
        clusters: Prompt of each pair, any integers, shape `(M,)`; without it every pair is its own prompt.

    Returns:
        The slope; infinite without interval where no gap is negative, minus infinite where none is positive.

    Raises:
        ValueError: If there is no pair, a gap is not finite, or all gaps are 0.

    Source:
        Guo et al. (2017), "On calibration of modern neural networks", section 4.2; Liang and Zeger (1986) for the
        interval.
    """
    gaps = _checked(gaps)
    if not gaps.any():
        raise ValueError(
            "All gaps are 0, so no slope fits better than another. The model tells no two responses apart."
        )
    if (gaps >= 0).all() or (gaps <= 0).all():
        return Slope(float(np.inf if gaps.max() > 0 else -np.inf), np.nan, np.nan)
    scale = float(np.median(np.abs(gaps[gaps != 0])))
    units = gaps / scale  # so that the bracket does not depend on the size of rewards

    def derivative(slope: float) -> float:
        return float(np.sum(units * special.expit(-slope * units)))

    reach = 1.0
    while derivative(-reach) * derivative(reach) > 0:
        reach *= 2
    slope = float(optimize.brentq(derivative, -reach, reach, xtol=1e-14, rtol=1e-14)) / scale  # pyright: ignore[reportArgumentType]
    low, high = _slope_interval(gaps, slope, np.arange(len(gaps)) if clusters is None else np.asarray(clusters))
    return Slope(slope, low, high)


def _slope_interval(gaps: FloatArray, slope: float, clusters: IntArray) -> tuple[float, float]:
    labels, place = np.unique(clusters, return_inverse=True)
    count = len(labels)
    if count < 2:
        return np.nan, np.nan
    wrong = special.expit(-slope * gaps)
    scores = np.bincount(place, weights=gaps * wrong, minlength=count)
    information = np.sum(gaps**2 * wrong * (1 - wrong))
    error = np.sqrt(count / (count - 1) * np.sum(scores**2)) / information
    reach = stats.t.ppf(0.975, count - 1) * error
    return float(slope - reach), float(slope + reach)


def reliability_bins(gaps: FloatArray, num_bins: int | None = None) -> list[ReliabilityBin]:
    """Bins of equally many pairs, least confident first.

    Args:
        gaps: Finite gaps, shape `(M,)`.
        num_bins: How many; by default one for every 50 pairs, 15 at the most.

    Returns:
        The bins.

    Raises:
        ValueError: If there is no pair, a gap is not finite, or there are more bins than pairs.
    """
    gaps = _checked(gaps)
    confidence, right = _confidence(gaps)
    bins = []
    for members in _equal_bins(confidence, num_bins):
        count = len(members)
        wins = float(right[members].sum())
        bounds = stats.binomtest(round(wins), count).proportion_ci(method="wilson")
        bins.append(
            ReliabilityBin(
                float(confidence[members].mean()), wins / count, count, float(bounds.low), float(bounds.high)
            )
        )
    return bins


def calibration_error(gaps: FloatArray, num_bins: int | None = None) -> float:
    """Expected calibration error as usually reported: the mean over pairs of |accuracy - confidence| of their bin.

    It is above 0 for a calibrated model too; compare it with `calibration_floor`.

    Args:
        gaps: Finite gaps, shape `(M,)`.
        num_bins: As in `reliability_bins`.

    Returns:
        The error, in [0, 1].

    Source:
        Naeini et al. (2015), with bins of equal mass (Nguyen and O'Connor, 2015).
    """
    gaps = _checked(gaps)
    return _naive_error(*_confidence(gaps), num_bins)


def calibration_floor(gaps: FloatArray, num_bins: int | None = None, *, draws: int = 200, seed: int = 0) -> float:
    """What `calibration_error` would be on average if the model were calibrated.

    Args:
        gaps: Finite gaps, shape `(M,)`.
        num_bins: As in `reliability_bins`.
        draws: How often outcomes are drawn from the model's own probabilities.
        seed: Of the draws.

    Returns:
        The mean error over the draws.
    """
    confidence, _ = _confidence(_checked(gaps))
    random = np.random.default_rng(seed)
    outcomes = (random.random((draws, len(confidence))) < confidence).astype(float)
    return float(np.mean([_naive_error(confidence, right, num_bins) for right in outcomes]))


def debiased_calibration_error(gaps: FloatArray, num_bins: int | None = None) -> float:
    """Root mean squared calibration error with the part that chance adds taken off.

    sign(s) * sqrt|s| with s = sum_b (n_b / M) [(acc_b - conf_b)^2 - acc_b (1 - acc_b) / (n_b - 1)]: around 0 for a
    calibrated model, and negative half of the time.

    Args:
        gaps: Finite gaps, shape `(M,)`.
        num_bins: As in `reliability_bins`.

    Returns:
        The error with its sign.

    Raises:
        ValueError: If a bin would hold fewer than two pairs.

    Source:
        Kumar, Liang and Ma (2019), "Verified uncertainty calibration", section 4.2.
    """
    gaps = _checked(gaps)
    confidence, right = _confidence(gaps)
    total = 0.0
    for members in _equal_bins(confidence, num_bins):
        count = len(members)
        if count < 2:
            raise ValueError(f"Each bin needs two pairs or more, but {len(gaps)} pairs are too few. Use fewer bins.")
        accuracy = right[members].mean()
        square = (accuracy - confidence[members].mean()) ** 2
        total += count / len(gaps) * (square - accuracy * (1 - accuracy) / (count - 1))
    return float(np.sign(total) * np.sqrt(abs(total)))


def spiegelhalter(gaps: FloatArray) -> tuple[float, float]:
    """Spiegelhalter's test of calibration.

    Z = sum (y - p)(1 - 2p) / sqrt(sum (1 - 2p)^2 p (1 - p)), standard normal if outcomes follow the probabilities p.
    Above 0 is overconfident, below 0 underconfident.

    Args:
        gaps: Finite gaps, shape `(M,)`.

    Returns:
        Z, and the two-sided p-value; NaN both where every probability is 0.5.

    Source:
        Spiegelhalter (1986), "Probabilistic prediction in patient management and clinical trials".
    """
    gaps = _checked(gaps)
    wins = special.expit(gaps)  # y = 1 for every pair, and Z is the same if any pair is turned round
    weight = 1 - 2 * wins
    variance = np.sum(weight**2 * wins * (1 - wins))
    if variance == 0:
        return float("nan"), float("nan")
    # A tie has weight 0, so it does not matter that y is not known for it.
    score = float(np.sum((1 - wins) * weight) / np.sqrt(variance))
    return score, float(2 * stats.norm.sf(abs(score)))


def calibration_metrics(
    gaps: FloatArray, clusters: IntArray | None = None, *, num_bins: int | None = None, seed: int = 0
) -> dict[str, float]:
    """All of the above by name.

    Args:
        gaps: Finite gaps, shape `(M,)`.
        clusters: Prompt of each pair, shape `(M,)`.
        num_bins: As in `reliability_bins`.
        seed: Of the floor's draws.

    Returns:
        `slope`, `slope_ci_low`, `slope_ci_high`, `temperature`, `ece_debiased`, `ece_naive`, `ece_floor`,
        `brier_score`, `log_loss`, `spiegelhalter_z`, `spiegelhalter_p`, `num_pairs`, `num_bins`. The slope is fitted on
        these very pairs; for the error that is left after scaling, fit on others. `temperature` is NaN unless
        `Slope.suggests_temperature`.
    """
    gaps = _checked(gaps)
    slope = fit_slope(gaps, clusters)
    score, p_value = spiegelhalter(gaps)
    return {
        "slope": slope.value,
        "slope_ci_low": slope.low,
        "slope_ci_high": slope.high,
        "temperature": slope.temperature if slope.suggests_temperature else float("nan"),
        "ece_debiased": debiased_calibration_error(gaps, num_bins),
        "ece_naive": calibration_error(gaps, num_bins),
        "ece_floor": calibration_floor(gaps, num_bins, seed=seed),
        "brier_score": brier_score(gaps),
        "log_loss": log_loss(gaps),
        "spiegelhalter_z": score,
        "spiegelhalter_p": p_value,
        "num_pairs": len(gaps),
        "num_bins": len(_equal_bins(np.abs(gaps), num_bins)),
    }


def _checked(gaps: FloatArray) -> FloatArray:
    found = np.asarray(gaps, dtype=np.float64)
    if found.ndim != 1 or len(found) == 0:
        raise ValueError(f"`gaps` must be one or more numbers, shape (M,), but have the shape {found.shape}.")
    if not np.isfinite(found).all():
        raise ValueError(f"`gaps` must be finite, but {int((~np.isfinite(found)).sum())} are NaN or infinite.")
    return found


def _confidence(gaps: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Probability of the side with the higher reward, and whether it is the preferred one (a tie is half)."""
    return special.expit(np.abs(gaps)), pairwise_credit(gaps)


def _equal_bins(confidence: FloatArray, num_bins: int | None) -> list[IntArray]:
    """Places of the pairs of each bin."""
    if num_bins is None:
        num_bins = max(1, min(MOST_BINS, len(confidence) // PAIRS_PER_BIN))
    if not 1 <= num_bins <= len(confidence):
        raise ValueError(f"`num_bins` must be from 1 to the {len(confidence)} pairs, but is {num_bins}.")
    return np.array_split(np.argsort(confidence, kind="stable"), num_bins)


def _naive_error(confidence: FloatArray, right: FloatArray, num_bins: int | None) -> float:
    bins = _equal_bins(confidence, num_bins)
    return float(sum(abs(right[each].sum() - confidence[each].sum()) for each in bins) / len(confidence))
