"""Batches of sequences: hand-computed cases and properties."""

from hypothesis import given
from hypothesis import strategies as st

from hf_reward.preprocessing.prefix_tree import pack_sequences
from hf_reward.scoring.sequence_scorer import Sequences, distinct_sequences, packed_batches, padded_batches

A = list(range(100, 120))


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


def test_a_long_list_is_split_and_its_prompt_computed_in_each_part() -> None:
    sequences = distinct_sequences([[*A, 1000 + number] for number in range(7)])
    batches = list(packed_batches(sequences, 23))
    assert batches == [[0, 1, 2], [3, 4, 5], [6]]
    assert [packed_tokens(sequences, batch) for batch in batches] == [23, 23, 21]


def test_a_batch_keeps_its_budget_where_a_short_prefix_is_not_shared() -> None:
    sequences = distinct_sequences([[1, 2, 3, number] for number in range(10, 13)])  # 12 tokens, of which 6 could be
    assert list(packed_batches(sequences, 7)) == [[0], [1], [2]]
    assert list(packed_batches(sequences, 8)) == [[0, 1], [2]]


def packed_tokens(sequences: Sequences, batch: list[int]) -> int:
    return len(pack_sequences([sequences.input_ids[place] for place in batch]).input_ids)


def padded_tokens(sequences: Sequences, batch: list[int]) -> int:
    return len(batch) * max(len(sequences.input_ids[place]) for place in batch)


_sequence = st.lists(st.integers(0, 3), min_size=1, max_size=40)


@given(st.lists(_sequence, min_size=1, max_size=30), st.integers(1, 120))
def test_batches_hold_every_sequence_once_within_their_budget(ids: list[list[int]], budget: int) -> None:
    sequences = distinct_sequences([each * 3 for each in ids])
    for batches, tokens in ((packed_batches, packed_tokens), (padded_batches, padded_tokens)):
        seen: list[int] = []
        for batch in batches(sequences, budget):
            assert tokens(sequences, batch) <= budget or len(batch) == 1
            seen += batch
        assert sorted(seen) == list(range(len(sequences.input_ids)))


def test_padded_batches_start_with_the_longest() -> None:
    sequences = distinct_sequences([[1] * length for length in (3, 9, 5, 1)])
    batches = list(padded_batches(sequences, 12))
    found = [[len(sequences.input_ids[place]) for place in batch] for batch in batches]
    assert found == [[9], [5, 3], [1]]
