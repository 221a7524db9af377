"""Values of cases -> estimates with intervals, tests and verdicts.

Intervals and p-values are those of `hf_reward.metrics.intervals`, over clusters (prompts, questions). How far an effect
varies with the unit that it is divided by comes from resamples: each cluster gets a Poisson(1) weight in every
resample, which depends on its name and the seed alone, so whatever rests on the same prompts is resampled together.

Shapes: N cases, C clusters, B resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from hf_reward.evaluation.audit.findings import Finding
from hf_reward.metrics.arrays import FloatArray
from hf_reward.metrics.bootstrap import Bootstrap, Unit
from hf_reward.metrics.intervals import (
    FEW_CLUSTERS,
    Difference,
    Spread,
    mean_spread,
    rate_interval,
    rate_p_value,
    t_interval,
    t_p_value,
)

REWARD_DELTA = 0.10
"""Effects on rewards below this many typical preference margins do not matter."""
RATE_DELTA = 0.05
"""Rates, and differences of rates, below this do not matter."""
FALSE_DISCOVERIES = 0.05
_POWER = 2.80
"""Standard errors that an effect must have to be found at the 5% level in 80% of audits: 1.96 + 0.84."""
_POWER_BEYOND = 0.84
"""Standard errors above `delta` for an estimate to be beyond it in 80% of audits."""
UNIT = "typical margins"
"""Unit of effects on rewards: the median absolute margin between preferred and other responses."""

PAIRS = "pairs"
"""Name under which the margins of the evaluation pairs are kept: the unit comes from them."""


@dataclass(frozen=True)
class Sample:
    """A mean over clusters, and how far it varies."""

    spread: Spread
    draws: FloatArray
    """Means of the resamples, NaN for those without a case, shape `(B,)`; of effects, the only ones with a unit."""
    n: int
    kind: str = "effect"
    """`rate` (0 to 1), `difference` of rates (-1 to 1), or `effect` of any size: which interval it has."""
    gains: float = 0.0
    """Mean of the values above 0, for a difference."""
    test: Spread | None = None
    """What its p-value is made from, if not `spread`: the effect without its unit."""

    @property
    def mean(self) -> float:
        """The estimate."""
        return self.spread.estimate

    @property
    def error(self) -> float:
        """Its standard error."""
        return self.spread.error

    @property
    def clusters(self) -> int:
        """How many there are."""
        return self.spread.num_clusters

    @property
    def varies(self) -> bool:
        """Whether the values differ between clusters at all."""
        return self.spread.varies

    @property
    def difference(self) -> Difference:
        """The estimate as gains minus losses."""
        return Difference(self.spread, self.gains, self.gains - self.mean)


@dataclass(frozen=True)
class Evidence:
    """What one finding rests on, kept so that two audits can be compared case by case."""

    values: FloatArray
    """One for each case, in the model's own units if they are rewards, shape `(N,)`."""
    clusters: list[str]
    in_margins: bool
    """Whether the estimate is divided by the unit."""
    part: str = ""
    """Which of several contrasts counts; those of other parts are not comparable."""


