"""Model inputs of token sequences, without labels: hand-computed cases."""

import pytest

from hf_reward.preprocessing.model_inputs import SequenceGroup, pack, pad


@pytest.mark.parametrize(("multiple", "length"), [(None, 3), (1, 3), (2, 4), (8, 8)])
def test_padding_is_on_the_right_and_masked(multiple, length):
    inputs = pad([[5, 6, 7], [8]], pad_token_id=9, multiple=multiple)
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert inputs["input_ids"].tolist() == [[5, 6, 7] + [9] * (length - 3), [8] + [9] * (length - 1)]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1] + [0] * (length - 3), [1] + [0] * (length - 1)]


def test_token_types_are_padded_with_zeros():
    inputs = pad([[5, 6], [7]], [[0, 1], [1]], pad_token_id=9)
    assert inputs["token_type_ids"].tolist() == [[0, 1], [1, 0]]


def test_a_packed_row_stores_each_prefix_once():
    inputs = pack([SequenceGroup([[1, 2, 3], [1, 2, 4, 5]], 2), SequenceGroup([[6, 7]], 0)])
    assert inputs["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 2, 3, 0, 1]]
    assert inputs["reward_positions"].tolist() == [2, 4, 6]
    first, second = inputs["packed_layout"].groups
    assert (first.prefix, first.responses) == ((0, 2), ((2, 3), (3, 5)))
    assert (second.prefix, second.responses) == ((5, 5), ((5, 7),))
