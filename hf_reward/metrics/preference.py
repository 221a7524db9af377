"""Preference metrics of a split, with their uncertainty.

Pure numpy and scipy. Rewards are one `(R, K)` array with a row per preference row, and padding has rank -100. A metric
therefore uses every row once instead of averaging over batches. A ranked list counts as all its strict pairs.

Shapes: R rows, K responses in a row, M strict pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from hf_reward.metrics.arrays import FloatArray, IntArray
from hf_reward.metrics.counts import counted
from hf_reward.metrics.intervals import FEW_CLUSTERS, Difference, clustered_interval, mean_difference
from hf_reward.metrics.intervals import Interval as Interval  # its import path in version 0.1

PADDING_RANK = -100
LENGTH_BASELINES = {
    "tokens": "length_baseline",
    "words": "length_baseline_words",
    "characters": "length_baseline_characters",
}
"""Unit of length -> name of the metric with the accuracy of "prefer the longer response"."""


@dataclass(frozen=True)
class StrictPairs:
    """Every (preferred, rejected) pair of a split, shape `(M,)` each."""

    row: IntArray
    better: IntArray
    """Index of the preferred response in its row."""
    worse: IntArray
    """Index of the rejected response in its row."""


def strict_pairs(ranks: IntArray) -> StrictPairs:
    """List the pairs in which one response of a row is strictly preferred to another.

    Args:
        ranks: Rank of each response, 0 is best, -100 is padding, shape `(R, K)`.

    Returns:
        The pairs in row order.
    """
    present = ranks != PADDING_RANK
    mask = (ranks[:, :, None] < ranks[:, None, :]) & present[:, :, None] & present[:, None, :]
    return StrictPairs(*np.nonzero(mask))


def pairwise_credit(gaps: FloatArray) -> FloatArray:
    """Half-credit of each pair: 1 for a positive gap, 0.5 for a tie, 0 otherwise, shape `(M,)`."""
    return (gaps > 0) + 0.5 * (gaps == 0)


def log_loss(gaps: FloatArray) -> float:
    """Mean of -log sigmoid(gap) over pairs, in nats; equal rewards score ln 2 = 0.693."""
    return float(np.mean(-special.log_expit(gaps)))


def brier_score(gaps: FloatArray) -> float:
    """Mean of (1 - sigmoid(gap))^2 over pairs; equal rewards score 0.25.

    Args:
        gaps: Reward of the preferred response minus reward of the rejected response, shape `(M,)`.

    Returns:
        The score, in [0, 1].

    Source:
        Brier (1950), with the outcome "the preferred response wins" always 1.
    """
    return float(np.mean(special.expit(-gaps) ** 2))


def length_rule_credit(lengths: IntArray, pairs: StrictPairs) -> FloatArray:
    """Credit of the rule "prefer the longer response" on each pair, ties half, shape `(M,)`."""
    return pairwise_credit((lengths[pairs.row, pairs.better] - lengths[pairs.row, pairs.worse]).astype(float))


@dataclass(frozen=True)
class LengthComparison:
    """A model's accuracy minus the accuracy of the strongest length rule."""

    rule: str
    """Name of the rule, such as `longer in words`."""
    credit: FloatArray
    """Credit of the rule on each pair, shape `(M,)`."""
    difference: Difference

    @property
    def accuracy(self) -> float:
        """Accuracy of the rule."""
        return float(self.credit.mean())

    @property
    def low(self) -> float:
        """Lower bound of the 95% interval of the difference; NaN for one prompt."""
        return self.difference.interval().low

    @property
    def high(self) -> float:
        """Upper bound of the interval."""
        return self.difference.interval().high

    @property
    def shown(self) -> bool:
        """Whether the accuracy is shown to be above every length rule."""
        return self.low > 0


def compare_with_length(
    credits: FloatArray, rules: Mapping[str, FloatArray], clusters: IntArray | Sequence[Any]
) -> LengthComparison:
    """Compare an accuracy, pair by pair, with rules that use only length.

    Each unit gives two rules: prefer the longer and prefer the shorter response. The rule whose difference has the
    lowest lower bound is returned. By the intersection-union test, the model is better than all rules if it is better
    than this one, so choosing the strongest rule needs no correction for multiple tests.

    Args:
        credits: Credit of the model on each pair, shape `(M,)`.
        rules: Unit -> credit of "prefer the longer response" on the same pairs, ties half, shape `(M,)`.
        clusters: Prompt of each pair, shape `(M,)`.

    Returns:
        The comparison with the strongest rule.

    Source:
        Berger (1982), "Multiparameter hypothesis testing and acceptance sampling".
    """
    found = []
    for unit, longer in rules.items():
        for rule, credit in (("longer", longer), ("shorter", 1 - longer)):
            difference = mean_difference(credits - credit, clusters)
            found.append(LengthComparison(f"{rule} in {unit}", credit, difference))
    return min(found, key=lambda each: (np.nan_to_num(each.low, nan=-1.0), each.difference.spread.estimate))


