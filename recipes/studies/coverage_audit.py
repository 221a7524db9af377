"""Simulations of the audit: effects, rates, differences and verdicts."""

from functools import cache

import numpy as np
from coverage_setting import ONE_ROW, Number, Setting, Tally, differences
from scipy import special

from hf_reward.evaluation.audit.comparing import paired_difference
from hf_reward.evaluation.audit.effects import gain
from hf_reward.evaluation.audit.families.length_observational import stratified
from hf_reward.evaluation.audit.families.selection import best_of_n_interval
from hf_reward.evaluation.audit.findings import About
from hf_reward.evaluation.audit.inference import Evidence, Inference
from hf_reward.evaluation.audit.ranges import range_finding
from hf_reward.evaluation.audit.samples import interval, p_value
from hf_reward.metrics.best_of_n import best_of_n_curve
from hf_reward.metrics.bootstrap import Bootstrap, median_margin
from hf_reward.metrics.intervals import clustered_interval, mean_difference

_ABOUT = About("family", "name", "label")
_MARGIN = 1.5 * float(special.ndtri(0.75))
"""Median of 1.5 |N(0, 1)|, the size of the margins here."""
_SLICES = 8
_BOOTSTRAPS = [Bootstrap(200, seed) for seed in range(20)]
"""Each caches its draws. The audit draws 2,000; fewer suffice here because the error of the unit is small."""


def _bootstrap(random: np.random.Generator) -> Bootstrap:
    return _BOOTSTRAPS[int(random.integers(len(_BOOTSTRAPS)))]


def _with_unit(setting: Setting, random: np.random.Generator) -> Inference:
    bootstrap = _bootstrap(random)
    return Inference(bootstrap, median_margin(bootstrap, 1.5 * setting.normal(random), setting.names))


