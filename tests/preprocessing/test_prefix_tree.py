"""Prefix trees of sequences: hand-computed forests, and properties for any sequences."""

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hf_reward.preprocessing.packed_layout import Segment
from hf_reward.preprocessing.prefix_tree import (
    LEAST_SAVED,
    TOKENS_PER_SAVED,
    PackedTokens,
    pack_sequences,
    shared_with_previous,
    sorted_distinct,
)

A, B, C = list(range(100, 110)), list(range(200, 230)), list(range(300, 320))


def tree(sequences: Sequence[list[int]]) -> list[tuple[int, int]]:
    """Return the length and the parent of each segment."""
    return [(each.end - each.start, each.parent) for each in pack_sequences(sequences).layout.segments]


def read(packed: PackedTokens, last: int) -> tuple[list[int], list[int]]:
    """Return the token ids and the positions of the sequence that ends at a place of the row."""
    layout = packed.layout
    (own,) = [place for place, each in enumerate(layout.segments) if each.start <= last < each.end]
    before = [layout.segments[each] for each in layout.ancestors[own]]
    places = [place for each in before for place in range(each.start, each.end)]
    places += range(layout.segments[own].start, last + 1)
    return [packed.input_ids[place] for place in places], [packed.position_ids[place] for place in places]


def test_the_responses_of_a_prompt_share_it() -> None:
    packed = pack_sequences([[*A, 1, 2], [*A, 3]])
    assert packed.input_ids == [*A, 1, 2, 3]
    assert packed.position_ids == [*range(10), 10, 11, 10]
    assert packed.last == [11, 12]
    assert packed.layout.segments == (Segment(0, 10, -1, 13), Segment(10, 12, 0, 12), Segment(12, 13, 0, 13))


def test_a_response_of_several_rows_is_computed_once() -> None:
    one, two, three = [*A, 1, 2], [*A, 3], [*A, 4]
    packed = pack_sequences([one, two, two, three, one, three])
    assert len(packed.input_ids) == 10 + 2 + 1 + 1
    assert packed.last == [11, 12, 12, 13, 11, 13]


def test_prompts_share_their_beginning_to_any_depth() -> None:
    sequences = [[*C, *A, 1, *B, 5], [*C, *A, 1, *B, 6], [*C, *A, 2], [*C, 7]]
    assert tree(sequences) == [(20, -1), (1, 0), (10, 0), (31, 2), (1, 3), (1, 3), (1, 2)]


def test_a_sequence_that_begins_another_is_read_inside_of_it() -> None:
    packed = pack_sequences([A[:3], [*A, 1], A])
    assert packed.input_ids == [*A, 1]
    assert packed.last == [2, 10, 9]
    assert len(packed.layout.segments) == 1


def test_sequences_without_common_tokens_are_separate_trees() -> None:
    assert tree([A, B, C]) == [(10, -1), (30, -1), (20, -1)]


def test_a_segment_must_save_eight_tokens() -> None:
    assert LEAST_SAVED == 8
    assert tree([[*A[:7], 1], [*A[:7], 2]]) == [(8, -1), (8, -1)]
    assert tree([[*A[:8], 1], [*A[:8], 2]]) == [(8, -1), (1, 0), (1, 0)]
    assert tree([[*A[:4], 1], [*A[:4], 2], [*A[:4], 3]]) == [(4, -1), (1, 0), (1, 0), (1, 0)]  # 2 x 4 are saved


def test_a_segment_must_save_a_token_for_each_32_that_continue_it() -> None:
    assert TOKENS_PER_SAVED == 32
    prefix = list(range(10))
    enough, too_many = list(range(1000, 1000 + 160)), list(range(2000, 2000 + 160))
    assert len(tree([prefix + enough, prefix + too_many])) == 3  # 320 tokens continue 10
    assert len(tree([[*prefix, *enough, 1], prefix + too_many])) == 2


