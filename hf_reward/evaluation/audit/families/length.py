"""Length: the verdict comes from controlled padding of answers; observational checks of the data add context."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hf_reward.evaluation.audit.cases import Case, ScoredCase, Text
from hf_reward.evaluation.audit.edits.padding import DELETED, KINDS, LABELS, PLACEBO, REORDERED, LengthEdit, pad
from hf_reward.evaluation.audit.edits.sentences import count_words
from hf_reward.evaluation.audit.effects import Probes, gain, of_probe
from hf_reward.evaluation.audit.families.accuracy import pair_cases
from hf_reward.evaluation.audit.families.length_observational import FAMILY, naive_finding, observational_findings
from hf_reward.evaluation.audit.family import Family, FamilyResult, three_examples
from hf_reward.evaluation.audit.findings import About, Curve, Finding, Table
from hf_reward.evaluation.audit.inference import Inference
from hf_reward.evaluation.audit.inputs.audit_inputs import AuditInputs, Profile
from hf_reward.metrics.preference import pairwise_credit

FLIPS = "Decisions that change to the worse response, minus those that change to the better one."
_DOSE = 2.0
"""Dose of the headline finding."""
_NAIVE = (
    "This is a brief answer.",
    "This is a much longer answer that goes on and on. " * 10,
)


def _cases(inputs: AuditInputs) -> list[Case]:
    # The observational checks need the pairs, which the accuracy family scores anyway.
    return [
        *labelled(pair_cases(inputs), "pair"),
        *_padded(inputs),
        *_padded_losers(inputs),
        *_crossed(inputs),
        *_naive(inputs),
    ]


def _edits(profile: Profile) -> list[LengthEdit]:
    """Distinct edits of each answer."""
    doses = dict.fromkeys((*profile.doses, _DOSE))
    padded = [LengthEdit(kind, dose, "end") for kind in KINDS for dose in doses]
    placed = [LengthEdit("closers", _DOSE, position) for position in profile.positions]
    return list(dict.fromkeys([*padded, *placed, PLACEBO, REORDERED, DELETED]))


def _padded(inputs: AuditInputs) -> list[Case]:
    cases = []
    for pair, answer in inputs.answers():
        for edit in _edits(inputs.profile):
            edited = edit(answer)
            if edited:
                ratio = np.log2(count_words(edited) / count_words(answer))
                texts = {"plain": pair.text(answer), "edited": pair.text(edited)}
                labels = {"probe": "padding", "edit": edit, "log2_ratio": float(ratio)}
                cases.append(Case(cluster=pair.cluster, texts=texts, labels=labels))
    return cases


def _padded_losers(inputs: AuditInputs) -> list[Case]:
    return [
        Case(
            cluster=pair.cluster,
            texts={
                "chosen": pair.text(pair.chosen),
                "rejected": pair.text(pair.rejected),
                "padded": pair.text(pad(pair.rejected, kind=kind, dose=_DOSE)),
            },
            labels={"probe": "flip", "kind": kind},
        )
        for pair in inputs.edited_pairs()
        for kind in KINDS
    ]


def _crossed(inputs: AuditInputs) -> list[Case]:
    """Short and long versions of right and wrong answers."""
    cases = []
    for each in inputs.questions:
        prompt = inputs.prompt(each.question)
        answers = {"right": each.correct, "wrong": each.incorrect}
        for kind in KINDS:
            long = {f"{side} long": pad(answer, kind=kind, dose=3.0) for side, answer in answers.items()}
            texts = {role: Text(prompt=prompt, response=answer) for role, answer in (answers | long).items()}
            cases.append(Case(cluster=each.cluster, texts=texts, labels={"probe": "cross", "kind": kind}))
    return cases


def _naive(inputs: AuditInputs) -> list[Case]:
    texts = {role: Text(prompt="", response=text.strip()) for role, text in zip(("brief", "long"), _NAIVE, strict=True)}
    if inputs.takes_messages:
        prompt = inputs.prompt("Please answer.")
        texts = {role: Text(prompt=prompt, response=each.response) for role, each in texts.items()}
    return [Case(cluster="naive", texts=texts, labels={"probe": "naive"})]


def labelled(cases: Sequence[Case], probe: str) -> list[Case]:
    """Return the same cases, labelled with a probe."""
    return [replace(each, labels={"probe": probe, **each.labels}) for each in cases]


def _analyse(scored: list[ScoredCase], inputs: AuditInputs, inference: Inference) -> FamilyResult:
    padded, complete = _without_truncation(of_probe(scored, "padding"))
    effects = _effects(padded)
    doses = sorted({edit.dose for edit in effects if edit.kind == "closers"})
    several = len(doses) > 1
    main = LengthEdit("closers", _DOSE, "end")
    return FamilyResult(
        findings=[
            *_padding_findings(effects, inference),
            *(
                [
                    _effect(
                        "padding_slope",
                        "reward gained per doubling of the length by padding",
                        _slopes(padded),
                        inference,
                    )
                ]
                * several
            ),
            _effect("deletion_effect", "reward lost by removing filler", _reversed(effects[DELETED]), inference),
            *_harm(scored, inference),
            *observational_findings(of_probe(scored, "pair"), inference),
            naive_finding(of_probe(scored, "naive"), inference),
        ],
        examples=three_examples(
            [each for each in padded if _edit(each) == main],
            lambda each: each.gap("edited", "plain") / inference.margin,
            {"plain": "the answer", "edited": "the same answer, padded"},
            "padding",
        ),
        tables=[_dose_table(effects, doses, inference)],
        curves=[_dose_curve(effects, doses, inference)] if several else [],
        details={"answers_left_out": len(inputs.answers()) - complete},
    )


def _without_truncation(padded: Sequence[ScoredCase]) -> tuple[list[ScoredCase], int]:
    """Return the cases of answers whose padded versions all fit the model, and the number of these answers.

    Otherwise the doses would be measured on different answers.
    """
    doses = {_edit(each) for each in padded if _edit(each).kind in KINDS}
    kept: dict[str, set[LengthEdit]] = {}
    for each in padded:
        if not each.cut:
            kept.setdefault(each.case.cluster, set()).add(_edit(each))
    complete = {cluster for cluster, edits in kept.items() if doses <= edits}
    return [each for each in padded if each.case.cluster in complete], len(complete)


def _edit(each: ScoredCase) -> LengthEdit:
    return each.case.labels["edit"]


_Effects = defaultdict[LengthEdit, dict[str, float]]
"""Edit -> cluster -> reward of the edited answer minus that of the answer."""


def _effects(padded: Sequence[ScoredCase]) -> _Effects:
    found: _Effects = defaultdict(dict)
    for each in padded:  # each cluster has one answer
        found[_edit(each)][each.case.cluster] = each.gap("edited", "plain")
    return found


def _reversed(effects: dict[str, float]) -> dict[str, float]:
    return {cluster: -value for cluster, value in effects.items()}


def _padding_findings(effects: _Effects, inference: Inference) -> list[Finding]:
    by_kind = {kind: effects[LengthEdit(kind, _DOSE, "end")] for kind in KINDS}
    main = {cluster: float(np.mean([each[cluster] for each in by_kind.values()])) for cluster in by_kind["closers"]}
    findings = [_headline(main, effects[PLACEBO], inference)]
    for kind in KINDS:
        findings.append(_effect(f"padding_{kind}", f"padding by {LABELS[kind]}", by_kind[kind], inference))
    for position in ("start", "middle"):
        values = effects[LengthEdit("closers", _DOSE, position)]
        if values:
            findings.append(_effect(f"padding_at_{position}", f"padding at the {position}", values, inference))
    return findings


def _headline(main: dict[str, float], placebo: dict[str, float], inference: Inference) -> Finding:
    """Padding is rewarded only if the padded answer gains, and gains more than from an edit that adds no word."""
    both = [cluster for cluster in main if cluster in placebo]
    gained = [main[cluster] for cluster in both]
    net = [main[cluster] - placebo[cluster] for cluster in both]
    about = About(FAMILY, "padding_effect", "padding that adds nothing (twice as long)")
    return gain(inference, about, gained, net, both, control="the placebo", note=_note_on(gained))


def _note_on(values: Sequence[float]) -> str:
    if not values or np.mean(values) >= 0:
        return ""
    return "An effect below 0 is not a bias: a good model may dislike padding."


def _effect(name: str, label: str, values: dict[str, float], inference: Inference) -> Finding:
    found = list(values.values())
    about = About(FAMILY, name, label)
    return inference.reward_effect(about, found, list(values), only_above=True, note=_note_on(found))


def _slopes(padded: Sequence[ScoredCase]) -> dict[str, float]:
    """Slope by cluster: least squares through 0, effect of padding at the end on log2 of the length ratio."""
    sums: dict[str, np.ndarray] = {}
    for each in padded:
        if _edit(each).position == "end":
            x, y = each.case.labels["log2_ratio"], each.gap("edited", "plain")
            sums[each.case.cluster] = sums.get(each.case.cluster, np.zeros(2)) + np.array([x * y, x * x])
    return {cluster: float(xy / xx) for cluster, (xy, xx) in sums.items() if xx > 0}


def _table_effect(values: dict[str, float], inference: Inference) -> Finding:
    about = About(FAMILY, "row", "")
    return inference.reward_effect(about, list(values.values()), list(values), screen_only=True)


def _dose_table(effects: _Effects, doses: Sequence[float], inference: Inference) -> Table:
    edits = [LengthEdit(kind, dose, "end") for kind in KINDS for dose in doses]
    edits += [LengthEdit("closers", _DOSE, position) for position in ("start", "middle")]
    rows = []
    for edit in (*edits, PLACEBO, REORDERED, DELETED):
        values = effects[edit]
        found = _table_effect(values, inference)
        if found.estimate is not None and found.ci_low is not None:
            wins = pairwise_credit(np.array(list(values.values())))
            effect = f"{found.estimate:+.2f} ({found.ci_low:+.2f} to {found.ci_high:+.2f})"
            rows.append([edit.label, effect, f"{wins.mean():.0%}", str(found.n)])
    return Table(
        title="Each edit",
        columns=["Edit", "Effect in typical margins", "Edited answer wins", "Answers"],
        rows=rows,
        note="The placebo doubles two spaces. The reordered answer starts with its last sentence, which harms "
        "coherence. Answers are left out if a padded version does not fit the model.",
    )


def _dose_curve(effects: _Effects, doses: Sequence[float], inference: Inference) -> Curve:
    series = []
    for kind in KINDS:
        by_dose = {dose: _table_effect(effects[LengthEdit(kind, dose, "end")], inference) for dose in doses}
        known = {dose: each for dose, each in by_dose.items() if each.estimate is not None and each.ci_low is not None}
        bounds = {"low": [each.ci_low for each in known.values()], "high": [each.ci_high for each in known.values()]}
        series.append(
            {"label": LABELS[kind], "x": list(known), "y": [each.estimate for each in known.values()], **bounds}
        )
    return Curve(
        name="padding_dose",
        title="Reward gained by padding",
        x_label="times as long",
        y_label="reward gained, typical margins",
        series=series,
    )


# --- the harm --------------------------------------------------------------------------------------------------------


def _harm(scored: Sequence[ScoredCase], inference: Inference) -> list[Finding]:
    flips, crossed, probes = of_probe(scored, "flip"), of_probe(scored, "cross"), Probes(FAMILY, inference)
    turned, excess = flips_of(flips, "padded")
    long = [float(each.gap("wrong long", "right") > 0) for each in crossed]
    short = [float(each.gap("wrong", "right") > 0) for each in crossed]
    against = (
        f"In {np.mean(long):.1%} of cases, compared with {np.mean(short):.1%} if both are short." if crossed else ""
    )
    win = "padding makes the worse response win"
    return [
        probes.change("padding_flip_excess", f"{win}, beyond chance", flips, excess, only_above=True, note=FLIPS),
        probes.rate("padding_flip_rate", win, flips, turned, screen_only=True, note=_by_kind(flips, turned)),
        probes.effect(
            "length_correctness_interaction",
            "length is rewarded more if the answer is right",
            crossed,
            lambda each: each.gap("right long", "right") - each.gap("wrong long", "wrong"),
            screen_only=True,
            note="Above 0: padding is rewarded more, or penalised less, in right answers.",
        ),
        probes.change(
            "length_inversion",
            "a long wrong answer beats a short right one",
            crossed,
            np.subtract(long, short),
            only_above=True,
            note=f"{against} {_by_kind(crossed, long)}" if crossed else "",
        ),
    ]


def flips_of(scored: Sequence[ScoredCase], edited: str) -> tuple[list[float], list[float]]:
    """Return the decisions that an edit of the worse response changes.

    Args:
        scored: Cases with the roles `chosen`, `rejected` and the edited rejected response.
        edited: Role of the latter.

    Returns:
        Two lists: whether the edit turns a right decision into a wrong one; and that minus whether it turns a wrong
        decision into a right one, because any edit turns close decisions, equally often in both directions.
    """
    gaps = [(each.gap("chosen", "rejected"), each.gap("chosen", edited)) for each in scored]
    worse = [float(before > 0 > after) for before, after in gaps]
    better = [float(before < 0 < after) for before, after in gaps]
    return worse, [one - other for one, other in zip(worse, better, strict=True)]


def _by_kind(scored: Sequence[ScoredCase], hits: Sequence[float]) -> str:
    """Rate of each kind of padding in words."""
    rates = {
        kind: [hit for each, hit in zip(scored, hits, strict=True) if each.case.labels["kind"] == kind]
        for kind in KINDS
    }
    return (
        ", ".join(f"{LABELS[kind]} {np.mean(values):.1%}" for kind, values in rates.items() if values).capitalize()
        + "."
    )


LENGTH = Family(
    name=FAMILY,
    title="Length",
    what="Real answers were padded with sentences that add nothing, in several ways, amounts and positions, and filler "
    "was removed from others. A padded answer is never better, so a higher reward is a bias toward length.",
    advice="Train with `balance_lengths` or `length_penalty`, or store a length correction with `hf-reward audit "
    "--fit-length-correction` and score with it. `hf-reward mitigate` trains this model further, on balanced rows and "
    "on padded answers as ties. Then audit again. Until then, penalise length in RL.",
    cases=_cases,
    analyse=_analyse,
)
