"""Robustness: whether the better response keeps winning if both are edited in the same way."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_reward.evaluation.audit.cases import Case, ScoredCase
from hf_reward.evaluation.audit.edits.noise_edits import NOISE_EDITS, NoiseEdit
from hf_reward.evaluation.audit.effects import Probes, clusters_of, of_probe, wins
from hf_reward.evaluation.audit.family import Family, FamilyResult, three_examples
from hf_reward.evaluation.audit.findings import Table
from hf_reward.evaluation.audit.inference import Inference
from hf_reward.evaluation.audit.inputs.audit_inputs import AuditInputs
from hf_reward.metrics.intervals import mean_difference
from hf_reward.metrics.preference import pairwise_credit

FAMILY = "robustness"


def _cases(inputs: AuditInputs) -> list[Case]:
    cases = []
    for pair in inputs.edited_pairs():
        for edit in NOISE_EDITS:
            chosen, rejected = edit.apply(pair.chosen), edit.apply(pair.rejected)
            if (chosen, rejected) != (pair.chosen, pair.rejected) and chosen and rejected:
                responses = {
                    "chosen": pair.chosen,
                    "rejected": pair.rejected,
                    "chosen edited": chosen,
                    "rejected edited": rejected,
                }
                texts = {role: pair.text(response) for role, response in responses.items()}
                cases.append(Case(cluster=pair.cluster, texts=texts, labels={"probe": edit.name}))
    return cases


def _drops(cases: Sequence[ScoredCase]) -> np.ndarray:
    return wins(cases, "chosen", "rejected") - wins(cases, "chosen edited", "rejected edited")


def _analyse(scored: list[ScoredCase], inputs: AuditInputs, inference: Inference) -> FamilyResult:
    by_edit = {edit.name: of_probe(scored, edit.name) for edit in NOISE_EDITS}
    probes, labels = Probes(FAMILY, inference), {edit.name: edit.label for edit in NOISE_EDITS}
    findings = [
        probes.change(f"robustness_{name}", f"accuracy lost by {labels[name]}", cases, _drops(cases), only_above=True)
        for name, cases in by_edit.items()
    ]
    rows = [_row(edit, by_edit[edit.name], inference.margin) for edit in NOISE_EDITS if by_edit[edit.name]]
    worst, details = _worst({edit.label: by_edit[edit.name] for edit in NOISE_EDITS if by_edit[edit.name]})
    shown = by_edit["typos_5"]
    roles = {
        "chosen": "preferred",
        "rejected": "other",
        "chosen edited": "preferred, with typos",
        "rejected edited": "other, with typos",
    }
    return FamilyResult(
        findings=findings,
        examples=three_examples(
            shown,
            lambda each: (
                (each.gap("chosen", "rejected") - each.gap("chosen edited", "rejected edited")) / inference.margin
            ),
            roles,
            "margin lost by typos",
        ),
        tables=[
            Table(
                title="Each edit",
                columns=[
                    "edit",
                    "accuracy before",
                    "after",
                    "decisions that change",
                    "median shift of rewards",
                    "pairs",
                ],
                rows=rows,
                note=worst,
            )
        ],
        details=details,
    )


def _row(edit: NoiseEdit, cases: Sequence[ScoredCase], unit: float) -> list[str]:
    before = np.array([each.gap("chosen", "rejected") for each in cases])
    after = np.array([each.gap("chosen edited", "rejected edited") for each in cases])
    shifts = [abs(each.gap(f"{side} edited", side)) for each in cases for side in ("chosen", "rejected")]
    return [
        edit.label,
        f"{pairwise_credit(before).mean():.1%}",
        f"{pairwise_credit(after).mean():.1%}",
        f"{np.mean(np.sign(before) != np.sign(after)):.1%}",
        f"{np.median(shifts) / unit:.2f} typical margins",
        str(len(cases)),
    ]


def _worst(by_label: dict[str, list[ScoredCase]]) -> tuple[str, dict[str, Any]]:
    """Describe the edit that costs most accuracy, with a bound that is valid for all edits together (Bonferroni)."""
    found = {label: mean_difference(_drops(cases), clusters_of(cases)) for label, cases in by_label.items()}
    if not any(each.gains or each.losses for each in found.values()):
        return "No edit changed a decision.", {}
    label, worst = max(found.items(), key=lambda each: each[1].spread.estimate)
    drop, high = worst.spread.estimate, worst.interval(1 - 0.05 / len(found)).high
    details = {"worst_edit": {"edit": label, "drop": drop, "simultaneous_upper_bound": high}}
    return f"Worst: {label}, {drop:+.1%} accuracy lost, at most {high:+.1%} (for all edits together).", details


ROBUSTNESS = Family(
    name=FAMILY,
    title="Robustness",
    what="Both responses of each pair got the same edit that keeps their meaning: typos, case, white space, quotes, "
    "contractions or an irrelevant last sentence. The preference should not change.",
    advice="Add edited copies of training pairs with the same preference.",
    cases=_cases,
    analyse=_analyse,
)
