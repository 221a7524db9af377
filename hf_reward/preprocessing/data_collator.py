"""Collate tokenised rows to a padded batch.

Shapes: G groups, K responses in a group, N sequences (sum of K), L padded length.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_reward.losses.functions import PADDING_RANK
from hf_reward.preprocessing.model_inputs import pad, padded_length, right_padded


@dataclass
class DataCollatorForPreference:
    """Pad the responses of a batch of groups on the right, to the longest one.

    The first tensor of a batch has one entry per group, because transformers and accelerate infer the batch size from
    it.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    images: Any = None
    """`ImageBatch` of a vision-language model."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Collate rows.

        Args:
            rows: Rows of `prepare_preferences`; or rows in TRL's format (`chosen_ids`, `rejected_ids` and optionally
                `margin`), which give a batch in TRL's format: `input_ids` and `attention_mask` `(2G, L)` with all
                chosen sides first, and `margin` `(G,)`.

        Returns:
            `ranks`, `lengths`, `words` and `characters` `(G, K)`, the last two -100 if unknown; `groups`, `row`,
            `sources`, `weights` and `num_tokens` `(G,)`; `margins` and `probabilities` `(G,)` if a row has one;
            `input_ids` and `attention_mask` `(N, L)`, and `token_type_ids` if the tokenizer returns them; with images,
            the entries of `ImageBatch.complete`.
        """
        if "chosen_ids" in rows[0]:
            return self._trl_batch(rows)
        sequences = [ids for row in rows for ids in row["input_ids"]]
        types = None
        if rows[0].get("token_type_ids") is not None:
            types = [each for row in rows for each in row["token_type_ids"]]
        if self.images is not None:
            return group_columns(rows) | self.images.of_rows(rows, self._padded)
        return group_columns(rows) | self._padded(sequences, types)

    def _trl_batch(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        margin = {"margin": torch.tensor([row["margin"] for row in rows])} if "margin" in rows[0] else {}
        return self._padded([row[side] for side in ("chosen_ids", "rejected_ids") for row in rows]) | margin

    def _padded(
        self, sequences: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None
    ) -> dict[str, Tensor]:
        return pad(sequences, types, pad_token_id=self.pad_token_id, multiple=self.pad_to_multiple_of)

    def tokens(self, rows: Sequence[dict[str, Any]]) -> int:
        """Count the tokens that the model processes for these rows, including padding."""
        lengths = [len(ids) for row in rows for ids in row["input_ids"]]
        return len(lengths) * padded_length(max(lengths), self.pad_to_multiple_of)


def group_columns(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Return the tensors of a batch that describe its groups, which are the same for padded and packed batches.

    Args:
        rows: Tokenised rows.

    Returns:
        The `(G, K)` and `(G,)` tensors of a batch.
    """
    places = max(len(row["ranks"]) for row in rows)
    lengths = [[len(ids) - row["prefix_length"] for ids in row["input_ids"]] for row in rows]
    batch = {
        "ranks": right_padded([row["ranks"] for row in rows], places, PADDING_RANK),
        "lengths": right_padded(lengths, places, PADDING_RANK),
        "words": right_padded([row.get("words") or [] for row in rows], places, PADDING_RANK),
        "characters": right_padded([row.get("characters") or [] for row in rows], places, PADDING_RANK),
        "groups": torch.tensor([row["group"] for row in rows]),
        "row": torch.tensor([row["row"] for row in rows]),
        "sources": torch.tensor([source_number(row["source"]) for row in rows]),
        "weights": torch.tensor([row["weight"] for row in rows], dtype=torch.float32),
        "num_tokens": torch.tensor([sum(map(len, row["input_ids"])) for row in rows]),
    }
    # In a mixture, only some rows may have margins or probabilities.
    if any(row["margin"] is not None for row in rows):
        batch["margins"] = torch.tensor([row["margin"] or 0.0 for row in rows], dtype=torch.float32)
    if any(row["probability"] is not None for row in rows):
        stated = [float("nan") if row["probability"] is None else row["probability"] for row in rows]
        batch["probabilities"] = torch.tensor(stated, dtype=torch.float32)
    return batch


def source_number(name: str) -> int:
    """Hash a source's name to an integer, which fits a tensor and can be gathered from other processes."""
    return zlib.crc32(name.encode())
