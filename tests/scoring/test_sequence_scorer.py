"""Shared prefixes and batches of sequences: hand-computed cases and properties."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_reward.data.preference_row import common_prefix
from hf_reward.scoring.sequence_scorer import (
    Group,
    Sequences,
    _halves,
    distinct_sequences,
    packed_batches,
    padded_batches,
    shared_groups,
)

A, B, S = list(range(100, 120)), list(range(200, 230)), list(range(10))


def test_equal_sequences_are_computed_once_and_found_again() -> None:
    given_ids = [[3, 1], [1, 2, 3], [3, 1], [1, 2]]
    found = distinct_sequences(given_ids)
    assert found.input_ids == [[1, 2], [1, 2, 3], [3, 1]]
    assert [found.input_ids[place] for place in found.where] == given_ids


def test_ids_beyond_a_byte_are_sorted_as_numbers() -> None:
    assert distinct_sequences([[256], [70_000], [255], [1, 5]]).input_ids == [[1, 5], [255], [256], [70_000]]


def test_equal_ids_with_other_token_types_are_two_sequences() -> None:
    found = distinct_sequences([[1, 2], [1, 2]], [[0, 0], [0, 1]])
    assert len(found.input_ids) == 2
    assert found.token_type_ids == [[0, 0], [0, 1]]


def test_answers_share_their_prompt() -> None:
    sequences = [[*A, 1], [*A, 2, 3], [*B, 1], [*B, 4]]
    assert shared_groups(sequences) == [([0, 1], 20), ([2, 3], 30)]


def test_prompts_with_one_answer_share_their_system_turn() -> None:
    sequences = [[*S, *A], [*S, *B], [*S, 99]]
    assert shared_groups(sorted(sequences)) == [([0, 1, 2], 10)]


def test_a_group_is_not_merged_by_a_shorter_prefix_that_saves_less() -> None:
    sequences = [[*S, *A, 1], [*S, *A, 2], [*S, *A, 3], [*S, *B, 1], [*S, *B, 2]]
    assert shared_groups(sequences) == [([0, 1, 2], 30), ([3, 4], 40)]  # 60 + 40 tokens saved; all in one would save 40


def test_every_sequence_keeps_a_token_of_its_own() -> None:
    assert shared_groups([A, [*A, 1]]) == [([0, 1], 19)]


def test_a_short_prefix_is_not_computed_separately() -> None:
    assert shared_groups([[1, 2, 3, 4], [1, 2, 3, 5]]) == [([0], 0), ([1], 0)]


def test_a_long_list_is_split_and_its_prompt_computed_in_each_part() -> None:
    sequences = distinct_sequences([[*A, 1000 + number] for number in range(7)])
    batches = list(packed_batches(sequences, 23))
    assert batches == [[([0, 1, 2], 20)], [([3, 4, 5], 20)], [([6], 0)]]
    assert [packed_tokens(sequences, batch) for batch in batches] == [23, 23, 21]


def packed_tokens(sequences: Sequences, batch: list[Group]) -> int:
    return sum(sum(len(sequences.input_ids[place]) - shared for place in places) + shared for places, shared in batch)


def padded_tokens(sequences: Sequences, batch: list[Group]) -> int:
    return len(batch) * max(len(sequences.input_ids[place]) for places, _ in batch for place in places)


_sequence = st.lists(st.integers(0, 3), min_size=1, max_size=40)


@given(st.lists(_sequence, min_size=1, max_size=30), st.integers(1, 120))
def test_batches_hold_every_sequence_once_within_their_budget(ids: list[list[int]], budget: int) -> None:
    sequences = distinct_sequences([each * 3 for each in ids])
    for batches, tokens in ((packed_batches, packed_tokens), (padded_batches, padded_tokens)):
        seen: list[int] = []
        for batch in batches(sequences, budget):
            places = [place for group in batch for place in group.places]
            assert tokens(sequences, batch) <= budget or len(places) == 1
            for group in batch:
                members = [sequences.input_ids[place] for place in group.places]
                first = members[0][: group.shared]
                assert all(each[: len(first)] == first and len(each) > len(first) for each in members)
            seen += places
        assert sorted(seen) == list(range(len(sequences.input_ids)))


def test_padded_batches_start_with_the_longest() -> None:
    sequences = distinct_sequences([[1] * length for length in (3, 9, 5, 1)])
    batches = list(padded_batches(sequences, 12))
    found = [[len(sequences.input_ids[place]) for (place,), _ in batch] for batch in batches]
    assert found == [[9], [5, 3], [1]]


@pytest.mark.parametrize("count", [2, 5])
def test_halves_keep_the_order(count: int) -> None:
    sequences = distinct_sequences([[*A, number] for number in range(count)])
    (batch,) = packed_batches(sequences, 1000)
    halves = _halves(batch)
    assert halves is not None
    assert [place for half in halves for group in half for place in group.places] == list(range(count))
    assert count > 2 or _halves(halves[0]) is None


def _best_saving(sequences: list[list[int]]) -> int:
    """Return the tokens saved by the best partition into ranges, by exhaustive search."""
    best = 0
    for cuts in product([False, True], repeat=max(0, len(sequences) - 1)):
        groups: list[list[list[int]]] = [[sequences[0]]]
        for cut, ids in zip(cuts, sequences[1:], strict=True):
            groups.append([ids]) if cut else groups[-1].append(ids)
        saved = 0
        for group in groups:
            shared = len(common_prefix(group)) if len(group) > 1 else 0
            shared = min(shared, min(map(len, group)) - 1)
            saved += (len(group) - 1) * (shared if shared >= 8 else 0)
        best = max(best, saved)
    return best


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 9, 12, 20]), st.sampled_from([0, 5, 9]), st.integers(1, 3)),
        min_size=1,
        max_size=7,
    )
)
def test_the_partition_is_optimal(shapes):
    base = list(range(100, 130))
    lists = [base[:one] + [200 + one] * other + [own] for one, other, own in shapes]
    sequences = distinct_sequences(lists).input_ids
    groups = shared_groups(sequences)
    assert [place for members, _ in groups for place in members] == list(range(len(sequences)))
    saved = sum((len(members) - 1) * shared for members, shared in groups)
    assert saved == _best_saving(sequences)


def test_a_prefix_common_to_all_prompts_does_not_hide_longer_ones():
    """A greedy partition fails here: it groups by the template's words and then no longer shares complete prompts."""
    template, prompts = list(range(10)), [[100 + number] * 50 for number in range(4)]
    lists = [[*template, *prompt, answer] for prompt in prompts for answer in (1, 2)]
    sequences = distinct_sequences(lists).input_ids
    assert [(len(members), shared) for members, shared in shared_groups(sequences)] == [(2, 60)] * 4
