"""Simulations of calibration numbers and of the area under the risk-coverage curve."""

from functools import cache

import numpy as np
from coverage_setting import Number, Setting, Tally, gaps_of
from risk_coverage import aurc, aurc_interval
from scipy import optimize, special

from hf_reward.evaluation.audit.families.accuracy import log_loss_words
from hf_reward.metrics.calibration import (
    calibration_error,
    calibration_error_interval,
    calibration_floor,
    fit_slope,
    reliability_bins,
    spiegelhalter,
)
from hf_reward.metrics.intervals import t_interval


def slope(truth: float) -> Number:
    """The calibration slope; a false alarm is an interval without 1 for a calibrated model."""

    def simulate(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        found = fit_slope(gaps_of(setting, random, truth), setting.labels)
        tally.add((found.low, found.high), truth)
        if truth == 1 and not np.isnan(found.low):
            tally.alarms.append(not found.low <= 1 <= found.high)
        if truth == 0:
            tally.alarms.append(found.suggests_temperature)

    return Number(simulate)


def brier_test(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """Spiegelhalter's test of a calibrated model."""
    _, tail = spiegelhalter(gaps_of(setting, random, 1.0), setting.labels)
    tally.alarms.append(bool(tail <= 0.05))


def reliability(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """Reliability bins of a calibrated model: the accuracy of each bin is its mean confidence."""
    for each in reliability_bins(gaps_of(setting, random, 1.0), clusters=setting.labels):
        tally.add((each.low, each.high), each.confidence)


@cache
def _true_error(truth: float, bins: int) -> float:
    sizes = np.sort(1.5 * np.abs(np.random.default_rng(0).normal(size=200_000)))
    parts = np.array_split(special.expit(truth * sizes) - special.expit(sizes), bins)
    return float(np.sqrt(np.mean([part.mean() ** 2 for part in parts])))


def debiased_error(truth: float) -> Number:
    """The debiased calibration error; a false alarm is an interval above 0 for a calibrated model."""

    def simulate(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        gaps = gaps_of(setting, random, truth)
        found = calibration_error_interval(gaps, clusters=setting.labels)
        tally.add(found.bounds, _true_error(truth, max(1, min(15, len(gaps) // 50))))
        if truth == 1 and found.bounds:
            tally.alarms.append(found.low > 0)

    return Number(simulate)


def floor(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """The ECE floor and the naive error of a calibrated model: their means should be equal."""
    gaps = gaps_of(setting, random, 1.0)
    found = calibration_floor(gaps, clusters=setting.labels, draws=20, seed=int(random.integers(1 << 30)))
    tally.ratios.append((found, calibration_error(gaps)))


@cache
def _sizes() -> np.ndarray:
    return 1.5 * np.abs(np.random.default_rng(0).normal(size=200_000))


@cache
def _expected_loss(truth: float) -> float:
    wins = special.expit(truth * _sizes())
    return float(np.mean(-wins * special.log_expit(_sizes()) - (1 - wins) * special.log_expit(-_sizes())))


@cache
def slope_of_no_gain() -> float:
    """The slope at which a model's log loss is ln 2, that of a constant prediction."""
    found = optimize.brentq(lambda truth: _expected_loss(truth) - np.log(2), 0.0, 1.0)
    return float(found)  # pyright: ignore[reportArgumentType]


def log_loss(truth: float | None) -> Number:
    """The log loss; the alarm is to call it worse, or (by silence) better, than a constant where it is neither."""

    def simulate(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        slope = slope_of_no_gain() if truth is None else truth
        words, spread = log_loss_words(gaps_of(setting, random, slope), setting.labels)
        if "too few prompts" in words:
            tally.withheld += 1
            return
        tally.add(t_interval(spread).bounds, _expected_loss(slope) - np.log(2))
        if truth is None:
            tally.alarms.append("worse" in words or not words)

    return Number(simulate)


@cache
def _true_area(noise: float) -> float:
    random = np.random.default_rng(0)
    size = _sizes()
    wrong = random.random(len(size)) > special.expit(size)
    return aurc(wrong.astype(float), np.abs(size + noise * random.normal(size=len(size))))


def area(noise: float) -> Number:
    """AURC of abstaining by the margin; the alarm is a difference between two equally noisy margins."""

    def simulate(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        gaps = gaps_of(setting, random, 1.0)
        wrong, size = (gaps < 0).astype(float), np.abs(gaps)
        first, second = (np.abs(size + noise * setting.normal(random)) for _ in range(2))
        found = aurc_interval([(wrong, first)], setting.labels)
        tally.add(found and found.bounds, _true_area(noise))
        if noise:
            found = aurc_interval([(wrong, first), (wrong, second)], setting.labels)
            if found is not None:
                tally.alarms.append(not found.low <= 0 <= found.high)

    return Number(simulate)


CALIBRATION: dict[str, Number] = {
    "slope 1": slope(1.0),
    "slope .5 (overconfident)": slope(0.5),
    "slope 2 (underconfident)": slope(2.0),
    "slope 0 (temperature suggested)": slope(0.0),
    "Spiegelhalter's p": Number(brier_test),
    "reliability bars": Number(reliability),
    "debiased error, calibrated": debiased_error(1.0),
    "debiased error, overconfident": debiased_error(0.5),
    "debiased error, underconfident": debiased_error(2.0),
    "ECE floor / mean error if calibrated": Number(floor),
    "log loss, calibrated": log_loss(1.0),
    "log loss of ln 2 (better or worse)": log_loss(None),
    "AURC": area(0.0),
    "AURC, difference 0": area(1.0),
}
