"""Make model inputs from token sequences: padded, or packed with each shared prefix stored once.

Shapes: N sequences, L padded length, T packed tokens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_reward.preprocessing.packed_layout import GroupSegments, PackedLayout


class SequenceGroup(NamedTuple):
    """Token sequences with a shared prefix."""

    sequences: Sequence[list[int]]
    prefix_length: int
    """Number of common leading tokens, less than the length of the shortest sequence."""


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


def pack(groups: Sequence[SequenceGroup]) -> dict[str, Any]:
    """Concatenate sequences to one row without padding, with each shared prefix stored once.

    Args:
        groups: Groups of sequences.

    Returns:
        `input_ids` and `position_ids` `(1, T)`, `reward_positions` `(N,)` and `packed_layout`, the segments of each
        group.
    """
    ids: list[int] = []
    positions: list[int] = []
    last: list[int] = []
    layout: list[GroupSegments] = []
    for sequences, shared in groups:
        start = len(ids)
        ids += sequences[0][:shared]
        positions += range(shared)
        segments = []
        for sequence in sequences:
            segments.append((len(ids), len(ids) + len(sequence) - shared))
            ids += sequence[shared:]
            positions += range(shared, len(sequence))
            last.append(len(ids) - 1)
        layout.append(GroupSegments((start, start + shared), tuple(segments)))
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "reward_positions": torch.tensor(last),
        "packed_layout": PackedLayout(tuple(layout)),
    }
