"""Simulations of accuracies, benchmarks, baselines and `check-data`."""

import numpy as np
from coverage_setting import NO_COPIES, ONE_ROW, Number, Setting, Tally, differences

from hf_reward.data.preference_row import PreferenceRow
from hf_reward.evaluation.baselines import cross_validated_tfidf
from hf_reward.evaluation.benchmarks.comparing import mcnemar
from hf_reward.evaluation.benchmarks.registry import benchmark_named
from hf_reward.evaluation.benchmarks.spreads import OVERALL, compared, leave_out
from hf_reward.evaluation.benchmarks.spreads import Number as ScoreNumber
from hf_reward.evaluation.data_check.imbalance import corrected, imbalance
from hf_reward.evaluation.data_check.shift import SetTexts, two_sample_test
from hf_reward.evaluation.data_check.style_features import FEATURES
from hf_reward.evaluation.data_check.votes import vote_agreement
from hf_reward.metrics.intervals import clustered_interval, mean_difference, rate_interval
from hf_reward.metrics.preference import compare_with_length
from hf_reward.metrics.shared_responses import response_spread

_SUBSETS = ("Factuality", "Math", "Safety")
_RATES = (0.6, 0.75, 0.9)
_WORDS = [f"w{number}" for number in range(60)]


def accuracy(rate: float) -> Number:
    """An accuracy of the trainer, the data check, the baselines and the evaluate modules."""

    def simulate(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        credits = (setting.uniform(random) < rate).astype(float)
        found = clustered_interval(credits, setting.labels)
        tally.add(found.bounds, rate)
        if rate == 0.5:  # "above chance" for a random model
            tally.alarms.append(found.low > 0.5)

    return Number(simulate)


def paired(change: float, differ: float) -> Number:
    """The difference of two accuracies on the same pairs; in a share `differ` only one model is right."""

    def simulate(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        found = mean_difference(differences(setting, random, change, differ), setting.labels)
        bounds = found.interval().bounds
        tally.add(bounds, change)
        if change == 0 and bounds:
            tally.alarms.append(not bounds[0] <= 0 <= bounds[1])

    return Number(simulate)


def over_length(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """Accuracy minus the length rule of each unit; one rule is as good as the model."""
    right = setting.uniform(random) < 0.7
    rules = {
        unit: np.where(setting.uniform(random) < 0.7, right, setting.uniform(random) < rate)
        for unit, rate in (("tokens", 0.5), ("words", 0.5), ("characters", 0.7))
    }
    credits = {unit: rule.astype(float) for unit, rule in rules.items()}
    found = compare_with_length(right.astype(float), credits, setting.labels)
    one = mean_difference(right - credits["characters"], setting.labels).interval()
    tally.add(one.bounds, 0.0)
    tally.alarms.append(found.shown)


def shared_responses(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """Pairs with shared responses: each is in two or eight pairs, with or without its own strength."""
    count = setting.clusters
    pairs = count * (1 if setting.size == 1 else 4)
    strength = random.normal(0, 0.0 if setting.kind == "8 independent rows" else 0.7, count)
    first = random.integers(0, count, pairs)
    second = (first + random.integers(1, count, pairs)) % count
    wins = (random.normal(size=pairs) < strength[first] + strength[second]).astype(float)
    found = rate_interval(response_spread(wins, first.tolist(), second.tolist()))
    tally.add(found.bounds, 0.5)
    tally.alarms.append(not found.low <= 0.5 <= found.high)


# --- benchmarks ------------------------------------------------------------------------------------------------------


def _credits(values: np.ndarray) -> list[dict[str, float]]:
    return [{_SUBSETS[number % 3]: float(value)} for number, value in enumerate(values)]


def benchmark_score(part: str) -> Number:
    """RewardBench 2's overall number, a mean of subsets, or one subset."""
    number, truth = OVERALL, np.mean(_RATES)
    if part != "overall":
        number, truth = ScoreNumber("sections", "Math"), _RATES[1]

    def simulate(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        rates = np.resize(_RATES, setting.clusters * setting.size)
        right = setting.uniform(random) < rates
        found = leave_out(benchmark_named("rewardbench2"), _credits(right), setting.names)
        tally.add(found.interval(number).bounds, float(truth))

    return Number(simulate)


def benchmark_compare(change: float) -> Number:
    """`benchmark compare`: the difference of two runs and its p-value."""

    def simulate(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
        values = differences(setting, random, change, 0.3)
        first = (setting.uniform(random) < 0.6).astype(float)
        both = np.clip(first, np.maximum(0, -values), 1 - np.maximum(0, values))
        runs = _credits(both + values), _credits(both)
        found = compared(benchmark_named("rewardbench2"), *runs, setting.names)[OVERALL]
        tally.add(found.interval.bounds, change)
        if change == 0:
            tally.alarms.append(found.p_value is not None and found.p_value <= 0.05)

    return Number(simulate)


def exact_mcnemar(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """McNemar's test, which is reported only if every prompt has one row."""
    values = differences(setting, random, 0.0, 0.3)
    tally.alarms.append(mcnemar((values >= 0).tolist(), (values <= 0).tolist())["p_value"] <= 0.05)


# --- baselines and the data check ------------------------------------------------------------------------------------


def imbalances(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """All features of `check-data` without any effect; a false alarm is any verdict `imbalanced`."""
    gaps = {name: np.sign(setting.normal(random)) for name in FEATURES}
    found = corrected([imbalance(name, values, setting.labels) for name, values in gaps.items()])
    tally.alarms.append(any(each.verdict == "imbalanced" for each in found))
    interval = found[0].interval
    tally.add(None if interval is None else interval.bounds, 0.5)


def rater_and_rest(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """Three raters per pair, who prefer the first response in 70% of pairs."""
    votes = np.stack([setting.uniform(random) < 0.7 for _ in range(3)]).sum(axis=0)
    table = np.stack([votes, 3 - votes, np.zeros_like(votes)], axis=1)
    found = vote_agreement(table, np.zeros(len(votes), dtype=int), setting.labels)
    assert found is not None
    interval = found.rater_vs_rest_interval
    # Votes count if the two others agree: .49 + .09 of them; .343 + .027 agree with the others.
    tally.add(None if interval is None else interval.bounds, (0.343 + 0.027) / (0.49 + 0.09))


def _texts(setting: Setting, random: np.random.Generator) -> list[str]:
    """Texts of eight words; rows of varying ability share four words within a prompt."""
    own = random.choice(_WORDS, (setting.clusters * setting.size, 8))
    if setting.size > 1 and setting.kind != "8 independent rows":
        own[:, :4] = np.repeat(random.choice(_WORDS, (setting.clusters, 4)), 8, axis=0)
    return [" ".join(words) for words in own]


def two_sets(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """The two-sample test of two sets from one source; a false alarm is an interval above one half."""
    sides = [
        SetTexts(_texts(setting, random), np.array([f"{side} {name}" for name in setting.names]), [], [])
        for side in "ab"
    ]
    accuracy, interval, _ = two_sample_test(*sides, seed=int(random.integers(1 << 30)))
    if accuracy is None or interval is None:
        tally.withheld += 1
        return
    tally.around.append((interval.low, interval.high, accuracy))
    tally.alarms.append(interval.low > 0.5)


def tfidf(setting: Setting, random: np.random.Generator, tally: Tally) -> None:
    """The TF-IDF baseline, cross-validated by prompt, on random responses."""
    better, worse = _texts(setting, random), _texts(setting, random)
    rows = [
        PreferenceRow(prompt="", responses=[one, other], ranks=[0, 1], group=name)
        for one, other, name in zip(better, worse, setting.names, strict=True)
    ]
    found = cross_validated_tfidf(rows, seed=int(random.integers(1 << 30)))
    tally.around.append((found.interval.low, found.interval.high, found.accuracy))


RATES: dict[str, Number] = {
    "accuracy .5 (above chance)": accuracy(0.5),
    "accuracy .7": accuracy(0.7),
    "accuracy .9": accuracy(0.9),
    "accuracy .97": accuracy(0.97),
    "accuracy difference 0": paired(0.0, 0.3),
    "accuracy difference .1": paired(0.1, 0.3),
    "accuracy over length 0 (above the baseline)": Number(over_length),
    "accuracy, responses resampled": Number(shared_responses, NO_COPIES),
    "benchmark overall": benchmark_score("overall"),
    "benchmark section": benchmark_score("section"),
    "benchmark compare 0 (p)": benchmark_compare(0.0),
    "benchmark compare .1": benchmark_compare(0.1),
    "McNemar's p": Number(exact_mcnemar, ONE_ROW),
    "check-data: share of a feature, true value .5 (imbalanced)": Number(imbalances),
    "check-data: rater agreement": Number(rater_and_rest),
    "check-data: two sets from one source (distinguishable)": Number(
        two_sets, (KINDS_OF_TEXT := (NO_COPIES[0], NO_COPIES[2]))
    ),
    "TF-IDF, cross-validated": Number(tfidf, KINDS_OF_TEXT),
}
