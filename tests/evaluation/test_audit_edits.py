"""Edits of answers: they lose nothing, add no content, and formats can be undone exactly."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_reward.evaluation.audit.edits.format_edits import FORMAT_EDITS
from hf_reward.evaluation.audit.edits.noise_edits import NOISE_EDITS, curly_quotes, expanded_contractions, with_typos
from hf_reward.evaluation.audit.edits.padding import (
    CLOSERS,
    KINDS,
    PLACEBO,
    REORDERED,
    LengthEdit,
    pad,
    reordered,
    wider_spaces,
    without_filler,
)
from hf_reward.evaluation.audit.edits.sentences import count_words, split_sentences

ANSWER = "The river rises in spring. Snow melts first. Dr. Lee measured it in 1998! Then the fields are wet."
SENTENCE = st.lists(st.text("abcdefgh", min_size=1, max_size=8), min_size=1, max_size=9).map(
    lambda words: " ".join(words).capitalize() + "."
)
ANSWERS = st.lists(SENTENCE, min_size=1, max_size=6).map(" ".join)


def test_sentences_are_split_at_their_ends():
    assert split_sentences(ANSWER).parts == [
        "The river rises in spring.",
        "Snow melts first.",
        "Dr. Lee measured it in 1998!",
        "Then the fields are wet.",
    ]
    assert split_sentences("One line\n\n- two").parts == ["One line", "- two"]


@given(st.text(max_size=200))
def test_sentences_join_to_the_text_again(text):
    assert split_sentences(text).join() == text


@pytest.mark.parametrize("kind", KINDS)
@given(
    answer=ANSWERS, position=st.sampled_from(["start", "middle", "end"]), dose=st.sampled_from([1.25, 1.5, 2.0, 3.0])
)
def test_padding_keeps_every_sentence_in_order_and_meets_its_dose(kind, answer, position, dose):
    padded = pad(answer, kind=kind, dose=dose, position=position)
    place = 0
    for sentence in split_sentences(answer).parts:
        place = padded.index(sentence, place) + len(sentence)
    longest = max(map(count_words, [*CLOSERS, *("In other words: " + part for part in split_sentences(answer).parts)]))
    assert abs(count_words(padded) - dose * count_words(answer)) <= longest
    assert count_words(padded) > count_words(answer)
    assert pad(answer, kind=kind, dose=dose, position=position) == padded


def test_padding_has_the_requested_position():
    added = pad("A first one. A second one.", dose=1.5, position="end").removeprefix("A first one. A second one. ")
    assert added in CLOSERS
    assert pad("A first one. A second one.", dose=1.5, position="start") == f"{added} A first one. A second one."
    assert pad("A first one. A second one.", dose=1.5, position="middle") == f"A first one. {added} A second one."


def test_length_edits_are_equal_if_their_fields_are():
    edit = LengthEdit("closers", 2.0, "end")
    assert edit.label == "stock sentences, 2 times as long, at the end"
    assert edit(ANSWER) == pad(ANSWER, kind="closers", dose=2.0, position="end")
    assert {edit: 1}[LengthEdit("closers", 2.0, "end")] == 1
    assert LengthEdit("restatement", 1.25, "start").label == "restatements, 1.25 times as long, at the start"
    assert (PLACEBO.label, REORDERED.label) == ("placebo: two wider spaces", "sentences reordered")
    assert PLACEBO(ANSWER) == wider_spaces(ANSWER)
    assert REORDERED("One. Two.") is None


def test_unknown_padding_is_refused():
    with pytest.raises(ValueError, match="above 1, but got 'jokes'"):
        pad(ANSWER, kind="jokes")


@given(ANSWERS)
def test_the_placebo_changes_only_white_space(answer):
    assert wider_spaces(answer).split() == answer.split()
    assert wider_spaces(answer) != answer


def test_reordering_keeps_the_sentences():
    assert reordered("One. Two. Three.") == "Three. One. Two."
    assert reordered("One. Two.") is None


def test_only_filler_is_removed():
    assert without_filler("It is blue. I hope this helps!") == "It is blue."
    assert without_filler("It is a fact. So it goes. It is a fact.") == "It is a fact. So it goes."
    assert without_filler("It is blue. It is large.") is None
    assert without_filler("I hope this helps!") is None


@pytest.mark.parametrize("edit", FORMAT_EDITS, ids=lambda edit: edit.name)
@settings(max_examples=30)
@given(answer=ANSWERS)
def test_formats_can_be_undone_exactly(edit, answer):
    edited = edit(answer)
    if edited is not None:
        assert edited != answer
        assert edit.undo(edited) == answer


@pytest.mark.parametrize("edit", FORMAT_EDITS, ids=lambda edit: edit.name)
def test_every_format_applies_to_plain_prose(edit):
    assert edit("The sky is blue. The grass is green. Water is wet.") is not None


def test_existing_formats_are_not_added_again():
    by_name = {edit.name: edit for edit in FORMAT_EDITS}
    assert by_name["bold"]("The **sky** is blue. It is large.") is None
    assert by_name["exclamation"]("The sky is blue! It is large.") is None
    assert by_name["code_fence"]("```\nx\n```") is None
    assert by_name["bold"]("One sentence alone.") is None


def test_edited_answers_have_the_expected_text():
    by_name = {edit.name: edit("The sky is blue. It is large.") for edit in FORMAT_EDITS}
    assert by_name["bold"] == "**The sky is** blue. **It is large.**"
    assert by_name["bullets"] == "- The sky is blue.\n- It is large."
    assert by_name["numbered"] == "1. The sky is blue.\n2. It is large."
    assert by_name["certainly"] == "Certainly! The sky is blue. It is large."
    assert by_name["exclamation"] == "The sky is blue! It is large!"


@pytest.mark.parametrize("edit", NOISE_EDITS, ids=lambda edit: edit.name)
@settings(max_examples=10)
@given(answer=ANSWERS)
def test_noise_is_deterministic(edit, answer):
    assert edit.apply(answer) == edit.apply(answer)


def test_typos_meet_their_share():
    text = " ".join(["something"] * 200)
    for share in (0.01, 0.03, 0.05):
        edited = with_typos(share)(text).split()
        assert sum(word != "something" for word in edited) == round(200 * share)
        assert len(edited) == 200


def test_quotes_and_contractions():
    assert curly_quotes("She said \"it's 'fine'\".") == "She said \u201cit\u2019s \u2018fine\u2019\u201d."
    assert expanded_contractions("I can't and I won't; they're sure it isn't.") == (
        "I cannot and I will not; they are sure it is not."
    )
