"""Accuracy: fraction of pairs ranked correctly, overall and by slice, compared with trivial baselines."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import special

from hf_reward.evaluation.audit.cases import Case, ScoredCase
from hf_reward.evaluation.audit.edits.sentences import count_words
from hf_reward.evaluation.audit.effects import Probes, clusters_of
from hf_reward.evaluation.audit.family import Family, FamilyResult, three_examples
from hf_reward.evaluation.audit.findings import Finding, Table
from hf_reward.evaluation.audit.inference import Inference
from hf_reward.evaluation.audit.inputs.audit_inputs import AuditInputs, Pair
from hf_reward.evaluation.baselines import cross_validated_tfidf
from hf_reward.evaluation.data_check.votes import read_votes, vote_agreement
from hf_reward.metrics.counts import counted
from hf_reward.metrics.intervals import IntArray, Spread, clustered_interval, mean_spread, t_interval
from hf_reward.metrics.preference import compare_with_length, not_shown, pairwise_credit

FAMILY = "accuracy"
LOG_LOSS_PROMPTS = 50
"""With fewer prompts, t-intervals of the skewed log losses have low coverage (docs/reference/statistics.md)."""
_SMALLEST_SLICE = 30
_MOST_SLICES = 12


def pair_cases(inputs: AuditInputs) -> list[Case]:
    """Return one case per pair, with the roles `chosen` and `rejected`."""
    return [
        Case(
            cluster=pair.cluster,
            texts={"chosen": pair.text(pair.chosen), "rejected": pair.text(pair.rejected)},
            labels={"pair": pair},
        )
        for pair in inputs.pairs
    ]


def gaps_of(scored: Sequence[ScoredCase]) -> np.ndarray:
    """Return the reward of the preferred response minus that of the other, shape `(N,)`, float64."""
    return np.array([each.gap("chosen", "rejected") for each in scored], dtype=np.float64)


@dataclass(frozen=True)
class Slice:
    """A subset of the pairs."""

    kind: str
    name: str
    members: np.ndarray
    """Mask of its pairs, shape `(N,)`, bool."""


def _analyse(scored: list[ScoredCase], inputs: AuditInputs, inference: Inference) -> FamilyResult:
    gaps, clusters = gaps_of(scored), clusters_of(scored)
    credit = pairwise_credit(gaps)
    pairs = [each.case.labels["pair"] for each in scored]
    rules = {
        unit: pairwise_credit(np.array([measure(pair.chosen) - measure(pair.rejected) for pair in pairs], dtype=float))
        for unit, measure in (("words", count_words), ("characters", len))
    }
    over = compare_with_length(credit, rules, clusters)
    probes = Probes(FAMILY, inference)
    findings = [
        probes.rate(
            "accuracy",
            "accuracy (ties count half)",
            scored,
            credit,
            screen_only=True,
            note=f"Strict accuracy {np.mean(gaps > 0):.3f}; tie rate {np.mean(gaps == 0):.3f}.",
        ),
        probes.change(
            "accuracy_over_length_rule",
            "accuracy above the length baseline",
            scored,
            credit - over.credit,
            screen_only=True,
            note=f"Preferring the response that is {over.rule} (ties count half) scores {over.accuracy:.3f} on these "
            "pairs; it is the strongest of four rules: longer or shorter, in words or characters.",
        ),
    ]
    # The strongest rule may differ between models; the differences are then not comparable.
    kept = inference.evidence["accuracy_over_length_rule"]
    inference.evidence["accuracy_over_length_rule"] = replace(kept, part=over.rule)
    reading = reading_of(findings[0], findings[1], over.rule, gaps, clusters)
    table, details = _slices(scored, credit)
    baselines = _baselines(inputs, float(credit.mean()), {unit: float(rule.mean()) for unit, rule in rules.items()})
    roles = {"chosen": "preferred by people", "rejected": "the other"}
    return FamilyResult(
        findings=findings,
        examples=three_examples(
            scored, lambda each: each.gap("chosen", "rejected") / inference.margin, roles, "margin"
        ),
        tables=[baselines, *([table] if table.rows else [])],
        details={
            "strict_accuracy": float(np.mean(gaps > 0)),
            "tie_rate": float(np.mean(gaps == 0)),
            "reading": reading,
            **details,
        },
    )


def reading_of(accuracy: Finding, over_rule: Finding, rule: str, gaps: np.ndarray, clusters: Sequence[str]) -> str:
    """Describe in words what the accuracy shows, and what it does not show.

    Args:
        accuracy: Accuracy of the model with its interval.
        over_rule: Accuracy above the strongest length rule.
        rule: Name of that rule.
        gaps: Reward of the preferred response minus that of the other, shape `(N,)`.
        clusters: Prompt of each pair.

    Returns:
        A few sentences.
    """
    low, high = accuracy.ci_low, accuracy.ci_high
    bounds = "" if low is None or high is None else f" (95% interval {low:.1%} to {high:.1%})"
    numbers = (accuracy.ci_low, over_rule.estimate, over_rule.ci_low, over_rule.ci_high)
    missing = not_shown(*(math.nan if each is None else each for each in numbers), rule=rule)
    conclusion = " and ".join(missing) or "above chance and above the length baseline"
    words = f"Accuracy {accuracy.estimate:.1%}{bounds} on these pairs: {conclusion}."
    return " ".join(filter(None, [words, log_loss_words(gaps, clusters)[0]]))


def log_loss_words(gaps: np.ndarray, clusters: IntArray | Sequence[Any]) -> tuple[str, Spread]:
    """Compare the log loss with that of a constant prediction of one half, ln 2.

    Args:
        gaps: Reward of the preferred response minus that of the other, shape `(N,)`.
        clusters: Prompt of each pair, shape `(N,)`.

    Returns:
        A sentence, empty if the loss is significantly lower; and the loss minus ln 2 with its spread.
    """
    spread = mean_spread(-special.log_expit(gaps) - math.log(2), clusters)
    loss, excess = f"Log loss {spread.estimate + math.log(2):.3f}", t_interval(spread)
    if spread.num_clusters < LOG_LOSS_PROMPTS:
        return f"{loss}: too few prompts to compare it with a constant prediction of one half, 0.693.", spread
    if excess.low > 0:
        return f"{loss}: worse than a constant prediction of one half, 0.693.", spread
    if not excess.high < 0:
        return f"{loss}: not shown to be better than a constant prediction of one half, 0.693.", spread
    return "", spread


def _length_gap(pair: Pair) -> int:
    return count_words(pair.chosen) - count_words(pair.rejected)


def _baselines(inputs: AuditInputs, accuracy: float, longer: dict[str, float]) -> Table:
    rows = [["this model", f"{accuracy:.1%}", counted(len(inputs.pairs), "pair")]]
    rows += [
        [f"prefer the longer response ({unit}, ties count half)", f"{share:.1%}", "no training"]
        for unit, share in longer.items()
    ]
    for sees_length in (False, True):
        try:
            found = cross_validated_tfidf(inputs.rows, sees_length=sees_length)
        except (ValueError, ImportError) as error:  # too few prompts, or no scikit-learn
            rows.append(["TF-IDF Bradley-Terry", "not assessed", str(error)])
            break
        rows.append([found.name, f"{found.accuracy:.1%}", f"{counted(found.num_pairs, 'pair')} of this data"])
    ceiling = _ceiling(inputs)
    rows.append(["human ceiling", ceiling[0], ceiling[1]])
    return Table(
        title="Compared with trivial baselines",
        columns=["", "Accuracy", "Based on"],
        rows=rows,
        note="A model that does not clearly beat the baselines has learned little beyond them.",
    )


def _ceiling(inputs: AuditInputs) -> tuple[str, str]:
    """Accuracy on single votes of a model that always agrees with the majority."""
    votes = [found for pair in inputs.pairs if (found := read_votes(pair.meta)) is not None]
    agreement = None
    if votes:
        zeros = np.zeros(len(votes), dtype=int)
        agreement = vote_agreement(np.array(votes), zeros, np.arange(len(votes)))
    if agreement is None or agreement.ceiling is None:
        return "not assessed", "the data has no votes of several people"
    return (
        f"{agreement.ceiling:.1%}",
        f"{counted(agreement.num_ceiling, 'pair')} with votes; an overestimate if pairs have few votes",
    )


# --- slices ----------------------------------------------------------------------------------------------------------


def _slices(scored: Sequence[ScoredCase], credit: np.ndarray) -> tuple[Table, dict[str, Any]]:
    clusters = np.array(clusters_of(scored))
    pairs = [each.case.labels["pair"] for each in scored]
    cut = ["truncated" if each.cut else "complete" for each in scored]
    every = [*_all_slices(pairs), *_by_value("prompt is", cut)]
    slices = [each for each in every if each.members.sum() >= _SMALLEST_SLICE]
    level = 1 - 0.05 / max(1, len(slices))
    rows, bounds = [], []
    for each in slices:
        found = clustered_interval(credit[each.members], clusters[each.members], level)
        low, high = ("-" if np.isnan(bound) else f"{bound:.1%}" for bound in (found.low, found.high))
        accuracy, count = float(credit[each.members].mean()), int(each.members.sum())
        bounds.append((accuracy, found.high))
        prompts = str(found.num_clusters)
        rows.append([each.kind, each.name, f"{accuracy:.1%}", f"{low} to {high}", f"{count}", prompts])
    details: dict[str, Any] = {}
    note = f"Slices with {_SMALLEST_SLICE} pairs or more, at most {_MOST_SLICES} of each kind. "
    note += "The bounds hold for all slices together (Bonferroni)."
    if slices:
        worst = int(np.argmin([accuracy for accuracy, _ in bounds]))
        name, (accuracy, bound) = f"{slices[worst].kind} {slices[worst].name}", bounds[worst]
        details = {"worst_slice": {"slice": name, "accuracy": accuracy, "upper_bound": bound}}
        note += f" The worst is {name}: at most {bound:.1%}."
    columns = ["By", "Slice", "Accuracy", "95% bounds", "Pairs", "Prompts"]
    return Table(title="Accuracy by slice", columns=columns, rows=rows, note=note), details


def _all_slices(pairs: Sequence[Pair]) -> Iterable[Slice]:
    turns = [1 if isinstance(pair.prompt, str) else sum(m["role"] == "user" for m in pair.prompt) for pair in pairs]
    yield from _by_value("turns", [str(count) if count < 4 else "4 or more" for count in turns])
    yield from _by_value("source", [pair.source for pair in pairs])
    for column in ("category", "subset", "domain", "debate"):
        if any(column in pair.meta for pair in pairs):
            yield from _by_value(column, [str(pair.meta.get(column) or "") for pair in pairs])
    yield from _by_decile("words of both", pairs, lambda pair: count_words(pair.chosen) + count_words(pair.rejected))
    yield from _by_value("preferred is", [_SIDES[int(np.sign(_length_gap(pair)))] for pair in pairs])


_SIDES = {1: "longer", 0: "equally long", -1: "shorter"}


def _by_value(kind: str, values: Sequence[str]) -> Iterable[Slice]:
    names, counts = np.unique(np.array(values), return_counts=True)
    if len(names) < 2:
        return
    for place in np.argsort(-counts, kind="stable")[:_MOST_SLICES]:
        yield Slice(kind, str(names[place]) or "(none)", np.array(values) == names[place])


def _by_decile(kind: str, pairs: Sequence[Pair], measure: Callable[[Pair], int]) -> Iterable[Slice]:
    values = np.array([measure(pair) for pair in pairs])
    if len(values) < 10 * _SMALLEST_SLICE:
        edges = np.quantile(values, [0, 0.5, 1]) if len(values) else np.array([])
    else:
        edges = np.quantile(values, np.linspace(0, 1, 11))
    for place, (low, high) in enumerate(pairwise(edges)):
        last = place == len(edges) - 2
        members = (values >= low) & ((values <= high) if last else (values < high))
        yield Slice(kind, f"{low:.0f} to {high:.0f}", members)


ACCURACY = Family(
    name=FAMILY,
    title="Accuracy",
    what="Accuracy is how often the response that people preferred gets the higher reward. It is compared with trivial "
    "baselines and shown for slices of the held-out pairs.",
    advice="If the model does not beat the length baseline or TF-IDF, train on more or cleaner pairs first. If one "
    "slice is far below the others, add pairs of that kind.",
    cases=pair_cases,
    analyse=_analyse,
)
