"""Estimate effects over the cases of a probe, with intervals, tests and verdicts.

Intervals and p-values come from `hf_reward.metrics.intervals`, over clusters (prompts, questions). In every
resample, each cluster gets a Poisson(1) weight that depends only on the name of the cluster and the seed. All values of
the same prompts are therefore resampled together. The unit by which effects are divided is also resampled, so that
intervals include its error.

Shapes: N cases, C clusters, B resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from hf_reward.evaluation.audit.findings import About, Finding, empty_finding
from hf_reward.evaluation.audit.samples import Sample, interval, p_value, with_units
from hf_reward.metrics.arrays import FloatArray
from hf_reward.metrics.bootstrap import Bootstrap, Unit
from hf_reward.metrics.intervals import FEW_CLUSTERS, Spread, mean_spread

REWARD_DELTA = 0.10
"""Effects on rewards up to this many typical margins do not matter."""
RATE_DELTA = 0.05
"""Rates and differences of rates up to this do not matter."""
FALSE_DISCOVERIES = 0.05
_POWER = 2.80
"""Size in standard errors of an effect that is found at the 5% level with a probability of 80%: 1.96 + 0.84."""
_POWER_BEYOND = 0.84
"""Standard errors above `delta` at which an estimate exceeds it with a probability of 80%."""
UNIT = "typical margins"
"""Unit of effects on rewards: the median absolute margin between preferred and other responses."""

PAIRS = "pairs"
"""Name of the evidence with the margins of the evaluation pairs, which determine the unit."""
_NO_CASE = "The data has no case for it."

Values = Sequence[float] | FloatArray


@dataclass(frozen=True)
class Evidence:
    """The values behind a finding, stored so that two audits can be compared case by case."""

    values: FloatArray
    """One value per case, rewards in the model's own units, shape `(N,)`."""
    clusters: list[str]
    in_margins: bool
    """Whether the estimate is divided by the unit."""
    part: str = ""
    """Contrast that the finding uses; findings with different contrasts are not comparable."""
    plain: FloatArray | None = None
    """Values of the contrast with the plain answer, if the finding uses another one, shape `(N,)`."""

    @property
    def over_plain(self) -> "Evidence":
        """The same cases with the contrast over the plain answer, if it is known."""
        return self if self.plain is None else replace(self, values=self.plain, part="plain", plain=None)


