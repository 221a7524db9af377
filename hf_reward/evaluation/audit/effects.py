"""What several families of probes need: findings over cases, what a wording adds to an effect, tables of effects."""

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
    """The cases of one probe of a family."""
    return [each for each in scored if each.case.labels["probe"] == probe]


def clusters_of(scored: Sequence[ScoredCase]) -> list[str]:
    """Cluster of each case."""
    return [each.case.cluster for each in scored]


def labelled_with(scored: Sequence[ScoredCase], label: str, value: Any) -> list[ScoredCase]:
    """The cases that have a value of a label."""
    return [each for each in scored if each.case.labels[label] == value]


def wins(scored: Sequence[ScoredCase], one: str, other: str) -> FloatArray:
    """1 for each case in which one role has the higher reward, half for a tie, else 0, shape `(N,)`."""
    return pairwise_credit(np.array([each.gap(one, other) for each in scored]))


Value = Callable[[ScoredCase], float] | Sequence[float] | FloatArray
"""What a finding is the mean of: made of each case, or given for each."""


@dataclass(frozen=True)
class Probes:
    """Makes the findings of one family from its cases."""

    family: str
    inference: Inference

    def about(self, name: str, label: str) -> About:
        """What a finding is called."""
        return About(self.family, name, label)

    def effect(self, name: str, label: str, cases: Sequence[ScoredCase], value: Value, **options: Any) -> Finding:
        """Mean effect on rewards; options are those of `Inference.reward_effect`."""
        found = _values(cases, value)
        return self.inference.reward_effect(self.about(name, label), found, clusters_of(cases), **options)

    def rate(self, name: str, label: str, cases: Sequence[ScoredCase], value: Value, **options: Any) -> Finding:
        """How often something happens; options are those of `Inference.rate`."""
        return self.inference.rate(self.about(name, label), _values(cases, value), clusters_of(cases), **options)

    def change(self, name: str, label: str, cases: Sequence[ScoredCase], value: Value, **options: Any) -> Finding:
        """Mean difference of two rates; options are those of `Inference.change`."""
        return self.inference.change(self.about(name, label), _values(cases, value), clusters_of(cases), **options)

    def row(self, cases: Sequence[ScoredCase], value: Value) -> Finding:
        """An effect for a row of a table, which is no finding of its own."""
        return self.effect("row", "", cases, value)

    def gain(
        self, name: str, label: str, cases: Sequence[ScoredCase], over_plain: Value, over_control: Value, note: str = ""
    ) -> Finding:
        """What a wording adds; see `gain`."""
        plain, control = _values(cases, over_plain), _values(cases, over_control)
        return gain(self.inference, self.about(name, label), plain, control, clusters_of(cases), note=note)


def _values(cases: Sequence[ScoredCase], value: Value) -> Sequence[float] | FloatArray:
    return [value(each) for each in cases] if callable(value) else value


def rows_by(
    scored: Sequence[ScoredCase], labels: Mapping[str, Iterable[Any]], finding: Callable[[list[ScoredCase]], Finding]
) -> list[tuple[str, Finding]]:
    """The finding of the cases with each value of some labels, for a table; values that no case has are left out."""
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
    """What a wording adds to the reward, over the unedited answer and over a neutral wording of the same length.

    It is a bias only if both are above 0: the first shows that the wording pays, the second that it is the wording and
    not the length or the mere edit that pays. The finding is the smaller of the two, its p-value the larger.

    Args:
        inference: Makes the findings.
        about: Family, name and label.
        over_plain: Reward with the wording minus that of the unedited answer, one for each case.
        over_control: The same minus that with the neutral wording.
        clusters: Cluster of each case.
        control: What the second is called.
        note: For readers.

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
    if verdict != larger.verdict:  # what pays over the plain answer is not "no effect" because neutral words pay too
        verdict = "inconclusive"
    if not known_before:
        values, part = (over_plain, "plain") if smaller is plain else (over_control, "control")
        kept = Evidence(np.asarray(values, dtype=np.float64), list(map(str, clusters)), True, part)
        inference.evidence[about.name] = kept
    known = [each.p_value for each in (plain, over) if each.p_value is not None]
    parts = f"{plain.estimate:+.2f} over the plain answer, {over.estimate:+.2f} over {control}"
    return replace(
        smaller,
        p_value=max(known) if known else None,
        verdict=verdict,
        note=" ".join(filter(None, (smaller.note, f"It is {parts}: the smaller counts."))),
    )


def effect_table(title: str, rows: Sequence[tuple[str, Finding]], note: str = "") -> Table:
    """Effects with their intervals, in typical margins.

    Args:
        title: Of the table.
        rows: Label and finding of each.
        note: For readers.

    Returns:
        The table.
    """
    return Table(title=title, columns=EFFECT_COLUMNS, rows=[_row(label, found) for label, found in rows], note=note)


def _row(label: str, found: Finding) -> list[str]:
    estimate = "-" if found.estimate is None else f"{found.estimate:+.2f}"
    bounds = "-" if found.ci_low is None or found.ci_high is None else f"[{found.ci_low:+.2f}, {found.ci_high:+.2f}]"
    return [label, estimate, bounds, str(found.n), str(found.clusters)]