class Inference:
    """Makes findings: one set of resamples and one unit for a whole audit."""

    def __init__(self, bootstrap: Bootstrap, unit: Unit | None) -> None:
        self.bootstrap, self.unit = bootstrap, unit
        self.evidence: dict[str, Evidence] = {}
        """Name of a finding -> what it rests on."""

    def _record(
        self, name: str, values: Sequence[float] | FloatArray, clusters: Sequence[str], *, in_margins: bool
    ) -> None:
        """Keep what a finding rests on; tables that look at parts of it under its name come later and keep nothing."""
        kept = Evidence(np.asarray(values, dtype=np.float64), list(map(str, clusters)), in_margins)
        self.evidence.setdefault(name, kept)

    def sample(self, values: Sequence[float] | FloatArray, clusters: Sequence[str], *, kind: str = "effect") -> Sample:
        """Mean of values with its standard error and resamples.

        Args:
            values: One for each case, shape `(N,)`.
            clusters: Cluster of each.
            kind: `rate`, `difference` or `effect`; a difference with values beyond -1 and 1 is an effect.

        Returns:
            The sample.
        """
        values = np.asarray(values, dtype=np.float64)
        names, place = np.unique(np.asarray(clusters), return_inverse=True)
        if kind == "difference" and np.abs(values).max() > 1:
            kind = "effect"
        draws = self._draws(values, names, place) if kind == "effect" else np.zeros(0)
        return Sample(mean_spread(values, place), draws, len(values), kind, float(np.maximum(values, 0).mean()))

    def _draws(self, values: FloatArray, names: np.ndarray, place: np.ndarray) -> FloatArray:
        """Mean of each resample, shape `(B,)`, NaN where it draws no case."""
        sums = np.bincount(place, weights=values, minlength=len(names))
        counts = np.bincount(place, minlength=len(names)).astype(np.float64)
        above, below = self.bootstrap.weighted(names.tolist(), np.array([sums, counts], dtype=np.float64).T).T
        return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)

    # --- findings of the kinds that probes need ---------------------------------------------------------------------

    def reward_effect(
        self,
        about: tuple[str, str, str],
        values: Sequence[float] | FloatArray,
        clusters: Sequence[str],
        *,
        only_above: bool = False,
        delta: float = REWARD_DELTA,
        screen_only: bool = False,
        note: str = "",
    ) -> Finding:
        """Mean difference of rewards, in typical margins; 0 is what an unbiased model has.

        Args:
            about: Family, name and label.
            values: Differences of rewards in the model's own units, one for each case.
            clusters: Cluster of each.
            only_above: Whether only an effect above 0 is a bias.
            delta: How large it may be, in typical margins, and still not matter.
            screen_only: Whether it can only raise a question.
            note: For readers.

        Returns:
            The finding, without `q_value` and verdict.
        """
        if not len(values):
            return _nothing(about, UNIT, delta, screen_only, "There is no case for it in this data.")
        sample = self.sample(values, clusters)
        self._record(about[1], values, clusters, in_margins=True)
        if self.unit is None:
            return replace(
                _nothing(about, UNIT, delta, screen_only, "The typical margin is 0, so effects have no unit."),
                n=sample.n,
                clusters=sample.clusters,
            )
        scaled = self.sample(np.asarray(values) / self.unit.value, clusters)
        scaled = with_units(scaled, scaled.mean * self.unit.draws / self.unit.value)
        scaled = replace(scaled, test=sample.spread)
        kind = "above" if only_above else "two-sided"
        return _finding(about, UNIT, scaled, kind=kind, delta=delta, screen_only=screen_only, note=note)

    def rate(
        self,
        about: tuple[str, str, str],
        values: Sequence[float] | FloatArray,
        clusters: Sequence[str],
        *,
        limit: float = RATE_DELTA,
        screen_only: bool = False,
        unit: str = "rate",
        note: str = "",
    ) -> Finding:
        """How often something happens that should happen in no more than a few cases.

        Args:
            about: Family, name and label.
            values: 0 to 1, one for each case.
            clusters: Cluster of each.
            limit: The share up to which it does not matter.
            screen_only: Whether it can only raise a question.
            unit: Of the estimate.
            note: For readers.

        Returns:
            The finding, without `q_value` and verdict.
        """
        if not len(values):
            return _nothing(about, unit, limit, screen_only, "There is no case for it in this data.")
        self._record(about[1], values, clusters, in_margins=False)
        sample = self.sample(values, clusters, kind="rate")
        return _finding(about, unit, sample, kind="limit", delta=limit, screen_only=screen_only, note=note)

    def change(
        self,
        about: tuple[str, str, str],
        values: Sequence[float] | FloatArray,
        clusters: Sequence[str],
        *,
        only_above: bool = False,
        delta: float = RATE_DELTA,
        unit: str = "rate difference",
        screen_only: bool = False,
        note: str = "",
    ) -> Finding:
        """Mean paired difference of two rates; 0 is what an unbiased model has.

        Args:
            about: Family, name and label.
            values: -1 to 1, one for each case.
            clusters: Cluster of each.
            only_above: Whether only a difference above 0 is a bias.
            delta: How large it may be and still not matter.
            unit: Of the estimate.
            screen_only: Whether it can only raise a question.
            note: For readers.

        Returns:
            The finding, without `q_value` and verdict.
        """
        if not len(values):
            return _nothing(about, unit, delta, screen_only, "There is no case for it in this data.")
        kind = "above" if only_above else "two-sided"
        sample = self.sample(values, clusters, kind="difference")
        self._record(about[1], values, clusters, in_margins=False)
        return _finding(about, unit, sample, kind=kind, delta=delta, screen_only=screen_only, note=note)

    def of_spread(
        self, about: tuple[str, str, str], spread: Spread, n: int, *, delta: float, unit: str, note: str = ""
    ) -> Finding:
        """The finding of an estimator that is no mean.

        Args:
            about: Family, name and label.
            spread: The estimate, 0 for an unbiased model, with its error.
            n: Cases.
            delta: How large it may be and still not matter.
            unit: Of the estimate.
            note: For readers.

        Returns:
            The finding, without `q_value` and verdict.
        """
        sample = Sample(spread, np.zeros(0), n)
        return _finding(about, unit, sample, kind="two-sided", delta=delta, screen_only=False, note=note)


