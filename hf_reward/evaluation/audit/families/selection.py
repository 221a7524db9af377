"""Best-of-n selection by this reward: which features it amplifies, and whether it selects better responses."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from hf_reward.evaluation.audit.cases import Case, ScoredCase, Text
from hf_reward.evaluation.audit.edits.features import AUDIT_FEATURES
from hf_reward.evaluation.audit.effects import Probes, clusters_of
from hf_reward.evaluation.audit.family import Family, FamilyResult
from hf_reward.evaluation.audit.findings import Curve, Example, Finding, ScoredResponse, Table, readable
from hf_reward.evaluation.audit.inference import Inference
from hf_reward.evaluation.audit.inputs.audit_inputs import AuditInputs
from hf_reward.evaluation.audit.samples import interval
from hf_reward.metrics.best_of_n import best_of_n_curve, kl_of_best_of_n
from hf_reward.metrics.counts import counted
from hf_reward.metrics.intervals import FEW_CLUSTERS

FAMILY = "best_of_n"
_FEWEST = 20
_IN_SAMPLE = "The smaller n is the best one for these prompts, so the loss is never negative and has no interval."


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
            not_assessed=f"It needs {_FEWEST} prompts with three or more responses; the data has {len(scored)}."
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
    """Best and worst response by reward, for the prompts with the largest, the median and the smallest spread."""
    order = sorted(scored, key=lambda each: max(each.rewards.values()) - min(each.rewards.values()))
    found = []
    for name, place in zip(("largest", "median", "smallest"), (len(order) - 1, len(order) // 2, 0), strict=True):
        each = order[place]
        best, worst = max(each.rewards, key=each.rewards.__getitem__), min(each.rewards, key=each.rewards.__getitem__)
        sides = ((best, "highest reward"), (worst, "lowest reward"))
        responses = [ScoredResponse(words, each.case.texts[role].response, each.rewards[role]) for role, words in sides]
        prompt = readable(each.case.texts[best].prompt)
        found.append(Example(title=f"spread of rewards: {name}", prompt=prompt, responses=responses))
    return found


def _curves(scored: Sequence[ScoredCase], values: Iterable[Sequence[float] | np.ndarray], largest: int) -> np.ndarray:
    """Mean value of the best of n responses by reward, for each prompt and n from 1, shape `(N, largest)`."""
    pairs = zip(scored, values, strict=True)
    return np.stack([best_of_n_curve(_rewards(each), np.array(own, float))[:largest] for each, own in pairs])


def _rewards(each: ScoredCase) -> np.ndarray:
    return np.array(list(each.rewards.values()))


def _drift(scored: Sequence[ScoredCase], largest: int, probes: Probes) -> tuple[Finding, Table]:
    """Mean of each feature in the best of n minus its mean over all responses."""
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
        f"additional words in the best of {largest}, relative",
        scored,
        shares,
        screen_only=True,
        unit="share of the mean length",
        note="RL would amplify it; longer responses may also be better.",
    )
    table = Table(
        title="Features that selection amplifies",
        columns=["Feature", "Mean of all", f"Best of {largest}", "Difference (95% interval)", "In standard deviations"],
        rows=[row for _, row in rows],
        note=f"{counted(len(scored), 'prompt')}. Observational: an amplified feature may be a bias or a part of "
        "quality.",
    )
    return length, table


def best_of_n_interval(
    values: np.ndarray, clusters: Sequence[str], inference: Inference
) -> tuple[float | None, float | None]:
    """Return the 95% interval of a mean over the best of n of each prompt.

    Args:
        values: Value of the best response of each prompt, shape `(N,)`.
        clusters: Cluster of each, N.
        inference: Resamples of the audit.

    Returns:
        Low and high; None for fewer than 20 clusters, where coverage is low (docs/reference/statistics.md).
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


# --- with known quality -----------------------------------------------------------------------------------------------


def fit_overoptimization(n: np.ndarray, gain: np.ndarray) -> dict[str, float]:
    """Fit gain = d (alpha - beta d) with d = sqrt(KL of best-of-n), by least squares.

    Args:
        n: Numbers of responses, above 1, shape `(P,)`.
        gain: Quality of the best of n minus that of a random response, shape `(P,)`.

    Returns:
        `alpha`, `beta` (above 0 if more optimisation does harm), and `peak_kl` with the largest gain (NaN without a
        peak).

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
        f"quality lost by choosing among {largest} instead of {best + 1}",
        scored,
        curves[:, best] - curves[:, -1],
        screen_only=True,
        unit="gold units",
        note=f"{_IN_SAMPLE} Best of {largest}: {mean[-1]:.3f}; random: {mean[0]:.3f}; oracle: {oracle:.3f}.",
    )
    # An interval for a given smaller n would ignore that it was selected on these prompts.
    result.findings.append(replace(regret, ci_low=None, ci_high=None, mde=None))
    result.details |= {"gold_curve": mean.tolist(), "oracle": oracle}
    if largest >= 4:
        fit = fit_overoptimization(np.arange(2, largest + 1), mean[1:] - mean[0])
        result.details["overoptimization"] = fit
        rows = [["alpha", f"{fit['alpha']:+.3f}"], ["beta", f"{fit['beta']:+.3f}"], ["n in the fit", f"2 to {largest}"]]
        note = "Gain = d (alpha - beta d), d the square root of the KL divergence (Gao et al., 2022). beta > 0: more "
        note += "optimisation does harm. The fit has few points, so it is only a hint."
        result.tables.append(Table(title="Over-optimisation", columns=["", "Value"], rows=rows, note=note))
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
    return Curve(
        name="best_of_n_gold", title="Quality of the best of n", x_label="n", y_label="quality", series=[series]
    )


SELECTION = Family(
    name=FAMILY,
    title="Best of n",
    what="The response with the highest reward was chosen from several responses to a prompt. The table shows the "
    "features that this selection amplifies, and the quality where it is known.",
    advice="Watch the features at the top of the table during RL. If quality falls with n, use a smaller n, a KL "
    "penalty or an ensemble.",
    cases=_cases,
    analyse=_analyse,
)
