"""Calibration of reward differences under the Bradley-Terry model, and the temperature that corrects it.

The model predicts that the preferred response of a pair wins with probability sigmoid(gap). Every statistic is
symmetric in the two sides of a pair, so `gaps` may always be preferred minus rejected. A tie of rewards has confidence
0.5 and counts as half correct.

Shapes: M pairs. A gap is the reward of the preferred response minus the reward of the rejected response.
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
    """The calibration slope: the factor that turns reward differences into log-odds."""

    value: float
    """1 is calibrated, less is overconfident; infinite if no pair is wrong."""
    low: float
    """95% interval, clustered by prompt; NaN if there is none."""
    high: float
    spread: Spread | None = None
    """Standard error and clusters behind the interval."""

    @property
    def temperature(self) -> float:
        """Divisor of the rewards in temperature scaling: 1 / slope; NaN for a slope of 0 or less."""
        return 1 / self.value if self.value > 0 else float("nan")

    @property
    def suggests_temperature(self) -> bool:
        """Whether dividing by the temperature is advised: only if a finite slope has an interval entirely above 0.

        Otherwise rewards are not shown to predict preference, and a temperature would make noise look calibrated.
        """
        return bool(np.isfinite(self.value) and self.low > 0)


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs of similar confidence."""

    confidence: float
    """Mean probability of the side with the higher reward."""
    accuracy: float
    """Share of pairs whose preferred response has the higher reward; ties count half."""
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
        clusters: Prompt of each pair, any integers, shape `(M,)`; by default every pair is its own prompt.

    Returns:
        The slope; infinite without interval if no gap is negative, minus infinity if none is positive.

    Raises:
        ValueError: If there are no pairs, a gap is not finite, or all gaps are 0.

    Source:
        Guo et al. (2017), "On calibration of modern neural networks", section 4.2; Lipsitz, Dear and Zhao (1994),
        "Jackknife estimators of variance for parameter estimates from estimating equations", for the interval.
    """
    gaps = _checked(gaps)
    if not gaps.any():
        raise ValueError(
            "A slope needs at least one nonzero reward difference, but all are 0: both responses of every pair have "
            "the same reward. Check that the model is trained and that the responses differ."
        )
    if (gaps >= 0).all() or (gaps <= 0).all():
        return Slope(float(np.inf if gaps.max() > 0 else -np.inf), np.nan, np.nan)
    scale = float(np.median(np.abs(gaps[gaps != 0])))
    units = gaps / scale  # makes the bracket independent of the scale of the rewards

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
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 if there is only one prompt
        left_out = slope - scores / (total - information)
    return jackknife(slope, left_out, information / total, np.bincount(place).astype(float))


def reliability_bins(
    gaps: FloatArray, num_bins: int | None = None, clusters: IntArray | None = None
) -> list[ReliabilityBin]:
    """Return the bins of a reliability diagram, with about equal numbers of pairs and lowest confidence first.

    Pairs of equal confidence are in the same bin.

    Args:
        gaps: Finite gaps, shape `(M,)`.
        num_bins: Number of bins; by default one per 50 pairs, at most 15.
        clusters: Prompt of each pair, shape `(M,)`; by default every pair is its own prompt.

    Returns:
        The bins.

    Raises:
        ValueError: If there are no pairs, a gap is not finite, or there are more bins than pairs.
    """
    pairs, bins = _binned(gaps, num_bins, clusters), []
    for members in pairs.bins:
        found = clustered_interval(pairs.right[members], pairs.place[members])
        means = float(pairs.confidence[members].mean()), float(pairs.right[members].mean())
        bins.append(ReliabilityBin(*means, len(members), found.low, found.high))
    return bins


def calibration_error(gaps: FloatArray, num_bins: int | None = None) -> float:
    """Expected calibration error as usually reported: the mean over pairs of |accuracy - confidence| of their bin.

    Its expectation is above 0 even for a calibrated model; compare it with `calibration_floor`.

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
    """Expected value of `calibration_error` for a calibrated model.

    Outcomes are drawn independently from the model's own probabilities. Correlation within prompts increases the error
    of a bin by the square root of the design effect of its residuals.

    Args:
        gaps: Finite gaps, shape `(M,)`.
        num_bins: As in `reliability_bins`.
        clusters: Prompt of each pair, shape `(M,)`; by default every pair is its own prompt.
        draws: Number of simulated sets of outcomes.
        seed: Random seed of the draws.

    Returns:
        The mean error over the draws; NaN for the pairs of one prompt.
    """
    ordered = _binned(np.sort(np.abs(_checked(gaps))), num_bins)  # makes the draws independent of the order of rows
    outcomes = (np.random.default_rng(seed).random((draws, len(gaps))) < ordered.confidence).astype(float)
    independent = float(np.mean([ordered.naive_error(each) for each in outcomes]))
    if clusters is None:
        return independent
    return independent * float(np.sqrt(_effect_within_bins(_binned(gaps, num_bins, clusters))))