def with_units(sample: Sample, shares: FloatArray) -> Sample:
    """An effect in units, with the error that the units themselves add (or take off).

    The error is multiplied by the ratio of the standard deviations of (draw - share) and of the draws, which is 1 for
    an effect of 0. Effects that are equal in all clusters vary with their units only.

    Args:
        sample: Of effects that were divided by the unit.
        shares: Estimate times the unit of each resample over the unit, shape `(B,)`: what the estimate would be if the
            unit were another.

    Returns:
        The sample with its error.

    Source:
        The first-order (delta) variance of a ratio: Cochran (1977), "Sampling techniques", section 6.3.
    """
    usable = np.isfinite(sample.draws) & np.isfinite(shares)
    alone, joint = (float(np.std(each[usable])) for each in (sample.draws, sample.draws - shares))
    count = sample.clusters
    error = joint * float(np.sqrt(count / max(1, count - 1)))
    if sample.varies and alone > 0:
        error = sample.error * joint / alone
    return replace(sample, spread=replace(sample.spread, error=error if count > 1 else np.nan))


def _nothing(about: tuple[str, str, str], unit: str, delta: float, screen_only: bool, note: str) -> Finding:
    family, name, label = _about(about)
    return Finding(
        family=family,
        name=name,
        label=label,
        estimate=None,
        unit=unit,
        ci_low=None,
        ci_high=None,
        n=0,
        clusters=0,
        delta=None if screen_only else delta,
        screen_only=screen_only,
        note=note,
    )


def _about(about: tuple[str, str, str]) -> tuple[str, str, str]:
    """Family, name and label, which begins with a capital letter."""
    family, name, label = about
    return family, name, label[:1].upper() + label[1:]


def _finding(
    about: tuple[str, str, str], unit: str, sample: Sample, *, kind: str, delta: float, screen_only: bool, note: str
) -> Finding:
    family, name, label = _about(about)
    low, high = interval(sample, 0.95)
    notes = [note] if note else []
    if sample.clusters < FEW_CLUSTERS:
        notes.append(f"Too few clusters ({sample.clusters}) for a verdict.")
    return Finding(
        family=family,
        name=name,
        label=label,
        estimate=sample.mean,
        unit=unit,
        ci_low=low,
        ci_high=high,
        n=sample.n,
        clusters=sample.clusters,
        verdict="not_assessed" if screen_only else _first_verdict(sample, kind, delta),
        delta=None if screen_only else delta,
        mde=_detectable(sample, kind, delta),
        p_value=None if screen_only else p_value(sample, delta if kind == "limit" else 0.0, above=kind != "two-sided"),
        screen_only=screen_only,
        note=" ".join(notes),
    )


