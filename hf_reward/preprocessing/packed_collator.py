"""Tokenized groups -> one packed batch in which each prompt stands once.

Shapes: G groups, K responses in a group, N sequences (sum of K), T packed tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_reward.preprocessing.data_collator import group_columns
from hf_reward.preprocessing.model_inputs import SequenceGroup, pack


@dataclass
class DataCollatorForPackedPreference:
    """Packs a batch of groups into one row; each shared prefix is there once, and there is no padding."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Args:
            rows: Rows as `prepare_preferences` makes them.

        Returns:
            What `group_columns` and `pack` return.
        """
        groups = [SequenceGroup(row["input_ids"], row["prefix_length"]) for row in rows]
        return group_columns(rows) | pack(groups)

    def tokens(self, rows: Sequence[dict[str, Any]]) -> int:
        """Tokens that the model computes for these rows: each shared prefix once."""
        return sum(sum(map(len, row["input_ids"])) - (len(row["ranks"]) - 1) * row["prefix_length"] for row in rows)
