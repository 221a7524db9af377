import numpy as np
import pytest
from synthetic_rewards import clean, finding, inputs, last_turn, noise, plus, quality, run

from hf_reward.evaluation.audit.cases import Text
from hf_reward.evaluation.audit.families.persona import NEUTRAL, PERSONA, PERSONAS, cases, informally, with_opening
from hf_reward.evaluation.audit.findings import About
from hf_reward.evaluation.audit.inference import Inference
from hf_reward.evaluation.audit.inputs.audit_inputs import FULL, QUICK
from hf_reward.evaluation.audit.ranges import permuted_ranges, range_finding
from hf_reward.metrics.bootstrap import Bootstrap


@pytest.fixture(scope="module")
def full():
    return inputs(FULL, rows=100, questions=[], opinions=[], arguments=[])


def biased(result) -> set[str]:
    return {each.name for each in result.findings if each.verdict == "biased"}


def asked_by(text: Text, group: str) -> bool:
    return last_turn(text).startswith(PERSONAS[group])


def test_a_clean_model_is_not_flagged(full):
    result = run(PERSONA, full, clean())
    assert biased(result) == set()
    assert finding(result, "persona_accuracy_range").estimate == 0
    assert finding(result, "persona_reward_range").verdict == "equivalent"
    assert finding(result, "persona_decision_excess").estimate == 0
    assert len(result.examples) == 3
    assert len(result.tables[0].rows) == 2 + len(PERSONAS) + 3


def test_noise_changes_decisions_but_is_no_persona_bias(full):
    result = run(PERSONA, full, lambda text: quality(text) + 1.0 * noise(text))
    changes = finding(result, "persona_decision_changes")
    assert changes.estimate > 0.1
    assert changes.verdict == "not_assessed"
    assert biased(result) == set()
    assert "is expected by chance" in finding(result, "persona_accuracy_range").note


def test_a_disadvantaged_group_is_found(full):
    def worse(text: Text) -> float:
        return -1.6 * (asked_by(text, "Muslim") and "useful" in text.response and noise(text, 9) > 0)

    result = run(PERSONA, full, plus(worse))
    found = finding(result, "persona_accuracy_range")
    assert found.p_value < 0.01
    assert found.ci_low <= found.estimate <= found.ci_high
    assert found.estimate == pytest.approx(0.5, abs=0.15)
    assert "persona_accuracy_range" in biased(result)


def test_a_shift_of_the_reward_that_changes_no_decision(full):
    result = run(PERSONA, full, plus(lambda text: 0.5 * asked_by(text, "woman")))
    found = finding(result, "persona_reward_range")
    assert biased(result) == {"persona_reward_range"}
    assert found.ci_low <= 0.5 <= found.ci_high
    assert found.estimate == pytest.approx(0.5, abs=0.1)


def test_a_reaction_to_any_opening_is_no_persona_bias(full):
    def upset(text: Text) -> float:
        opened = last_turn(text).startswith((*PERSONAS.values(), NEUTRAL))
        return -2.0 * (opened and "useful" in text.response and str(last_turn(text))[-2] in "02468")

    result = run(PERSONA, full, plus(upset))
    assert finding(result, "persona_decision_changes").estimate > 0.3
    assert "persona_decision_excess" not in biased(result)


def test_a_persona_that_changes_decisions(full):
    def upset(text: Text) -> float:
        return -2.0 * (last_turn(text).startswith(tuple(PERSONAS.values())) and "useful" in text.response)

    result = run(PERSONA, full, plus(upset))
    assert finding(result, "persona_decision_excess").verdict == "biased"
    assert finding(result, "persona_accuracy_range").estimate == 0  # all groups have the same accuracy


def test_openings_precede_the_last_user_turn():
    turns = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Why are you late?"},
    ]
    edited = with_opening(turns, "I'm a man.")
    assert [turn["content"] for turn in edited] == ["Hello.", "Hi.", "I'm a man. Why are you late?"]
    assert turns[2]["content"] == "Why are you late?"
    assert with_opening("Why?", "I'm a man.") == "I'm a man. Why?"
    assert with_opening("", "I'm a man.") == "I'm a man."
    assert (
        with_opening("User: Hi\n\nAssistant: Yo\n\nUser: Why?", "Sir,")
        == "User: Hi\n\nAssistant: Yo\n\nUser: Sir, Why?"
    )
    assert informally("\n\nHuman: Are you OK?\n\nAssistant:") == "\n\nHuman: r u ok?\n\nAssistant:"
    assert informally(turns)[2]["content"] == "why r u late?"
    assert informally("I don't know, because your car's old.") == "i dont know, cuz ur cars old"


def test_the_quick_audit_is_small():
    probed = inputs(QUICK)
    texts = {text.key for case in cases(probed) for text in case.texts.values()}
    assert len(texts) == 24 * 2 * (2 + 6)
    assert biased(run(PERSONA, probed, clean())) == set()


def test_few_pairs_without_a_difference_prove_nothing():
    found = finding(run(PERSONA, inputs(QUICK), clean()), "persona_accuracy_range")
    assert (found.estimate, found.verdict) == (0, "inconclusive")
    assert found.ci_high == pytest.approx(1 - 0.05 ** (1 / 24))


def test_ranges_by_hand():
    values = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    ranges = permuted_ranges(values, seed=0)
    assert len(ranges) == 2000
    assert set(np.round(ranges, 6)) == {round(1 / 3, 6), 1.0}
    assert np.mean(ranges == 1.0) == pytest.approx(0.25, abs=0.03)


def test_the_test_of_a_range_keeps_its_level():
    p_values = []
    for seed in range(60):
        values = np.random.default_rng(seed).standard_normal((30, 8)) + np.arange(30)[:, None]
        inference = Inference(Bootstrap(200, seed), None)
        clusters = [str(number) for number in range(30)]
        found = range_finding(inference, About("f", "n", "l"), values, clusters, delta=0.05, unit="rate difference")
        p_values.append(found.p_value)
        assert found.ci_low == 0 or found.p_value < 0.1
    assert np.mean(np.array(p_values) <= 0.05) <= 0.12
    assert 0.35 < np.mean(p_values) < 0.65


def test_too_few_items_or_no_unit():
    inference = Inference(Bootstrap(50), None)
    one = range_finding(inference, About("f", "n", "l"), np.zeros((1, 3)), ["a"], delta=0.05, unit="rate difference")
    assert (one.estimate, one.verdict) == (None, "not_assessed")
    none = range_finding(
        inference, About("f", "n", "l"), np.zeros((9, 3)), list("abcdefghi"), delta=0.1, unit="typical margins"
    )
    assert none.p_value is None
    assert run(PERSONA, inputs(FULL, rows=0), clean()).not_assessed
