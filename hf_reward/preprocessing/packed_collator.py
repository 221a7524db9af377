"""Collate tokenised rows to a packed batch that stores each shared prefix once.

Shapes: G groups, K responses in a group, N sequences (sum of K), T packed tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_reward.preprocessing.data_collator import group_columns
from hf_reward.preprocessing.model_inputs import SequenceGroup, pack


@dataclass
class DataCollatorForPackedPreference:
    """Pack a batch of groups into one row without padding, with each shared prefix stored once."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Args:
            rows: Rows of `prepare_preferences`.

        Returns:
            The tensors of `group_columns` and `pack`.
        """
        groups = [SequenceGroup(row["input_ids"], row["prefix_length"]) for row in rows]
        return group_columns(rows) | pack(groups)

    def tokens(self, rows: Sequence[dict[str, Any]]) -> int:
        """Count the tokens that the model processes for these rows, with each shared prefix counted once."""
        return sum(sum(map(len, row["input_ids"])) - (len(row["ranks"]) - 1) * row["prefix_length"] for row in rows)
