"""Batches: right-padded sequences of all responses, and one entry per group for everything else."""

import math
from typing import Any

import pytest
import torch

from hf_reward.losses.functions import PADDING_RANK
from hf_reward.preprocessing.data_collator import DataCollatorForPreference, group_columns, source_number
from hf_reward.preprocessing.preparation import prepare_preferences

PAD = 99


def make_row(*sequences: list[int], ranks: list[int] | None = None, **other: Any) -> dict[str, Any]:
    return {
        "input_ids": list(sequences),
        "token_type_ids": None,
        "ranks": ranks or list(range(len(sequences))),
        "prefix_length": 1,
        "margin": None,
        "probability": None,
        "weight": 1.0,
        "group": 2**59 + 1,
        "row": 0,
        "source": "data",
        **other,
    }


ROWS = [
    make_row([1, 2], [1, 3, 4], ranks=[1, 0], row=7, weight=0.5),
    make_row([5, 6, 7, 8], [5, 9], [5, 1, 1], ranks=[0, 2, 1], row=3, source="other", group=4),
]


def test_sequences_are_padded_on_the_right_in_the_order_of_groups_and_responses():
    batch = DataCollatorForPreference(pad_token_id=PAD)(ROWS)
    assert batch["input_ids"].tolist() == [
        [1, 2, PAD, PAD],
        [1, 3, 4, PAD],
        [5, 6, 7, 8],
        [5, 9, PAD, PAD],
        [5, 1, 1, PAD],
    ]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64


def test_groups_of_different_size_are_padded_with_the_padding_rank():
    batch = DataCollatorForPreference(pad_token_id=PAD)(ROWS)
    assert batch["ranks"].tolist() == [[1, 0, PADDING_RANK], [0, 2, 1]]
    # Tokens of the response without the common prefix of its row.
    assert batch["lengths"].tolist() == [[1, 2, PADDING_RANK], [3, 1, 2]]
    assert (batch["ranks"] != PADDING_RANK).sum() == len(batch["input_ids"])


def test_group_tensors_have_one_entry_per_group():
    batch = DataCollatorForPreference(pad_token_id=PAD)(ROWS)
    assert batch["groups"].tolist() == [2**59 + 1, 4]  # too large for a float32
    assert batch["row"].tolist() == [7, 3]
    assert batch["sources"].tolist() == [source_number("data"), source_number("other")]
    assert batch["weights"].tolist() == [0.5, 1.0]
    assert batch["weights"].dtype == torch.float32


def test_the_first_tensor_of_a_batch_counts_groups_not_sequences():
    batch = DataCollatorForPreference(pad_token_id=PAD)(ROWS)
    assert next(iter(batch.values())).shape[0] == len(ROWS)
    assert next(iter(group_columns(ROWS).values())).shape[0] == len(ROWS)


def test_a_token_that_equals_the_pad_token_is_still_attended():
    batch = DataCollatorForPreference(pad_token_id=2)(ROWS)
    assert batch["attention_mask"][0].tolist() == [1, 1, 0, 0]


def test_margins_and_probabilities_are_returned_only_if_a_row_has_one():
    collate = DataCollatorForPreference(pad_token_id=PAD)
    assert not {"margins", "probabilities"} & collate(ROWS).keys()
    some = [ROWS[0] | {"margin": 0.25}, ROWS[0] | {"probability": 0.0}]
    batch = collate(some)
    assert batch["margins"].tolist() == [0.25, 0.0]
    assert math.isnan(batch["probabilities"][0])
    assert batch["probabilities"][1] == 0.0  # a probability of 0 is not a missing one
    assert batch["margins"].dtype == batch["probabilities"].dtype == torch.float32


def test_a_stated_margin_of_zero_is_a_margin():
    assert DataCollatorForPreference(pad_token_id=PAD)([ROWS[0] | {"margin": 0.0}])["margins"].tolist() == [0.0]


def test_token_types_are_padded_with_zero_and_absent_where_there_are_none():
    collate = DataCollatorForPreference(pad_token_id=PAD)
    assert "token_type_ids" not in collate(ROWS)
    batch = collate([make_row([1, 2], [1, 3, 4], token_type_ids=[[0, 1], [0, 1, 1]])])
    assert batch["token_type_ids"].tolist() == [[0, 1, 0], [0, 1, 1]]


@pytest.mark.parametrize(("multiple", "width"), [(None, 4), (1, 4), (2, 4), (3, 6), (8, 8)])
def test_the_padded_length_is_the_next_multiple(multiple, width):
    batch = DataCollatorForPreference(pad_token_id=PAD, pad_to_multiple_of=multiple)(ROWS)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (5, width)
    assert batch["attention_mask"].sum().item() == 14
    assert (batch["input_ids"][batch["attention_mask"] == 0] == PAD).all()


def test_collating_does_not_change_the_rows():
    rows = [make_row([1, 2], [1, 3, 4])]
    DataCollatorForPreference(pad_token_id=PAD, pad_to_multiple_of=8)(rows)
    assert rows == [make_row([1, 2], [1, 3, 4])]


def test_prepared_rows_collate_to_the_tokens_that_were_prepared(text_pairs, text_tokenizer):
    data, _ = prepare_preferences(text_pairs[:3], text_tokenizer)
    batch = DataCollatorForPreference(pad_token_id=PAD)([data[place] for place in range(3)])
    ids = [ids for row in data["input_ids"] for ids in row]
    masked = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert masked == ids
    assert batch["ranks"].tolist() == [[0, 1]] * 3
