"""Rows against biases: hand-checked rows, equal rows for equal seeds, counts, and the choice of kinds."""

import numpy as np
import pytest

from hf_reward.data.preferences import to_preference_row
from hf_reward.evaluation.audit.inputs.audit_inputs import Pair
from hf_reward.evaluation.mitigation import wordings
from hf_reward.evaluation.mitigation.builders import BUILDERS, as_prompt, build_rows, quoted, row, with_user_text
from hf_reward.evaluation.mitigation.edits import padded
from hf_reward.evaluation.mitigation.plan import _KINDS, DECISIVE, plan_mitigation, require_same_model

PAIRS = [
    Pair(prompt=f"Question {n}?", chosen=f"Good answer {n}. It is right.", rejected=f"Bad {n}. It is wrong.",
         cluster=f"p{n}", row=n)
    for n in range(6)
]  # fmt: skip
ONE, TWO = PAIRS[:2]


def built(family, name, seed=0, pair=ONE):
    return BUILDERS[family, name](pair, TWO, np.random.default_rng(seed))


def chat(pair):
    return Pair(prompt=[{"role": "user", "content": pair.prompt}], chosen=pair.chosen, rejected=pair.rejected,
                cluster=pair.cluster, row=pair.row)  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_a_padded_answer_ties_with_the_plain_one_and_keeps_its_sentences(seed):
    (found,) = built("length", "padding", seed)
    assert found["probability"] == 0.5
    assert found["response_a"] in (ONE.chosen, ONE.rejected)
    plain, longer = found["response_a"].split(), found["response_b"].split()
    assert 1 < len(longer) / len(plain) < 6
    assert not set(plain) - set(longer)


def test_padding_of_an_answer_without_a_middle():
    lengths = {len(padded("Yes.", np.random.default_rng(seed)).split()) for seed in range(20)}
    assert min(lengths) >= 2


@pytest.mark.parametrize("name", [name for family, name in BUILDERS if family == "format"])
def test_a_reformatted_answer_has_the_words_of_the_plain_one(name):
    (found,) = built("format", name, 1)
    assert found["probability"] == 0.5
    words = [word.strip(".!*_-#") for word in found["response_a"].split()]
    kept = [word.strip(".!*_-#") for word in found["response_b"].split()]
    assert found["response_b"] != found["response_a"]
    assert [word for word in kept if word in words] == words


def test_flattery_and_agreement_are_put_before_the_answer():
    for name, bank in (("flattery", wordings.PRAISING), ("agreement", wordings.AGREEING)):
        (found,) = built("sycophancy", name)
        assert found["response_b"] in {opener + found["response_a"] for opener in bank}
        assert found["probability"] == 0.5


def test_junk_loses_against_the_preferred_response():
    names = [name for family, name in BUILDERS if family == "degenerate" and name != "exchanged_prompts"]
    rows = {name: built("degenerate", name)[0] for name in names}
    assert {each["response_a"] for each in rows.values()} == {ONE.chosen}
    assert {each["probability"] for each in rows.values()} == {1.0}
    assert rows["echo"]["response_b"] == "Question 0?"
    assert rows["other_answer"]["response_b"] == TWO.chosen
    assert rows["empty"]["response_b"] in wordings.FRAGMENTS
    assert any(text in rows["refusal"]["response_b"] for text in wordings.REFUSALS)
    assert any(text in rows["constant"]["response_b"] for text in wordings.SELF_PRAISE)


@pytest.mark.parametrize("name", ["repetition", "refusal", "lorem_ipsum", "constant"])
def test_length_does_not_identify_junk(name):
    pair = Pair(prompt="Why?", chosen="A good answer, at last. " * 20, rejected="Bad.", cluster="x", row=9)
    lengths = [len(built("degenerate", name, seed, pair)[0]["response_b"].split()) for seed in range(200)]
    longer = np.mean(np.array(lengths) > 100)
    assert 0.35 < longer < 0.75
    assert min(lengths) < 30
    assert max(lengths) < 2 * 100 + 20


def test_junk_that_is_blank_or_the_answer_itself_gives_no_row():
    same = Pair(prompt="Yes?", chosen=ONE.chosen, rejected="No.", cluster="x", row=9)
    assert BUILDERS["degenerate", "other_answer"](same, ONE, np.random.default_rng(0)) == []
    nothing = Pair(prompt="", chosen="Good.", rejected="Bad.", cluster="y", row=9)
    assert BUILDERS["degenerate", "echo"](nothing, ONE, np.random.default_rng(0)) == []


def test_with_exchanged_prompts_each_answer_wins_once():
    assert built("degenerate", "exchanged_prompts") == [
        row("Question 0?", ONE.chosen, TWO.chosen, 1.0),
        row("Question 1?", TWO.chosen, ONE.chosen, 1.0),
    ]


def test_the_preference_stays_whatever_the_user_believes():
    found = [built("sycophancy", "beliefs", seed)[0] for seed in range(30)]
    assert {(each["response_a"], each["response_b"], each["probability"]) for each in found} == {
        (ONE.chosen, ONE.rejected, 1.0)
    }
    prompts = {each["prompt"] for each in found}
    assert all(prompt.startswith("Question 0? ") for prompt in prompts)
    assert any("Good answer 0." in prompt for prompt in prompts)
    assert any("Bad 0." in prompt for prompt in prompts)


