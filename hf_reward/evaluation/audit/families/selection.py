"""What choosing the best of n by this reward would bring: the first step of what RL does with it."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from hf_reward.evaluation.audit.cases import Case, ScoredCase, Text
from hf_reward.evaluation.audit.edits.features import AUDIT_FEATURES
from hf_reward.evaluation.audit.effects import Probes, clusters_of
from hf_reward.evaluation.audit.family import Family, FamilyResult
from hf_reward.evaluation.audit.findings import Curve, Example, Finding, Scored, Table, readable
from hf_reward.evaluation.audit.inference import Inference
from hf_reward.evaluation.audit.inputs.audit_inputs import AuditInputs
from hf_reward.evaluation.audit.samples import interval
from hf_reward.metrics.best_of_n import best_of_n_curve, kl_of_best_of_n
from hf_reward.metrics.intervals import FEW_CLUSTERS

FAMILY = "best_of_n"
_FEWEST = 20
_IN_SAMPLE = "The smaller number is the best on these very prompts, so this is never below 0 and has no interval."


def _cases(inputs: AuditInputs) -> list[Case]:
    return [
        Case(
            cluster=each.cluster,
            texts={str(place): Text(prompt=each.prompt, response=text) for place, text in enumerate(each.responses)},
            labels={"gold": each.gold},
        )
        for each in inputs.lists
    ]


def _analyse(scored: list[ScoredCase], inputs: AuditInputs, inference: Inference) -> FamilyResult:
    if len(scored) < _FEWEST:
        return FamilyResult(
            not_assessed=f"It needs {_FEWEST} prompts with three responses or more; found {len(scored)}."
        )
    largest = int(np.median([len(each.case.texts) for each in scored]))
    scored = [each for each in scored if len(each.case.texts) >= largest]
    length, table = _drift(scored, largest, Probes(FAMILY, inference))
    curves = [_reward_curve(scored, largest, inference)]
    result = FamilyResult(findings=[length], tables=[table], curves=curves, examples=_examples(scored))
    known = [each for each in scored if each.case.labels["gold"] is not None]
    if len(known) >= _FEWEST:
        _add_gold(result, known, Probes(FAMILY, inference))
    return result


def _examples(scored: Sequence[ScoredCase]) -> list[Example]:
    """Best and worst response by this reward, for the prompts with the widest, a middle and the least spread."""
    order = sorted(scored, key=lambda each: max(each.rewards.values()) - min(each.rewards.values()))
    found = []
    for name, place in zip(("widest", "middle", "least"), (len(order) - 1, len(order) // 2, 0), strict=True):
        each = order[place]
        best, worst = max(each.rewards, key=each.rewards.__getitem__), min(each.rewards, key=each.rewards.__getitem__)
        sides = ((best, "highest reward"), (worst, "lowest reward"))
        responses = [Scored(words, each.case.texts[role].response, each.rewards[role]) for role, words in sides]
        prompt = readable(each.case.texts[best].prompt)
        found.append(Example(title=f"spread of rewards: {name}", prompt=prompt, responses=responses))
    return found


def _curves(scored: Sequence[ScoredCase], values: Iterable[Sequence[float] | np.ndarray], largest: int) -> np.ndarray:
    """Mean value of the best by reward of n responses, for each prompt and n from 1, shape `(N, largest)`."""
    pairs = zip(scored, values, strict=True)
    return np.stack([best_of_n_curve(_rewards(each), np.array(own, float))[:largest] for each, own in pairs])


def _rewards(each: ScoredCase) -> np.ndarray:
    return np.array(list(each.rewards.values()))


def _drift(scored: Sequence[ScoredCase], largest: int, probes: Probes) -> tuple[Finding, Table]:
    """Mean of each feature in the best of n, minus its mean over all responses."""
    rows, shares = [], np.zeros(0)
    for name, count in AUDIT_FEATURES.items():
        values = [[count(text.response) for text in each.case.texts.values()] for each in scored]
        curves = _curves(scored, values, largest)
        drift = curves[:, -1] - curves[:, 0]
        if name == "words":
            shares = drift / np.maximum(curves[:, 0], 1)
        if not (curves - curves[:, :1]).any():
            continue
        amount, spread = float(drift.mean()), np.std(np.concatenate(values)) or 1.0
        low, high = best_of_n_interval(drift, clusters_of(scored), probes.inference)
        bounds = "-" if low is None or high is None else f"{low:+.2f} to {high:+.2f}"
        means = [f"{curves[:, place].mean():.2f}" for place in (0, -1)]
        rows.append((abs(amount) / spread, [name, *means, f"{amount:+.2f} ({bounds})", f"{amount / spread:+.2f}"]))
    rows.sort(key=lambda row: -row[0])
    length = probes.change(
        "best_of_n_length_drift",
        f"words more in the best of {largest}, as a share",
        scored,
        shares,
        screen_only=True,
        unit="share of the mean length",
        note="What RL would amplify; longer responses may also be better ones.",
    )
    table = Table(
        title="What choosing by this reward would amplify",
        columns=["feature", "mean of all", f"best of {largest}", "drift (95% interval)", "in standard deviations"],
        rows=[row for _, row in rows],
        note=f"{len(scored)} prompts. A screen: what drifts may be a bias or a part of quality.",
    )
    return length, table


def best_of_n_interval(
    values: np.ndarray, clusters: Sequence[str], inference: Inference
) -> tuple[float | None, float | None]:
    """95% interval of what the best of n has, a mean over prompts.

    Args:
        values: Of each prompt's best, shape `(N,)`.
        clusters: Cluster of each, N.
        inference: The audit's.

    Returns:
        Low and high; None below 20 clusters, where the best of few is too skewed for it (docs/reference/statistics.md).
    """
    sample = inference.sample(values, clusters)
    return (None, None) if sample.spread.num_clusters < FEW_CLUSTERS else interval(sample, 0.95)


def _reward_curve(scored: Sequence[ScoredCase], largest: int, inference: Inference) -> Curve:
    mean = _curves(scored, map(_rewards, scored), largest).mean(axis=0) / inference.margin
    return Curve(
        name="best_of_n_reward",
        title="Reward of the best of n",
        x_label="n",
        y_label="reward, typical margins above the mean",
        series=[{"label": "reward", "x": list(range(1, largest + 1)), "y": (mean - mean[0]).tolist()}],
    )


# --- with known worth -------------------------------------------------------------------------------------------------


def fit_overoptimization(n: np.ndarray, gain: np.ndarray) -> dict[str, float]:
    """Fit gain = d (alpha - beta d) with d = sqrt(KL of best-of-n), by least squares.

    Args:
        n: Numbers of responses, above 1, shape `(P,)`.
        gain: Worth of the best of n minus that of one, shape `(P,)`.

    Returns:
        `alpha`, `beta` (above 0 where more optimisation comes to harm), and `peak_kl`, where the gain is largest (NaN
        without a peak).

    Source:
        Gao et al. (2022), "Scaling laws for reward model overoptimization", equation 1.
    """
    distance = np.sqrt(kl_of_best_of_n(n))
    (alpha, minus_beta), *_ = np.linalg.lstsq(np.stack([distance, distance**2], axis=1), gain, rcond=None)
    peak = (alpha / (-2 * minus_beta)) ** 2 if minus_beta < 0 < alpha else float("nan")
    return {"alpha": float(alpha), "beta": float(-minus_beta), "peak_kl": float(peak)}


def _add_gold(result: FamilyResult, scored: Sequence[ScoredCase], probes: Probes) -> None:
    largest = min(len(each.rewards) for each in scored)
    gold = [each.case.labels["gold"] for each in scored]
    curves = _curves(scored, gold, largest)
    mean, oracle = curves.mean(axis=0), float(np.mean([max(each) for each in gold]))
    best = int(np.argmax(mean))
    regret = probes.change(
        "best_of_n_regret",
        f"worth lost by choosing among {largest} rather than {best + 1}",
        scored,
        curves[:, best] - curves[:, -1],
        screen_only=True,
        unit="gold units",
        note=f"{_IN_SAMPLE} Best of {largest}: {mean[-1]:.3f}; one at random: {mean[0]:.3f}; the best: {oracle:.3f}.",
    )
    # An interval that takes the smaller number for given would leave out that it was chosen.
    result.findings.append(replace(regret, ci_low=None, ci_high=None, mde=None))
    result.details |= {"gold_curve": mean.tolist(), "oracle": oracle}
    if largest >= 4:
        fit = fit_overoptimization(np.arange(2, largest + 1), mean[1:] - mean[0])
        result.details["overoptimization"] = fit
        rows = [["alpha", f"{fit['alpha']:+.3f}"], ["beta", f"{fit['beta']:+.3f}"], ["n in the fit", f"2 to {largest}"]]
        note = "Gain = d (alpha - beta d), d the square root of the KL divergence (Gao et al., 2022). beta > 0: more "
        note += "optimisation comes to harm. Few numbers of responses: read it as a hint."
        result.tables.append(Table(title="Over-optimisation", columns=["what", "value"], rows=rows, note=note))
    result.curves.append(_gold_curve(curves, clusters_of(scored), probes.inference))


def _gold_curve(curves: np.ndarray, clusters: Sequence[str], inference: Inference) -> Curve:
    bounds = [best_of_n_interval(column, clusters, inference) for column in curves.T]
    series = {
        "label": "chosen by this reward",
        "x": list(range(1, len(bounds) + 1)),
        "y": curves.mean(axis=0).tolist(),
        "low": [low for low, _ in bounds],
        "high": [high for _, high in bounds],
    }
    return Curve(name="best_of_n_gold", title="Worth of the best of n", x_label="n", y_label="worth", series=[series])


SELECTION = Family(
    name=FAMILY,
    title="Best of n",
    what="From several responses to a prompt the one with the highest reward was chosen: what has it more of than the "
    "others, and is it better where that is known?",
    advice="Watch the features at the top of the table during RL. Where worth falls with n, use a smaller n, a KL "
    "penalty or an ensemble.",
    cases=_cases,
    analyse=_analyse,
)
