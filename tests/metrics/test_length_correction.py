"""A planted length term is estimated and removed; other differences are kept."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_reward import LengthCorrection, cross_fitted_correction, fit_length_correction
from hf_reward.metrics.length_correction import MAX_KNOTS

CURVE = LengthCorrection(knots=(0.0, 9.0, 99.0), values=(-1.0, 1.0, 3.0), frac=0.5, num_responses=40, data="by hand")


def planted(prompts: int = 300, seed: int = 0, slope: float = 0.8) -> tuple[np.ndarray, ...]:
    """Quality, lengths, prompts of pairs, and rewards that add a term of length to quality."""
    random = np.random.default_rng(seed)
    lengths = np.exp(random.normal(5, 1, 2 * prompts)).round() + 1
    quality = random.normal(size=2 * prompts)
    groups = np.repeat(np.arange(prompts), 2)
    return quality, lengths, groups, quality + slope * np.log1p(lengths)


def accuracy(rewards: np.ndarray, quality: np.ndarray) -> float:
    """Share of pairs whose better response has the higher reward."""
    return float((np.diff(rewards.reshape(-1, 2)) * np.diff(quality.reshape(-1, 2)) > 0).mean())


# --- the curve ---


def test_the_curve_by_hand():
    """log(1 + length) is 0, log 10 and log 100 at the knots: 999 is beyond them, sqrt(10) - 1 half way to the first."""
    lengths = [0, 10**0.5 - 1, 9, 10**1.5 - 1, 99, 999]
    np.testing.assert_allclose(CURVE.at(lengths), [-1, 0, 1, 2, 3, 3], atol=1e-12)
    np.testing.assert_allclose(CURVE.apply([5.0] * 6, lengths), [6, 5, 4, 3, 2, 2], atol=1e-12)


def test_precision_of_the_rewards_is_kept_and_nothing_is_changed():
    rewards = np.array([1.0, 2.0], dtype=np.float32)
    found = CURVE.apply(rewards, np.array([9, 99]))
    assert found.dtype == np.float32
    assert found.tolist() == [0.0, -1.0]
    assert rewards.tolist() == [1.0, 2.0]
    assert CURVE.apply([1, 2], [9, 99]).dtype == np.float64


def test_a_planted_length_term_is_removed_and_quality_is_kept():
    quality, lengths, groups, rewards = planted()
    correction = fit_length_correction(rewards, lengths)
    corrected = correction.apply(rewards, lengths)
    padded_by = 0.8 * (np.log1p(2 * lengths) - np.log1p(lengths))  # reward difference for twice the length
    padded = correction.apply(rewards + padded_by, 2 * lengths)
    inside = 2 * lengths < max(correction.knots)
    assert padded_by[inside].mean() > 0.5
    assert abs((padded - corrected)[inside].mean()) < 0.08
    assert abs(np.corrcoef(corrected, np.log1p(lengths))[0, 1]) < 0.05
    assert np.corrcoef(corrected, quality)[0, 1] > 0.98
    assert accuracy(corrected, quality) > 0.95 > 0.85 > accuracy(rewards, quality)
    honest = cross_fitted_correction(rewards, lengths, groups)
    assert abs(accuracy(honest, quality) - accuracy(corrected, quality)) < 0.03


def test_the_mean_reward_is_unchanged_and_there_are_few_knots():
    _, lengths, _, rewards = planted()
    correction = fit_length_correction(rewards, lengths, frac=0.3, data="some note")
    assert correction.apply(rewards, lengths).mean() == pytest.approx(rewards.mean(), abs=1e-9)
    assert 2 < len(correction.knots) <= MAX_KNOTS
    assert (correction.knots[0], correction.knots[-1]) == (lengths.min(), lengths.max())
    assert (correction.frac, correction.num_responses, correction.data) == (0.3, 600, "some note")
    assert correction.at([0])[0] == correction.values[0]
    assert correction.at([10**9])[0] == correction.values[-1]


def test_without_a_length_term_little_is_subtracted():
    quality, lengths, _, rewards = planted(1500, slope=0.0)
    corrected = fit_length_correction(rewards, lengths).apply(rewards, lengths)
    assert np.abs(corrected - quality).mean() < 0.1


@given(shift=st.floats(-100, 100), scale=st.floats(0.01, 100))
@settings(max_examples=15, deadline=None)
def test_the_curve_scales_with_the_rewards(shift, scale):
    _, lengths, _, rewards = planted(60)
    plain = fit_length_correction(rewards, lengths).at(lengths)
    moved = fit_length_correction(rewards * scale + shift, lengths).at(lengths)
    np.testing.assert_allclose(moved, plain * scale, atol=1e-6 * max(scale, abs(shift)))


def test_a_curve_with_zero_residuals_is_accepted():
    lengths = np.arange(1, 101)
    rewards = 2 * np.log1p(lengths)
    corrected = fit_length_correction(rewards, lengths).apply(rewards, lengths)
    np.testing.assert_allclose(corrected, rewards.mean(), atol=0.05)
    np.testing.assert_allclose(fit_length_correction(np.full(100, 3.0), lengths).at(lengths), 0, atol=1e-9)


# --- fitted on other prompts ---


def test_no_response_is_corrected_by_a_curve_fitted_on_its_prompt():
    _, lengths, groups, rewards = planted(50)
    plain = cross_fitted_correction(rewards, lengths, groups)
    for group in (0, 17):
        mine = groups == group
        changed = rewards.copy()
        changed[mine] += 1000
        found = cross_fitted_correction(changed, lengths, groups)
        np.testing.assert_allclose(found[mine] - 1000, plain[mine], atol=1e-9)
    assert cross_fitted_correction(rewards, lengths, groups, seed=1).tolist() != plain.tolist()
    assert cross_fitted_correction(rewards, lengths, groups).tolist() == plain.tolist()
    named = [f"prompt {number}" for number in groups]
    assert len(cross_fitted_correction(rewards, lengths, named, folds=10)) == 100


# --- refusals ---


@pytest.mark.parametrize(
    ("rewards", "lengths", "options", "message"),
    [
        (np.zeros(30), np.arange(29), {}, r"shape \(R,\), but have \(30,\) and \(29,\)"),
        (np.full(30, np.nan), np.arange(30), {}, "`rewards` must be finite"),
        (np.zeros(30), np.arange(30) - 1, {}, "`lengths` must be finite and 0 or more"),
        (np.zeros(19), np.arange(19), {}, "at least 20 responses.*has 19"),
        (np.zeros(30), np.arange(30), {"frac": 0}, r"`frac`.* must be in \(0, 1\], but is 0"),
        (np.zeros(30), np.full(30, 7), {}, "30 of 30 do"),
    ],
)
def test_data_without_a_curve_are_refused(rewards, lengths, options, message):
    with pytest.raises(ValueError, match=message):
        fit_length_correction(rewards, lengths, **options)


def test_folds_need_prompts():
    _, lengths, groups, rewards = planted(20)
    with pytest.raises(ValueError, match=r"`folds` must be between 2 and the number of prompts \(1\), but is 5"):
        cross_fitted_correction(rewards, lengths, np.zeros(40))
    with pytest.raises(ValueError, match="39 entries for 40 rewards"):
        cross_fitted_correction(rewards, lengths, groups[:-1])


# --- as JSON ---


def test_the_correction_survives_json():
    content = CURVE.to_dict()
    assert content["unit"] == "characters"
    assert LengthCorrection.from_dict(json.loads(json.dumps(content))) == CURVE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "tokens"}, "must be 'characters', but is 'tokens'"),
        ({"knots": [1.0, 1.0, 2.0]}, "strictly increasing"),
        ({"knots": [-1.0, 1.0, 2.0]}, "must be 0 or more and strictly increasing"),
        ({"values": [0.0, float("inf"), 1.0]}, "finite"),
        ({"values": [0.0, 1.0]}, "has 3 knots and 2 values"),
        ({"knots": [1.0], "values": [1.0]}, "at least two"),
        ({"knots": None}, "must have numbers in `knots`"),
        ({"values": ["a", "b", "c"]}, "could not convert"),
        ({"frac": None}, "must have numbers in `knots`"),
    ],
)
def test_an_invalid_correction_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        LengthCorrection.from_dict({**CURVE.to_dict(), **changes})
    missing = {name: value for name, value in CURVE.to_dict().items() if name not in changes}
    with pytest.raises(ValueError, match="Fit it again"):
        LengthCorrection.from_dict(missing)
