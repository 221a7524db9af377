"""Reward differences -> do they mean what Bradley and Terry's model says, and by what would they have to be divided?

The probability that the preferred response of a pair wins is sigmoid(gap). Nothing here depends on which side of a pair
comes first, so pairs may all be stored preferred first. A tie of rewards says 0.5 and is half right.

Shapes: M pairs. A gap is the reward of the preferred response minus that of the other.
"""

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from hf_reward.metrics.arrays import FloatArray, IntArray
from hf_reward.metrics.equal_bins import equal_bins
from hf_reward.metrics.intervals import FEW_CLUSTERS, Interval, clustered_interval, squares_interval, t_interval
from hf_reward.metrics.preference import brier_score, log_loss, pairwise_credit
from hf_reward.metrics.spread import Spread, design_effect, jackknife

MAX_BINS = 15
PAIRS_PER_BIN = 50


@dataclass(frozen=True)
class Slope:
    """By what reward differences have to be multiplied to be log-odds."""

    value: float
    """1 is calibrated, less is overconfident; infinite where no pair is wrong."""
    low: float
    """95% interval, clustered by prompt; NaN where there is none."""
    high: float
    spread: Spread | None = None
    """What the interval is made from."""

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
    """95% interval of the accuracy, clustered by prompt; NaN for the pairs of one prompt."""
    high: float


