"""The self-test of the audit, with fewer seeds than `hf-reward audit --self-test`."""

import pytest

from hf_reward.evaluation.audit.inputs.synthetic import synthetic_data
from hf_reward.evaluation.audit.self_test import FAULTS, run_self_test, true_size


@pytest.mark.simulations  # 180 s
def test_planted_biases_are_found_with_coverage_and_without_false_alarms():
    found = run_self_test(20, clean_seeds=20)
    for each in found.faults:
        assert each.flagged >= 18, each
        assert each.p_too_few_covered > 0.01, each
        assert each.mean_estimate == pytest.approx(each.truth, rel=0.15)
    for each in found.clean:
        assert each.flagged <= 3, each  # P(more) is 1.6% at a rate of 5%
        assert each.verdicts["equivalent"] > 30 * 20  # not merely undecided
    assert found.passed == all(each.passed for each in [*found.clean, *found.faults])


def test_a_blind_audit_fails_its_own_test(monkeypatch):
    """The self-test can fail: with a unit that is wrong by a third, no interval covers the truth."""
    monkeypatch.setattr("hf_reward.evaluation.audit.self_test.FAULTS", FAULTS[1:2])
    monkeypatch.setattr("hf_reward.evaluation.audit.self_test.CLEAN", {"clean": {}})
    monkeypatch.setattr("hf_reward.evaluation.audit.self_test.true_size", lambda fault: 1.5 * true_size(fault))
    monkeypatch.setattr("hf_reward.evaluation.audit.self_test._TRUTH_PROMPTS", 1000)
    found = run_self_test(4, clean_seeds=1)
    assert found.faults[0].covered <= 1
    assert not found.passed


def test_synthetic_preferences_follow_the_bradley_terry_model():
    data = synthetic_data(3000, 5)
    wins = [
        data.quality[row.responses[0][0]["content"].split()[1]]
        > data.quality[row.responses[1][0]["content"].split()[1]]
        for row in data.rows
    ]
    # E[max(p, 1 - p)] with p = sigmoid(N(0, 2 * 1.2^2)): by numerical integration
    assert sum(wins) / len(wins) == pytest.approx(0.753, abs=0.02)
    longer = [
        len(row.responses[0][0]["content"].split()) > len(row.responses[1][0]["content"].split()) for row in data.rows
    ]
    assert sum(longer) / len(longer) > 0.55  # better answers are longer
