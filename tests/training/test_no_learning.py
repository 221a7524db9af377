"""The warning "loss at equal rewards": rate of false alarms, and power on runs that learn nothing."""

import math
from typing import Any

import numpy as np
import pytest
from test_health_callback import kinds, polite_pairs, random_pairs, run

from hf_reward.training.health_checks import MINIMUM_GAIN, RunFacts, check_health

LN2 = math.log(2)
FACTS = RunFacts(max_steps=1000)
LOG_ROWS = 32


def entry(step: int, gains: np.ndarray) -> dict[str, Any]:
    """The log entry of rows with weight 1, with the sums of the monitor."""
    excess = gains - MINIMUM_GAIN
    return {
        "step": step,
        "loss": LN2 - gains.mean(),
        "equal_loss": LN2,
        "gain_rows": len(gains),
        "gain": gains.sum(),
        "gain_weight": len(gains),
        "gain_excess": excess.sum(),
        "gain_square": np.square(excess).sum(),
    }


def alarm_after(gains: np.ndarray) -> int | None:
    """Number of rows after which the warning is given; None without a warning."""
    history: list[dict[str, Any]] = []
    for start in range(0, len(gains), LOG_ROWS):
        history.append(entry(start // LOG_ROWS, gains[start : start + LOG_ROWS]))
        if any(warning.kind == "loss at equal rewards" for warning in check_health(history, FACTS)):
            return start + LOG_ROWS
    return None


def gains_of(generator: np.random.Generator, mean: float, spread: float, shape: tuple[int, ...]) -> np.ndarray:
    """Bradley-Terry gains over equal rewards where the reward gap of a pair is normal."""
    return LN2 - np.logaddexp(0, -generator.normal(mean, spread, shape))


@pytest.mark.parametrize("spread", [0.05, 0.5, 2.0])
def test_at_most_five_percent_of_runs_that_barely_learn_give_a_false_alarm(spread):
    generator = np.random.default_rng(0)
    gains = gains_of(generator, 0.1, spread, (400, 1024))
    gains += MINIMUM_GAIN - gains_of(generator, 0.1, spread, (1_000_000,)).mean()  # the hardest case: on the limit
    assert sum(alarm_after(each) is not None for each in gains) / len(gains) <= 0.05


def test_runs_that_learn_give_no_warning():
    gains = gains_of(np.random.default_rng(1), 0.5, 1.0, (200, 1024))
    assert gains.mean() > 0.05
    assert [alarm_after(each) for each in gains] == [None] * 200


@pytest.mark.parametrize(("mean", "spread", "rows"), [(0.0, 0.005, 64), (-0.02, 0.02, 64), (0.0, 1.0, 1024)])
def test_runs_that_learn_nothing_are_found(mean, spread, rows):
    gains = gains_of(np.random.default_rng(2), mean, spread, (200, 1024))
    found = [alarm_after(each) for each in gains]
    assert np.mean([each is not None and each <= rows for each in found]) >= 0.95


def test_tests_are_made_at_64_rows_and_at_each_doubling():
    nothing = [entry(step, np.zeros(16)) for step in range(1, 9)]
    warned = [bool(check_health(nothing[:end], FACTS)) for end in range(1, 9)]
    assert warned == [False, False, False, True, False, False, False, True]


def test_twenty_steps_at_the_loss_of_equal_rewards_give_a_warning(make_model_folder, tmp_path):
    rows = random_pairs(160)
    trainer = run(
        make_model_folder("llama"),
        rows,
        tmp_path,
        learning_rate=1e-6,
        head_learning_rate=1e-6,
        max_steps=20,
        logging_steps=10,
        seed=1,
    )
    assert kinds(trainer) == ["loss at equal rewards"]
    [warning] = trainer.health_warnings
    assert warning["step"] == 10
    # The first tenth of the run (two of twenty steps) does not count.
    assert f"of the last 64 rows is {LN2:.4f}" in warning["seen"]


def test_the_sums_of_the_monitor_match_the_rows(make_model_folder, tmp_path):
    rows = [row | {"weight": 1.0 + place % 2} for place, row in enumerate(polite_pairs(32))]
    trainer = run(make_model_folder("llama"), rows, tmp_path, learning_rate=0.01, max_steps=4, warmup_steps=1)
    logs = [each for each in trainer.health._history if "loss" in each]
    assert ["gain_rows" in each for each in logs] == [False, False, True, True]  # 1 + a tenth of 3 steps
    for each in logs[2:]:
        assert each["gain_rows"] == 8
        assert each["gain"] / each["gain_weight"] == pytest.approx(LN2 - each["loss"], abs=1e-5)
        excess = each["gain"] - MINIMUM_GAIN * each["gain_weight"]
        assert each["gain_excess"] == pytest.approx(excess, abs=1e-5)
        assert each["gain_square"] >= excess**2 / 8
    assert "loss at equal rewards" not in kinds(trainer)