def fit_slope(gaps: FloatArray, clusters: IntArray | None = None) -> Slope:
    """Fit P(preferred response wins) = sigmoid(b * gap) without intercept, by maximum likelihood.

    The likelihood of b is concave, so b is the one root of its derivative sum_i gap_i sigmoid(-b gap_i), which is
    bracketed and bisected; Newton steps can diverge here. The interval is that of `t_interval` with the jackknife over
    prompts, each left out by one Newton step from b: b - (sum of its scores) / (information without it).

    Args:
        gaps: Finite gaps, shape `(M,)`.
        clusters: Prompt of each pair, any integers, shape `(M,)`; without it every pair is its own prompt.

    Returns:
        The slope; infinite without interval where no gap is negative, minus infinite where none is positive.

    Raises:
        ValueError: If there is no pair, a gap is not finite, or all gaps are 0.

    Source:
        Guo et al. (2017), "On calibration of modern neural networks", section 4.2; Lipsitz, Dear and Zhao (1994),
        "Jackknife estimators of variance for parameter estimates from estimating equations", for the interval.
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
    spread = _slope_spread(gaps, slope, _places(gaps, clusters))
    found = t_interval(spread)
    return Slope(slope, found.low, found.high, spread)


def _slope_spread(gaps: FloatArray, slope: float, place: IntArray) -> Spread:
    wrong = special.expit(-slope * gaps)
    scores = np.bincount(place, weights=gaps * wrong)
    information = np.bincount(place, weights=gaps**2 * wrong * (1 - wrong))
    total = float(information.sum())
    with np.errstate(divide="ignore", invalid="ignore"):  # from one prompt nothing is left
        left_out = slope - scores / (total - information)
    return jackknife(slope, left_out, information / total, np.bincount(place).astype(float))


def reliability_bins(
    gaps: FloatArray, num_bins: int | None = None, clusters: IntArray | None = None
) -> list[ReliabilityBin]:
    """Bins of about equally many pairs, least confident first; pairs of equal confidence are in one bin.

    Args:
        gaps: Finite gaps, shape `(M,)`.
        num_bins: How many; by default one for every 50 pairs, 15 at the most.
        clusters: Prompt of each pair, shape `(M,)`; without it every pair is its own prompt.

    Returns:
        The bins.

    Raises:
        ValueError: If there is no pair, a gap is not finite, or there are more bins than pairs.
    """
    pairs, bins = _binned(gaps, num_bins, clusters), []
    for members in pairs.bins:
        found = clustered_interval(pairs.right[members], pairs.place[members])
        means = float(pairs.confidence[members].mean()), float(pairs.right[members].mean())
        bins.append(ReliabilityBin(*means, len(members), found.low, found.high))
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
    pairs = _binned(gaps, num_bins)
    return pairs.naive_error(pairs.right)


def calibration_floor(
    gaps: FloatArray,
    num_bins: int | None = None,
    clusters: IntArray | None = None,
    *,
    draws: int = 200,
    seed: int = 0,
) -> float:
    """What `calibration_error` would be on average if the model were calibrated.

    Outcomes are drawn from the model's own probabilities, independently. Pairs of a prompt that turn out alike make the
    error of a bin larger by the square root of the design effect of what is left after its mean.

    Args:
        gaps: Finite gaps, shape `(M,)`.
        num_bins: As in `reliability_bins`.
        clusters: Prompt of each pair, shape `(M,)`; without it every pair is its own prompt.
        draws: How often outcomes are drawn.
        seed: Of the draws.

    Returns:
        The mean error over the draws; NaN for the pairs of one prompt.
    """
    ordered = _binned(np.sort(np.abs(_checked(gaps))), num_bins)  # else the draws would depend on the order of rows
    outcomes = (np.random.default_rng(seed).random((draws, len(gaps))) < ordered.confidence).astype(float)
    independent = float(np.mean([ordered.naive_error(each) for each in outcomes]))
    if clusters is None:
        return independent
    return independent * float(np.sqrt(_effect_within_bins(_binned(gaps, num_bins, clusters))))


def _effect_within_bins(pairs: "_Binned") -> float:
    """Design effect of what is left of the outcomes after the mean of their bin, one for all bins. 1 at the least."""
    clustered = independent = 0.0
    for members in pairs.bins:
        rest = pairs.right[members] - pairs.confidence[members]
        clustered += _variance(rest, pairs.place[members])
        independent += _variance(rest, np.arange(len(members)))
    return max(1.0, clustered / independent) if independent > 0 else float(np.nan if np.isnan(clustered) else 1.0)


def _variance(values: FloatArray, place: IntArray) -> float:
    """Variance of the mean of values: G / (G - 1) * sum over prompts of (sum of v - mean)^2, over n^2; NaN of one."""
    sums = np.bincount(np.unique(place, return_inverse=True)[1], weights=values - values.mean())
    return float(len(sums) / (len(sums) - 1) * np.sum(sums**2)) / len(values) ** 2 if len(sums) > 1 else float("nan")


def debiased_calibration_error(
    gaps: FloatArray, num_bins: int | None = None, clusters: IntArray | None = None
) -> float:
    """Root mean squared calibration error with the part that chance adds taken off.

    sign(s) * sqrt|s| with s = sum_b (n_b / M) [(acc_b - conf_b)^2 - v_b]: around 0 for a calibrated model, and negative
    half of the time. v_b is the variance of acc_b: acc_b (1 - acc_b) / (n_b - 1) if every pair is its own prompt, else
    G / (G - 1) * sum over the bin's G prompts of (sum of outcome - acc_b)^2, over n_b^2, which is the same then.

    Args:
        gaps: Finite gaps, shape `(M,)`.
        num_bins: As in `reliability_bins`.
        clusters: Prompt of each pair, shape `(M,)`.

    Returns:
        The error with its sign; NaN where a bin holds the pairs of one prompt.

    Raises:
        ValueError: If a bin would hold fewer than two pairs.

    Source:
        Kumar, Liang and Ma (2019), "Verified uncertainty calibration", section 4.2.
    """
    pairs, total = _binned(gaps, num_bins, clusters), 0.0
    for members in pairs.bins:
        if len(members) < 2:
            raise ValueError(f"Each bin needs two pairs or more, but {len(gaps)} pairs are too few. Use fewer bins.")
        right = pairs.right[members]
        square = (right.mean() - pairs.confidence[members].mean()) ** 2
        total += len(members) / len(gaps) * (square - _variance(right, pairs.place[members]))
    return float(np.sign(total) * np.sqrt(abs(total)))


def calibration_error_interval(
    gaps: FloatArray, num_bins: int | None = None, clusters: IntArray | None = None
) -> Interval:
    """95% interval of the root mean squared calibration error of which `debiased_calibration_error` is the estimate.

    The true error is 0 or more, so a lower bound of 0 or less does not exclude that the model is calibrated; it is
    moved down to the estimate where that is below 0.

    Args:
        gaps: Finite gaps, shape `(M,)`.
        num_bins: As in `reliability_bins`.
        clusters: Prompt of each pair, shape `(M,)`; without it every pair is its own prompt.

    Returns:
        The root of `squares_interval` of the bins' differences; none from fewer than 20 prompts, where it does not hold
        the truth often enough.
    """
    pairs = _binned(gaps, num_bins, clusters)
    count = int(pairs.place.max()) + 1
    estimate = debiased_calibration_error(gaps, num_bins, clusters)
    if count < FEW_CLUSTERS or np.isnan(estimate):
        return Interval(np.nan, np.nan, count, "none")
    means, parts = [], []
    for members in pairs.bins:
        over, weight = pairs.right[members] - pairs.confidence[members], np.sqrt(len(members) / len(gaps))
        means.append(weight * over.mean())
        sums = np.bincount(pairs.place[members], weights=over - over.mean(), minlength=count)
        parts.append(weight * sums / len(members))
    found = squares_interval(np.array(means), np.array(parts).T)
    low, high = float(np.sqrt(found.low)), float(np.sqrt(found.high))
    return Interval(min(low, estimate), max(high, estimate), count, found.method)


def spiegelhalter(gaps: FloatArray, clusters: IntArray | None = None) -> tuple[float, float]:
    """Spiegelhalter's test of calibration.

    Z = sum (y - p)(1 - 2p) / sqrt(d sum (1 - 2p)^2 p (1 - p)). With d = 1, where every pair is its own prompt, it is
    standard normal if outcomes follow the probabilities p. Else d is the design effect of the summands, and t with a
    degree of freedom fewer than prompts takes the place of the normal distribution. Above 0 is overconfident, below 0
    underconfident.

    Args:
        gaps: Finite gaps, shape `(M,)`.
        clusters: Prompt of each pair, shape `(M,)`; without it every pair is its own prompt.

    Returns:
        Z, and the two-sided p-value; NaN both where every probability is 0.5, or all pairs are of one prompt.

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
    summands = (1 - wins) * weight
    score = float(np.sum(summands) / np.sqrt(variance))
    place = _places(gaps, clusters)
    count = int(place.max()) + 1
    if count == len(gaps):
        return score, float(2 * stats.norm.sf(abs(score)))
    score /= float(np.sqrt(design_effect(summands, place)))
    return score, float(2 * stats.t.sf(abs(score), count - 1)) if count > 1 else float("nan")


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
        `slope`, `slope_ci_low`, `slope_ci_high`, `temperature`, `ece_debiased` with `ece_debiased_ci_low` and
        `ece_debiased_ci_high` (NaN from fewer than 20 prompts), `ece_naive`, `ece_floor`, `brier_score`, `log_loss`,
        `spiegelhalter_z`, `spiegelhalter_p`, `num_pairs`, `num_bins`. The slope is fitted on these very pairs; for the
        error that is left after scaling, fit on others. `temperature` is NaN unless `Slope.suggests_temperature`.
    """
    gaps = _checked(gaps)
    slope = fit_slope(gaps, clusters)
    score, p_value = spiegelhalter(gaps, clusters)
    error = calibration_error_interval(gaps, num_bins, clusters)
    return {
        "slope": slope.value,
        "slope_ci_low": slope.low,
        "slope_ci_high": slope.high,
        "temperature": slope.temperature if slope.suggests_temperature else float("nan"),
        "ece_debiased": debiased_calibration_error(gaps, num_bins, clusters),
        "ece_debiased_ci_low": error.low,
        "ece_debiased_ci_high": error.high,
        "ece_naive": calibration_error(gaps, num_bins),
        "ece_floor": calibration_floor(gaps, num_bins, clusters, seed=seed),
        "brier_score": brier_score(gaps),
        "log_loss": log_loss(gaps),
        "spiegelhalter_z": score,
        "spiegelhalter_p": p_value,
        "num_pairs": len(gaps),
        "num_bins": len(_binned(gaps, num_bins).bins),
    }


def _checked(gaps: FloatArray) -> FloatArray:
    found = np.asarray(gaps, dtype=np.float64)
    if found.ndim != 1 or len(found) == 0:
        raise ValueError(f"`gaps` must be one or more numbers, shape (M,), but have the shape {found.shape}.")
    if not np.isfinite(found).all():
        raise ValueError(f"`gaps` must be finite, but {int((~np.isfinite(found)).sum())} are NaN or infinite.")
    return found


def _places(gaps: FloatArray, clusters: IntArray | None) -> IntArray:
    """Number of each pair's prompt, from 0; without prompts every pair is its own."""
    if clusters is None:
        return np.arange(len(gaps))
    return np.unique(np.asarray(clusters), return_inverse=True)[1]


@dataclass(frozen=True)
class _Binned:
    """Pairs, and their places in bins of about equal confidence."""

    confidence: FloatArray
    """Probability of the side with the higher reward."""
    right: FloatArray
    """Whether that side is the preferred one; a tie is half."""
    place: IntArray
    """Number of each pair's prompt."""
    bins: list[IntArray]

    def naive_error(self, right: FloatArray) -> float:
        """Mean over pairs of |accuracy - confidence| of their bin for these outcomes."""
        off = (abs(right[members].sum() - self.confidence[members].sum()) for members in self.bins)
        return float(sum(off) / len(self.confidence))


def _binned(gaps: FloatArray, num_bins: int | None, clusters: IntArray | None = None) -> _Binned:
    gaps = _checked(gaps)
    confidence = special.expit(np.abs(gaps))
    if num_bins is None:
        num_bins = max(1, min(MAX_BINS, len(gaps) // PAIRS_PER_BIN))
    if not 1 <= num_bins <= len(gaps):
        raise ValueError(f"`num_bins` must be from 1 to the {len(gaps)} pairs, but is {num_bins}.")
    return _Binned(confidence, pairwise_credit(gaps), _places(gaps, clusters), equal_bins(confidence, num_bins))
