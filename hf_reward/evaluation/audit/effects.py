"""What several families of probes need: the part of an effect that is due to its wording, and tables of effects."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hf_reward.evaluation.audit.cases import Judged
from hf_reward.evaluation.audit.findings import About, Finding, Table
from hf_reward.evaluation.audit.inference import Evidence, Inference
from hf_reward.metrics.arrays import FloatArray

EFFECT_COLUMNS = ["", "Effect", "95% interval", "Cases", "Clusters"]


def of_probe(judged: Sequence[Judged], probe: str) -> list[Judged]:
    """The cases of one probe of a family."""
    return [each for each in judged if each.case.labels["probe"] == probe]


def clusters_of(judged: Sequence[Judged]) -> list[str]:
    """Cluster of each case."""
    return [each.case.cluster for each in judged]


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