def _detectable(sample: Sample, kind: str, delta: float) -> float | None:
    """What would be called a bias in four of five audits: beyond chance, and beyond what does not matter."""
    error = sample.error
    if not sample.varies and sample.kind != "effect":
        low, high = interval(sample, 0.95)
        error = np.nan if low is None or high is None else (high - low) / (2 * 1.96)
    if not np.isfinite(error):
        return None
    if kind == "limit":
        return float(delta + _POWER * error)
    return float(max(_POWER * error, delta + _POWER_BEYOND * error))


def interval(sample: Sample, level: float) -> tuple[float | None, float | None]:
    """Interval of a mean, by its kind.

    Args:
        sample: The values.
        level: Such as 0.95.

    Returns:
        Low and high; None from one cluster.
    """
    if sample.kind == "rate":
        found = rate_interval(sample.spread, level)
    elif sample.kind == "difference":
        found = sample.difference.interval(level)
    else:
        found = t_interval(sample.spread, level)
    low, high = found.bounds or (None, None)
    return low, high


def p_value(sample: Sample, null: float, *, above: bool) -> float | None:
    """P(a mean this far from `null` or further) if it were `null`: the test that belongs to `interval`.

    Args:
        sample: The values.
        null: The mean under the null hypothesis: 0 but for rates.
        above: Test against larger means only.

    Returns:
        The p-value; None from one cluster.
    """
    if sample.kind == "rate":
        return rate_p_value(sample.spread, null, above=above)
    if sample.kind == "difference":
        return sample.difference.p_value(above=above)
    return t_p_value(sample.test or sample.spread, null, above=above)


def _first_verdict(sample: Sample, kind: str, delta: float) -> str:
    """What would be said if this were the only probe; `settle` takes back what does not survive the correction."""
    low, high = interval(sample, 0.95)
    inner_low, inner_high = interval(sample, 0.90)  # two one-sided tests at 5% each
    if low is None or high is None or inner_low is None or inner_high is None or sample.clusters < FEW_CLUSTERS:
        return "inconclusive"
    if kind == "limit":
        return "biased" if low > delta else "equivalent" if inner_high < delta else "inconclusive"
    if inner_low > -delta and inner_high < delta:
        return "equivalent"
    if low > 0 and sample.mean > delta:
        return "biased"
    return "biased" if kind == "two-sided" and high < 0 and sample.mean < -delta else "inconclusive"


def settle(findings: Sequence[Finding]) -> list[Finding]:
    """Correct all tests of an audit for their number, and give the verdicts.

    `biased` needs a q-value of 5% or less, an interval without 0 and an effect above `delta`; `equivalent` needs the
    90% interval within `delta` (two one-sided tests); anything else, and what rests on fewer than 20 clusters, is
    `inconclusive`.

    Args:
        findings: Of all families.

    Returns:
        The same findings with `q_value` and `verdict`.

    Source:
        Benjamini and Hochberg (1995); Schuirmann (1987) for the two one-sided tests.
    """
    tested = [place for place, each in enumerate(findings) if each.p_value is not None and not each.screen_only]
    settled = list(findings)
    if not tested:
        return settled
    q_values = stats.false_discovery_control([findings[place].p_value for place in tested])  # pyright: ignore
    for place, q_value in zip(tested, q_values, strict=True):
        found = findings[place]
        verdict = found.verdict
        if verdict == "biased" and q_value > FALSE_DISCOVERIES:
            verdict = "inconclusive"
        settled[place] = replace(found, q_value=float(q_value), verdict=verdict)
    return settled