def preference_metrics(
    rewards: FloatArray,
    ranks: IntArray,
    lengths: IntArray | None = None,
    groups: IntArray | None = None,
    *,
    words: IntArray | None = None,
    characters: IntArray | None = None,
) -> dict[str, float]:
    """Compute all metrics of a split, with the names that the trainer logs (without its `eval_` prefix).

    Args:
        rewards: Rewards, shape `(R, K)`.
        ranks: Rank of each response, 0 is best, -100 is padding, shape `(R, K)`.
        lengths: Length of each response in tokens, shape `(R, K)`. If omitted, so are the length metrics.
        groups: Prompt of each row, any integers, shape `(R,)`. By default every row is its own prompt.
        words: Words of each response, shape `(R, K)`. If any number is unknown (below 0), as for rows of token ids, no
            length rule is measured in words.
        characters: Characters of each response, like `words`.

    Returns:
        `accuracy` (strict: a tie of rewards is wrong) with `accuracy_ci_low` and `accuracy_ci_high`,
        `accuracy_half_credit`, `tie_rate`, `margin`, `median_margin`, `log_loss`, `brier_score`, `mean_reward`,
        `std_reward`, `min_reward`, `max_reward`, `num_pairs` and `num_prompts`. With lengths also: `length_baseline`
        (the accuracy of preferring the longer response in tokens); `length_baseline_words` and
        `length_baseline_characters` if known; `length_baseline_strongest` (the accuracy of the strongest rule, longer
        or shorter in one of these units); `accuracy_over_length` (accuracy minus that of the strongest rule) with
        `accuracy_over_length_ci_low` and `accuracy_over_length_ci_high`; `accuracy_preferred_longer` and
        `accuracy_preferred_shorter` with the number of pairs of each.

    Raises:
        ValueError: If no row has a strict preference, or a reward is not finite.
    """
    present = ranks != PADDING_RANK
    pairs = _checked_pairs(rewards, ranks)
    gaps = (rewards[pairs.row, pairs.better] - rewards[pairs.row, pairs.worse]).astype(np.float64)
    clusters = pairs.row if groups is None else groups[pairs.row]
    correct = (gaps > 0).astype(float)
    interval = clustered_interval(correct, clusters)
    metrics = {
        "accuracy": float(correct.mean()),
        "accuracy_ci_low": interval.low,
        "accuracy_ci_high": interval.high,
        "accuracy_half_credit": float(pairwise_credit(gaps).mean()),
        "tie_rate": float(np.mean(gaps == 0)),
        "margin": float(gaps.mean()),
        "median_margin": float(np.median(gaps)),
        "log_loss": log_loss(gaps),
        "brier_score": brier_score(gaps),
        **_distribution(rewards[present].astype(np.float64)),
        "num_pairs": len(gaps),
        "num_prompts": interval.num_clusters,
    }
    if lengths is None:
        return metrics
    sizes = {"tokens": lengths, "words": words, "characters": characters}
    known = {unit: each for unit, each in sizes.items() if each is not None and (each[present] >= 0).all()}
    return metrics | _length_metrics(correct, known, pairs, clusters)


def _checked_pairs(rewards: FloatArray, ranks: IntArray) -> StrictPairs:
    bad = np.flatnonzero((~np.isfinite(rewards) & (ranks != PADDING_RANK)).any(axis=1))
    if len(bad):
        raise ValueError(
            f"Rewards must be finite, but {counted(len(bad), 'row has', 'rows have')} NaN or infinity (first: row "
            f"{bad[0]}). Leave out responses without a reward."
        )
    pairs = strict_pairs(ranks)
    if len(pairs.row) == 0:
        raise ValueError(
            "An accuracy needs at least one row with a strict preference, but every row ties its responses. Check the "
            "`ranks` (0 = best, equal = tie)."
        )
    return pairs


def _distribution(rewards: FloatArray) -> dict[str, float]:
    found = {"mean": rewards.mean(), "std": rewards.std(), "min": rewards.min(), "max": rewards.max()}
    return {f"{name}_reward": float(value) for name, value in found.items()}


def _length_metrics(
    correct: FloatArray, sizes: Mapping[str, IntArray], pairs: StrictPairs, clusters: IntArray
) -> dict[str, float]:
    """Accuracy of the length rules, and of the model on pairs whose preferred response is longer or shorter."""
    credits = {unit: length_rule_credit(each, pairs) for unit, each in sizes.items()}
    longer, shorter = credits["tokens"] == 1, credits["tokens"] == 0
    over = compare_with_length(correct, credits, clusters)
    return {
        **{LENGTH_BASELINES[unit]: float(credit.mean()) for unit, credit in credits.items()},
        "length_baseline_strongest": over.accuracy,
        "accuracy_over_length": over.difference.spread.estimate,
        "accuracy_over_length_ci_low": over.low,
        "accuracy_over_length_ci_high": over.high,
        "accuracy_preferred_longer": float(correct[longer].mean()) if longer.any() else np.nan,
        "num_preferred_longer": int(longer.sum()),
        "accuracy_preferred_shorter": float(correct[shorter].mean()) if shorter.any() else np.nan,
        "num_preferred_shorter": int(shorter.sum()),
    }


