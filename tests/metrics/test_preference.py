"""Preference metrics: hand-computed values, loops, independent formulas and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_reward.metrics.intervals import mean_difference
from hf_reward.metrics.preference import (
    StrictPairs,
    accuracy_reading,
    brier_score,
    clustered_interval,
    compare_with_length,
    length_rule_credit,
    log_loss,
    not_shown,
    pairwise_credit,
    preference_metrics,
    strict_pairs,
    strongest_rule,
)

PAD = -100


def pairs_of(*gaps: float) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and ranks of pairs with these gaps, the first response preferred."""
    return np.array([[gap, 0.0] for gap in gaps]), np.tile([0, 1], (len(gaps), 1))


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_the_numbers_of_a_small_split_are_those_of_the_arithmetic():
    """Gaps 2, -1, 0, 1: two of four right, one tie.

    Accuracy 0.5, half credit 2.5 / 4, margin 2 / 4, median 0.5.
    Log loss (0.126928 + 1.313262 + 0.693147 + 0.313262) / 4 = 0.611650.
    Brier (0.119203^2 + 0.731059^2 + 0.5^2 + 0.268941^2) / 4 = (0.014209 + 0.534447 + 0.25 + 0.072329) / 4 = 0.217746.
    """
    metrics = preference_metrics(*pairs_of(2, -1, 0, 1))
    assert metrics["accuracy"] == 0.5
    assert metrics["accuracy_half_credit"] == 0.625
    assert metrics["tie_rate"] == 0.25
    assert metrics["margin"] == 0.5
    assert metrics["median_margin"] == 0.5
    assert metrics["log_loss"] == pytest.approx(0.611650, abs=1e-6)
    assert metrics["brier_score"] == pytest.approx(0.217746, abs=1e-6)
    assert metrics["mean_reward"] == 0.25  # (2 + 0 - 1 + 0 + 0 + 0 + 1 + 0) / 8
    assert metrics["std_reward"] == pytest.approx(math.sqrt(6 / 8 - 0.25**2))
    assert (metrics["min_reward"], metrics["max_reward"]) == (-1, 2)
    assert (metrics["num_pairs"], metrics["num_prompts"]) == (4, 4)


def test_equal_rewards_score_ln_2_and_a_quarter():
    assert log_loss(np.zeros(3)) == pytest.approx(math.log(2))
    assert brier_score(np.zeros(3)) == 0.25


def test_scores_stay_finite_at_any_gap():
    assert log_loss(np.array([-1e4])) == pytest.approx(1e4)
    assert brier_score(np.array([1e4, -1e4])) == 0.5


def test_credit_is_one_half_or_zero():
    assert pairwise_credit(np.array([3.0, 0.0, -0.5])).tolist() == [1, 0.5, 0]


def test_a_tie_of_rewards_is_wrong_in_the_strict_accuracy_only():
    metrics = preference_metrics(*pairs_of(0, 0))
    assert (metrics["accuracy"], metrics["accuracy_half_credit"], metrics["tie_rate"]) == (0, 0.5, 1)


def test_ragged_lists_count_as_all_their_strict_pairs():
    """Ranks 0, 1, 1 give two pairs, 0, 1 one, a lone response none: gaps 3, -1 and 2."""
    rewards = np.array([[5.0, 2.0, 6.0], [1.0, 3.0, 777.0], [9.0, 777.0, 777.0]])
    ranks = np.array([[0, 1, 1], [1, 0, PAD], [0, PAD, PAD]])
    metrics = preference_metrics(rewards, ranks)
    assert metrics["num_pairs"] == 3
    assert metrics["num_prompts"] == 2
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["margin"] == pytest.approx(4 / 3)
    assert metrics["max_reward"] == 9  # padding is never used


@given(
    ranks=st.integers(2, 5).flatmap(
        lambda k: st.lists(st.lists(st.sampled_from([PAD, 0, 1, 2]), min_size=k, max_size=k), min_size=1, max_size=5)
    )
)
@settings(max_examples=40, deadline=None)
def test_pairs_equal_those_of_a_loop(ranks: list[list[int]]):
    found = strict_pairs(np.array(ranks))
    expected = [
        (r, i, j)
        for r, row in enumerate(ranks)
        for i, a in enumerate(row)
        for j, b in enumerate(row)
        if PAD not in (a, b) and a < b
    ]
    assert list(zip(found.row, found.better, found.worse, strict=True)) == expected


def test_a_reward_of_minus_100_is_legal():
    metrics = preference_metrics(np.array([[-100.0, -101.0], [-100.0, -99.0]]), np.array([[0, 1], [0, 1]]))
    assert metrics["num_pairs"] == 2
    assert metrics["accuracy"] == 0.5
    assert metrics["min_reward"] == -101
    assert metrics["mean_reward"] == -100


