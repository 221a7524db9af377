"""Model inputs of token sequences, without labels: hand-computed cases."""

import pytest

from hf_reward.preprocessing.model_inputs import pack, pad


@pytest.mark.parametrize(("multiple", "length"), [(None, 3), (1, 3), (2, 4), (8, 8)])
def test_padding_is_on_the_right_and_masked(multiple, length):
    inputs = pad([[5, 6, 7], [8]], pad_token_id=9, multiple=multiple)
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert inputs["input_ids"].tolist() == [[5, 6, 7] + [9] * (length - 3), [8] + [9] * (length - 1)]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1] + [0] * (length - 3), [1] + [0] * (length - 1)]


def test_token_types_are_padded_with_zeros():
    inputs = pad([[5, 6], [7]], [[0, 1], [1]], pad_token_id=9)
    assert inputs["token_type_ids"].tolist() == [[0, 1], [1, 0]]


def test_a_packed_row_has_shared_tokens_once():
    prompt = list(range(10, 20))
    inputs = pack([[6, 7], [*prompt, 3], [*prompt, 4, 5], [*prompt, 3]])
    assert inputs["input_ids"].tolist() == [[6, 7, *prompt, 3, 4, 5]]
    assert inputs["position_ids"].tolist() == [[0, 1, *range(10), 10, 10, 11]]
    assert inputs["reward_positions"].tolist() == [1, 12, 14, 12]
    assert [(each.start, each.end, each.parent) for each in inputs["packed_layout"].segments] == [
        (0, 2, -1),
        (2, 12, -1),
        (12, 13, 1),
        (13, 15, 1),
    ]
