"""Tokenized groups -> one packed batch in which each prompt stands once.

Shapes: G groups, K responses in a group, N sequences (sum of K), T packed tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_reward.preprocessing.data_collator import group_columns
from hf_reward.preprocessing.packed_layout import GroupSegments, PackedLayout


@dataclass
class DataCollatorForPackedPreference:
    """Packs a batch of groups into one row; each shared prefix is there once, and there is no padding."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Args:
            rows: Rows as `prepare_preferences` makes them.

        Returns:
            What `group_columns` returns, and `input_ids` and `position_ids` `(1, T)`, `reward_positions` `(N,)` and
            `packed_layout`, the segments of each group.
        """
        batch: dict[str, Any] = dict(group_columns(rows))
        ids: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        layout: list[GroupSegments] = []
        for row in rows:
            shared = row["prefix_length"]
            start = len(ids)
            ids += row["input_ids"][0][:shared]
            positions += range(shared)
            segments = []
            for sequence in row["input_ids"]:
                segments.append((len(ids), len(ids) + len(sequence) - shared))
                ids += sequence[shared:]
                positions += range(shared, len(sequence))
                last.append(len(ids) - 1)
            layout.append(GroupSegments((start, start + shared), tuple(segments)))
        batch["input_ids"] = torch.tensor([ids])
        batch["position_ids"] = torch.tensor([positions])
        batch["reward_positions"] = torch.tensor(last)
        batch["packed_layout"] = PackedLayout(tuple(layout))
        return batch

    def tokens(self, rows: Sequence[dict[str, Any]]) -> int:
        """Tokens that the model computes for these rows: each shared prefix once."""
        return sum(sum(map(len, row["input_ids"])) - (len(row["ranks"]) - 1) * row["prefix_length"] for row in rows)