def test_rewards_of_low_precision_are_summed_in_float64():
    rewards = np.tile(np.array([[1.0, 0.9]], np.float16), (4000, 1))
    metrics = preference_metrics(rewards, np.tile([0, 1], (4000, 1)))
    assert metrics["mean_reward"] == pytest.approx(float(rewards[0].astype(float).mean()))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_refused_with_its_row(bad: float):
    rewards, ranks = pairs_of(1, 1, 1, 1)
    rewards[2, 1] = rewards[3, 0] = bad
    with pytest.raises(ValueError, match=r"2 rows have NaN or infinity \(first: row 2\)"):
        preference_metrics(rewards, ranks)


def test_nan_in_padding_is_accepted():
    metrics = preference_metrics(np.array([[1.0, 0.0, math.nan]]), np.array([[0, 1, PAD]]))
    assert metrics["accuracy"] == 1


def test_a_split_without_any_strict_preference_is_refused():
    with pytest.raises(ValueError, match=r"at least one row with a strict preference.*Check the `ranks`"):
        preference_metrics(np.zeros((2, 2)), np.array([[0, 0], [0, PAD]]))


# --- intervals -------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_split_is_clustered_by_its_groups():
    rewards, ranks = pairs_of(1, 1, 1, -1, -1, -1, 1, 1)
    groups = np.array([5, 5, 5, 9, 9, 9, 2, 2])
    alone, grouped = preference_metrics(rewards, ranks), preference_metrics(rewards, ranks, groups=groups)
    assert (alone["num_prompts"], grouped["num_prompts"]) == (8, 3)
    assert grouped["accuracy"] == alone["accuracy"]
    assert (
        grouped["accuracy_ci_high"] - grouped["accuracy_ci_low"] > alone["accuracy_ci_high"] - alone["accuracy_ci_low"]
    )
    expected = clustered_interval((np.array([1, 1, 1, -1, -1, -1, 1, 1]) > 0).astype(float), groups)
    assert (grouped["accuracy_ci_low"], grouped["accuracy_ci_high"]) == (expected.low, expected.high)


def test_the_pairs_of_one_list_are_one_prompt():
    metrics = preference_metrics(np.array([[3.0, 1.0, 2.0]]), np.array([[0, 1, 2]]))
    assert metrics["num_prompts"] == 1
    assert math.isnan(metrics["accuracy_ci_low"])


# --- the length rules and the description of an accuracy -------------------------------------------------------------


def test_the_length_rule_prefers_the_longer_and_halves_ties():
    lengths = np.array([[9, 4, 0], [2, 2, 0], [3, 5, 8]])
    pairs = StrictPairs(np.array([0, 1, 2, 2]), np.array([0, 0, 0, 2]), np.array([1, 1, 1, 0]))
    assert length_rule_credit(lengths, pairs).tolist() == [1, 0.5, 0, 1]


def test_accuracy_is_reported_separately_for_longer_and_shorter_preferred_responses():
    """Preferred longer in rows 0-1 (right, wrong), shorter in 2-4 (right, right, wrong), equal in 5."""
    rewards, ranks = pairs_of(1, -1, 1, 1, -1, 1)
    lengths = np.array([[5, 3], [5, 3], [1, 2], [1, 2], [1, 2], [4, 4]])
    metrics = preference_metrics(rewards, ranks, lengths)
    assert metrics["length_baseline"] == pytest.approx(2.5 / 6)
    assert metrics["accuracy_preferred_longer"] == 0.5
    assert metrics["accuracy_preferred_shorter"] == pytest.approx(2 / 3)
    assert (metrics["num_preferred_longer"], metrics["num_preferred_shorter"]) == (2, 3)


def test_without_pairs_of_a_direction_its_accuracy_is_nan():
    metrics = preference_metrics(*pairs_of(1, 1), np.array([[1, 2], [1, 2]]))
    assert math.isnan(metrics["accuracy_preferred_longer"])
    assert metrics["num_preferred_longer"] == 0
    assert metrics["length_baseline"] == 0


def test_without_lengths_there_are_no_length_metrics():
    assert not [name for name in preference_metrics(*pairs_of(1)) if "length" in name or "longer" in name]


def reading(accuracy: float, rule: float = 0.5, low: float | None = None, prompts: int = 500) -> str:
    low = accuracy - 0.02 if low is None else low
    return accuracy_reading(
        {
            "accuracy": accuracy,
            "accuracy_ci_low": low,
            "accuracy_ci_high": min(1, accuracy + 0.02),
            "num_pairs": 1000,
            "num_prompts": prompts,
            "length_baseline": rule,
        }
    )


@pytest.mark.parametrize(
    ("accuracy", "band"),
    [
        (0.0, "low"),
        (0.599, "low"),
        (0.60, "between low and typical"),
        (0.65, "typical"),
        (0.799, "typical"),
        (0.80, "between typical and suspiciously high"),
        (0.85, "suspiciously high"),
        (1.0, "suspiciously high"),
    ],
)
def test_an_accuracy_is_compared_with_the_usual_range(accuracy: float, band: str):
    assert f") is {band} for preference data." in reading(accuracy)


def test_a_reading_names_the_interval_the_counts_and_the_length_rule():
    text = reading(0.72, rule=0.61)
    assert "72.0%" in text
    assert "95% interval 70.0% to 74.0%, 1,000 pairs, 500 prompts" in text
    assert "Preferring the longer response scores 61.0%" in text
    assert "not shown" not in text


