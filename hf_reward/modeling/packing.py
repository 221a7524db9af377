"""Shared-prefix packing: tokenised rows in one row without padding, in which each shared prefix occurs once.

Without packing, the prompt of a pair is computed twice, and padding wastes computation. A packed batch of G groups is
one row of T tokens: for each group the shared prefix, then the remaining tokens of each response, with position ids
that continue after the prefix. A response attends causally to its prefix and itself, and not to other groups
(`packed_attention`). The rewards are the same as in the padded batch.

Shapes: G groups, K responses in a group, N sequences (sum of K), T packed tokens, H hidden size.
"""

import inspect
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
from hf_reward.modeling.reward_head import ReadsLastToken, has_vision
from hf_reward.preprocessing.packed_layout import PackedLayout

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_NAME = "hf_reward_packed"
_STOCK_ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention", "kernels-community/", _NAME)


# --- models with packed attention ------------------------------------------------------------------------------------


def why_not_packed(model: nn.Module) -> str | None:
    """Return why a model does not support packed batches, or None if it does.

    Args:
        model: The reward model, without PEFT's wrapper.

    Returns:
        The reason, in a few words.
    """
    if not isinstance(model, ReadsLastToken) or not isinstance(model, PreTrainedModel):
        return "it is an encoder, whose tokens attend to later tokens"
    config = model.config.get_text_config()
    other = sorted(set(getattr(config, "layer_types", None) or []) - _KNOWN_LAYERS)
    replaceable = getattr(model.base_model, "_supports_attention_backend", False)
    replaceable = replaceable and model._can_set_attn_implementation()
    attention = str(model.config._attn_implementation)
    stateful = getattr(model, "_is_stateful", False)
    reasons = {
        "it caps attention scores": getattr(config, "attn_logit_softcapping", None) is not None,
        "it has attention sinks": any("sink" in name for name, _ in model.named_parameters()),
        "it has a recurrent state (state space or linear attention)": stateful,
        f"it has layers of type {', '.join(other)}": bool(other),
        "its image tokens attend to later image tokens": _sees_later_image_tokens(model),
        "transformers cannot replace its attention": not replaceable,
        f"it has a custom attention, {attention!r}": not attention.startswith(_STOCK_ATTENTION),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _sees_later_image_tokens(model: PreTrainedModel) -> bool:
    """Return whether the tokens of an image attend to each other, as `token_type_ids` tell the backbone (Gemma 3)."""
    return has_vision(model) and "token_type_ids" in inspect.signature(model.base_model.forward).parameters


@contextmanager
def packed_model(model: PreTrainedModel) -> Iterator[None]:
    """Let a model support packed batches, and use SDPA for padded ones, within this context.

    Args:
        model: The reward model, without PEFT's wrapper.
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
    """Refuse a packed batch outside of `packed_model`, where it would silently give wrong rewards.

    Args:
        model: The reward model, without PEFT's wrapper.

    Raises:
        ValueError: If the model is not inside `packed_model`.
    """
    if model.config._attn_implementation != _NAME:
        raise ValueError("A packed batch requires the context `packed_model(model)`. Enter it, or use a padded batch.")


# Otherwise, a graph would be compiled for the layout of each batch.
_uncompiled_attention: Any = torch.compiler.disable(packed_attention)


@cache
def _register() -> None:
    # Padded batches always use SDPA, because flash attention requires its name in the configuration.
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
    """Attention function that transformers calls. The batch passes the layout through all decoder layers."""
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
    """Return the sliding window of a layer. Some models (Qwen2-MoE, PhiMoE) only define it in their mask."""
    if options.get("sliding_window") is not None:
        return options["sliding_window"]
    config = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or kinds[module.layer_idx] == "sliding_attention"
    return getattr(config, "sliding_window", None) if slides else None
