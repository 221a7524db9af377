"""Shared functions of the probe families: findings, effects relative to a control, tables of effects."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_reward.evaluation.audit.cases import ScoredCase
from hf_reward.evaluation.audit.findings import About, Finding, Table
from hf_reward.evaluation.audit.inference import Evidence, Inference
from hf_reward.metrics.arrays import FloatArray
from hf_reward.metrics.preference import pairwise_credit

EFFECT_COLUMNS = ["", "Effect", "95% interval", "Cases", "Clusters"]


def of_probe(scored: Sequence[ScoredCase], probe: str) -> list[ScoredCase]:
    """Return the cases of one probe."""
    return [each for each in scored if each.case.labels["probe"] == probe]


def clusters_of(scored: Sequence[ScoredCase]) -> list[str]:
    """Return the cluster of each case."""
    return [each.case.cluster for each in scored]


def labelled_with(scored: Sequence[ScoredCase], label: str, value: Any) -> list[ScoredCase]:
    """Return the cases with a given value of a label."""
    return [each for each in scored if each.case.labels[label] == value]


def wins(scored: Sequence[ScoredCase], one: str, other: str) -> FloatArray:
    """Return 1 for each case in which `one` has the higher reward, 0.5 for a tie, else 0, shape `(N,)`."""
    return pairwise_credit(np.array([each.gap(one, other) for each in scored]))


Value = Callable[[ScoredCase], float] | Sequence[float] | FloatArray
"""Values whose mean is a finding: a function of a case, or one value per case."""


@dataclass(frozen=True)
class Probes:
    """Create the findings of one family from its cases."""

    family: str
    inference: Inference

    def about(self, name: str, label: str) -> About:
        """Return the name and label of a finding."""
        return About(self.family, name, label)

    def effect(self, name: str, label: str, cases: Sequence[ScoredCase], value: Value, **options: Any) -> Finding:
        """Return the mean effect on rewards, with the options of `Inference.reward_effect`."""
        found = _values(cases, value)
        return self.inference.reward_effect(self.about(name, label), found, clusters_of(cases), **options)

    def rate(self, name: str, label: str, cases: Sequence[ScoredCase], value: Value, **options: Any) -> Finding:
        """Return a rate, with the options of `Inference.rate`."""
        return self.inference.rate(self.about(name, label), _values(cases, value), clusters_of(cases), **options)

    def change(self, name: str, label: str, cases: Sequence[ScoredCase], value: Value, **options: Any) -> Finding:
        """Return the mean difference of two rates, with the options of `Inference.change`."""
        return self.inference.change(self.about(name, label), _values(cases, value), clusters_of(cases), **options)

    def row(self, cases: Sequence[ScoredCase], value: Value) -> Finding:
        """Return an effect for a row of a table; it is not a finding of the audit."""
        return self.effect("row", "", cases, value)

    def gain(
        self, name: str, label: str, cases: Sequence[ScoredCase], over_plain: Value, over_control: Value, note: str = ""
    ) -> Finding:
        """Return the gain by a wording; see `gain`."""
        plain, control = _values(cases, over_plain), _values(cases, over_control)
        return gain(self.inference, self.about(name, label), plain, control, clusters_of(cases), note=note)


def _values(cases: Sequence[ScoredCase], value: Value) -> Sequence[float] | FloatArray:
    return [value(each) for each in cases] if callable(value) else value


def rows_by(
    scored: Sequence[ScoredCase], labels: Mapping[str, Iterable[Any]], finding: Callable[[list[ScoredCase]], Finding]
) -> list[tuple[str, Finding]]:
    """Return the finding of the cases with each value of some labels, for a table; unused values are left out."""
    parts = [(label, value, labelled_with(scored, label, value)) for label in labels for value in labels[label]]
    return [(f"{label}: {value}", finding(chosen)) for label, value, chosen in parts if chosen]


def gain(
    inference: Inference,
    about: About,
    over_plain: Sequence[float] | FloatArray,
    over_control: Sequence[float] | FloatArray,
    clusters: Sequence[str],
    *,
    control: str = "a neutral wording",
    note: str = "",
) -> Finding:
    """Return the gain by a wording, over the unedited answer and over a neutral wording of the same length.

    It is a bias only if both are above 0: the first shows that the wording is rewarded, the second that neither the
    length nor the edit alone explains it. The finding has the smaller gain and the larger p-value.

    Args:
        inference: Source of the findings.
        about: Family, name and label.
        over_plain: Reward with the wording minus that of the unedited answer, one for each case.
        over_control: Reward with the wording minus that with the neutral wording.
        clusters: Cluster of each case.
        control: Name of the control in the note.
        note: Note for readers.

    Returns:
        The finding.

    Source:
        Berger (1982), "Multiparameter hypothesis testing and acceptance sampling", for the intersection-union test.
    """
    known_before = about.name in inference.evidence
    plain = inference.reward_effect(about, over_plain, clusters, only_above=True, note=note)
    over = inference.reward_effect(about, over_control, clusters, only_above=True, note=note)
    if plain.estimate is None or over.estimate is None:
        return plain
    smaller, larger = sorted((plain, over), key=lambda each: each.estimate or 0.0)
    verdict = smaller.verdict
    if verdict != larger.verdict:  # a gain over the plain answer is not "equivalent" only because the control gains too
        verdict = "inconclusive"
    if not known_before:
        by_plain, by_control = (np.asarray(values, dtype=np.float64) for values in (over_plain, over_control))
        names = list(map(str, clusters))
        kept = Evidence(by_plain, names, True, "plain")
        if smaller is over:
            kept = Evidence(by_control, names, True, "control", plain=by_plain)
        inference.evidence[about.name] = kept
    known = [each.p_value for each in (plain, over) if each.p_value is not None]
    parts = f"{plain.estimate:+.2f} over the plain answer and {over.estimate:+.2f} over {control}"
    return replace(
        smaller,
        p_value=max(known) if known else None,
        verdict=verdict,
        note=" ".join(filter(None, (smaller.note, f"The gain is {parts}; the smaller one counts."))),
    )


def effect_table(title: str, rows: Sequence[tuple[str, Finding]], note: str = "") -> Table:
    """Return a table of effects with their intervals, in typical margins.

    Args:
        title: Title of the table.
        rows: Label and finding of each row.
        note: Note for readers.

    Returns:
        The table.
    """
    return Table(title=title, columns=EFFECT_COLUMNS, rows=[_row(label, found) for label, found in rows], note=note)


def _row(label: str, found: Finding) -> list[str]:
    estimate = "-" if found.estimate is None else f"{found.estimate:+.2f}"
    bounds = "-" if found.ci_low is None or found.ci_high is None else f"[{found.ci_low:+.2f}, {found.ci_high:+.2f}]"
    return [label, estimate, bounds, str(found.n), str(found.clusters)]