def _effect_within_bins(pairs: "_Binned") -> float:
    """Design effect of the residuals of the outcomes within their bins, pooled over bins; at least 1."""
    clustered = independent = 0.0
    for members in pairs.bins:
        rest = pairs.right[members] - pairs.confidence[members]
        clustered += _variance(rest, pairs.place[members])
        independent += _variance(rest, np.arange(len(members)))
    return max(1.0, clustered / independent) if independent > 0 else float(np.nan if np.isnan(clustered) else 1.0)


def _variance(values: FloatArray, place: IntArray) -> float:
    """Variance of the mean: G / (G - 1) * sum over prompts of (sum of v - mean)^2, over n^2; NaN for one prompt."""
    sums = np.bincount(np.unique(place, return_inverse=True)[1], weights=values - values.mean())
    return float(len(sums) / (len(sums) - 1) * np.sum(sums**2)) / len(values) ** 2 if len(sums) > 1 else float("nan")


def debiased_calibration_error(
    gaps: FloatArray, num_bins: int | None = None, clusters: IntArray | None = None
) -> float:
    """Root mean squared calibration error, corrected for sampling noise.

    sign(s) * sqrt|s| with s = sum_b (n_b / M) [(acc_b - conf_b)^2 - v_b]. For a calibrated model it is centred on 0 and
    negative half of the time. v_b is the variance of acc_b: acc_b (1 - acc_b) / (n_b - 1) if every pair is its own
    prompt. The general form, G / (G - 1) * sum over the bin's G prompts of (sum of outcome - acc_b)^2, over n_b^2, is
    equal to it in that case.

    Args:
        gaps: Finite gaps, shape `(M,)`.
        num_bins: As in `reliability_bins`.
        clusters: Prompt of each pair, shape `(M,)`.

    Returns:
        The signed error; NaN if all pairs of a bin belong to one prompt.

    Raises:
        ValueError: If a bin would have fewer than two pairs.

    Source:
        Kumar, Liang and Ma (2019), "Verified uncertainty calibration", section 4.2.
    """
    pairs, total = _binned(gaps, num_bins, clusters), 0.0
    for members in pairs.bins:
        if len(members) < 2:
            raise ValueError(
                f"Every bin needs at least two pairs, but with {len(gaps)} pairs in {len(pairs.bins)} bins, one bin "
                f"has only {len(members)}. Lower `num_bins`."
            )
        right = pairs.right[members]
        square = (right.mean() - pairs.confidence[members].mean()) ** 2
        total += len(members) / len(gaps) * (square - _variance(right, pairs.place[members]))
    return float(np.sign(total) * np.sqrt(abs(total)))


