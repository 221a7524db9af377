"""Does the better response stay the better one when both are written differently?"""

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
        probes.change(f"robustness_{name}", f"accuracy lost to {labels[name]}", cases, _drops(cases), only_above=True)
        for name, cases in by_edit.items()
    ]
    rows = [_row(edit, by_edit[edit.name], inference.margin) for edit in NOISE_EDITS if by_edit[edit.name]]
    worst, details = _worst({edit.label: by_edit[edit.name] for edit in NOISE_EDITS if by_edit[edit.name]})
    shown = by_edit["typos_5"]
    roles = {
        "chosen": "preferred",
        "rejected": "other",
        "chosen edited": "preferred, with typing errors",
        "rejected edited": "other, with typing errors",
    }
    return FamilyResult(
        findings=findings,
        examples=three_examples(
            shown,
            lambda each: (
                (each.gap("chosen", "rejected") - each.gap("chosen edited", "rejected edited")) / inference.margin
            ),
            roles,
            "margin lost to typing errors",
        ),
        tables=[
            Table(
                title="Every edit",
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
    """The edit that costs most, with a bound that holds for all of them together (Bonferroni)."""
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
    what="Both responses of each pair were changed in the same way, with their meaning kept: typing errors, case, "
    "white space, quotes, contractions, an irrelevant last sentence. Which one is better should not change.",
    advice="Add edited copies of training pairs with the same preference, or pull the rewards of both versions "
    "together.",
    cases=_cases,
    analyse=_analyse,
)
