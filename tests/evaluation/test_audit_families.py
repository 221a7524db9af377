"""Each family of probes, on reward functions with known biases."""

from dataclasses import replace

import numpy as np
import pytest
import xxhash

from hf_reward.data.preference_row import PreferenceRow
from hf_reward.evaluation.audit import FULL, AuditRule, run_audit
from hf_reward.evaluation.audit.cases import Case, ScoredCase, Text
from hf_reward.evaluation.audit.families.calibration import brier_parts, cross_fitted_gaps, first_is_preferred
from hf_reward.evaluation.audit.families.selection import fit_overoptimization
from hf_reward.evaluation.audit.inputs.audit_inputs import Responses, build_inputs
from hf_reward.evaluation.audit.inputs.bundled_items import bundled_questions
from hf_reward.evaluation.audit.inputs.synthetic import SyntheticReward, synthetic_data
from hf_reward.metrics.best_of_n import kl_of_best_of_n

DATA = synthetic_data(150, 7)
PROFILE = replace(FULL, max_pairs=150, answers=150)


def audit(reward, *families, rows=DATA.rows, profile=PROFILE):
    return run_audit(reward, rows, rule=AuditRule(profile=profile, families=families))


def clean(**faults):
    return SyntheticReward(DATA.quality, bundled_questions(), seed=1, **faults)


def changed(change):
    """An unbiased reward plus `change` of each text."""
    reward = clean()

    def score(texts):
        return [value + change(text) for value, text in zip(reward(texts), texts, strict=True)]

    return score


def verdicts(report):
    return {finding.name: finding.verdict for finding in report.findings if not finding.screen_only}


# --- length ----------------------------------------------------------------------------------------------------------


def test_a_bias_toward_length_is_found_and_measured():
    report = audit(clean(length=0.5), "length")
    effect, slope = report.finding("padding_effect"), report.finding("padding_slope")
    assert effect.verdict == "biased"
    assert slope.ci_low <= 0.5 / report.unit <= slope.ci_high
    assert {each.verdict for each in report.findings if each.name.startswith("padding_at")} == {"biased"}
    assert report.finding("padding_flip_excess").verdict == "biased"
    assert report.finding("padding_flip_rate").screen_only
    assert len(report.families["length"].examples) == 3


def test_no_length_bias_is_reported_if_longer_answers_are_better():
    report = audit(clean(), "length")
    assert report.finding("length_gap").estimate > 0.1  # the observational check sees a false effect ...
    assert set(verdicts(report).values()) <= {"equivalent", "not_assessed"}  # ... and the probes do not
    assert report.finding("length_gap").screen_only
    assert report.finding("length_gap").verdict == "not_assessed"


def test_a_dislike_of_padding_is_not_a_bias():
    found = audit(clean(length=-0.5), "length").finding("padding_effect")
    assert found.verdict == "inconclusive"
    assert "An effect below 0 is not a bias" in found.note


def test_the_stratified_accuracies_match_their_definition():
    report = audit(clean(), "length", "accuracy")
    rows = [row for table in report.families["accuracy"].tables for row in table.rows if row[0] == "preferred is"]
    accuracy = {row[1]: float(row[2].rstrip("%")) / 100 for row in rows}
    gap, balanced = report.finding("length_gap"), report.finding("length_balanced_accuracy")
    assert gap.estimate == pytest.approx(accuracy["longer"] - accuracy["shorter"], abs=2e-3)
    assert balanced.estimate == pytest.approx((accuracy["longer"] + accuracy["shorter"]) / 2, abs=2e-3)


def test_the_naive_probe_has_no_verdict():
    found = audit(clean(length=5.0), "length").finding("naive_length_probe")
    assert found.screen_only
    assert found.verdict == "not_assessed"
    assert found.note.startswith("Confounded")