def test_the_children_of_a_segment_that_saves_too_little_keep_their_own() -> None:
    sequences = [[1, *A, 5], [1, *A, 6], [1, *B, 5], [1, *B, 6]]  # token 1 alone would save 1
    assert tree(sequences) == [(11, -1), (1, 0), (1, 0), (31, -1), (1, 3), (1, 3)]


def test_equal_sequences_are_found_again_and_sorted_as_numbers() -> None:
    given_ids = [[256], [70_000], [255], [1, 5], [256], [1]]
    order, where = sorted_distinct(given_ids)
    assert [given_ids[place] for place in order] == [[1], [1, 5], [255], [256], [70_000]]
    assert [given_ids[order[place]] for place in where] == given_ids
    assert shared_with_previous([[1], [1, 5], [1, 5, 9], [2]]) == [0, 1, 2, 0]
    assert shared_with_previous([]) == []


def related() -> Any:
    """Sequences of which most continue a part of an earlier one."""
    piece = st.lists(st.integers(0, 2), min_size=1, max_size=25)

    def join(parts: list[tuple[list[int], int, int]]) -> list[list[int]]:
        found: list[list[int]] = []
        for own, which, kept in parts:
            found.append((found[which % len(found)][:kept] if found else []) + own)
        return found

    return st.lists(st.tuples(piece, st.integers(0, 20), st.integers(0, 60)), min_size=1, max_size=20).map(join)


@given(related())
def test_every_sequence_is_found_in_the_row(sequences: list[list[int]]) -> None:
    packed = pack_sequences(sequences)
    for ids, last in zip(sequences, packed.last, strict=True):
        assert read(packed, last) == (ids, list(range(len(ids))))


@given(related())
def test_segments_are_in_depth_first_order(sequences: list[list[int]]) -> None:
    packed = pack_sequences(sequences)
    segments, ends = packed.layout.segments, [each.end for each in packed.layout.segments]
    assert [each.start for each in segments] == [0, *ends[:-1]]
    assert len(packed.input_ids) == len(packed.position_ids) == ends[-1]
    for place, (each, ancestors) in enumerate(zip(segments, packed.layout.ancestors, strict=True)):
        assert each.end > each.start
        below = [other for other, those in enumerate(packed.layout.ancestors) if place in those]
        assert each.subtree_end == max([each.end, *(segments[other].end for other in below)])
        assert below == list(range(place + 1, place + 1 + len(below)))
        assert not ancestors or ancestors[-1] == each.parent


@given(related())
def test_tokens_lie_between_the_distinct_prefixes_and_the_distinct_sequences(sequences: list[list[int]]) -> None:
    """The number of distinct prefixes is that of the nodes of a trie, counted here by brute force."""
    distinct = {tuple(ids) for ids in sequences}
    trie = {ids[:end] for ids in distinct for end in range(1, len(ids) + 1)}
    computed = len(pack_sequences(sequences).input_ids)
    assert len(trie) <= computed <= sum(map(len, distinct))
    assert computed <= len(trie) * (1 + 1 / TOKENS_PER_SAVED) + LEAST_SAVED * len(distinct)


@given(related(), st.randoms())
def test_the_order_of_the_sequences_changes_only_where_they_are_read(sequences: list[list[int]], draw: Any) -> None:
    places = list(range(len(sequences)))
    draw.shuffle(places)
    one, other = pack_sequences(sequences), pack_sequences([sequences[place] for place in places])
    assert one.input_ids == other.input_ids
    assert one.layout.segments == other.layout.segments
    assert [one.last[place] for place in places] == other.last


def test_a_conversation_of_many_turns_is_a_deep_tree() -> None:
    turns = [[10_000 + number] * 9 for number in range(1500)]
    sequences, history = [], list[int]()
    for number, turn in enumerate(turns):
        history = [*history, *turn]
        sequences.append([*history, number])
    packed = pack_sequences(sequences[:1200])
    assert all(read(packed, packed.last[place])[0] == sequences[place] for place in (0, 600, 1199))
