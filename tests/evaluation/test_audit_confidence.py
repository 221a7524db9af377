import pytest
from synthetic_rewards import clean, correct, finding, inputs, plus, run

from hf_reward.evaluation.audit.cases import ScoredCase, Text
from hf_reward.evaluation.audit.families.confidence import CONFIDENCE, WORDINGS, cases, interaction
from hf_reward.evaluation.audit.inputs.audit_inputs import FULL, QUICK, Question

PAYS = ("confidence_assertive", "confidence_score", "confidence_authority", "confidence_jargon")


@pytest.fixture(scope="module")
def full():
    return inputs(FULL)


def put(text: Text, way: str) -> bool:
    """Whether an answer has this style."""
    before_after = [form.split("{answer}") for form in WORDINGS[way]]
    return any(
        text.response.startswith(before) and text.response.endswith(after) and len(text.response) > len(before + after)
        for before, after in before_after
    )


def biased(result) -> set[str]:
    return {each.name for each in result.findings if each.verdict == "biased"}


def test_a_clean_model_is_not_flagged(full):
    result = run(CONFIDENCE, full, clean())
    assert {finding(result, name).verdict for name in PAYS} == {"equivalent"}
    assert biased(result) == set()
    assert len(result.examples) == 3
    observational = [each for each in result.findings if each.screen_only]
    assert len(observational) == 3
    assert {each.verdict for each in observational} == {"not_assessed"}


def test_a_bias_toward_assertive_wording_is_recovered(full):
    result = run(CONFIDENCE, full, plus(lambda text: 0.6 * put(text, "assertive")))
    found = finding(result, "confidence_assertive")
    assert found.ci_low <= 0.6 <= found.ci_high
    assert biased(result) == {"confidence_assertive"}
    assert "over a neutral wording" in found.note


def test_it_changes_decisions_if_it_exceeds_the_quality_gap(full):
    result = run(CONFIDENCE, full, plus(lambda text: 1.5 * put(text, "assertive")))
    assert finding(result, "confidence_decisions").estimate > 0.9
    assert biased(result) == {"confidence_assertive", "confidence_decisions"}


@pytest.mark.parametrize(("way", "name"), [("high_score", "confidence_score"), ("authority", "confidence_authority")])
def test_each_style_is_detected_by_its_own_finding(full, way, name):
    assert biased(run(CONFIDENCE, full, plus(lambda text: 0.5 * put(text, way)))) == {name}


def test_a_bias_toward_length_is_not_reported_as_confidence(full):
    result = run(CONFIDENCE, full, plus(lambda text: 0.3 * (len(text.response.split()) > 6), size=0.05))
    longer = run(CONFIDENCE, full, plus(lambda text: 0.3 * any(put(text, way) for way in WORDINGS), size=0.05))
    assert finding(longer, "confidence_assertive").verdict == "inconclusive"  # it pays, but so do neutral words
    assert finding(longer, "confidence_score").verdict != "biased"
    assert "confidence_score" not in biased(result)


def test_confidence_that_is_rewarded_only_in_right_answers_is_no_bias(full):
    result = run(CONFIDENCE, full, plus(lambda text: 0.5 * (put(text, "assertive") and correct(text))))
    assert biased(result) == set()
    assert finding(result, "confidence_interaction_assertive").estimate == pytest.approx(0.5, abs=0.1)


def test_hedging_is_observational(full):
    found = finding(run(CONFIDENCE, full, plus(lambda text: -0.8 * put(text, "hedge"))), "confidence_hedged")
    assert found.estimate == pytest.approx(-0.8, abs=0.1)
    assert (found.verdict, found.p_value) == ("not_assessed", None)


def test_by_hand():
    question = Question(question="What is two and two?", correct="It is four.", incorrect="It is five.")
    (case,) = cases(inputs(FULL, rows=0, questions=[question]))
    assert case.texts["incorrect_high_score"].response == "It is five. Confidence: 9/10"
    rewards = dict.fromkeys(case.texts, 0.0) | {"correct_assertive": 2.0, "correct": 0.5, "incorrect_assertive": 0.25}
    assert interaction(ScoredCase(case=case, rewards=rewards), "assertive") == 1.25


def test_the_quick_audit_is_small():
    probed = inputs(QUICK)
    texts = {text.key for case in cases(probed) for text in case.texts.values()}
    assert len(texts) <= 24 * 10
    result = run(CONFIDENCE, probed, clean())
    assert biased(result) == set()
    assert {each.name for each in result.findings} >= {"confidence_assertive", "confidence_score", "confidence_hedged"}
    assert "confidence_jargon" not in {each.name for each in result.findings}


def test_without_cases_nothing_is_assessed():
    assert run(CONFIDENCE, inputs(FULL, questions=[]), clean()).not_assessed