# --- format ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mark"),
    [("bold", "**"), ("bullets", "\n- "), ("emoji", "\U0001f60a"), ("certainly", "Certainly!"), ("header", "## ")],
)
def test_only_the_planted_format_bias_is_found(name, mark):
    report = audit(changed(lambda text: 0.5 * (mark in text.response)), "format")
    flagged = [each for each, verdict in verdicts(report).items() if verdict == "biased"]
    assert f"format_{name}" in flagged
    assert set(flagged) <= {f"format_{name}", "format_flip_excess"}
    assert report.finding(f"format_{name}").estimate == pytest.approx(0.5 / report.unit, abs=0.03)


def test_a_dislike_of_emoji_is_not_a_bias():
    marks = ("```", "https://", "\U0001f60a", "  ")
    report = audit(changed(lambda text: -0.5 * any(mark in text.response for mark in marks)), "format", "length")
    assert "biased" not in verdicts(report).values()
    assert "A model may dislike it: no bias." in report.finding("format_emoji").note
    padding = report.finding("padding_effect")  # the placebo is disliked, so padding gains over it, but not by itself
    assert padding.verdict == "inconclusive"
    assert padding.estimate == pytest.approx(0, abs=0.05)


def test_random_changes_of_close_decisions_are_no_bias():
    random, noise = np.random.default_rng(1), {}
    report = audit(changed(lambda text: noise.setdefault(text.key, random.normal(0, 0.6))), "format", "length")
    assert report.finding("padding_flip_rate").estimate > 0.05
    assert report.finding("padding_flip_excess").verdict != "biased"
    assert report.finding("format_flip_excess").verdict != "biased"


def test_a_layout_bias_is_reported_in_both_directions():
    report = audit(changed(lambda text: -0.5 * ("**" in text.response)), "format")
    assert report.finding("format_bold").verdict == "biased"


def test_a_bias_toward_any_opening_is_not_reported_for_certainly():
    openings = ("Certainly! ", "Answer: ", "## Answer")
    report = audit(changed(lambda text: 0.5 * text.response.startswith(openings)), "format")
    assert report.finding("format_certainly").verdict == "inconclusive"
    assert report.finding("format_header").verdict == "inconclusive"


def test_answers_whose_padded_versions_do_not_fit_are_left_out_of_all_doses():
    def short(texts):
        rewards = clean()(texts)
        return [np.nan if len(text.response) > 400 else value for text, value in zip(texts, rewards, strict=True)]

    report = audit(short, "length")
    lost = report.families["length"].details["answers_left_out"]
    assert 10 < lost < 150
    assert {report.finding(f"padding_{kind}").n for kind in ("closers", "restatement", "repetition")} == {150 - lost}


def test_amplification_is_observational():
    def shouts(text):
        return 1.5 * len(text.response.split())

    report = audit(changed(shouts), "format")
    found = report.finding("amplification_words")
    assert found.screen_only
    assert found.q_value < 0.01
    assert found.estimate > 0.2


# --- junk and prompts ------------------------------------------------------------------------------------------------


def test_junk_that_wins_is_found():
    report = audit(changed(lambda text: 20.0 * (text.response == "Yes")), "degenerate")
    flagged = [each for each, verdict in verdicts(report).items() if verdict == "biased"]
    assert flagged == ["junk_one_token"]
    assert report.finding("junk_one_token").estimate == 1


def test_a_model_that_ignores_the_prompt_is_found():
    def reads_the_answer_alone(texts):
        return [DATA.quality.get(text.response.split()[1].lower(), -9.0) if text.response.split()[1:] else -9.0
                for text in texts]  # fmt: skip

    report = audit(reads_the_answer_alone, "degenerate")
    assert report.finding("prompt_ignored").verdict == "biased"
    offsets = audit(clean(offset=5.0), "degenerate").finding("prompt_ignored")
    assert offsets.verdict == "equivalent"  # what a prompt adds to every answer is no ignorance of it
    assert verdicts(report)["junk_echo"] != "not_assessed"


def test_without_prompts_their_use_is_not_assessed():
    rows = [replace(row, prompt="", responses=[side[0]["content"] for side in row.responses]) for row in DATA.rows]

    def score(texts):
        return [DATA.quality.get(text.response.split(" ")[1].lower(), -9.0) if " " in text.response else -9.0
                for text in texts]  # fmt: skip

    report = audit(score, "degenerate", rows=rows)
    assert report.finding("prompt_ignored").verdict == "not_assessed"
    assert report.finding("junk_other_answer").verdict == "not_assessed"


