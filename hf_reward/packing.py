"""Tokenised rows -> one row without padding that holds each shared prefix once, and a model that reads it.

A pair shares its prompt, so encoding both sides computes the prompt twice, and padding computes tokens that do not
exist. Here a batch of G groups is one row of T tokens: for each group the shared prefix, then each response's own
tokens, with position ids that go on from the prefix. A response attends to its prefix and itself, causally; groups do
not see each other (`packed_attention`). The rewards are those of the padded batch.

Shapes: G groups, K responses in a group, N sequences (sum of K), T packed tokens, H hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_reward.data_collator import group_columns
from hf_reward.packed_attention import GroupSegments, PackedLayout, packed_attention
from hf_reward.reward_head import ReadsLastToken

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


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


# --- switching a model over ------------------------------------------------------------------------------------------


def why_not_packed(model: nn.Module) -> str | None:
    """Why a model cannot take packed batches, or None if it can.

    Args:
        model: The bare reward model, without PEFT's wrapper.

    Returns:
        The reason, in a few words.
    """
    if not isinstance(model, ReadsLastToken) or not isinstance(model, PreTrainedModel):
        return "it is an encoder, whose tokens see those after them"
    config = model.config.get_text_config()
    other = sorted(set(getattr(config, "layer_types", None) or []) - _KNOWN_LAYERS)
    replaceable = getattr(model.base_model, "_supports_attention_backend", False)
    stateful = getattr(model, "_is_stateful", False)
    reasons = {
        "it caps attention scores": getattr(config, "attn_logit_softcapping", None) is not None,
        "it has attention sinks": any("sink" in name for name, _ in model.named_parameters()),
        "it carries a state from token to token (state space or linear attention)": stateful,
        f"it has layers of the kind {', '.join(other)}": bool(other),
        "transformers does not let its attention be replaced": not replaceable,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


@contextmanager
def packed_model(model: PreTrainedModel) -> Iterator[None]:
    """Let a model take packed batches, and padded ones as before; on leaving it is as it was.

    Args:
        model: The bare reward model, without PEFT's wrapper.
    """
    before = str(model.config._attn_implementation)
    if before.startswith("hf_reward_"):  # already inside
        yield
        return
    model.set_attn_implementation(_register(before if before in ALL_ATTENTION_FUNCTIONS else "sdpa"))
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def require_packed_model(model: PreTrainedModel) -> None:
    """Stop before a model reads a packed row as one long text, which would give wrong rewards in silence.

    Args:
        model: The bare reward model, without PEFT's wrapper.

    Raises:
        ValueError: If it is not inside `packed_model`.
    """
    if not str(model.config._attn_implementation).startswith("hf_reward_"):
        raise ValueError("A packed batch needs its model inside `packed_model(model)`. Enter it, or collate padded.")


@cache
def _register(padded: str) -> str:
    """Register our attention under a name of its own; batches without a layout go to the implementation `padded`."""
    name = f"hf_reward_{padded.encode().hex()}"  # transformers takes a name with "sdpa" or "flash" in it for theirs
    AttentionInterface.register(name, partial(_attention, ALL_ATTENTION_FUNCTIONS[padded]))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[padded])
    return name


def _attention(
    padded: Any,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_layout: PackedLayout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: the layout comes with the batch, through every decoder layer."""
    if packed_layout is None:
        return padded(module, query, key, value, attention_mask, **options)
    taken = {name: options.get(name) for name in ("scaling", "sliding_window")}
    return packed_attention(query, key, value, packed_layout, dropout=options.get("dropout") or 0.0, **taken), None
