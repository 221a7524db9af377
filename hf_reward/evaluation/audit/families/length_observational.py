"""Observational checks of a bias toward length: statistics of the pairs, without a verdict."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from hf_reward.evaluation.audit.cases import ScoredCase
from hf_reward.evaluation.audit.edits.sentences import count_words
from hf_reward.evaluation.audit.effects import Probes, clusters_of, wins
from hf_reward.evaluation.audit.families.accuracy import gaps_of
from hf_reward.evaluation.audit.findings import About, Finding
from hf_reward.evaluation.audit.inference import Inference
from hf_reward.metrics.counts import counted
from hf_reward.metrics.intervals import FEW_CLUSTERS
from hf_reward.metrics.length_correction import cross_fitted_correction
from hf_reward.metrics.preference import pairwise_credit

FAMILY = "length"


def observational_findings(pairs: Sequence[ScoredCase], inference: Inference) -> list[Finding]:
    """Return stratified accuracy, amplification, rank correlation and length-controlled accuracy of pairs."""
    both = [(each.case.labels["pair"].chosen, each.case.labels["pair"].rejected) for each in pairs]
    lengths = np.array([count_words(chosen) - count_words(rejected) for chosen, rejected in both])
    credit, differ = wins(pairs, "chosen", "rejected"), np.flatnonzero(lengths)
    human = (lengths[differ] > 0).astype(float)
    model = np.where(lengths[differ] > 0, credit[differ], 1 - credit[differ])
    note = (
        f"The model in {model.mean():.1%}, people in {human.mean():.1%} of the pairs that differ in words."
        if len(human)
        else ""
    )
    label, cases = "picks the longer response more often than people", [pairs[place] for place in differ.tolist()]
    probes = Probes(FAMILY, inference)
    return [
        *stratified(credit, lengths, np.array(clusters_of(pairs)), inference),
        probes.change("length_amplification", label, cases, model - human, screen_only=True, note=note),
        _rank_correlation(pairs, inference),
        _controlled(pairs, inference),
    ]


def stratified(credit: np.ndarray, lengths: np.ndarray, clusters: np.ndarray, inference: Inference) -> list[Finding]:
    """Return the difference and the mean of the accuracies where the preferred response is longer and shorter.

    Args:
        credit: Credit of each pair, shape `(N,)`.
        lengths: Length of the preferred response minus that of the other, shape `(N,)`.
        clusters: Prompt of each pair, shape `(N,)`.
        inference: Source of the findings.

    Returns:
        Both findings; without an interval if either side has fewer than 20 prompts, where coverage is low.
    """
    longer, shorter = lengths > 0, lengths < 0
    about = [
        About(FAMILY, "length_gap", "accuracy if the preferred response is longer minus if it is shorter"),
        About(FAMILY, "length_balanced_accuracy", "accuracy if both cases were equally frequent"),
    ]
    if longer.sum() < 2 or shorter.sum() < 2:
        return [inference.change(each, [], [], screen_only=True) for each in about]
    accuracy = {True: credit[longer].mean(), False: credit[shorter].mean()}
    # The weights make the mean over all pairs the difference, or the mean, of the two accuracies.
    count = longer.sum() + shorter.sum()
    share = {True: longer.sum() / count, False: shorter.sum() / count}
    both = longer | shorter
    side = longer[both]
    weight = np.where(side, 1 / share[True], 1 / share[False])
    centred = credit[both] - np.where(side, accuracy[True], accuracy[False])
    names = clusters[both].tolist()
    gap = np.where(side, 1, -1) * weight * centred + (accuracy[True] - accuracy[False])
    balanced = 0.5 * weight * centred + 0.5 * (accuracy[True] + accuracy[False])
    note = f"{accuracy[True]:.1%} of {counted(longer.sum(), 'pair')} and {accuracy[False]:.1%} of {shorter.sum()}."
    found = [
        inference.change(about[0], gap, names, screen_only=True, note=note),
        inference.rate(about[1], balanced, names, screen_only=True),
    ]
    fewest = min(len(np.unique(clusters[each])) for each in (longer, shorter))
    if fewest >= FEW_CLUSTERS:
        return found
    few = f"Too few prompts ({fewest}) on one side for an interval."
    return [replace(each, ci_low=None, ci_high=None, mde=None, note=f"{each.note} {few}".strip()) for each in found]


def _rank_correlation(pairs: Sequence[ScoredCase], inference: Inference) -> Finding:
    """Spearman's correlation within prompts with three or more responses; of pairs if there are few of those."""
    grouped: dict[str, dict[str, tuple[float, int]]] = {}
    for each in pairs:
        for role in ("chosen", "rejected"):
            text = each.case.texts[role]
            grouped.setdefault(each.case.cluster, {})[text.key] = (each.rewards[role], count_words(text.response))
    many = {name: list(found.values()) for name, found in grouped.items() if len(found) >= 3}
    use = many if len(many) >= 20 else {name: list(found.values()) for name, found in grouped.items()}
    values = {}
    for name, points in use.items():
        rewards, words = zip(*points, strict=True)
        if len(set(rewards)) > 1 and len(set(words)) > 1:
            values[name] = float(np.asarray(stats.spearmanr(rewards, words)[0]))
    kind = "prompts with three or more responses" if use is many else "prompts, most with one pair"
    return inference.change(
        About(FAMILY, "length_rank_correlation", "rank correlation of reward and length within a prompt"),
        list(values.values()),
        list(values),
        screen_only=True,
        unit="correlation",
        note=f"Over {kind}.",
    )


def _controlled(pairs: Sequence[ScoredCase], inference: Inference) -> Finding:
    """Accuracy after a length correction that was fitted on other prompts (Huang et al., 2024)."""
    about = About(FAMILY, "length_controlled_accuracy", "change of accuracy by a length correction")
    if not all(each.compares_prompts for each in pairs):
        note = "A judge of pairs has no rewards to correct."
        return replace(inference.change(about, [], [], screen_only=True), note=note)
    texts = {each.case.texts[role].key: (each.rewards[role], each.case, role) for each in pairs for role in _SIDES}
    rewards = np.array([reward for reward, _, _ in texts.values()])
    lengths = np.array([len(case.texts[role].response) for _, case, role in texts.values()])
    try:
        corrected = cross_fitted_correction(rewards, lengths, [case.cluster for _, case, _ in texts.values()])
    except (ValueError, ImportError) as error:  # too few responses, all of one length, or no statsmodels
        return replace(inference.change(about, [], [], screen_only=True), note=str(error))
    reward = dict(zip(texts, corrected.tolist(), strict=True))
    after = np.array(
        [reward[each.case.texts["chosen"].key] - reward[each.case.texts["rejected"].key] for each in pairs]
    )
    change = pairwise_credit(after) - pairwise_credit(gaps_of(pairs))
    note = f"{pairwise_credit(after).mean():.1%} with it. LOWESS of reward on length, fitted on other prompts."
    return inference.change(about, change, clusters_of(pairs), screen_only=True, note=note)


_SIDES = ("chosen", "rejected")


def naive_finding(naive: Sequence[ScoredCase], inference: Inference) -> Finding:
    """Return the well-known naive length probe, with a note on its flaws."""
    return Probes(FAMILY, inference).effect(
        "naive_length_probe",
        "a long filler text compared with a brief canned answer",
        naive,
        lambda each: each.gap("long", "brief"),
        screen_only=True,
        note="Confounded: a single pair without a question, whose texts also differ in meaning, register and "
        "repetition. It is included because it is well known; it shows nothing.",
    )
