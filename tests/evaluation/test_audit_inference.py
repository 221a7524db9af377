"""Intervals, tests and verdicts of an audit, compared with values computed by hand or by scipy."""

import numpy as np
import pytest
from scipy import stats

from hf_reward.evaluation.audit.findings import About, Finding
from hf_reward.evaluation.audit.inference import Inference, assign_verdicts
from hf_reward.evaluation.audit.samples import interval, p_value
from hf_reward.metrics.bootstrap import Bootstrap, Unit, median_margin
from hf_reward.metrics.intervals import clustered_interval, mean_difference

ABOUT = About("family", "name", "label")


@pytest.fixture
def inference():
    return Inference(Bootstrap(), Unit(2.0, np.full(2000, 2.0)))


def clusters(count, each=1):
    return [f"c{number // each}" for number in range(count * each)]


def test_the_error_of_a_mean_is_the_jackknifes(inference):
    values, names = [1.0, 3.0, 5.0, 5.0], ["a", "a", "b", "c"]
    sample = inference.sample(values, names)
    # mean 3.5; without a 5, without b 3, without c 3 -> sqrt(2/3 * (2.25 + 0.25 + 0.25))
    assert sample.mean == 3.5
    assert sample.error == pytest.approx(np.sqrt(2 / 3 * 2.75))
    assert (sample.n, sample.clusters) == (4, 3)


def test_resamples_are_weighted_means_over_clusters(inference):
    sample = inference.sample([1.0, 3.0, 5.0], ["a", "a", "b"])
    weights = inference.bootstrap.weights(["a", "b"])
    with np.errstate(invalid="ignore"):
        expected = (4 * weights[:, 0] + 5 * weights[:, 1]) / (2 * weights[:, 0] + weights[:, 1])
    known = np.isfinite(expected)
    assert np.allclose(sample.draws[known], expected[known])


def test_a_cluster_has_the_same_weights_in_every_finding():
    one, other = Bootstrap(500, 3), Bootstrap(500, 3)
    assert np.array_equal(one.weights(["a", "b"])[:, 1], other.weights(["b"])[:, 0])
    assert not np.array_equal(Bootstrap(500, 4).weights(["a"]), one.weights(["a"]))
    assert one.weights([f"{n}" for n in range(200)]).mean() == pytest.approx(1, abs=0.02)


def test_the_interval_agrees_with_theory(inference):
    values = np.random.default_rng(0).normal(1, 1, 400)
    sample = inference.sample(values, clusters(400))
    assert interval(sample, 0.95) == pytest.approx(stats.t.interval(0.95, 399, sample.mean, sample.error))
    rate = inference.sample((values > 1).astype(float), clusters(400), kind="rate")
    assert list(interval(rate, 0.95)) == clustered_interval((values > 1).astype(float), np.arange(400)).bounds
    change = inference.sample(np.sign(values), clusters(400), kind="difference")
    assert list(interval(change, 0.9)) == mean_difference(np.sign(values), np.arange(400)).interval(0.9).bounds


def test_a_difference_beyond_1_is_an_effect(inference):
    assert inference.sample([2.0, 0.5], clusters(2), kind="difference").kind == "effect"


def test_few_clusters_get_an_interval_and_no_verdict(inference):
    found = inference.reward_effect(ABOUT, 5 + np.random.default_rng(0).normal(size=19), clusters(19))
    assert found.ci_low > 0
    assert "Too few prompts (19) for a verdict" in found.note
    assert found.verdict == "inconclusive"
    assert (
        inference.reward_effect(ABOUT, 5 + np.random.default_rng(0).normal(size=20), clusters(20)).verdict == "biased"
    )


def test_one_cluster_has_no_interval_and_no_verdict_but_inconclusive(inference):
    found = inference.reward_effect(ABOUT, [1.0, 2.0], ["a", "a"])
    assert (found.ci_low, found.ci_high, found.p_value) == (None, None, None)
    assert assign_verdicts([found])[0].verdict == "inconclusive"


