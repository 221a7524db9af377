"""Calibration: reward differences as log-odds of the Bradley-Terry model, compared with the preferences."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xxhash
from scipy import special, stats

from hf_reward.evaluation.audit.cases import ScoredCase
from hf_reward.evaluation.audit.effects import clusters_of
from hf_reward.evaluation.audit.families.accuracy import gaps_of, pair_cases
from hf_reward.evaluation.audit.family import Family, FamilyResult, three_examples
from hf_reward.evaluation.audit.findings import About, Curve, Finding, Table, empty_finding
from hf_reward.evaluation.audit.inference import Inference
from hf_reward.evaluation.audit.inputs.audit_inputs import AuditInputs
from hf_reward.evaluation.data_check.votes import read_votes
from hf_reward.metrics.arrays import FloatArray
from hf_reward.metrics.calibration import (
    calibration_error,
    calibration_error_interval,
    calibration_floor,
    debiased_calibration_error,
    fit_slope,
    spiegelhalter,
)
from hf_reward.metrics.counts import counted
from hf_reward.metrics.equal_bins import equal_bins
from hf_reward.metrics.intervals import clustered_interval
from hf_reward.metrics.preference import brier_score, log_loss

FAMILY = "calibration"
SLOPE_DELTA = 0.2
"""Largest distance of the slope from 1 that does not matter."""
_BINS = 10
_FEWEST = 40


def first_is_preferred(scored: Sequence[ScoredCase]) -> np.ndarray:
    """Return whether the response that a hash of both texts puts first is the preferred one, shape `(N,)`, bool.

    Pairs are stored with the preferred response first, so without the hash all outcomes would be equal.
    """
    found = []
    for each in scored:
        chosen, rejected = (each.case.texts[role].key for role in ("chosen", "rejected"))
        both = "".join(sorted((chosen, rejected)))
        coin = xxhash.xxh3_64_intdigest(both.encode()) & 1
        found.append((chosen < rejected) == bool(coin))
    return np.array(found, dtype=bool)


def brier_parts(probabilities: FloatArray, outcomes: FloatArray, num_bins: int = _BINS) -> dict[str, float]:
    """Return the Brier score and its decomposition over bins of equally many pairs.

    Score = reliability - resolution + uncertainty, up to the variation within bins.

    Args:
        probabilities: P(first response preferred), shape `(N,)`.
        outcomes: 1 if it is preferred, else 0, shape `(N,)`.
        num_bins: Number of bins.

    Returns:
        `brier`, `reliability`, `resolution`, `uncertainty`.

    Source:
        Murphy (1973), "A new vector partition of the probability score".
    """
    base = outcomes.mean()
    parts = equal_bins(probabilities, min(num_bins, len(outcomes)))
    weights = np.array([len(part) for part in parts]) / len(outcomes)
    rates = np.array([outcomes[part].mean() for part in parts])
    means = np.array([probabilities[part].mean() for part in parts])
    return {
        "brier": float(np.mean((probabilities - outcomes) ** 2)),
        "reliability": float(np.sum(weights * (means - rates) ** 2)),
        "resolution": float(np.sum(weights * (rates - base) ** 2)),
        "uncertainty": float(base * (1 - base)),
    }


def cross_fitted_gaps(gaps: FloatArray, clusters: Sequence[str]) -> FloatArray | None:
    """Divide gaps by the temperature that fits the other half of the prompts.

    Args:
        gaps: Reward differences, shape `(N,)`.
        clusters: Prompt of each; its half depends only on its name.

    Returns:
        Scaled gaps, shape `(N,)`; None if a half has no finite temperature.
    """
    half = np.array([xxhash.xxh3_64_intdigest(str(name).encode("utf-8", "surrogatepass")) & 1 for name in clusters])
    scaled = np.empty(len(gaps))
    for side in (0, 1):
        other = gaps[half != side]
        if len(other) == 0 or not other.any():
            return None
        slope = fit_slope(other).value
        if not (np.isfinite(slope) and slope > 0):
            return None
        scaled[half == side] = gaps[half == side] * slope
    return scaled


def _analyse(scored: list[ScoredCase], inputs: AuditInputs, inference: Inference) -> FamilyResult:
    gaps, clusters = gaps_of(scored), np.unique(clusters_of(scored), return_inverse=True)[1]
    if len(gaps) < _FEWEST or not gaps.any():
        return FamilyResult(not_assessed=f"It needs {_FEWEST} pairs or more, and rewards that differ.")
    first = first_is_preferred(scored)
    slope = fit_slope(gaps, clusters)
    probabilities = special.expit(np.where(first, gaps, -gaps))
    rows, details = _numbers(gaps, clusters, probabilities, first.astype(float))
    if slope.suggests_temperature:
        details["temperature"] = slope.temperature
    scaled = cross_fitted_gaps(gaps, clusters_of(scored))
    if scaled is not None:
        after = debiased_calibration_error(scaled, clusters=clusters)
        rows.append(
            ["debiased error with a temperature fitted on the other half", f"{after:+.3f}", "about 0 if it helps"]
        )
        details["error_after_temperature"] = after
    return FamilyResult(
        examples=three_examples(
            scored,
            lambda each: float(special.expit(each.gap("rejected", "chosen"))),
            {"chosen": "preferred by people", "rejected": "the other"},
            "predicted probability of the other response",
        ),
        findings=[_slope_finding(gaps, clusters, inference), *_observational(gaps, clusters)],
        tables=[
            Table(title="Calibration measures", columns=["", "Value", "Reference"], rows=rows),
            *_votes(scored, gaps),
        ],
        curves=[_reliability(probabilities, first.astype(float), clusters)],
        details=details,
    )


def _slope_finding(gaps: FloatArray, clusters: np.ndarray, inference: Inference) -> Finding:
    """Slope minus 1: below 0 is overconfident."""
    slope = fit_slope(gaps, clusters)
    about = About(FAMILY, "calibration_slope", "calibration slope minus 1 (below 0: overconfident)")
    if slope.spread is None or not np.isfinite([slope.value, slope.low, slope.high]).all():
        note = "The slope is undefined: the model is right, or wrong, on every pair."
        counts = {"n": len(gaps), "clusters": len(set(clusters))}
        return empty_finding(about, "slope", delta=SLOPE_DELTA, note=note, **counts)
    distance = replace(slope.spread, estimate=slope.value - 1)
    found = inference.of_spread(about, distance, len(gaps), delta=SLOPE_DELTA, unit="slope")
    note = f"Slope {slope.value:.2f}: higher rewards are not preferred here, which no temperature corrects."
    if slope.value > 0 and not slope.suggests_temperature:
        note = (
            f"Slope {slope.value:.2f}, but its interval ({slope.low:.2f} to {slope.high:.2f}) contains 0: it is "
            "not shown that higher rewards are preferred here, so no temperature is suggested."
        )
    elif slope.value > 0:
        word = "overconfident" if slope.value < 1 else "underconfident"
        note = f"Slope {slope.value:.2f}: {word}; a temperature of {slope.temperature:.2f} would correct it."
    return replace(found, note=" ".join([note, found.note]).strip())


def _observational(gaps: FloatArray, clusters: np.ndarray) -> list[Finding]:
    counts = {"n": len(gaps), "clusters": len(set(clusters)), "screen_only": True}
    score, tail = spiegelhalter(gaps, clusters)
    error = debiased_calibration_error(gaps, clusters=clusters)
    low, high = calibration_error_interval(gaps, clusters=clusters).bounds or (None, None)
    return [
        empty_finding(
            About(FAMILY, "calibration_error", "calibration error, corrected for chance"),
            "probability",
            estimate=error if np.isfinite(error) else None,
            ci_low=low,
            ci_high=high,
            note=f"Naive error {calibration_error(gaps):.3f}, of which a calibrated model would have "
            f"{calibration_floor(gaps, clusters=clusters):.3f} by chance. The interval is for the true error, which is "
            "not negative.",
            **counts,
        ),
        empty_finding(
            About(FAMILY, "spiegelhalter_z", "Spiegelhalter's Z"),
            "z",
            estimate=score if np.isfinite(score) else None,
            p_value=tail if np.isfinite(tail) else None,
            note="Above 0 is overconfident. Pairs of a prompt are treated as one cluster.",
            **counts,
        ),
    ]


def _numbers(
    gaps: FloatArray, clusters: np.ndarray, probabilities: FloatArray, outcomes: FloatArray
) -> tuple[list[list[str]], dict[str, float]]:
    parts = brier_parts(probabilities, outcomes)
    floor = calibration_floor(gaps, clusters=clusters)
    debiased = debiased_calibration_error(gaps, clusters=clusters)
    rows = [
        ["log loss", f"{log_loss(gaps):.3f}", "0.693 without information"],
        ["Brier score", f"{brier_score(gaps):.3f}", "0.250 without information"],
        ["... reliability", f"{parts['reliability']:.3f}", "0 is calibrated"],
        ["... resolution", f"{parts['resolution']:.3f}", "higher is better"],
        ["... uncertainty", f"{parts['uncertainty']:.3f}", "a property of the pairs"],
        ["naive calibration error", f"{calibration_error(gaps):.3f}", f"{floor:.3f} if calibrated"],
        [
            "debiased calibration error",
            f"{debiased:+.3f}",
            "about 0 if calibrated",
        ],
    ]
    return rows, parts


def _reliability(probabilities: FloatArray, outcomes: FloatArray, clusters: np.ndarray) -> Curve:
    count = max(2, min(_BINS, len(outcomes) // 20))
    parts = equal_bins(probabilities, count)
    bounds = [clustered_interval(outcomes[part], clusters[part]) for part in parts]
    series = {
        "label": "pairs, in bins of equal size",
        "x": [float(probabilities[part].mean()) for part in parts],
        "y": [float(outcomes[part].mean()) for part in parts],
        "low": [float(each.low) for each in bounds],
        "high": [float(each.high) for each in bounds],
    }
    return Curve(
        name="reliability",
        title="Reliability",
        x_label="predicted probability of the first response",
        y_label="share in which it is preferred",
        series=[series],
        diagonal=True,
    )


def _share_of_votes(meta: Mapping[str, Any]) -> float | None:
    """Share of the votes for the preferred response; the larger share if votes have no names."""
    votes = read_votes(meta)
    if votes is None or sum(votes[:2]) < 2:
        return None
    own = votes[0] if "votes_chosen" in meta else max(votes[:2])
    return own / sum(votes[:2])


def _votes(scored: Sequence[ScoredCase], gaps: FloatArray) -> list[Table]:
    """Compare probabilities with shares of votes if several people voted."""
    shares_of = [_share_of_votes(each.case.labels["pair"].meta) for each in scored]
    known = [place for place, share in enumerate(shares_of) if share is not None]
    if len(known) < _FEWEST:
        return []
    shares = np.array([shares_of[place] for place in known], dtype=float)
    wins = special.expit(gaps[known])
    rho = stats.spearmanr(gaps[known], shares)[0]
    rows = [
        ["mean probability of the preferred response", f"{wins.mean():.3f}", f"{shares.mean():.3f} of the votes"],
        ["Brier score against the share of votes", f"{np.mean((wins - shares) ** 2):.3f}", "0 is best"],
        [
            "rank correlation of margin and share of votes",
            f"{float(np.asarray(rho)):+.3f}",
            counted(len(known), "pair"),
        ],
    ]
    return [Table(title="Comparison with votes", columns=["", "Value", "Reference"], rows=rows)]


CALIBRATION = Family(
    name=FAMILY,
    title="Calibration",
    what="Reward differences were interpreted as log-odds of being preferred and compared with the preferences. A hash "
    "decides which response of a pair comes first, so the preferred one is not always first.",
    advice="`hf-reward audit --fit-temperature` stores the temperature in the checkpoint, and `RewardScorer.compare` "
    "divides by it. It changes no ranking.",
    cases=pair_cases,
    analyse=_analyse,
)
