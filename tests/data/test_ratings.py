"""Rated or ranked responses become preference pairs."""

import copy
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_rows import PAIR, RATED, assistant, user

from hf_reward.data.preference_row import PreferenceFormatError
from hf_reward.data.preferences import to_preference_row
from hf_reward.data.ratings import to_pairs

FLAT = [
    {"prompt": "p", "response": "good", "score": 9},
    {"prompt": "q", "response": "fine", "score": 3.0},
    {"prompt": "p", "response": "bad", "score": 2},
    {"prompt": "p", "response": "middling", "score": 8},
    {"prompt": "q", "response": "just as fine", "score": 3},
]


def sides(pairs: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(pair["chosen"], pair["rejected"]) for pair in pairs]


def test_flat_rated_rows_pair_within_their_prompt_by_falling_gap():
    pairs = to_pairs(FLAT)
    assert sides(pairs) == [("good", "bad"), ("middling", "bad"), ("good", "middling")]
    assert {pair["prompt"] for pair in pairs} == {"p"}  # the responses to q have equal ratings
    assert "margin" not in pairs[0]


def test_lists_give_the_pairs_that_flat_rows_give():
    lists = [
        {"prompt": "p", "responses": ["good", "bad", "middling"], "scores": [9, 2, 8]},
        {"prompt": "q", "responses": ["fine", "just as fine"], "scores": [3, 3]},
    ]
    assert to_pairs(lists, margin_from_scores=True) == to_pairs(FLAT, margin_from_scores=True)


def test_a_pair_needs_the_minimal_gap():
    assert sides(to_pairs(FLAT, min_gap=6)) == [("good", "bad"), ("middling", "bad")]
    assert sides(to_pairs(FLAT, min_gap=6.5)) == [("good", "bad")]
    assert to_pairs(FLAT, min_gap=100) == []


def test_the_margin_is_the_difference_of_scores():
    assert [pair["margin"] for pair in to_pairs(FLAT, margin_from_scores=True)] == [7, 6, 1]


def test_a_prompt_may_be_limited_to_its_clearest_pairs():
    assert sides(to_pairs(FLAT, max_pairs_per_prompt=2)) == [("good", "bad"), ("middling", "bad")]


def test_ranks_prefer_the_lower():
    raw = [{"prompt": "p", "responses": ["a", "b", "c"], "ranks": [1, 0, 1]}]
    assert sorted(sides(to_pairs(raw))) == [("b", "a"), ("b", "c")]


def test_rated_conversations_may_have_a_text_prompt():
    raw = {"prompt": "Why?", "responses": [[assistant("a")], [assistant("b")]], "scores": [1, 2]}
    assert to_pairs([raw])[0] | {"group": ""} == {
        "prompt": [user("Why?")],
        "chosen": [assistant("b")],
        "rejected": [assistant("a")],
        "group": "",
    }


def test_pairs_have_the_group_of_their_prompt():
    pairs = to_pairs(FLAT, margin_from_scores=True)
    rows = [to_preference_row(pair) for pair in pairs]
    assert [row.margin for row in rows] == [7, 6, 1]
    assert {row.group for row in rows} == {to_preference_row({**PAIR, "prompt": "p"}).group}


def test_pairs_can_be_made_from_other_column_names_without_changing_the_rows():
    theirs = [{"q": row["prompt"], "a": row["response"], "stars": row["score"]} for row in FLAT]
    before = copy.deepcopy(theirs)
    assert to_pairs(theirs, columns={"prompt": "q", "response": "a", "rating": "stars"}) == to_pairs(FLAT)
    assert theirs == before


@given(scores=st.lists(st.integers(-3, 3), min_size=1, max_size=6), min_gap=st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_pairs_are_exactly_those_of_a_double_loop(scores: list[int], min_gap: int):
    names = [f"r{place}" for place in range(len(scores))]
    made = to_pairs([{"prompt": "p", "responses": names, "scores": scores}], min_gap=min_gap, margin_from_scores=True)
    expected = {
        (a, b, x - y)
        for a, x in zip(names, scores, strict=True)
        for b, y in zip(names, scores, strict=True)
        if x > y and x - y >= min_gap
    }
    assert {(pair["chosen"], pair["rejected"], pair["margin"]) for pair in made} == expected
    assert len(made) == len(expected)


@pytest.mark.parametrize(
    ("bad", "field", "message"),
    [
        ({**RATED, "score": math.nan}, "score", "must be a finite number, but is nan"),
        ({"prompt": "p", "response": "a"}, "score", "must be a finite number, but is None"),
        ({**RATED, "response": ""}, "responses", "is empty"),
        ({"response": "a", "score": 1}, "prompt", "`prompt` is missing"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1]}, "scores", "one entry per response.* but has 1 for 2"),
        ({"prompt": "p", "responses": ["a", "b"], "ranks": [0]}, "ranks", "one entry per response.* but has 1 for 2"),
        ({"prompt": "p", "text": "a"}, "responses", "must be a list"),
    ],
)
def test_a_bad_rating_is_refused_with_its_row(bad: dict[str, Any], field: str, message: str):
    with pytest.raises(PreferenceFormatError, match=f"^Row 1: .*{message}") as caught:
        to_pairs([RATED, bad])
    assert (caught.value.row_index, caught.value.field) == (1, field)


@pytest.mark.parametrize("bad", [{"min_gap": -1.0}, {"min_gap": math.nan}, {"max_pairs_per_prompt": 0}])
def test_settings_out_of_range_are_refused(bad: dict[str, Any]):
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}` must be .* or more"):
        to_pairs(FLAT, **bad)