def strongest_rule(metrics: Mapping[str, float]) -> str:
    """Return the name of the length rule behind `accuracy_over_length`, such as `longer in words`.

    Args:
        metrics: Result of `preference_metrics` with lengths.

    Returns:
        The name; for older results without `length_baseline_strongest`, the stronger rule in tokens.
    """
    rule = metrics["length_baseline"]
    wanted = metrics.get("length_baseline_strongest", max(rule, 1 - rule))
    known = {unit: metrics[name] for unit, name in LENGTH_BASELINES.items() if name in metrics}
    rules = [
        (f"{side} in {unit}", accuracy)
        for unit, longer in known.items()
        for side, accuracy in (("longer", longer), ("shorter", 1 - longer))
    ]
    return min(rules, key=lambda each: abs(each[1] - wanted))[0]


def accuracy_reading(metrics: dict[str, float]) -> str:
    """Compare an accuracy with the typical range of preference data and with the length baseline.

    Below 60% is low (often mostly label noise), 65-80% is typical, above 85% is suspiciously high. This alone does not
    show quality, because a rule that uses only length can have any accuracy.

    Args:
        metrics: Result of `preference_metrics` with lengths.

    Returns:
        One or more sentences.

    Raises:
        ValueError: If the metrics lack the length rule.
    """
    if "length_baseline" not in metrics:
        raise ValueError(
            "`accuracy_reading` needs the length baseline, but the metrics have no `length_baseline`. Pass `lengths` "
            "to `preference_metrics`."
        )
    accuracy, rule = metrics["accuracy"], metrics["length_baseline"]
    low, high = metrics["accuracy_ci_low"], metrics["accuracy_ci_high"]
    bands = [
        (0.0, 0.60, "low"),
        (0.60, 0.65, "between low and typical"),
        (0.65, 0.80, "typical"),
        (0.80, 0.85, "between typical and suspiciously high"),
        (0.85, 1.01, "suspiciously high"),
    ]
    band = next(name for start, end, name in bands if start <= accuracy < end)
    interval = "no interval with one prompt" if np.isnan(low) else f"95% interval {low:.1%} to {high:.1%}"
    text = (
        f"The accuracy of {accuracy:.1%} ({interval}, {counted(metrics['num_pairs'], 'pair')}, "
        f"{counted(metrics['num_prompts'], 'prompt')}) is {band} for preference data. Preferring the longer response "
        f"scores {rule:.1%}"
        f"{_strongest(metrics)}."
    )
    if metrics["num_prompts"] < FEW_CLUSTERS:
        text += f" With fewer than {FEW_CLUSTERS} prompts the interval is unreliable."
    return " ".join([text, *(f"The accuracy is {doubt}." for doubt in doubts(metrics))])


def _strongest(metrics: Mapping[str, float]) -> str:
    strongest = metrics.get("length_baseline_strongest")
    known = strongest is not None and abs(strongest - metrics["length_baseline"]) > 0
    return f'; the strongest length rule, "{strongest_rule(metrics)}", scores {strongest:.1%}' if known else ""


def doubts(metrics: Mapping[str, float]) -> list[str]:
    """Return the caveats of an accuracy: the baselines that it is not shown to be above.

    Args:
        metrics: Result of `preference_metrics` with lengths. For older results without the paired difference, the
            interval of the accuracy is compared with the rule's accuracy.

    Returns:
        The clauses of `not_shown`.
    """
    rule, low = metrics["length_baseline"], metrics["accuracy_ci_low"]
    bounds = [metrics.get(f"accuracy_over_length{end}", np.nan) for end in ("", "_ci_low", "_ci_high")]
    if "accuracy_over_length_ci_low" not in metrics:
        bounds[1] = low - max(rule, 1 - rule)
    return not_shown(low, *bounds, rule=strongest_rule(metrics))


def not_shown(
    low: float, difference: float, over_low: float, over_high: float, rule: str, *, chance: float | None = 0.5
) -> list[str]:
    """Return clauses on the baselines that an accuracy is not shown to be above, for all reports.

    Args:
        low: Lower bound of the accuracy's interval; NaN if there is none.
        difference: Accuracy minus the accuracy of the strongest length rule.
        over_low: Lower bound of the difference; NaN if there is none.
        over_high: Upper bound of the difference; NaN if there is none.
        rule: Name of the length rule, such as `longer in words`.
        chance: Accuracy of a random choice; None if unknown.

    Returns:
        Clauses without initial capital and full stop; none if the accuracy is shown to be above chance and the rule.
    """
    found = [] if chance is None or low > chance else ["not shown to be above chance"]
    if not over_low > 0:
        numbers = [f'{difference:+.1%} over "{rule}"'] if np.isfinite(difference) else []
        numbers += (
            [f"95% interval {over_low:+.1%} to {over_high:+.1%}"] if np.isfinite([over_low, over_high]).all() else []
        )
        found.append("not shown to be above the length baseline" + (f" ({', '.join(numbers)})" if numbers else ""))
    return found
