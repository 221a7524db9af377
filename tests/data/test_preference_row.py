"""The canonical row: its prompt group, the common prefix of its sides, its ranks, and format errors."""

import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_rows import CHAT, PAIR, RANKED, TOKENS, VOTES, assistant

from hf_reward.data.preference_row import (
    PreferenceFormatError,
    common_prefix,
    dense_ranks,
    prompt_group,
    prompt_hash,
    shared_text,
)
from hf_reward.data.preferences import to_preference_row

quick = settings(max_examples=40, deadline=None)


def test_the_error_survives_the_way_out_of_a_worker_process():
    error = PreferenceFormatError("`chosen` is empty.", 7, "chosen")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is PreferenceFormatError
    assert str(again) == str(error) == "Row 7: `chosen` is empty."
    assert (again.row_index, again.field, again.message) == (7, "chosen", "`chosen` is empty.")
    assert isinstance(again, ValueError)


# --- groups -----------------------------------------------------------------------------------------------------------


def test_rows_of_one_prompt_share_a_group_for_all_responses_and_layouts():
    groups = {
        to_preference_row(row).group
        for row in (
            PAIR,
            {**PAIR, "chosen": "x", "rejected": "y", "source": "elsewhere"},
            RANKED,
            VOTES | {"winner": "a"},
        )
    }
    assert len(groups) == 1
    assert len(groups.pop()) == 16


@given(first=st.text(min_size=1), second=st.text(min_size=1))
@quick
def test_different_prompts_have_different_groups(first: str, second: str):
    groups = [to_preference_row({**PAIR, "prompt": prompt}).group for prompt in (first, second)]
    assert (groups[0] == groups[1]) == (first == second)


def test_a_stated_group_is_kept():
    assert to_preference_row({**PAIR, "group": 12}).group == "12"


def test_the_group_of_messages_does_not_depend_on_the_order_of_their_keys():
    turned = {**CHAT, "prompt": [{"content": "Why?", "role": "user"}]}
    assert to_preference_row(turned).group == to_preference_row(CHAT).group


def test_texts_without_a_prompt_are_grouped_by_their_common_start():
    first = to_preference_row({"chosen": "Q: why?\nA: because", "rejected": "Q: why?\nA: no"})
    again = to_preference_row({"chosen": "Q: why?\nA: but", "rejected": "Q: why?\nA: cause"})
    other = to_preference_row({"chosen": "Q: how?\nA: because", "rejected": "Q: how?\nA: no"})
    assert first.group == again.group != other.group


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"chosen": "abc", "rejected": "xyz"}, {"chosen": "abd", "rejected": "xyw"}),
        ({"chosen": "\nA", "rejected": "\nB"}, {"chosen": "\nC", "rejected": "\nD"}),
        ({"chosen_ids": [1, 2], "rejected_ids": [3, 4]}, {"chosen_ids": [5, 2], "rejected_ids": [6, 4]}),
        (
            {"chosen": [assistant("a")], "rejected": [assistant("b")]},
            {"chosen": [assistant("c")], "rejected": [assistant("d")]},
        ),
    ],
    ids=["text", "line break only", "token ids", "messages"],
)  # fmt: skip
def test_rows_without_a_common_start_are_separate_groups(first: dict[str, Any], second: dict[str, Any]):
    assert to_preference_row(first).group != to_preference_row(second).group
    assert to_preference_row(first).group == to_preference_row(first).group


def test_token_ids_are_grouped_by_their_shared_prefix():
    same = {"chosen_ids": [1, 2, 9], "rejected_ids": [1, 2, 8]}
    assert to_preference_row(TOKENS).group == to_preference_row(same).group
    assert to_preference_row({**same, "rejected_ids": [1, 7]}).group != to_preference_row(same).group


def test_the_group_is_the_same_in_every_process_and_version():
    """sha256('"Why?"'), first 16 digits: a change of the rule would leak prompts between older and newer splits."""
    assert prompt_group(to_preference_row(PAIR)) == "499f097cf704535e"


def test_prompts_that_differ_in_white_space_are_equal():
    spaced = " Why?\n"
    assert prompt_hash(spaced) == prompt_hash("Why?") == prompt_group(to_preference_row(PAIR))
    assert to_preference_row({**PAIR, "prompt": spaced}).group == to_preference_row(PAIR).group
    turns = [{"role": "user", "content": "a  b"}]
    assert prompt_hash(turns) == prompt_hash([{"role": "user", "content": "a b\n"}])
    assert prompt_hash(turns) != prompt_hash([{"role": "user", "content": "ab"}])
    assert prompt_hash(turns) != prompt_hash([{"role": "system", "content": "a b"}])


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=4))
@quick
def test_the_common_prefix_is_the_longest_that_all_share(sequences: list[list[int]]):
    prefix = common_prefix(sequences)
    assert all(sequence[: len(prefix)] == prefix for sequence in sequences)
    nexts = {tuple(sequence[len(prefix) : len(prefix) + 1]) for sequence in sequences}
    assert len(nexts) > 1 or () in nexts


def test_shared_text_ends_with_a_sentence_or_a_line():
    assert shared_text(["Q: one? Yes, I", "Q: one? Yes, you"]) == "Q: one?"
    assert shared_text(["same words here", "same words there"]) == "same words "


@given(st.lists(st.floats(allow_nan=False), min_size=1))
@quick
def test_dense_ranks_keep_order_and_ties_and_leave_no_gaps(keys: list[float]):
    ranks = dense_ranks(keys)
    assert sorted(set(ranks)) == list(range(len(set(ranks))))
    for a, x in zip(keys, ranks, strict=True):
        for b, y in zip(keys, ranks, strict=True):
            assert (a < b) == (x < y)
