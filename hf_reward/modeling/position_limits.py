"""Model -> the longest sequence that its absolute positions allow, in tokens.

Training, scoring, serving, verification, the probes and the dry run all ask `position_limit`. Rotary, relative and
ALiBi positions have no end, whatever `max_position_embeddings` says: such a model is limited by the recorded
`max_length` only. The exceptions are rotary positions whose frequencies follow the longest row of a batch.
"""

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from hf_reward.modeling.reward_head import RewardModel, unwrap_model

_TABLE = re.compile(r"((char_)?position_embeddings?|positions_embed|embed_positions|wpe|pos_encoding)\Z")
"""Names under which transformers' models hold a table with a row for each position."""


def position_limit(model: RewardModel) -> int | None:
    """Longest sequence that a model takes, in tokens: exactly as long as its tables of positions reach.

    Of a table of n rows OPT and BART skip an `offset` before their first position, as the table itself says, so that
    `max_position_embeddings` tokens fit. RoBERTa and what was made of it count from `padding_idx + 1`, and so many
    tokens fewer fit. BERT and GPT-2 lose none.

    Dynamic NTK and LongRoPE scale all rows of a batch by the longest one as soon as that is longer than the model's
    original length, so that a reward would depend on its neighbours. That length is their limit.

    Args:
        model: A reward model, perhaps wrapped by PEFT; its weights may be on the meta device or sharded.

    Returns:
        The number of tokens, None where positions have no end.
    """
    bare: Any = unwrap_model(model)
    limits = [limit for module in bare.modules() for limit in _limits_of(module)]
    # MPT makes ALiBi for so many positions, although ALiBi has no end.
    limits += [bare.config.max_seq_len] if bare.config.model_type == "mpt" else []
    limits += _limits_of_scaled_rope(bare.config.get_text_config())
    return min(limits, default=None)


def longest_sequence(model: RewardModel, max_length: int | None) -> int | None:
    """Longest sequence that is read: what the settings or the record say, as far as the model's positions reach.

    Args:
        model: A reward model.
        max_length: As set or recorded, in tokens; None for no limit.

    Returns:
        The number of tokens, None for no limit.
    """
    return min((limit for limit in (max_length, position_limit(model)) if limit is not None), default=None)


def _limits_of(module: nn.Module) -> Iterator[int]:
    """Tokens that the tables directly below a module allow."""
    for name, table in module.named_children():
        rows = _rows(table) if _TABLE.match(name) else None
        if rows is None:
            continue
        padding = getattr(table, "padding_idx", None)
        lost = getattr(table, "offset", 0) or (0 if padding is None else padding + 1)
        yield rows - lost
        numbers = getattr(module, "position_ids", None)  # Nystromformer starts at 2, and says so only here
        if isinstance(numbers, Tensor) and padding is None:
            yield numbers.shape[-1]
    for name in ("embed_positions", "pos_encoding"):  # tables that are no modules: GPT-J, CTRL
        table = getattr(module, name, None)
        if isinstance(table, Tensor) and table.dim() == 2:
            yield table.shape[0]


def _limits_of_scaled_rope(config: Any) -> Iterator[int]:
    """Lengths up to which rotary frequencies are the same in every batch (transformers' `dynamic_rope_update`)."""
    stated: Any = getattr(config, "rope_parameters", None) or {}
    for rope in (stated, *stated.values()):  # some models state them by the type of the layer
        kind = rope.get("rope_type", "") if isinstance(rope, dict) else ""
        if kind == "longrope":
            yield rope["original_max_position_embeddings"]
        elif "dynamic" in kind:
            yield config.max_position_embeddings


def _rows(table: nn.Module) -> int | None:
    count = getattr(table, "num_embeddings", None)  # stays where the weights are sharded
    weight = getattr(table, "weight", None)
    if count is None and isinstance(weight, Tensor) and weight.dim() == 2:
        count = weight.shape[0]
    return count
