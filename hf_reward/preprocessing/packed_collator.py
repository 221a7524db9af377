"""Collate tokenised rows to a packed batch that computes the tokens shared by its sequences once.

Shapes: G groups, K responses in a group, N sequences (sum of K), T packed tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_reward.preprocessing.data_collator import group_columns
from hf_reward.preprocessing.model_inputs import pack
from hf_reward.preprocessing.prefix_tree import pack_sequences


@dataclass
class DataCollatorForPackedPreference:
    """Pack a batch of groups into one row without padding.

    Tokens at the beginning of several sequences occur once, whichever rows the sequences are from: prompts, the turns
    of a conversation, and responses that are part of several rows. Each row keeps its own ranks, weight, margin and
    probability.
    """

    images: Any = None
    """`ImageBatch` of a vision-language model."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Args:
            rows: Rows of `prepare_preferences`.

        Returns:
            The tensors of `group_columns` and `pack`; with images, also those of `ImageBatch.complete`.
        """
        if self.images is not None:
            return group_columns(rows) | self.images.of_rows(rows, pack)
        return group_columns(rows) | pack(_sequences(rows))

    def tokens(self, rows: Sequence[dict[str, Any]]) -> int:
        """Count the tokens that the model processes for these rows, with shared tokens counted once."""
        sequences = _sequences(rows) if self.images is None else self.images.sequences(rows)
        return len(pack_sequences(sequences).input_ids)


def _sequences(rows: Sequence[dict[str, Any]]) -> list[list[int]]:
    return [ids for row in rows for ids in row["input_ids"]]