def calibration_error_interval(
    gaps: FloatArray, num_bins: int | None = None, clusters: IntArray | None = None
) -> Interval:
    """95% interval of the root mean squared calibration error, which `debiased_calibration_error` estimates.

    The true error is 0 or more, so a lower bound of 0 or less does not rule out a calibrated model. The lower bound
    is moved down to the estimate if the estimate is below 0.

    Args:
        gaps: Finite gaps, shape `(M,)`.
        num_bins: As in `reliability_bins`.
        clusters: Prompt of each pair, shape `(M,)`; by default every pair is its own prompt.

    Returns:
        The square root of the `squares_interval` of the bins' differences; no interval with fewer than 20 prompts,
        where its coverage is too low.
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

    Z = sum (y - p)(1 - 2p) / sqrt(d sum (1 - 2p)^2 p (1 - p)). If every pair is its own prompt, d = 1 and Z is standard
    normal for a calibrated model. Otherwise d is the design effect of the summands, and the reference is the t
    distribution with one degree of freedom fewer than there are prompts. Above 0 is overconfident, below 0
    underconfident.

    Args:
        gaps: Finite gaps, shape `(M,)`.
        clusters: Prompt of each pair, shape `(M,)`; by default every pair is its own prompt.

    Returns:
        Z and the two-sided p-value; both NaN if every probability is 0.5 or all pairs belong to one prompt.

    Source:
        Spiegelhalter (1986), "Probabilistic prediction in patient management and clinical trials".
    """
    gaps = _checked(gaps)
    wins = special.expit(gaps)  # y = 1 for every pair; swapping the sides of a pair does not change Z
    weight = 1 - 2 * wins
    variance = np.sum(weight**2 * wins * (1 - wins))
    if variance == 0:
        return float("nan"), float("nan")
    # A tie has weight 0, so its undefined y does not matter.
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
    """All calibration statistics by name.

    Args:
        gaps: Finite gaps, shape `(M,)`.
        clusters: Prompt of each pair, shape `(M,)`.
        num_bins: As in `reliability_bins`.
        seed: Random seed of `calibration_floor`.

    Returns:
        `slope`, `slope_ci_low`, `slope_ci_high`, `temperature`, `ece_debiased` with `ece_debiased_ci_low` and
        `ece_debiased_ci_high` (NaN with fewer than 20 prompts), `ece_naive`, `ece_floor`, `brier_score`, `log_loss`,
        `spiegelhalter_z`, `spiegelhalter_p`, `num_pairs`, `num_bins`. The slope is fitted on the same pairs; to measure
        the remaining error after scaling, fit it on different pairs. `temperature` is NaN unless
        `Slope.suggests_temperature`.
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
        raise ValueError(f"`gaps` must have shape (M,) with M > 0, but has shape {found.shape}.")
    if not np.isfinite(found).all():
        count = int((~np.isfinite(found)).sum())
        raise ValueError(f"`gaps` must be finite, but {count} of {len(found)} are NaN or infinite. Leave them out.")
    return found


def _places(gaps: FloatArray, clusters: IntArray | None) -> IntArray:
    """Number of each pair's prompt, from 0; by default every pair is its own prompt."""
    if clusters is None:
        return np.arange(len(gaps))
    return np.unique(np.asarray(clusters), return_inverse=True)[1]


@dataclass(frozen=True)
class _Binned:
    """Pairs in bins of similar confidence."""

    confidence: FloatArray
    """Probability of the side with the higher reward."""
    right: FloatArray
    """1 if that side is the preferred one, 0.5 for a tie."""
    place: IntArray
    """Number of each pair's prompt."""
    bins: list[IntArray]

    def naive_error(self, right: FloatArray) -> float:
        """Mean over pairs of |accuracy - confidence| of their bin, for given outcomes."""
        off = (abs(right[members].sum() - self.confidence[members].sum()) for members in self.bins)
        return float(sum(off) / len(self.confidence))


def _binned(gaps: FloatArray, num_bins: int | None, clusters: IntArray | None = None) -> _Binned:
    gaps = _checked(gaps)
    confidence = special.expit(np.abs(gaps))
    if num_bins is None:
        num_bins = max(1, min(MAX_BINS, len(gaps) // PAIRS_PER_BIN))
    if not 1 <= num_bins <= len(gaps):
        raise ValueError(f"`num_bins` must be between 1 and the number of pairs ({len(gaps)}), but is {num_bins}.")
    return _Binned(confidence, pairwise_credit(gaps), _places(gaps, clusters), equal_bins(confidence, num_bins))
