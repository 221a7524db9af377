"""The reward monitor: features, statistics of a step, drifts and warnings on planted runs."""

import itertools
import json
import logging
import math
from typing import Any

import numpy as np
import pytest

from hf_reward import RewardMonitor
from hf_reward.evaluation.monitoring.features import MONITORED, monitored_features
from hf_reward.evaluation.monitoring.monitor import STATISTICS, measured
from hf_reward.evaluation.monitoring.steps import (
    SERIES,
    MeasuredResponse,
    block_means,
    reward_margins,
    step_row,
    within_group_association,
)

PROMPTS = [f"Question {place // 4}?" for place in range(24)]


def run(monitor: RewardMonitor, steps: int, growth: float = 0.0, pay: float = 0.1, seed: int = 0) -> RewardMonitor:
    """Feed steps in which the length grows, and the reward pays for it."""
    random = np.random.default_rng(seed)
    for step in range(steps):
        lengths = random.integers(5, 15, 24) + int(growth * step)
        rewards = pay * lengths + random.normal(size=24)
        monitor.update(PROMPTS, [("abcde " * length) for length in lengths], rewards.tolist(), step)
    return monitor


# --- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0, 0, 0, 0, 0)),
        ("A plain answer.", (15, 0, 0, 0, 0)),
        ("- one\n- **two**", (15, 3, 0, 0, 0)),
        ("a b c a b c", (11, 0, 0.25, 0, 0)),
        ("Certainly! I hope this helps. Let me know.", (42, 0, 0, 3, 0)),
        ("I'm sorry, I can't do that.", (27, 0, 0, 0, 1)),
        ("你好你好你", (5, 0, 1 / 3, 0, 0)),
    ],
)
def test_features_of_a_response(text, expected):
    found = dict(zip(MONITORED, monitored_features(text), strict=True))
    names = ("length", "formatting", "repetition", "boilerplate", "refusal")
    assert found == pytest.approx(dict(zip(names, expected, strict=True)))


def test_messages_count_like_their_text_and_unscored_responses_are_left_out():
    text, rewards = "I'm sorry.", [1.0, None, math.nan, 2.0]
    prompts: list[Any] = ["p", "p", "p", [{"role": "user", "content": "p"}]]
    found = measured(prompts, [text, text, text, [{"role": "assistant", "content": text}]], rewards)
    assert [each.reward for each in found] == [1.0, 2.0]
    assert found[0].features == found[1].features
    with pytest.raises(ValueError, match="shorter"):
        measured(["p", "p"], ["a"], [1.0])


# --- statistics of a step --------------------------------------------------------------------------------------------


def test_step_row_by_hand():
    def response(prompt: str, length: float, reward: float) -> MeasuredResponse:
        return MeasuredResponse(prompt, (length, 0.0, 0.0, 0.0, 0.0), reward)

    # Within prompts, length and reward are (-1, 0, 1) with (-1, 0, 1), and (-1, 1) with (1, -1).
    rows = [*zip("aaabb", (1, 2, 3, 11, 13), (0, 1, 2, 9, 7), strict=True)]
    found = step_row([response(*row) for row in rows], 7)
    assert (found["step"], found["responses"], found["length"], found["reward"]) == (7, 5, 6.0, 3.8)
    assert found["margin"] == pytest.approx((1 + 1) / 2)
    assert found["association"]["length"] == pytest.approx((2 - 2) / 4)
    assert math.isnan(found["association"]["formatting"])
    assert found["units"]["length"] == [2.0, 12.0]
    assert found["units"]["margin"] == [1.0, 1.0]


def test_blocks_of_prompts():
    assert block_means(np.arange(16.0)).tolist() == list(range(16))
    assert block_means(np.arange(17.0)).tolist() == [0.5 + 2 * place for place in range(8)], "the last value is alone"
    assert block_means(np.array([1.0, np.nan, 3.0])).tolist() == [1.0, 3.0]
    assert block_means(np.array([np.nan])).tolist() == []


def test_margins_are_best_minus_median():
    groups = np.array([1, 0, 1, 0, 1, 0, 1, 2])
    rewards = np.array([4.0, 1.0, 0.0, 7.0, 2.0, 3.0, 5.0, 9.0])
    assert reward_margins(rewards, groups)[:2] == pytest.approx([7 - 3, 5 - 3])


def test_differences_between_prompts_are_no_association():
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(50), 4)
    features = 10.0 * groups + random.normal(size=200)
    rewards = 3.0 * groups + random.normal(size=200)
    assert np.corrcoef(features, rewards)[0, 1] > 0.9
    correlations, scores = within_group_association(features[:, None], rewards, groups)
    assert abs(correlations[0]) < 0.25
    assert abs(scores[0]) < 3
    constant = within_group_association(0.1 * groups[:, None], rewards, groups)
    assert np.isnan(constant).all(), "a feature that is the same in each group has no association"