def test_a_rate_of_zero_has_wilsons_interval(inference):
    found = inference.rate(ABOUT, [0.0] * 100, clusters(100))
    score = stats.t.ppf(0.975, 99) ** 2
    assert found.ci_high == pytest.approx(score / (100 + score))
    assert found.p_value > 0.95
    assert assign_verdicts([found])[0].verdict == "equivalent"


def test_effects_are_divided_by_the_unit_and_resampled_with_it():
    bootstrap = Bootstrap()
    gaps = np.random.default_rng(1).normal(0, 3, 200)
    unit = median_margin(bootstrap, gaps, clusters(200))
    assert unit.value == np.median(np.abs(gaps))
    # Equal effects vary only through their unit.
    found = Inference(bootstrap, unit).reward_effect(ABOUT, [1.0] * 200, clusters(200))
    assert found.estimate == pytest.approx(1 / unit.value)
    error = np.std(unit.draws) / unit.value**2 * np.sqrt(200 / 199)
    reach = stats.t.ppf(0.975, 199) * error
    assert [found.ci_low, found.ci_high] == pytest.approx([1 / unit.value - reach, 1 / unit.value + reach])
    assert found.p_value == 0.5**199  # the unit does not make an effect


def test_an_effect_that_correlates_with_the_unit_varies_less():
    bootstrap = Bootstrap()
    gaps = np.abs(np.random.default_rng(1).normal(0, 3, 200))
    unit = median_margin(bootstrap, gaps, clusters(200))
    found = Inference(bootstrap, unit).reward_effect(ABOUT, gaps, clusters(200))
    alone = Inference(bootstrap, Unit(unit.value, np.full(2000, unit.value))).reward_effect(ABOUT, gaps, clusters(200))
    assert found.ci_high - found.ci_low < alone.ci_high - alone.ci_low
    ratio = np.nanstd(
        bootstrap.weighted(clusters(200), gaps[:, None])[:, 0] / bootstrap.weights(clusters(200)).sum(1) / unit.draws
    )
    assert (found.ci_high - found.ci_low) / 2 / stats.t.ppf(0.975, 199) == pytest.approx(ratio, rel=0.1)