def effect(size: float) -> Number:
    """An effect in typical margins; false alarms are the verdicts `biased` at 0 and `equivalent` at delta."""

    def simulate(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        values = size * _MARGIN + 0.5 * setting.normal(random)
        found = _with_unit(setting, random).reward_effect(_ABOUT, values, setting.names)
        tally.add((found.ci_low, found.ci_high), size)
        if size in (0.0, 0.1):
            tally.alarms.append(found.verdict == ("biased" if size == 0 else "equivalent"))

    return Number(simulate)


def effect_p(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """The p-value of an effect of 0, before any correction."""
    sample = Inference(_bootstrap(random), None).sample(setting.normal(random), setting.names)
    tail = p_value(sample, 0.0, above=False)
    tally.alarms.append(tail is not None and tail <= 0.05)
    tally.add(interval(sample, 0.95), 0.0)


def wording(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """The gain by a wording over the plain answer and over a control; the second is 0."""
    noise = setting.normal(random), setting.normal(random)
    found = gain(_with_unit(setting, random), _ABOUT, 1.0 + noise[0], noise[1], setting.names)
    tally.alarms.append(found.p_value is not None and found.p_value <= 0.05)


def audit_compare(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """`audit compare`: two models with the same effect of half a margin and different reward scales."""
    bootstrap, names = _bootstrap(random), setting.names
    margins = [size * setting.normal(random) for size in (1.5, 3.0)]
    effects = [size * (0.5 * _MARGIN / 1.5 + 0.5 * setting.normal(random)) for size in (1.5, 3.0)]
    units = tuple(median_margin(bootstrap, each, names) for each in margins)
    first, second = (Evidence(each, names, True) for each in effects)
    found = paired_difference(bootstrap, first, second, (units[0], units[1]))
    if found is None:
        return
    tally.add(interval(found, 0.95), 0.0)
    tail = p_value(found, 0.0, above=False)
    tally.alarms.append(tail is not None and tail <= 0.05)


def rate(truth: float, wrong: str = "") -> Number:
    """A win rate of junk; a false alarm is a verdict, each of which may be wrong in 5% of runs at the limit, .05."""

    def simulate(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        values = (setting.uniform(random) < truth).astype(float)
        found = Inference(_bootstrap(random), None).rate(_ABOUT, values, setting.names)
        tally.add((found.ci_low, found.ci_high), truth)
        if wrong:
            tally.alarms.append(found.verdict == wrong)

    return Number(simulate)


def change(truth: float, differ: float) -> Number:
    """A rate difference of flips; false alarms are `biased` at 0 and `equivalent` at delta, .05."""

    def simulate(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        values = differences(setting, random, truth, differ)
        found = Inference(_bootstrap(random), None).change(_ABOUT, values, setting.names)
        tally.add((found.ci_low, found.ci_high), truth)
        if truth in (0.0, 0.05):
            tally.alarms.append(found.verdict == ("biased" if truth == 0 else "equivalent"))

    return Number(simulate)


def by_side(place: int) -> Number:
    """Accuracy if the preferred response is longer (.8) minus if it is shorter (.6), or the mean of the two."""
    truth = (0.2, 0.7)[place]

    def simulate(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        longer = setting.uniform(random) < 0.7
        credit = (setting.uniform(random) < np.where(longer, 0.8, 0.6)).astype(float)
        lengths, names = np.where(longer, 1, -1), np.array(setting.names)
        found = stratified(credit, lengths, names, Inference(_bootstrap(random), None))[place]
        tally.add((found.ci_low, found.ci_high), truth)

    return Number(simulate)


def worst_slice(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """The bound of the worst of eight slices, all with accuracy .7; a false alarm is a bound below it."""
    right = (setting.uniform(random) < 0.7).astype(float)
    slices = random.integers(0, _SLICES, len(right))
    found = [
        (right[slices == each].mean(), clustered_interval(right[slices == each], setting.labels[slices == each], level))
        for each in range(_SLICES)
        if (slices == each).sum() > 1
        for level in [1 - 0.05 / _SLICES]
    ]
    bound = min(found, key=lambda each: each[0])[1] if found else None
    if bound is None or bound.bounds is None:
        tally.withheld += 1
        return
    tally.alarms.append(bound.high < 0.7)


def worst_edit(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """The bound of the worst of six edits that each cost .05; a false alarm is a bound below it."""
    found = [mean_difference(differences(setting, random, 0.05, 0.15), setting.labels) for _ in range(6)]
    worst = max(found, key=lambda each: each.spread.estimate)
    tally.alarms.append(worst.interval(1 - 0.05 / 6).high < 0.05)


def group_range(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """The range of four group means that are .2 apart; a false alarm is p <= .05 for equal means."""
    inference = Inference(_bootstrap(random), None)
    noise = random.normal(size=(setting.clusters, 4))
    found = range_finding(inference, _ABOUT, noise + 0.2 * np.arange(4), setting.names, delta=0.05, unit="units")
    tally.add((found.ci_low, found.ci_high), 0.6)
    tail = range_finding(inference, _ABOUT, noise, setting.names, delta=0.05, unit="units").p_value
    tally.alarms.append(tail is not None and tail <= 0.05)


def _lists(count: int, random: np.random.Generator, noise: float) -> np.ndarray:
    """Quality of the best of 1 to 4 answers by reward, for `count` lists of right and wrong answers."""
    answers = random.normal(size=(count, 1)) + random.normal(size=(count, 4))
    return best_of_n_curve(answers + noise * random.normal(size=answers.shape), (answers > 0).astype(float))


@cache
def _true_curve(noise: float) -> np.ndarray:
    return _lists(400_000, np.random.default_rng(1), noise).mean(axis=0)


def best_of_four(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """Quality of the best of four by reward; a prompt has one list or eight."""
    curves = _lists(len(setting.labels), random, 1.0)
    found = best_of_n_interval(curves[:, -1], setting.names, Inference(_bootstrap(random), None))
    tally.add(found, float(_true_curve(1.0)[-1]))


def rank_correlation(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """Mean of Spearman's correlation of independent rewards and lengths of three responses."""
    values = random.choice([-1.0, -0.5, 0.5, 1.0], size=setting.clusters, p=[1 / 6, 1 / 3, 1 / 3, 1 / 6])
    found = Inference(_bootstrap(random), None).change(_ABOUT, values, setting.names, screen_only=True)
    tally.add((found.ci_low, found.ci_high), 0.0)


AUDIT: dict[str, Number] = {
    "audit effect 0 (biased)": effect(0.0),
    "audit effect .1 (equivalent)": effect(0.1),
    "audit effect .5": effect(0.5),
    "audit effect 0 (p)": Number(effect_p),
    "audit wording and control (p)": Number(wording),
    "audit compare, difference 0 (p)": Number(audit_compare),
    "audit rate .05 (biased)": rate(0.05, "biased"),
    "audit rate .05 (equivalent)": rate(0.05, "equivalent"),
    "audit rate .2": rate(0.2),
    "audit rate difference 0 (biased)": change(0.0, 0.2),
    "audit rate difference .05 (equivalent)": change(0.05, 0.05),
    "audit length gap .2": by_side(0),
    "audit length-balanced accuracy": by_side(1),
    "audit rank correlation 0": Number(rank_correlation, ONE_ROW),
    "audit worst of 8 slices (bound)": Number(worst_slice),
    "audit worst of 6 edits (bound)": Number(worst_edit),
    "audit range of 4 groups (p)": Number(group_range, ONE_ROW),
    "audit best of 4": Number(best_of_four, ("1 row", "8 independent rows")),
}
