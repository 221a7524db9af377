"""Model -> the longest sequence that its positions support, in tokens.

Training, scoring, serving, verification, the probes and the dry run all use `position_limit`. Rotary, relative and
ALiBi positions have no limit (`max_position_embeddings` does not apply); only the recorded `max_length` limits such
models. The exceptions are rotary positions whose frequencies depend on the longest row of a batch.
"""

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from hf_reward.modeling.reward_head import RewardModel, in_head, unwrap_model, vision_modules

_TABLE = re.compile(r"((char_)?position_embeddings?|positions_embed|embed_positions|wpe|pos_encoding)\Z")
"""Names of tables with one row per position in the models of transformers."""


def position_limit(model: RewardModel) -> int | None:
    """Return the longest sequence that the position tables of a model support, in tokens.

    OPT and BART skip the first `offset` rows of their table, so `max_position_embeddings` tokens fit. RoBERTa and
    models derived from it start at `padding_idx + 1`, so fewer tokens fit. BERT and GPT-2 use all rows.

    Dynamic NTK and LongRoPE rescale all rows of a batch if the longest row exceeds the original length of the model, so
    rewards would depend on other rows. The original length is their limit.

    Args:
        model: A reward model, with or without PEFT's wrapper; its weights may be on the meta device or sharded.

    Returns:
        The number of tokens, None without a limit.
    """
    bare: Any = unwrap_model(model)
    towers = vision_modules(bare)  # their tables are not for tokens
    modules = [module for name, module in bare.named_modules() if not in_head(name, towers)]
    limits = [limit for module in modules for limit in _limits_of(module)]
    # MPT builds ALiBi for this number of positions, although ALiBi has no limit.
    limits += [bare.config.max_seq_len] if bare.config.model_type == "mpt" else []
    limits += _limits_of_scaled_rope(bare.config.get_text_config())
    return min(limits, default=None)


def longest_sequence(model: RewardModel, max_length: int | None) -> int | None:
    """Return the smaller of `max_length` and the position limit of a model.

    Args:
        model: A reward model.
        max_length: The setting or the recorded value, in tokens; None without a limit.

    Returns:
        The number of tokens, None without a limit.
    """
    return min((limit for limit in (max_length, position_limit(model)) if limit is not None), default=None)


def _limits_of(module: nn.Module) -> Iterator[int]:
    """Yield the limits of the tables that are direct children of a module."""
    for name, table in module.named_children():
        rows = _rows(table) if _TABLE.match(name) else None
        if rows is None:
            continue
        padding = getattr(table, "padding_idx", None)
        unused = getattr(table, "offset", 0) or (0 if padding is None else padding + 1)
        yield rows - unused
        numbers = getattr(module, "position_ids", None)  # only Nystromformer: its positions start at 2
        if isinstance(numbers, Tensor) and padding is None:
            yield numbers.shape[-1]
    for name in ("embed_positions", "pos_encoding"):  # tables that are not modules: GPT-J, CTRL
        table = getattr(module, name, None)
        if isinstance(table, Tensor) and table.dim() == 2:
            yield table.shape[0]


def _limits_of_scaled_rope(config: Any) -> Iterator[int]:
    """Yield the lengths up to which rotary frequencies do not depend on the batch (`dynamic_rope_update`)."""
    stated: Any = getattr(config, "rope_parameters", None) or {}
    for rope in (stated, *stated.values()):  # some models state them by layer type
        kind = rope.get("rope_type", "") if isinstance(rope, dict) else ""
        if kind == "longrope":
            yield rope["original_max_position_embeddings"]
        elif "dynamic" in kind:
            yield config.max_position_embeddings


def _rows(table: nn.Module) -> int | None:
    count = getattr(table, "num_embeddings", None)  # also available if the weights are sharded
    weight = getattr(table, "weight", None)
    if count is None and isinstance(weight, Tensor) and weight.dim() == 2:
        count = weight.shape[0]
    return count