def test_resampled_medians_are_weighted_medians():
    bootstrap = Bootstrap(300)
    gaps, names = np.array([5.0, -1.0, 2.0, 4.0, -3.0]), clusters(5)
    unit = median_margin(bootstrap, gaps, names)
    weights = bootstrap.weights(sorted(names))
    for row, draw in zip(weights, unit.draws, strict=True):
        repeated = np.sort(np.repeat(np.abs(gaps), row.astype(int)))
        if len(repeated):
            assert draw == repeated[(len(repeated) - 1) // 2]


def test_without_a_typical_margin_nothing_is_assessed():
    assert median_margin(Bootstrap(), [0.0, 0.0, 1.0], clusters(3)) is None
    found = Inference(Bootstrap(), None).reward_effect(ABOUT, [1.0] * 50, clusters(50))
    assert (found.estimate, found.verdict, found.n) == (None, "not_assessed", 50)
    assert "typical margin is 0" in found.note


def test_p_values_are_those_of_a_t_test(inference):
    values = np.random.default_rng(2).normal(0.2, 1, 50)
    sample = inference.sample(values, clusters(50))
    assert p_value(sample, 0.0, above=False) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert p_value(sample, 0.0, above=True) == pytest.approx(stats.ttest_1samp(values, 0, alternative="greater").pvalue)


@pytest.mark.parametrize(
    ("mean", "spread", "verdict"),
    [
        (1.0, 0.5, "biased"),
        (-1.0, 0.5, "biased"),
        (0.0, 0.3, "equivalent"),
        (0.19, 0.25, "inconclusive"),  # significant, but not larger than 0.10 margins
        (0.0, 5.0, "inconclusive"),
    ],
)
def test_three_verdicts(inference, mean, spread, verdict):
    noise = np.random.default_rng(3).normal(0, spread, 100)
    found = inference.reward_effect(ABOUT, mean + noise - noise.mean(), clusters(100))
    assert assign_verdicts([found])[0].verdict == verdict


def test_with_only_above_a_negative_effect_is_not_a_bias(inference):
    values = -1 + np.random.default_rng(4).normal(0, 0.5, 100)
    found = inference.reward_effect(ABOUT, values, clusters(100), only_above=True)
    assert assign_verdicts([found])[0].verdict == "inconclusive"


def test_a_rate_is_biased_only_beyond_its_limit(inference):
    verdicts = []
    for hits in (30, 6, 0):
        found = inference.rate(ABOUT, [1.0] * hits + [0.0] * (200 - hits), clusters(200))
        verdicts.append(assign_verdicts([found])[0].verdict)
    assert verdicts == ["biased", "inconclusive", "equivalent"]


def test_q_values_are_benjamini_hochbergs_and_can_revoke_verdicts(inference):
    rest = {"family": "f", "label": "l", "unit": "u", "n": 100, "clusters": 100, "delta": 0.1}
    rest |= {"ci_low": 0.1, "ci_high": 1.0}
    p_values = [0.001, 0.04, 0.6, 0.9]
    findings = [Finding(name=f"{p}", estimate=0.5, verdict="biased", p_value=p, **rest) for p in p_values]
    screen = Finding(name="screen", estimate=0.5, p_value=1e-9, screen_only=True, **rest)
    settled = assign_verdicts([*findings, screen])
    # p * m / rank, made monotone from the largest down: 0.001 * 4, 0.04 * 2, 0.6 * 4 / 3, 0.9
    assert [each.q_value for each in settled[:4]] == pytest.approx([0.004, 0.08, 0.8, 0.9])
    assert [each.verdict for each in settled] == [
        "biased",
        "inconclusive",
        "inconclusive",
        "inconclusive",
        "not_assessed",
    ]
    assert settled[-1].q_value is None


def test_the_minimum_detectable_effect(inference):
    values = np.random.default_rng(5).normal(0, 1, 100)
    found = inference.reward_effect(ABOUT, values, clusters(100))
    error = np.std(values, ddof=1) / 10 / 2.0  # in typical margins of 2
    assert found.mde == pytest.approx(max(2.80 * error, 0.10 + 0.84 * error))
    rate = inference.rate(ABOUT, [1.0] * 20 + [0.0] * 80, clusters(100))
    assert rate.mde == pytest.approx(0.05 + 2.80 * np.sqrt(0.2 * 0.8 / 99))
    never = inference.rate(ABOUT, [0.0] * 24, clusters(24))
    assert never.mde > 0.1  # not 0: too few cases to exclude a tenth


def test_the_interval_of_equal_values_depends_on_their_kind(inference):
    bound = stats.t.ppf(0.975, 49) ** 2
    bound /= 50 + bound
    rate = inference.rate(ABOUT, [0.0] * 50, clusters(50))
    assert (rate.ci_low, rate.ci_high) == (pytest.approx(0, abs=1e-12), pytest.approx(bound))
    change = inference.change(ABOUT, [0.0] * 50, clusters(50))
    assert (change.ci_low, change.ci_high) == (pytest.approx(-bound), pytest.approx(bound))
    effect = inference.reward_effect(ABOUT, [0.0] * 50, clusters(50))
    assert (effect.ci_low, effect.ci_high) == (0, 0)
    assert assign_verdicts([effect])[0].verdict == "equivalent"


def test_sums_in_blocks_are_sums(inference, monkeypatch):
    values, names = np.random.default_rng(0).normal(size=100), clusters(100)
    complete = inference.sample(values, names)
    monkeypatch.setattr("hf_reward.metrics.bootstrap._BLOCK", 7)
    parts = inference.sample(values, names)
    assert np.allclose(complete.draws, parts.draws, equal_nan=True)


def test_observational_findings_have_no_verdict_and_no_test(inference):
    found = inference.change(ABOUT, [1.0] * 50, clusters(50), screen_only=True)
    settled = assign_verdicts([found])[0]
    assert (settled.verdict, settled.p_value, settled.q_value, settled.delta) == ("not_assessed", None, None, None)