class Inference:
    """Create findings with one set of resamples and one unit for an audit."""

    def __init__(self, bootstrap: Bootstrap, unit: Unit | None) -> None:
        self.bootstrap, self.unit = bootstrap, unit
        self.evidence: dict[str, Evidence] = {}
        """Name of a finding -> its evidence."""

    @property
    def margin(self) -> float:
        """The typical margin in the model's own units; 1 if it is undefined."""
        return 1.0 if self.unit is None else self.unit.value

    def _record(self, name: str, values: Values, clusters: Sequence[str], *, in_margins: bool) -> None:
        """Store the evidence of a finding; later calls with the same name, for parts of a table, store nothing."""
        kept = Evidence(np.asarray(values, dtype=np.float64), list(map(str, clusters)), in_margins)
        self.evidence.setdefault(name, kept)

    def sample(self, values: Values, clusters: Sequence[str], *, kind: str = "effect") -> Sample:
        """Return the mean of values with its standard error and resamples.

        Args:
            values: One value per case, shape `(N,)`.
            clusters: Cluster of each case.
            kind: `rate`, `difference` or `effect`; a difference with values outside [-1, 1] is treated as an effect.

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
        """Mean of each resample, shape `(B,)`, NaN for a resample without cases."""
        sums = np.bincount(place, weights=values, minlength=len(names))
        counts = np.bincount(place, minlength=len(names)).astype(np.float64)
        above, below = self.bootstrap.weighted(names.tolist(), np.array([sums, counts], dtype=np.float64).T).T
        return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)

    # --- findings ---------------------------------------------------------------------------------------------------

    def reward_effect(
        self,
        about: About,
        values: Values,
        clusters: Sequence[str],
        *,
        only_above: bool = False,
        delta: float = REWARD_DELTA,
        screen_only: bool = False,
        note: str = "",
    ) -> Finding:
        """Return the mean difference of rewards in typical margins; an unbiased model has 0.

        Args:
            about: Family, name and label.
            values: Differences of rewards in the model's own units, one per case.
            clusters: Cluster of each case.
            only_above: Whether only an effect above 0 is a bias.
            delta: Largest effect that does not matter, in typical margins.
            screen_only: Whether it is observational and has no verdict.
            note: Note for readers.

        Returns:
            The finding, without `q_value` and verdict.
        """
        rule = _Rule(UNIT, delta, "above" if only_above else "two-sided", screen_only, note)
        if not len(values):
            return rule.nothing(about, _NO_CASE)
        sample = self.sample(values, clusters)
        self._record(about.name, values, clusters, in_margins=True)
        if self.unit is None:
            found = rule.nothing(about, "The typical margin is 0, so effects have no unit.")
            return replace(found, n=sample.n, clusters=sample.clusters)
        scaled = self.sample(np.asarray(values) / self.unit.value, clusters)
        scaled = with_units(scaled, scaled.mean * self.unit.draws / self.unit.value)
        return rule.finding(about, replace(scaled, test=sample.spread))

    def rate(
        self,
        about: About,
        values: Values,
        clusters: Sequence[str],
        *,
        limit: float = RATE_DELTA,
        screen_only: bool = False,
        unit: str = "rate",
        note: str = "",
    ) -> Finding:
        """Return the rate of an event that should be rare.

        Args:
            about: Family, name and label.
            values: 0 to 1, one per case.
            clusters: Cluster of each case.
            limit: Largest rate that does not matter.
            screen_only: Whether it is observational and has no verdict.
            unit: Unit of the estimate.
            note: Note for readers.

        Returns:
            The finding, without `q_value` and verdict.
        """
        rule = _Rule(unit, limit, "limit", screen_only, note)
        return self._share(about, values, clusters, rule, "rate")

    def change(
        self,
        about: About,
        values: Values,
        clusters: Sequence[str],
        *,
        only_above: bool = False,
        delta: float = RATE_DELTA,
        unit: str = "rate difference",
        screen_only: bool = False,
        note: str = "",
    ) -> Finding:
        """Return the mean paired difference of two rates; an unbiased model has 0.

        Args:
            about: Family, name and label.
            values: -1 to 1, one per case.
            clusters: Cluster of each case.
            only_above: Whether only a difference above 0 is a bias.
            delta: Largest difference that does not matter.
            unit: Unit of the estimate.
            screen_only: Whether it is observational and has no verdict.
            note: Note for readers.

        Returns:
            The finding, without `q_value` and verdict.
        """
        rule = _Rule(unit, delta, "above" if only_above else "two-sided", screen_only, note)
        return self._share(about, values, clusters, rule, "difference")

    def _share(self, about: About, values: Values, clusters: Sequence[str], rule: "_Rule", kind: str) -> Finding:
        if not len(values):
            return rule.nothing(about, _NO_CASE)
        self._record(about.name, values, clusters, in_margins=False)
        return rule.finding(about, self.sample(values, clusters, kind=kind))

    def of_spread(self, about: About, spread: Spread, n: int, *, delta: float, unit: str, note: str = "") -> Finding:
        """Return the finding of an estimator that is not a mean.

        Args:
            about: Family, name and label.
            spread: The estimate, 0 for an unbiased model, with its error.
            n: Number of cases.
            delta: Largest effect that does not matter.
            unit: Unit of the estimate.
            note: Note for readers.

        Returns:
            The finding, without `q_value` and verdict.
        """
        return _Rule(unit, delta, "two-sided", False, note).finding(about, Sample(spread, np.zeros(0), n))


@dataclass(frozen=True)
class _Rule:
    """Rule that turns a sample into a finding."""

    unit: str
    delta: float
    kind: str
    """`two-sided`, `above` if only effects above 0 are biases, `limit` for rates."""
    screen_only: bool
    note: str

    def nothing(self, about: About, note: str) -> Finding:
        """Return the finding without an estimate."""
        delta = None if self.screen_only else self.delta
        return empty_finding(about, self.unit, delta=delta, screen_only=self.screen_only, note=note)

    def finding(self, about: About, sample: Sample) -> Finding:
        """Return the finding with its verdict before the correction."""
        low, high = interval(sample, 0.95)
        notes = [self.note] if self.note else []
        if sample.clusters < FEW_CLUSTERS:
            notes.append(f"Too few prompts ({sample.clusters}) for a verdict.")
        found = replace(
            self.nothing(about, " ".join(notes)),
            estimate=sample.mean,
            ci_low=low,
            ci_high=high,
            n=sample.n,
            clusters=sample.clusters,
            mde=self._detectable(sample),
        )
        if self.screen_only:
            return found
        null = self.delta if self.kind == "limit" else 0.0
        tail = p_value(sample, null, above=self.kind != "two-sided")
        return replace(found, verdict=self._verdict(sample), p_value=tail)

    def _detectable(self, sample: Sample) -> float | None:
        """Effect that is reported as a bias with a probability of 80%: significant, and larger than `delta`."""
        error = sample.error
        if not sample.varies and sample.kind != "effect":
            low, high = interval(sample, 0.95)
            error = np.nan if low is None or high is None else (high - low) / (2 * 1.96)
        if not np.isfinite(error):
            return None
        if self.kind == "limit":
            return float(self.delta + _POWER * error)
        return float(max(_POWER * error, self.delta + _POWER_BEYOND * error))

    def _verdict(self, sample: Sample) -> str:
        """The verdict before the correction for the number of probes, which `assign_verdicts` applies."""
        delta = self.delta
        low, high = interval(sample, 0.95)
        inner_low, inner_high = interval(sample, 0.90)  # two one-sided tests at 5% each
        if low is None or high is None or inner_low is None or inner_high is None or sample.clusters < FEW_CLUSTERS:
            return "inconclusive"
        if self.kind == "limit":
            return "biased" if low > delta else "equivalent" if inner_high < delta else "inconclusive"
        if inner_low > -delta and inner_high < delta:
            return "equivalent"
        if low > 0 and sample.mean > delta:
            return "biased"
        return "biased" if self.kind == "two-sided" and high < 0 and sample.mean < -delta else "inconclusive"


def assign_verdicts(findings: Sequence[Finding]) -> list[Finding]:
    """Correct all tests of an audit for their number, and assign the verdicts.

    `biased` needs a q-value of 5% or less, an interval without 0 and an effect above `delta`; `equivalent` needs the
    90% interval within `delta` (two one-sided tests). Everything else, and findings of fewer than 20 clusters, is
    `inconclusive`.

    Args:
        findings: Findings of all families.

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
