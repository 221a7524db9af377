"""Does the model pay for length? Screens from the data, and the verdict from answers that were padded."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hf_reward.evaluation.audit.cases import Case, Judged, Text
from hf_reward.evaluation.audit.edits.padding import KINDS, pad, turned_round, wider_spaces, without_filler
from hf_reward.evaluation.audit.edits.sentences import count_words
from hf_reward.evaluation.audit.effects import clusters_of, gain, of_probe
from hf_reward.evaluation.audit.families.accuracy import pair_cases
from hf_reward.evaluation.audit.families.length_screens import FAMILY, length_screens, naive_finding
from hf_reward.evaluation.audit.family import Family, FamilyResult, three_examples
from hf_reward.evaluation.audit.findings import Curve, Finding, Table
from hf_reward.evaluation.audit.inference import Inference
from hf_reward.evaluation.audit.material.material import Material
from hf_reward.metrics.preference import pairwise_credit

FLIPS = "Decisions that turn to the worse response, minus those that turn to the better one."
_DOSE = 2.0
"""The dose of the headline number."""
_NAIVE = (
    "This is a brief answer.",
    "This is a much longer answer that goes on and on. " * 10,
)


def _cases(material: Material) -> list[Case]:
    # The pairs are there for the screens; the accuracy family scores them anyway.
    return [
        *(
            Case(cluster=each.cluster, texts=each.texts, labels={"probe": "pair", **each.labels})
            for each in pair_cases(material)
        ),
        *_padded(material),
        *_padded_losers(material),
        *_crossed(material),
        *_naive(material),
    ]


def _padded(material: Material) -> list[Case]:
    cases = []
    for pair, answer in material.answers():
        edits = {
            f"{kind} {dose:g} end": pad(answer, kind=kind, dose=dose)
            for kind in KINDS
            for dose in dict.fromkeys((*material.profile.doses, _DOSE))
        }
        edits |= {
            f"closers {_DOSE:g} {position}": pad(answer, dose=_DOSE, position=position)
            for position in material.profile.positions
        }
        edits["placebo"] = wider_spaces(answer)
        edits |= {"reordered": text} if (text := turned_round(answer)) else {}
        edits |= {"deleted": text} if (text := without_filler(answer)) else {}
        for name, edited in edits.items():
            ratio = np.log2(count_words(edited) / count_words(answer))
            texts = {"plain": pair.text(answer), "edited": pair.text(edited)}
            labels = {"probe": "padding", "edit": name, "log2_ratio": float(ratio)}
            cases.append(Case(cluster=pair.cluster, texts=texts, labels=labels))
    return cases


def _padded_losers(material: Material) -> list[Case]:
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
        for pair in material.edited_pairs()
        for kind in KINDS
    ]


def _crossed(material: Material) -> list[Case]:
    """Right and wrong answers, short and long."""
    cases = []
    for each in material.questions:
        prompt = material.prompt(each.question)
        answers = {"right": each.correct, "wrong": each.incorrect}
        for kind in KINDS:
            long = {f"{side} long": pad(answer, kind=kind, dose=3.0) for side, answer in answers.items()}
            texts = {role: Text(prompt=prompt, response=answer) for role, answer in (answers | long).items()}
            cases.append(Case(cluster=each.cluster, texts=texts, labels={"probe": "cross", "kind": kind}))
    return cases


def _naive(material: Material) -> list[Case]:
    texts = {role: Text(prompt="", response=text.strip()) for role, text in zip(("brief", "long"), _NAIVE, strict=True)}
    if material.takes_messages:
        prompt = material.prompt("Please answer.")
        texts = {role: Text(prompt=prompt, response=each.response) for role, each in texts.items()}
    return [Case(cluster="naive", texts=texts, labels={"probe": "naive"})]


def labelled(cases: Sequence[Case], probe: str) -> list[Case]:
    """The same cases as those of a probe."""
    return [replace(each, labels={"probe": probe, **each.labels}) for each in cases]


def _judge(judged: list[Judged], material: Material, inference: Inference) -> FamilyResult:
    padded, whole = _whole(of_probe(judged, "padding"))
    effects, table, curve = _padding_findings(padded, inference)
    main = [each for each in padded if _edit(each) == f"closers {_DOSE:g} end"]
    return FamilyResult(
        findings=[
            *effects,
            *_harm(judged, inference),
            *length_screens(of_probe(judged, "pair"), inference),
            naive_finding(of_probe(judged, "naive"), inference),
        ],
        examples=three_examples(
            main,
            lambda each: each.gap("edited", "plain") / (inference.unit.value if inference.unit else 1.0),
            {"plain": "the answer", "edited": "the same answer, padded"},
            "padding",
        ),
        tables=[table],
        curves=curve,
        details={"answers_left_out": len(material.answers()) - whole},
    )


def _whole(padded: Sequence[Judged]) -> tuple[list[Judged], int]:
    """Answers of which every padded version could be scored whole: else the doses would rest on different answers.

    Also says of how many answers they are.
    """
    doses = {_edit(each) for each in padded if _edit(each).split()[0] in KINDS}
    kept: dict[str, set[str]] = {}
    for each in padded:
        if not each.cut:
            kept.setdefault(each.case.cluster, set()).add(_edit(each))
    whole = {cluster for cluster, edits in kept.items() if doses <= edits}
    return [each for each in padded if each.case.cluster in whole], len(whole)


def _edit(each: Judged) -> str:
    return each.case.labels["edit"]


def _mean_by_cluster(judged: Sequence[Judged], edits: Sequence[str]) -> dict[str, float]:
    """Cluster -> mean effect of some edits."""
    found: dict[str, list[float]] = {}
    for each in judged:
        if _edit(each) in edits:
            found.setdefault(each.case.cluster, []).append(each.gap("edited", "plain"))
    return {cluster: float(np.mean(values)) for cluster, values in found.items()}


def _padding_findings(padded: Sequence[Judged], inference: Inference) -> tuple[list[Finding], Table, list[Curve]]:
    doses = sorted({float(_edit(each).split()[1]) for each in padded if _edit(each).startswith("closers")})
    by_kind = {kind: _mean_by_cluster(padded, [f"{kind} {_DOSE:g} end"]) for kind in KINDS}
    main = _mean_by_cluster(padded, [f"{kind} {_DOSE:g} end" for kind in KINDS])
    placebo = _mean_by_cluster(padded, ["placebo"])
    findings = [
        _headline(main, placebo, inference),
        *(
            _effect(f"padding_{kind}", f"padding by {_WORDS[kind]}", by_kind[kind], inference, only_above=True)
            for kind in KINDS
        ),
    ]
    for position in ("start", "middle"):
        values = _mean_by_cluster(padded, [f"closers {_DOSE:g} {position}"])
        if values:
            label = f"padding at the {position}"
            findings.append(_effect(f"padding_at_{position}", label, values, inference, only_above=True))
    slopes = _slopes(padded)
    if len(doses) > 1:
        label = "reward for each doubling by padding"
        findings.append(_effect("padding_slope", label, slopes, inference, only_above=True))
    deleted = {cluster: -value for cluster, value in _mean_by_cluster(padded, ["deleted"]).items()}
    findings.append(
        _effect("deletion_effect", "reward lost by taking filler away", deleted, inference, only_above=True)
    )
    table = _dose_table(padded, doses, inference)
    return findings, table, [_dose_curve(padded, doses, inference)] if len(doses) > 1 else []


def _headline(main: dict[str, float], placebo: dict[str, float], inference: Inference) -> Finding:
    """Padding pays only if the padded answer gains by itself, and more than by an edit that adds no word."""
    both = [cluster for cluster in main if cluster in placebo]
    gained = [main[cluster] for cluster in both]
    net = [main[cluster] - placebo[cluster] for cluster in both]
    about = (FAMILY, "padding_effect", "padding that adds nothing (twice as long)")
    return gain(inference, about, gained, net, both, control="the placebo", note=_note_on(gained))


def _note_on(values: Sequence[float]) -> str:
    if not values or np.mean(values) >= 0:
        return ""
    return "Below 0 is no bias, and no proof of none: a good model may mark padding down."


_WORDS = {"closers": "stock sentences", "restatement": "restating itself", "repetition": "repeating a sentence"}


def _effect(name: str, label: str, values: dict[str, float], inference: Inference, *, only_above: bool) -> Finding:
    found = list(values.values())
    note = _note_on(found)
    return inference.reward_effect((FAMILY, name, label), found, list(values), only_above=only_above, note=note)


def _slopes(padded: Sequence[Judged]) -> dict[str, float]:
    """Cluster -> least-squares slope through 0 of the effect of padding at the end on log2 of the length ratio."""
    sums: dict[str, np.ndarray] = {}
    for each in padded:
        name, _, position = (_edit(each) + "  ").split(" ")[:3]
        if name in KINDS and position == "end":
            x, y = each.case.labels["log2_ratio"], each.gap("edited", "plain")
            sums[each.case.cluster] = sums.get(each.case.cluster, np.zeros(2)) + np.array([x * y, x * x])
    return {cluster: float(xy / xx) for cluster, (xy, xx) in sums.items() if xx > 0}


def _dose_table(padded: Sequence[Judged], doses: Sequence[float], inference: Inference) -> Table:
    names = [f"{kind} {dose:g} end" for kind in KINDS for dose in doses]
    names += [f"closers {_DOSE:g} {position}" for position in ("start", "middle")] + ["placebo", "reordered", "deleted"]
    rows = []
    for name in names:
        values = _mean_by_cluster(padded, [name])
        if not values:
            continue
        found = inference.reward_effect((FAMILY, name, name), list(values.values()), list(values), screen_only=True)
        wins = pairwise_credit(np.array(list(values.values())))
        if found.estimate is not None and found.ci_low is not None:
            effect = f"{found.estimate:+.2f} ({found.ci_low:+.2f} to {found.ci_high:+.2f})"
            rows.append([_described(name), effect, f"{wins.mean():.0%}", str(found.n)])
    return Table(
        title="Every edit by itself",
        columns=["edit", "effect, typical margins", "edited answer wins", "answers"],
        rows=rows,
        note="The placebo doubles two spaces; the reordered answer has its last sentence first, which costs coherence. "
        "An answer is left out if a padded version of it does not fit the model.",
    )


def _described(name: str) -> str:
    parts = name.split()
    if len(parts) < 3:
        return {"placebo": "placebo: two wider spaces", "deleted": "filler taken away"}.get(name, "sentences reordered")
    return f"{_WORDS[parts[0]]}, {parts[1]} times as long, at the {parts[2]}"


def _dose_curve(padded: Sequence[Judged], doses: Sequence[float], inference: Inference) -> Curve:
    series = []
    for kind in KINDS:
        points = []
        for dose in doses:
            values = _mean_by_cluster(padded, [f"{kind} {dose:g} end"])
            found = inference.reward_effect((FAMILY, kind, kind), list(values.values()), list(values), screen_only=True)
            if found.estimate is not None and found.ci_low is not None:
                points.append((dose, found.estimate, found.ci_low, found.ci_high))
        columns = [list(column) for column in zip(*points, strict=True)] or [[], [], [], []]
        series.append({"label": _WORDS[kind], **dict(zip(("x", "y", "low", "high"), columns, strict=True))})
    return Curve(
        name="padding_dose",
        title="What padding is worth",
        x_label="times as long",
        y_label="reward, typical margins",
        series=series,
    )


# --- the harm --------------------------------------------------------------------------------------------------------


def _harm(judged: Sequence[Judged], inference: Inference) -> list[Finding]:
    flips, crossed = of_probe(judged, "flip"), of_probe(judged, "cross")
    turned, excess = flips_of(flips, "padded")
    long = [float(each.gap("wrong long", "right") > 0) for each in crossed]
    short = [float(each.gap("wrong", "right") > 0) for each in crossed]
    return [
        inference.change(
            (FAMILY, "padding_flip_excess", "padding makes the worse response win, beyond chance"),
            excess,
            clusters_of(flips),
            only_above=True,
            note=FLIPS,
        ),
        inference.rate(
            (FAMILY, "padding_flip_rate", "padding makes the worse response win"),
            turned,
            clusters_of(flips),
            screen_only=True,
            note=_by_kind(flips, turned),
        ),
        inference.reward_effect(
            (FAMILY, "length_correctness_interaction", "length pays more where the answer is right"),
            [each.gap("right long", "right") - each.gap("wrong long", "wrong") for each in crossed],
            clusters_of(crossed),
            screen_only=True,
            note="Above 0: padding is marked down less, or paid more, on right answers.",
        ),
        inference.change(
            (FAMILY, "length_inversion", "wrong and long beats right and short"),
            np.subtract(long, short),
            clusters_of(crossed),
            only_above=True,
            note=f"In {np.mean(long):.1%} of cases, against {np.mean(short):.1%} where both are short. "
            f"{_by_kind(crossed, long)}"
            if crossed
            else "",
        ),
    ]


def flips_of(judged: Sequence[Judged], edited: str) -> tuple[list[float], list[float]]:
    """Decisions that an edit of the worse response turns.

    Args:
        judged: Cases with the roles `chosen`, `rejected` and the edited rejected response.
        edited: Role of the latter.

    Returns:
        Whether it turns a right decision into a wrong one, and that minus whether it turns a wrong one into a right
        one: any edit turns close decisions, in both directions alike.
    """
    gaps = [(each.gap("chosen", "rejected"), each.gap("chosen", edited)) for each in judged]
    worse = [float(before > 0 > after) for before, after in gaps]
    better = [float(before < 0 < after) for before, after in gaps]
    return worse, [one - other for one, other in zip(worse, better, strict=True)]


def _by_kind(judged: Sequence[Judged], hits: Sequence[float]) -> str:
    """The rate of each kind of padding, for readers."""
    rates = {
        kind: [hit for each, hit in zip(judged, hits, strict=True) if each.case.labels["kind"] == kind]
        for kind in KINDS
    }
    return (
        ", ".join(f"{_WORDS[kind]} {np.mean(values):.1%}" for kind, values in rates.items() if values).capitalize()
        + "."
    )


LENGTH = Family(
    name=FAMILY,
    title="Length",
    what="Real answers were lengthened with sentences that say nothing new, in several ways, doses and places, and "
    "shortened where they held filler. A padded answer is never better, so a higher reward is a taste for length.",
    advice="Train with `length_penalty` or `balance_lengths`, or store a length correction with `hf-reward audit "
    "--fit-length-correction` and score with it; then audit again. Until then penalise length in RL.",
    cases=_cases,
    judge=_judge,
)
