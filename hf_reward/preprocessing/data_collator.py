"""Tokenised rows -> one padded batch.

Shapes: G groups, K responses in a group, N sequences (sum of K), L padded length.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_reward.losses.functions import PADDING_RANK

UNUSED_COLUMNS: dict[str, Any] = {
    "group": 0,
    "row": 0,
    "source": "",
    "weight": 1.0,
    "margin": None,
    "probability": None,
}
"""What a row states for losses and metrics, where there are none."""


@dataclass
class DataCollatorForPreference:
    """Pads the responses of a batch of groups, on the right, to the longest of them.

    The first tensor of a batch has one entry per group, because transformers and accelerate read the batch size off it.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Collate rows.

        Args:
            rows: Rows as `prepare_preferences` makes them; or TRL's (`chosen_ids`, `rejected_ids` and perhaps
                `margin`), of which the batch is TRL's: `input_ids` and `attention_mask` `(2G, L)` with all chosen sides
                first, and `margin` `(G,)`.

        Returns:
            `ranks`, `lengths`, `words` and `characters` `(G, K)`, the last two -100 where they are not known; `groups`,
            `row`, `sources`, `weights` and `num_tokens` `(G,)`; `margins` and `probabilities` `(G,)` where a row has
            one; `input_ids` and `attention_mask` `(N, L)`, and `token_type_ids` where the tokenizer makes them.
        """
        if "chosen_ids" in rows[0]:
            return self._trl_batch(rows)
        batch = group_columns(rows)
        sequences = [ids for row in rows for ids in row["input_ids"]]
        length = self._padded_length(max(map(len, sequences)))
        batch["input_ids"] = _pad(sequences, length, self.pad_token_id)
        batch["attention_mask"] = _pad([[1] * len(ids) for ids in sequences], length, 0)
        if rows[0].get("token_type_ids") is not None:
            batch["token_type_ids"] = _pad([types for row in rows for types in row["token_type_ids"]], length, 0)
        return batch

    def _trl_batch(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        sequences = [row[side] for side in ("chosen_ids", "rejected_ids") for row in rows]
        length = self._padded_length(max(map(len, sequences)))
        batch = {
            "input_ids": _pad(sequences, length, self.pad_token_id),
            "attention_mask": _pad([[1] * len(ids) for ids in sequences], length, 0),
        }
        margin = {"margin": torch.tensor([row["margin"] for row in rows])} if "margin" in rows[0] else {}
        return batch | margin

    def tokens(self, rows: Sequence[dict[str, Any]]) -> int:
        """Tokens that the model computes for these rows, padding included."""
        lengths = [len(ids) for row in rows for ids in row["input_ids"]]
        return len(lengths) * self._padded_length(max(lengths))

    def _padded_length(self, longest: int) -> int:
        multiple = self.pad_to_multiple_of or 1
        return (longest + multiple - 1) // multiple * multiple


def group_columns(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """What a batch says about its groups, whatever form its tokens take.

    Args:
        rows: Tokenised rows.

    Returns:
        The `(G, K)` and `(G,)` tensors of a batch.
    """
    places = max(len(row["ranks"]) for row in rows)
    lengths = [[len(ids) - row["prefix_length"] for ids in row["input_ids"]] for row in rows]
    batch = {
        "ranks": _pad([row["ranks"] for row in rows], places, PADDING_RANK),
        "lengths": _pad(lengths, places, PADDING_RANK),
        "words": _pad([row.get("words") or [] for row in rows], places, PADDING_RANK),
        "characters": _pad([row.get("characters") or [] for row in rows], places, PADDING_RANK),
        "groups": torch.tensor([row["group"] for row in rows]),
        "row": torch.tensor([row["row"] for row in rows]),
        "sources": torch.tensor([source_number(row["source"]) for row in rows]),
        "weights": torch.tensor([row["weight"] for row in rows], dtype=torch.float32),
        "num_tokens": torch.tensor([sum(map(len, row["input_ids"])) for row in rows]),
    }
    # A mixture may state margins or probabilities for some of its rows only.
    if any(row["margin"] is not None for row in rows):
        batch["margins"] = torch.tensor([row["margin"] or 0.0 for row in rows], dtype=torch.float32)
    if any(row["probability"] is not None for row in rows):
        stated = [float("nan") if row["probability"] is None else row["probability"] for row in rows]
        batch["probabilities"] = torch.tensor(stated, dtype=torch.float32)
    return batch


def source_number(name: str) -> int:
    """A source's name as a number, so that it fits a tensor and can be gathered from other processes."""
    return zlib.crc32(name.encode())


def _pad(sequences: Sequence[Sequence[int]], length: int, value: int) -> Tensor:
    return torch.tensor([[*sequence, *[value] * (length - len(sequence))] for sequence in sequences])
