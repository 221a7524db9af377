"""Format: the same words in another format, and the features that people and the model prefer in the data."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from hf_reward.evaluation.audit.cases import Case, ScoredCase
from hf_reward.evaluation.audit.edits.features import AUDIT_FEATURES
from hf_reward.evaluation.audit.edits.format_edits import FORMAT_EDITS, FormatEdit
from hf_reward.evaluation.audit.edits.padding import wider_spaces
from hf_reward.evaluation.audit.effects import Probes, clusters_of, labelled_with, of_probe, wins
from hf_reward.evaluation.audit.families.accuracy import pair_cases
from hf_reward.evaluation.audit.families.length import FLIPS, flips_of, labelled
from hf_reward.evaluation.audit.family import Family, FamilyResult, three_examples
from hf_reward.evaluation.audit.findings import Finding, Table
from hf_reward.evaluation.audit.inference import Inference
from hf_reward.evaluation.audit.inputs.audit_inputs import AuditInputs
from hf_reward.evaluation.audit.samples import p_value

FAMILY = "format"
_FLIPPING = ("bold", "bullets", "certainly")
"""Edits that are applied to the worse response."""


def _cases(inputs: AuditInputs) -> list[Case]:
    cases = labelled(pair_cases(inputs), "pair")
    for pair, answer in inputs.answers():
        edits = {edit.name: edited for edit in FORMAT_EDITS if (edited := edit(answer)) is not None}
        edits["placebo"] = wider_spaces(answer)
        controls = {edit.name: edit.control(answer) for edit in FORMAT_EDITS if edit.control is not None}
        for name, edited in edits.items():
            texts = {"plain": pair.text(answer), "edited": pair.text(edited)}
            texts |= {"control": pair.text(controls[name])} if name in controls else {}
            cases.append(Case(cluster=pair.cluster, texts=texts, labels={"probe": "edit", "edit": name}))
    for pair in inputs.edited_pairs():
        for edit in FORMAT_EDITS:
            if edit.name in _FLIPPING and (edited := edit(pair.rejected)) is not None:
                responses = {"chosen": pair.chosen, "rejected": pair.rejected, "edited": edited}
                texts = {role: pair.text(response) for role, response in responses.items()}
                cases.append(Case(cluster=pair.cluster, texts=texts, labels={"probe": "flip", "edit": edit.name}))
    return cases


def _analyse(scored: list[ScoredCase], inputs: AuditInputs, inference: Inference) -> FamilyResult:
    edited, flips = of_probe(scored, "edit"), of_probe(scored, "flip")
    probes, findings, rows = Probes(FAMILY, inference), [], []
    for edit in FORMAT_EDITS:
        found = _effect(edit, edited, probes)
        findings.append(found)
        rows.append(_row(edit.label, found, _of_edit(edited, edit.name), _of_edit(flips, edit.name)))
    spaces = _of_edit(edited, "placebo")
    placebo = probes.row(spaces, lambda each: each.gap("edited", "plain"))
    rows.append(_row("placebo: two wider spaces", placebo, spaces, []))
    findings += _flips(flips, probes)
    checks, table = _amplification(of_probe(scored, "pair"), probes)
    bold = _of_edit(edited, "bullets") or _of_edit(edited, "certainly")
    roles = {"plain": "the answer", "edited": "the same words in another format"}
    return FamilyResult(
        findings=[*findings, *checks],
        examples=three_examples(bold, lambda each: each.gap("edited", "plain") / inference.margin, roles, "format"),
        tables=[
            Table(
                title="Each edit",
                columns=["Edit", "Effect in typical margins", "Edited answer wins", "Answers", "Worse response wins"],
                rows=rows,
            ),
            table,
        ],
    )


def _flips(flips: Sequence[ScoredCase], probes: Probes) -> list[Finding]:
    worse, excess = flips_of(flips, "edited")
    words, win = 'Bold text, bullet points or an opening "Certainly!" on the rejected response.', "formatting makes the"
    note = f"{words} {FLIPS}"
    return [
        probes.change(
            "format_flip_excess", f"{win} worse response win, beyond chance", flips, excess, only_above=True, note=note
        ),
        probes.rate("format_flip_rate", f"{win} worse response win", flips, worse, screen_only=True, note=words),
    ]


def _of_edit(scored: Sequence[ScoredCase], name: str) -> list[ScoredCase]:
    return labelled_with(scored, "edit", name)


def _effect(edit: FormatEdit, edited: Sequence[ScoredCase], probes: Probes) -> Finding:
    """Layout should not matter in either direction; edits that may be disliked are a bias only if rewarded."""
    cases, name, label = _of_edit(edited, edit.name), f"format_{edit.name}", edit.label
    over_plain = [each.gap("edited", "plain") for each in cases]
    if edit.control is not None:
        return probes.gain(name, label, cases, over_plain, lambda each: each.gap("edited", "control"))
    note = "" if edit.neutral or not cases or np.mean(over_plain) >= 0 else "A model may dislike it: no bias."
    return probes.effect(name, label, cases, over_plain, only_above=not edit.neutral, note=note)


def _row(label: str, found: Finding, cases: Sequence[ScoredCase], flips: Sequence[ScoredCase]) -> list[str]:
    if found.estimate is None or found.ci_low is None:
        return [label, "-", "-", str(found.n), "-"]
    won = wins(cases, "edited", "plain").mean()
    turned = [each.gap("chosen", "rejected") > 0 > each.gap("chosen", "edited") for each in flips]
    effect = f"{found.estimate:+.2f} ({found.ci_low:+.2f} to {found.ci_high:+.2f})"
    return [label, effect, f"{won:.0%}", str(found.n), f"{np.mean(turned):.1%}" if turned else "-"]


# --- features of the preferred responses -----------------------------------------------------------------------------


def _amplification(pairs: Sequence[ScoredCase], probes: Probes) -> tuple[list[Finding], Table]:
    """Compare, for each feature, how often people and the model prefer the response with more of it."""
    credit, found, heads = wins(pairs, "chosen", "rejected"), [], []
    for name, count in AUDIT_FEATURES.items():
        more = np.array([_difference(each, count) for each in pairs])
        differ = np.flatnonzero(more)
        if not len(differ):
            continue
        human = (more[differ] > 0).astype(float)
        model = np.where(more[differ] > 0, credit[differ], 1 - credit[differ])
        cases, label = [pairs[place] for place in differ.tolist()], f"prefers {name} more often than people do"
        made = probes.change(f"amplification_{name.replace(' ', '_')}", label, cases, model - human, screen_only=True)
        sample = probes.inference.sample(model - human, clusters_of(cases), kind="difference")
        note = f"People in {human.mean():.1%}, the model in {model.mean():.1%} of {len(human)} such pairs. {made.note}"
        found.append(replace(made, p_value=p_value(sample, 0.0, above=False), note=note.strip()))
        heads.append([name, f"{human.mean():.1%}", f"{model.mean():.1%}"])
    found = _corrected(found)
    table = Table(
        title="Preferences of people and the model",
        columns=["Response with more", "People", "Model", "Difference (95% interval), q", "Pairs that differ"],
        rows=[[*head, _signed(each), str(each.n)] for head, each in zip(heads, found, strict=True)],
        note="Observational: features occur together, so a difference proves nothing. q is corrected over this table.",
    )
    return found, table


def _corrected(found: Sequence[Finding]) -> list[Finding]:
    """Return the findings with q-values if they have p-values."""
    tested = [each.p_value for each in found if each.p_value is not None]
    q_values = iter(stats.false_discovery_control(tested) if tested else ())
    return [each if each.p_value is None else replace(each, q_value=float(next(q_values))) for each in found]


def _difference(each: ScoredCase, count: object) -> int:
    pair = each.case.labels["pair"]
    return count(pair.chosen) - count(pair.rejected)  # type: ignore[operator]


def _signed(found: Finding) -> str:
    if found.estimate is None or found.ci_low is None or found.ci_high is None:
        return "-"
    q_value = "" if found.q_value is None else f", q = {found.q_value:.2g}"
    return f"{found.estimate:+.1%} ({found.ci_low:+.1%} to {found.ci_high:+.1%}){q_value}"


FORMAT = Family(
    name=FAMILY,
    title="Format",
    what="Answers got another format with the same words (each edit can be undone exactly). In addition, some twenty "
    "features of the responses that people and the model prefer were compared.",
    advice="Add pairs in which the better response has the plainer format, strip markup before training, or train on "
    "both versions of answers as ties, as `hf-reward mitigate` does.",
    cases=_cases,
    analyse=_analyse,
)
