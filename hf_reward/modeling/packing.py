"""Tokenised rows -> one row without padding that holds each shared prefix once, and a model that reads it.

A pair shares its prompt, so encoding both sides computes the prompt twice, and padding computes tokens that do not
exist. Here a batch of G groups is one row of T tokens: for each group the shared prefix, then each response's own
tokens, with position ids that go on from the prefix. A response attends to its prefix and itself, causally; groups do
not see each other (`packed_attention`). The rewards are those of the padded batch.

Shapes: G groups, K responses in a group, N sequences (sum of K), T packed tokens, H hidden size.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_reward.modeling.packed_attention import packed_attention
from hf_reward.modeling.reward_head import ReadsLastToken
from hf_reward.preprocessing.packed_layout import PackedLayout

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_NAME = "hf_reward_packed"
_STOCK_ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention", "kernels-community/", _NAME)


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
    replaceable = replaceable and model._can_set_attn_implementation()
    attention = str(model.config._attn_implementation)
    stateful = getattr(model, "_is_stateful", False)
    reasons = {
        "it caps attention scores": getattr(config, "attn_logit_softcapping", None) is not None,
        "it has attention sinks": any("sink" in name for name, _ in model.named_parameters()),
        "it carries a state from token to token (state space or linear attention)": stateful,
        f"it has layers of the kind {', '.join(other)}": bool(other),
        "transformers does not let its attention be replaced": not replaceable,
        f"its attention is one of your own, {attention!r}": not attention.startswith(_STOCK_ATTENTION),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


@contextmanager
def packed_model(model: PreTrainedModel) -> Iterator[None]:
    """Let a model take packed batches, and padded ones through SDPA; on leaving it is as it was.

    Args:
        model: The bare reward model, without PEFT's wrapper.
    """
    before = str(model.config._attn_implementation)
    if before == _NAME:  # already inside
        yield
        return
    _register()
    model.set_attn_implementation(_NAME)
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
    if model.config._attn_implementation != _NAME:
        raise ValueError("A packed batch needs its model inside `packed_model(model)`. Enter it, or collate padded.")


# A graph of its own for each layout would be compiled, batch by batch.
_uncompiled_attention: Any = torch.compiler.disable(packed_attention)


@cache
def _register() -> None:
    # Padded batches go to SDPA, whatever the model came with: flash attention looks for its own name in the config.
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def _attention(
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
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **options)
    attended = _uncompiled_attention(
        query,
        key,
        value,
        packed_layout,
        scaling=options.get("scaling"),
        dropout=options.get("dropout") or 0.0,
        sliding_window=_window(module, options),
    )
    return attended, None


def _window(module: Any, options: Mapping[str, Any]) -> int | None:
    """The sliding window of a layer; some (Qwen2-MoE, PhiMoE) have it in their mask alone, which is not made."""
    if options.get("sliding_window") is not None:
        return options["sliding_window"]
    config = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or kinds[module.layer_idx] == "sliding_attention"
    return getattr(config, "sliding_window", None) if slides else None
