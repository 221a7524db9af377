"""Make model inputs from token sequences: padded, or packed as a forest in which shared tokens occur once.

Shapes: N sequences, L padded length, T packed tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_reward.preprocessing.prefix_tree import pack_sequences


def pad(
    sequences: Sequence[Sequence[int]],
    token_type_ids: Sequence[Sequence[int]] | None = None,
    *,
    pad_token_id: int,
    multiple: int | None = None,
) -> dict[str, Tensor]:
    """Pad sequences on the right to the longest one.

    Args:
        sequences: Token ids of each sequence.
        token_type_ids: Token types, if the model uses them.
        pad_token_id: Token id of the padding.
        multiple: Pad to a multiple of this length.

    Returns:
        `input_ids`, `attention_mask` and, if given, `token_type_ids`, shape `(N, L)`.
    """
    length = padded_length(max(map(len, sequences)), multiple)
    inputs = {
        "input_ids": right_padded(sequences, length, pad_token_id),
        "attention_mask": right_padded([[1] * len(ids) for ids in sequences], length, 0),
    }
    types = {} if token_type_ids is None else {"token_type_ids": right_padded(token_type_ids, length, 0)}
    return inputs | types


def padded_length(longest: int, multiple: int | None) -> int:
    """Round the length of the longest sequence up to a multiple."""
    return -(-longest // (multiple or 1)) * (multiple or 1)


def right_padded(rows: Sequence[Sequence[int]], length: int, value: int) -> Tensor:
    """Pad rows on the right with a value, to shape `(N, length)`."""
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])


def pack(sequences: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Arrange sequences in one row without padding, in which tokens that sequences begin with in common occur once.

    Args:
        sequences: Token ids of each sequence.

    Returns:
        `input_ids` and `position_ids` `(1, T)`, `reward_positions` `(N,)`, the place of the last token of each
        sequence, and `packed_layout`, the segments of the row.
    """
    packed = pack_sequences(sequences)
    return {
        "input_ids": torch.tensor([packed.input_ids]),
        "position_ids": torch.tensor([packed.position_ids]),
        "reward_positions": torch.tensor(packed.last),
        "packed_layout": packed.layout,
    }
