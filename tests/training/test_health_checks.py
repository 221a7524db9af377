"""Detectors on hand-written logs, just above and below each threshold."""

import math
from typing import Any

import pytest

from hf_reward.training.health_checks import HealthWarning, RunFacts, check_health

LN2 = math.log(2)


def train(step: int, **changes: Any) -> dict[str, Any]:
    healthy = {"loss": 0.6, "equal_loss": LN2, "accuracy": 0.7, "margin": 0.4, "mean_reward": 0.0, "std_reward": 1.0,
               "min_reward": -2.0, "max_reward": 2.0, "head_norm": 1.0, "grad_norm": 1.0}  # fmt: skip
    return {"step": step, **healthy, **changes}


def evaluation(step: int, prefix: str = "eval", **changes: Any) -> dict[str, Any]:
    healthy = {"loss": 0.6, "accuracy": 0.7, "accuracy_ci_low": 0.6, "accuracy_ci_high": 0.8, "tie_rate": 0.0,
               "num_prompts": 50, "length_baseline": 0.52, "accuracy_preferred_longer": 0.72,
               "accuracy_preferred_shorter": 0.68}  # fmt: skip
    return {"step": step, **{f"{prefix}_{name}": value for name, value in {**healthy, **changes}.items()}}


def kinds(history: list[dict[str, Any]], **facts: Any) -> list[str]:
    return [warning.kind for warning in check_health(history, RunFacts(**{"max_steps": 100, **facts}))]


def test_healthy_logs_give_no_warning():
    history = [*(train(step) for step in range(1, 30)), evaluation(30), evaluation(31)]
    for end in range(len(history) + 1):
        assert kinds(history[:end]) == []


def test_five_logs_after_the_warm_up_are_needed():
    collapsed = [train(step, std_reward=0.0) for step in range(1, 9)]
    assert kinds(collapsed[:4]) == []
    assert kinds(collapsed[:5]) == ["reward collapse"]
    assert kinds(collapsed[:7], warmup_steps=3) == []
    assert kinds(collapsed[:8], warmup_steps=3) == ["reward collapse"]
    assert kinds([*collapsed[:4], train(5)]) == []


def test_a_few_infinite_gradients_of_the_loss_scaler_are_normal():
    history = [train(step, grad_norm=math.inf) for step in range(1, 6)]
    assert kinds(history[:1]) == ["non-finite gradient"]
    assert kinds(history[:4], scales_loss=True) == []
    assert kinds(history, scales_loss=True) == ["non-finite gradient"]
    assert kinds([*history[:4], train(5)], scales_loss=True) == []


@pytest.mark.parametrize(("equal", "margin", "warns"), [(LN2, 20.0, False), (LN2, 20.7, True), (15.0, 30.0, False)])
def test_target_margins_of_rows_are_no_explosion(equal, margin, warns):
    history = [train(step, margin=margin, equal_loss=equal, loss=equal / 2) for step in (1, 2)]
    assert (kinds(history) == ["margin explosion"]) == warns


def test_the_head_may_grow_tenfold_from_one():
    assert kinds([{"step": 0, "head_norm": 0.0}, train(1, head_norm=9.9)]) == []
    assert kinds([{"step": 0, "head_norm": 0.0}, train(1, head_norm=10.1)]) == ["head norm grows"]
    assert kinds([{"step": 0, "head_norm": 2.0}, train(1, head_norm=10.1)]) == []


@pytest.mark.parametrize(
    ("gain", "larger", "warns"),
    [
        (0.010, 0.040, True),  # rewards of 0.02: the gain grows in proportion
        (0.010, 0.019, False),  # less than twice the gain
        (0.005, 0.014, False),  # a difference below 0.01 nats
        (0.200, -0.100, False),  # the rewards have their scale
        (-0.05, -0.400, False),  # the order is wrong
    ],
)
def test_a_lagging_head_would_gain_from_larger_rewards(gain, larger, warns):
    sums = {"gain_rows": 80, "gain_weight": 80.0, "gain": 80 * gain, "gain_if_larger": 80 * larger, "std_reward": 0.02}
    sums |= {"gain_excess": 1.0, "gain_square": 100.0}
    history = [train(step, **sums) for step in range(20, 40)]
    assert (kinds(history) == ["head lags"]) == warns
    assert kinds(history[:10]) == []  # five logs after a quarter of the steps
    assert (kinds(history[:11]) == ["head lags"]) == warns
    assert kinds(history, warmup_steps=60) == []
    if warns:
        [warning] = check_health(history, RunFacts(max_steps=100))
        assert "from 0.683 to 0.653" in warning.seen


def test_below_chance_needs_an_interval_below_one_half_enough_prompts_and_no_ties():
    wrong = {"accuracy": 0.3, "accuracy_ci_low": 0.2, "accuracy_ci_high": 0.49}
    assert kinds([evaluation(1, **wrong)]) == ["accuracy below chance"]
    assert kinds([evaluation(1, **{**wrong, "accuracy_ci_high": 0.51})]) == []
    assert kinds([evaluation(1, **wrong, num_prompts=19)]) == []
    assert kinds([evaluation(1, **wrong, tie_rate=0.1)]) == []
    assert kinds([evaluation(1, "eval_second", **wrong)]) == ["accuracy below chance"]  # one of several sets
    part = {name: value for name, value in evaluation(1, "eval_source", **wrong).items() if name != "eval_source_loss"}
    assert kinds([part]) == []  # a source of one set


@pytest.mark.parametrize(
    ("changes", "warns"),
    [
        ({}, True),
        ({"length_baseline": 0.28}, True),  # shorter is preferred
        ({"length_baseline": 0.85}, False),  # outside the interval
        ({"length_baseline": 0.55, "accuracy_ci_low": 0.5}, False),  # the rule is close to chance
        ({"accuracy_preferred_longer": 0.8, "accuracy_preferred_shorter": 0.6}, False),  # right on both sides
        ({"accuracy_preferred_shorter": math.nan, "length_baseline": 0.75}, True),  # the data cannot separate them
    ],
)
def test_the_length_rule(changes, warns):
    rule = {"accuracy": 0.72, "accuracy_ci_low": 0.62, "accuracy_ci_high": 0.82, "length_baseline": 0.72,
            "accuracy_preferred_longer": 0.95, "accuracy_preferred_shorter": 0.1}  # fmt: skip
    assert (kinds([evaluation(1, **{**rule, **changes})]) == ["accuracy of the length rule"]) == warns


def test_overfitting_needs_a_fitted_training_loss_and_a_worse_evaluation():
    fitted = [train(step, loss=0.05) for step in (1, 2)]
    worse = evaluation(3, accuracy=0.65, loss=0.9)
    assert kinds([evaluation(1), *fitted, worse]) == ["overfitting"]
    assert kinds([evaluation(1), train(1), train(2), worse]) == []
    assert kinds([evaluation(1), *fitted, evaluation(3, accuracy=0.69, loss=0.9)]) == []
    assert kinds([evaluation(1), *fitted, evaluation(3, accuracy=0.65, loss=0.5)]) == []
    assert kinds([*fitted, worse]) == []  # no earlier evaluation


def test_text_of_a_warning():
    warning = HealthWarning(kind="reward collapse", step=7, seen="All equal.", cause="nothing.", cure="look.")
    assert str(warning) == "Step 7, reward collapse: All equal. Likely cause: nothing. Remedy: look."
    assert warning.to_dict()["step"] == 7