def test_the_score_is_standardised_over_all_permutations_within_prompts():
    features, rewards = np.array([1.0, 2.0, 6.0, 3.0, 5.0]), np.array([0.0, 1.0, 3.0, 8.0, 2.0])
    groups = np.array([0, 0, 0, 1, 1])
    correlation, score = (each[0] for each in within_group_association(features[:, None], rewards, groups))
    products = [
        sum(features[[*first, *second]] * (rewards - np.array([4 / 3] * 3 + [5.0] * 2)))
        for first in itertools.permutations(range(3))
        for second in itertools.permutations((3, 4))
    ]
    own = products[0]
    assert np.mean(products) == pytest.approx(0)
    assert score == pytest.approx(own / np.std(products))
    assert correlation == pytest.approx(own / math.sqrt((14 + 2) * (14 / 3 + 18)))


def test_one_response_to_each_prompt():
    values, groups = np.array([1.0, 2.0, 4.0]), np.arange(3)
    assert np.isnan(reward_margins(values, groups)).all()
    correlations, scores = within_group_association(values[:, None], -values, groups)
    assert correlations == pytest.approx([-1.0])
    assert scores == pytest.approx([-math.sqrt(2)])


# --- drifts and warnings ---------------------------------------------------------------------------------------------


def test_a_rewarded_drift_gives_one_warning(caplog):
    with caplog.at_level(logging.WARNING, "hf_reward"):
        monitor = run(RewardMonitor(), 40, growth=0.5)
    lengths = [each for each in monitor.warnings if each.feature == "length"]
    (warning,) = lengths
    assert (warning.direction, warning.since) == (1, pytest.approx(5, abs=3))
    assert warning.step < 25
    assert warning.reference < warning.recent
    assert warning.association > 0.1
    assert sum("length has risen" in record.message for record in caplog.records) == 1
    found = monitor.metrics()
    assert found["monitor/length/warning"] == found["monitor/length/drift"] == 1
    assert found["monitor/length/shift"] > 2
    assert found["monitor/warnings"] == len(monitor.warnings)


def test_a_drift_that_is_not_rewarded_gives_no_warning():
    monitor = run(RewardMonitor(), 40, growth=0.5, pay=0.0)
    assert monitor.drifts["length"].direction == 1
    assert not monitor.warnings


def test_a_rewarded_feature_without_drift_gives_no_warning():
    monitor = run(RewardMonitor(), 60)
    assert monitor.statistics()["association"]["length"] > 0.1
    assert not monitor.drifts


def test_rare_events_give_no_false_alarm_and_a_rise_is_found():
    random = np.random.default_rng(0)

    def steps(monitor: RewardMonitor, start: int, share: float) -> None:
        for step in range(start, start + 40):
            refusals = random.random(24) < share
            texts = ["I'm sorry." if each else "Hello now." for each in refusals]
            monitor.update(PROMPTS, texts, (refusals + random.normal(size=24)).tolist(), step)

    monitor = RewardMonitor()
    steps(monitor, 0, 0.01)
    assert "refusal" not in monitor.drifts
    steps(monitor, 40, 0.3)
    assert [each.feature for each in monitor.warnings] == ["refusal"]
    assert 36 <= monitor.warnings[0].since <= 44


def test_the_margin_is_followed():
    random = np.random.default_rng(0)
    monitor = RewardMonitor()
    for step in range(50):
        rewards = random.normal(size=24) * math.exp(-step / 20)
        monitor.update(PROMPTS, ["a b c"] * 24, rewards.tolist(), step)
    assert monitor.drifts["margin"].direction == -1
    assert not monitor.warnings


def test_history_restores_a_monitor_from_json(caplog):
    whole = run(RewardMonitor(seed=3), 30, growth=0.5)
    rows = json.loads(json.dumps(whole.history))
    caplog.clear()
    restored = RewardMonitor(seed=3, history=rows)
    assert not caplog.records
    assert (restored.warnings, restored.drifts) == (whole.warnings, whole.drifts)
    np.testing.assert_equal(restored.statistics(), whole.statistics())


def test_statistics_have_every_series():
    assert RewardMonitor().metrics() == {"monitor/warnings": 0.0}
    found = run(RewardMonitor(), 3).statistics()
    assert tuple(found) == STATISTICS
    assert set(found["mean"]) == set(found["evidence"]) == set(SERIES)
    assert math.isnan(found["shift"]["length"]), "the reference window is not complete"


def test_a_step_without_rewards_is_left_out():
    monitor = RewardMonitor()
    assert monitor.update(["p"], ["a"], [None], 0) == []
    assert not monitor.history


@pytest.mark.parametrize("wrong", [{"level": 0}, {"level": 1}, {"reference_steps": 1}, {"min_association": 1}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match="`level` must be"):
        RewardMonitor(**wrong)


@pytest.mark.simulations  # 20 s
def test_false_alarms_on_texts():
    alarms = sum(bool(run(RewardMonitor(), 40, seed=seed).drifts) for seed in range(100))
    assert alarms <= 10  # 5% of 100, and two standard errors