@pytest.mark.parametrize("rule", [0.75, 0.25])
def test_an_accuracy_that_a_length_rule_reaches_has_a_caveat(rule: float):
    assert "The accuracy is not shown to be above the length baseline." in reading(0.72, rule=rule)


def test_an_accuracy_is_compared_with_the_length_rule_pair_by_pair():
    """50 prompts: 40 right, the longer is preferred in 31 of those and in 4 of the others.

    The difference is (9 - 4) / 50; its interval holds 0 although that of the accuracy begins at 66%.
    """
    gaps = np.repeat([1.0, 1.0, -1.0, -1.0], [31, 9, 4, 6])
    lengths = np.array([[2, 1] if longer else [1, 2] for longer in np.repeat([1, 0, 1, 0], [31, 9, 4, 6])])
    metrics = preference_metrics(*pairs_of(*gaps), lengths)
    expected = mean_difference(np.repeat([1.0, -1.0, 0.0], [9, 4, 37]), np.arange(50))
    assert metrics["accuracy_over_length"] == pytest.approx(0.1)
    bounds = [metrics[f"accuracy_over_length_ci_{end}"] for end in ("low", "high")]
    assert bounds == pytest.approx(expected.interval().bounds)
    assert bounds[0] < 0 < bounds[1]
    text = accuracy_reading(metrics)
    assert 'not shown to be above the length baseline (+10.0% over "longer in tokens", 95% interval' in text
    assert "above chance" not in text


def test_accuracy_is_measured_against_the_strongest_of_three_units():
    """40 pairs, 30 right: the longer in tokens is right on 20, in words on 24, the shorter in characters on 34."""
    gaps = np.repeat([1.0, -1.0], [30, 10])
    tokens, words, characters = (
        np.array([[2, 1] if longer else [1, 2] for longer in np.arange(40) < count]) for count in (20, 24, 6)
    )
    sizes = {"words": words, "characters": characters}
    metrics = preference_metrics(*pairs_of(*gaps), tokens, **sizes)
    rules = [metrics[f"length_baseline{unit}"] for unit in ("", "_words", "_characters", "_strongest")]
    assert rules == pytest.approx([20 / 40, 24 / 40, 6 / 40, 34 / 40])
    assert metrics["accuracy_over_length"] == pytest.approx(-4 / 40)
    assert strongest_rule(metrics) == "shorter in characters"
    assert 'the strongest length rule, "shorter in characters", scores 85.0%' in accuracy_reading(metrics)
    unknown = np.where(np.arange(40)[:, None] == 3, -100, characters)
    assert "length_baseline_characters" not in preference_metrics(
        *pairs_of(*gaps), tokens, words=words, characters=unknown
    )


def test_clauses_of_not_shown():
    assert not_shown(0.51, 0.1, 0.01, 0.2, "longer in words") == []
    assert not_shown(0.5, 0.1, 0.01, 0.2, "longer in words") == ["not shown to be above chance"]
    assert not_shown(0.26, 0.1, 0.01, 0.2, "longer in words", chance=0.25) == []
    nothing = ["not shown to be above chance", "not shown to be above the length baseline"]
    assert not_shown(math.nan, math.nan, math.nan, math.nan, "longer in words") == nothing


def test_the_strongest_unit_and_direction_counts():
    """The model is right on 30 of 40 pairs; only the rule "shorter in words" comes close."""
    credits = np.repeat([1.0, 0.0], [30, 10])
    rules = {"words": np.repeat([0.0, 1.0, 0.0], [29, 9, 2]), "tokens": np.repeat([1.0, 0.0], [15, 25])}
    found = compare_with_length(credits, rules, np.arange(40))
    assert (found.rule, found.accuracy) == ("shorter in words", pytest.approx(31 / 40))
    assert found.difference.spread.estimate == pytest.approx(-1 / 40)
    assert not found.shown
    assert compare_with_length(np.ones(40), {"words": np.full(40, 0.5)}, np.arange(40)).shown


def test_chance_is_named_in_the_caveat():
    assert "not shown to be above chance" in reading(0.51, low=0.49)
    assert "not shown to be above chance" not in reading(0.55, low=0.53)


def test_few_prompts_give_a_caveat_and_one_prompt_has_no_interval():
    assert "fewer than 20 prompts" in reading(0.7, prompts=19)
    assert "fewer than 20 prompts" not in reading(0.7, prompts=20)
    assert "no interval with one prompt" in reading(0.7, low=math.nan, prompts=1)


def test_an_accuracy_without_the_length_rule_is_not_read():
    with pytest.raises(ValueError, match=r"needs the length baseline.*Pass `lengths` to `preference_metrics`"):
        accuracy_reading(preference_metrics(*pairs_of(1, -1)))


def test_the_reading_accepts_the_result_of_preference_metrics():
    metrics = preference_metrics(*pairs_of(*[1] * 15, *[-1] * 7), np.tile([2, 2], (22, 1)))
    assert "68.2%" in accuracy_reading(metrics)