def test_a_model_that_uses_prompts_is_not_reported():
    report = audit(clean(), "degenerate")
    assert report.finding("prompt_ignored").estimate == 0
    assert verdicts(report)["prompt_ignored"] == "equivalent"


# --- robustness ------------------------------------------------------------------------------------------------------


def test_sensitivity_to_lower_case_is_found():
    random = np.random.default_rng(0)
    noise = {}

    def confused(text):
        lower = text.response == text.response.lower()
        return noise.setdefault(text.key, random.normal(0, 5)) if lower else 0.0

    report = audit(changed(confused), "robustness")
    flagged = [each for each, verdict in verdicts(report).items() if verdict == "biased"]
    assert flagged == ["robustness_lower_case"]
    assert report.families["robustness"].details["worst_edit"]["edit"] == "lower case"


# --- calibration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "word"), [(3.0, "overconfident"), (0.3, "underconfident")])
def test_overconfidence_is_found(scale, word):
    data = synthetic_data(600, 3)
    reward = SyntheticReward(data.quality, scale=scale)
    report = audit(reward, "calibration", rows=data.rows, profile=replace(FULL, max_pairs=600))
    found = report.finding("calibration_slope")
    assert found.verdict == "biased"
    assert word in found.note
    assert found.ci_low <= 1 / scale - 1 <= found.ci_high
    details = report.families["calibration"].details
    assert details["temperature"] == pytest.approx(scale, rel=0.25)
    assert abs(details["error_after_temperature"]) < 0.05


def test_no_temperature_is_suggested_if_the_slope_may_be_0():
    data = synthetic_data(200, 9)

    def guesses(prompts, responses):
        return [xxhash.xxh3_64_intdigest(response.encode()) / 2**63 for response in responses]

    report = audit(guesses, "calibration", rows=data.rows)
    found = report.finding("calibration_slope")
    assert found.estimate + 1 > 0  # positive, but 0 is in its interval
    assert found.ci_low + 1 < 0
    assert "contains 0" in found.note
    assert "no temperature is suggested" in found.note
    assert "temperature" not in report.families["calibration"].details


def test_the_order_of_a_pair_depends_only_on_its_texts():
    def case(chosen, rejected):
        texts = {"chosen": Text(prompt="p", response=chosen), "rejected": Text(prompt="p", response=rejected)}
        return ScoredCase(case=Case(cluster="c", texts=texts), rewards={"chosen": 1.0, "rejected": 0.0})

    pairs = [(f"answer {number}", f"other {number}") for number in range(400)]
    first = first_is_preferred([case(*pair) for pair in pairs])
    turned = first_is_preferred([case(*reversed(pair)) for pair in pairs])
    assert np.array_equal(first, ~turned)
    assert 0.4 < first.mean() < 0.6


def test_the_parts_of_the_brier_score_add_up():
    probabilities = np.repeat([0.2, 0.7], [50, 50])
    outcomes = np.array([1.0] * 10 + [0.0] * 40 + [1.0] * 40 + [0.0] * 10)
    parts = brier_parts(probabilities, outcomes, num_bins=2)
    # bins: mean 0.2 with rate 0.2, mean 0.7 with rate 0.8; base rate 0.5
    assert parts["reliability"] == pytest.approx(0.5 * 0.1**2)
    assert parts["resolution"] == pytest.approx(0.3**2)
    assert parts["uncertainty"] == pytest.approx(0.25)
    assert parts["brier"] == pytest.approx(parts["reliability"] - parts["resolution"] + parts["uncertainty"])


def test_the_temperature_of_one_half_is_fitted_on_the_other():
    gaps = np.concatenate([np.random.default_rng(0).normal(1, 2, 200) * 4])
    names = [f"p{number}" for number in range(200)]
    scaled = cross_fitted_gaps(gaps, names)
    assert len({round(float(ratio), 9) for ratio in scaled / gaps}) == 2
    assert cross_fitted_gaps(np.ones(200), names) is None  # always right: no finite temperature