def test_both_options_tie_for_users_of_opposite_opinions():
    first, second = built("sycophancy", "opinions")
    assert first["prompt"] != second["prompt"]
    assert (first["response_a"], first["response_b"]) == (second["response_a"], second["response_b"])
    assert first["probability"] == second["probability"] == 0.5


def test_after_a_doubt_the_better_answer_wins_on_both_sides():
    kept, given_up = built("sycophancy", "doubts", pair=chat(ONE))
    assert [message["role"] for message in kept["prompt"]] == ["user", "assistant", "user"]
    assert kept["prompt"][1]["content"] == "Good answer 0."
    assert given_up["prompt"][1]["content"] == "Bad 0."
    for each in (kept, given_up):
        assert each["response_a"].endswith("Good answer 0.")
        assert each["response_b"].endswith("Bad 0.")
    assert built("sycophancy", "doubts")[0]["prompt"].startswith("User: Question 0?\n\nAssistant: Good answer 0.")


def test_praise_and_criticism_tie_for_every_stance():
    found = [built("sycophancy", "feedback", seed)[0] for seed in range(30)]
    assert {each["probability"] for each in found} == {0.5}
    assert {each["prompt"].split(" Tell me")[0] for each in found} == set(wordings.STANCES)


def test_prompts_keep_their_form_and_are_not_changed():
    messages = [{"role": "user", "content": "Hi"}]
    assert with_user_text(messages, " there") == [{"role": "user", "content": "Hi there"}]
    assert as_prompt(messages, "New") == [{"role": "user", "content": "New"}]
    assert as_prompt("Hi", "New") == "New"
    assert messages == [{"role": "user", "content": "Hi"}]
    assert quoted(" ".join(["word"] * 50)) == " ".join(["word"] * 30)


def test_every_built_row_is_a_valid_training_row():
    kinds = {}
    for family, name in BUILDERS:
        kinds.setdefault(family, []).append(name)
    for pairs in (PAIRS, list(map(chat, PAIRS))):
        rows = build_rows(pairs, kinds, share=20, seed=0)
        assert {each["kind"] for each in rows} == {f"{family}: {name}" for family, name in BUILDERS}
        for each in rows:
            found = to_preference_row(each)
            assert found.ranks == ([0, 0] if each["probability"] == 0.5 else [0, 1])
            assert isinstance(found.prompt, str) == isinstance(pairs[0].prompt, str)


def test_the_share_sets_the_rows_of_a_family_and_its_kinds_share_them():
    pairs = [*PAIRS, *PAIRS[:4]]
    rows = build_rows(pairs, {"format": ["header", "certainly", "link"], "length": ["padding"]}, share=0.5, seed=0)
    counts = {kind: sum(each["kind"] == kind for each in rows) for kind in {each["kind"] for each in rows}}
    assert counts == {"format: header": 2, "format: certainly": 2, "format: link": 1, "length: padding": 5}


def test_equal_seeds_give_equal_rows():
    kinds = {"length": ["padding"], "degenerate": ["lorem_ipsum", "exchanged_prompts"]}
    assert build_rows(PAIRS, kinds, 3, seed=1) == build_rows(PAIRS, kinds, 3, seed=1)
    assert build_rows(PAIRS, kinds, 3, seed=1) != build_rows(PAIRS, kinds, 3, seed=2)


def test_a_kind_that_no_pair_allows_has_no_rows():
    fenced = [
        Pair(prompt=f"q{n}", chosen="```\nx\n```", rejected="```\ny\n```", cluster=str(n), row=n) for n in range(3)
    ]
    assert build_rows(fenced, {"format": ["code_fence"]}, share=1, seed=0) == []


def test_one_prompt_is_refused():
    with pytest.raises(ValueError, match="fewer than two prompts"):
        build_rows([ONE, ONE], {"length": ["padding"]}, share=1, seed=0)


# --- the plan ---------------------------------------------------------------------------------------------------------


def report(*probes, **other):
    found = [
        {"family": family, "name": name, "verdict": verdict, "screen_only": False} for family, name, verdict in probes
    ]
    return {"probes": found, "model": "m", "fingerprint": {}, **other}


def test_only_biased_probes_get_rows():
    plan = plan_mitigation(
        report(
            ("length", "padding_effect", "equivalent"),
            ("format", "format_bold", "biased"),
            ("format", "format_flip_excess", "biased"),
            ("degenerate", "junk_echo", "biased"),
            ("sycophancy", "flattery_opener", "inconclusive"),
            ("calibration", "calibration_slope", "biased"),
        )
    )
    assert plan.kinds == {"format": ("bold", "bullets", "certainly"), "degenerate": ("echo",)}
    assert plan.biased == ("format_bold", "format_flip_excess", "junk_echo")
    assert plan.not_addressed == ("calibration_slope",)


def test_every_kind_of_the_plan_has_a_builder_and_every_builder_a_probe():
    used = {(family, kind) for family, probes in _KINDS.items() for kinds in probes.values() for kind in kinds}
    assert used == set(BUILDERS)


def test_the_audit_must_be_of_the_model():
    known = dict.fromkeys(DECISIVE, "x")
    require_same_model(report(fingerprint={**known, "device": "cuda"}), {**known, "device": "cpu"}, "m")
    for wrong, message in (
        ({}, "does not identify its model"),
        ({**known, "weights": "y"}, "weights differ"),
        ({**known, "template_hash": "y"}, "chat template differ"),
        ({**known, "length_correction": "y"}, "without `--length-correction`"),
    ):
        with pytest.raises(ValueError, match=message):
            require_same_model(report(fingerprint=wrong), known, "m")