# --- best of n -------------------------------------------------------------------------------------------------------


def test_best_of_n_amplification_and_regret():
    random = np.random.default_rng(0)
    lists = []
    for number in range(60):
        words = random.integers(5, 60, size=6)
        lists.append(
            Responses(
                prompt=f"question {number}",
                responses=[" ".join(["word"] * count) for count in words],
                cluster=f"question {number}",
                gold=[float(count < 20) for count in words],
            )
        )
    rows = synthetic_data(60, 1).rows
    from hf_reward.evaluation.audit.inputs.probe_data import ProbeData

    report = run_audit(
        lambda texts: [float(len(text.response)) for text in texts],
        rows,
        rule=AuditRule(profile=PROFILE, families=("best_of_n",)),
        probe_data=[ProbeData(lists=lists)],
    )
    drift, regret = report.finding("best_of_n_length_drift"), report.finding("best_of_n_regret")
    assert drift.ci_low > 0.3
    assert regret.estimate > 0.1  # it prefers long answers, which are wrong here
    assert regret.ci_low is None  # the best number of responses was chosen on these prompts
    assert drift.screen_only
    assert regret.screen_only
    assert report.families["best_of_n"].details["overoptimization"]["alpha"] < 0


def test_the_fit_of_overoptimization_recovers_its_parameters():
    n = np.array([2, 4, 8, 16, 32])
    distance = np.sqrt(kl_of_best_of_n(n))
    found = fit_overoptimization(n, distance * (1.5 - 0.4 * distance))
    assert found["alpha"] == pytest.approx(1.5)
    assert found["beta"] == pytest.approx(0.4)
    assert found["peak_kl"] == pytest.approx((1.5 / 0.8) ** 2)


# --- inputs --------------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_audited_are_counted_by_reason():
    message = [{"role": "user", "content": "hello"}]
    call = [{"role": "assistant", "content": "", "tool_calls": [{"type": "function"}]}]
    answers = [[{"role": "assistant", "content": words}] for words in ("one", "two")]
    rows = [
        PreferenceRow(prompt="a", responses=["one", "two"], ranks=[0, 1]),
        PreferenceRow(prompt="a", responses=["one", "two"], ranks=[0, 0]),
        PreferenceRow(prompt="", responses=[], ranks=[], token_ids=[[1], [2]]),
        PreferenceRow(prompt=message, responses=[call, call], ranks=[0, 1]),
        PreferenceRow(prompt="a", responses=["one", "one"], ranks=[0, 1]),
        PreferenceRow(prompt=[], responses=answers, ranks=[0, 1]),
        PreferenceRow(prompt=[*message, *call, *message], responses=answers, ranks=[0, 1]),
    ]
    inputs = build_inputs(rows, FULL)
    assert len(inputs.pairs) == 1
    assert inputs.skipped == {
        "no strict preference": 1,
        "token ids instead of text": 1,
        "a response that is not one text": 1,
        "two identical responses": 1,
        "a conversation without a prompt": 1,
        "a prompt with more than text, such as tool calls": 1,
    }


def test_models_without_conversations_get_a_text():
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Bye"},
    ]
    row = PreferenceRow(prompt=turns, responses=["one two", "three four"], ranks=[0, 1])
    assert (
        build_inputs([row], FULL, takes_messages=False).pairs[0].prompt == "User: Hello\n\nAssistant: Hi.\n\nUser: Bye"
    )
    assert build_inputs([row], FULL).pairs[0].prompt == turns
    assert build_inputs([row], FULL, takes_messages=False).prompt("Just this?") == "Just this?"


def test_each_prompt_gives_one_answer_and_both_sides_are_among_them():
    inputs = build_inputs(DATA.rows, PROFILE)
    answers = inputs.answers()
    assert len({pair.cluster for pair, _ in answers}) == len(answers) == 150
    preferred = sum(answer == pair.chosen for pair, answer in answers)
    assert preferred == 75
