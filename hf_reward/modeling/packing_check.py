"""Check of shared-prefix packing: the same rows padded and packed must give the same hidden states."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import PreTrainedModel

from hf_reward.data.interface import auto_or_bool
from hf_reward.modeling.packed_attention import packed_attention
from hf_reward.modeling.packing import packed_model, why_not_packed
from hf_reward.modeling.reward_head import RewardModel, unwrap_model
from hf_reward.modeling.rewards import compute_features
from hf_reward.preprocessing.packed_layout import PackedLayout, layout_of

logger = logging.getLogger(__name__)

Packing = bool | Literal["auto"]
"""Whether to compute shared prefixes once, without padding; "auto" does so if the model supports it."""

# 100 tokens each. `packed_attention` chooses another back end for the second, unless a sliding window prevents it.
_FEW_REPEATED_KEYS = layout_of([(20, -1), (13, 0), (37, 0), (0, -1), (11, 3), (19, 3)])
_MANY_REPEATED_KEYS = layout_of([(64, -1), (8, 0), *[(2, 1)] * 8, *[(1, 0)] * 8, (4, -1)])
_TOLERANCE = 1e-4
# Allows for rounding in half precision and TF32. The faults in tests/modeling/test_packing.py are larger.
ROUNDING_TOLERANCE = 0.1


@torch.no_grad()
def packing_error(model: PreTrainedModel, padded: Mapping[str, Any], packed: Mapping[str, Any]) -> float:
    """Return the largest relative difference of the hidden states at the reward positions, padded versus packed.

    Hidden states are compared instead of rewards, because a zero head would hide every error. The model is evaluated in
    evaluation mode; its mode and the random state are restored.

    Args:
        model: The reward model without PEFT's wrapper, inside `packed_model`.
        padded: A padded batch.
        packed: The same rows, packed.

    Returns:
        The largest over the responses of |difference| / |hidden state|, in the Euclidean norm.
    """
    training, device = model.training, model.device
    model.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            plain, shared = (
                compute_features(model, send_to_device(batch, device)).float() for batch in (padded, packed)
            )
    finally:
        model.train(training)
    return float(((plain - shared).norm(dim=1) / plain.norm(dim=1).clamp(min=1e-12)).max())


def kernel_error(device: torch.device, dtype: torch.dtype, *, heads: int, key_heads: int, head_size: int) -> float:
    """Return the largest relative difference of outputs and gradients between the back ends of packed attention.

    This replaces `packing_error` for models that are not on their device yet, or on several devices.

    Args:
        device: Device of the training.
        dtype: Half precision of the training.
        heads: Number of heads of the queries.
        key_heads: Number of heads of keys and values.
        head_size: Size of a head.

    Returns:
        The largest of |difference| / |value|, in the Euclidean norm.
    """
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(1, count, 100, head_size, generator=generator) for count in (heads, key_heads, key_heads)]

    def compute(kind: torch.dtype, layout: PackedLayout, window: int | None) -> list[Tensor]:
        query, key, value = (tensor.to(device, kind).requires_grad_() for tensor in draws)
        output = packed_attention(query, key, value, layout, sliding_window=window)
        gradients = torch.autograd.grad(output.float().square().sum(), (query, key, value))
        return [output.float(), *(gradient.float() for gradient in gradients)]

    results = [
        (compute(torch.float32, *case), compute(dtype, *case))
        for case in ((_FEW_REPEATED_KEYS, 8), (_FEW_REPEATED_KEYS, None), (_MANY_REPEATED_KEYS, None))
    ]
    pairs = [pair for one, other in results for pair in zip(one, other, strict=True)]
    errors = [((one - other).norm() / one.norm()).detach() for one, other in pairs]
    return float(torch.stack(errors).max())  # propagates NaN, unlike Python's `max`


def packing_problem(model: PreTrainedModel, padded: Mapping[str, Any], packed: Mapping[str, Any]) -> str | None:
    """Run the same rows padded and packed, and return why packing must not be used, or None.

    Args:
        model: The reward model, without PEFT's wrapper.
        padded: A padded batch.
        packed: The same rows, packed.

    Returns:
        The reason, in a few words.
    """
    reason = why_not_packed(model)
    if reason is not None:
        return reason
    with packed_model(model):
        error = packing_error(model, padded, packed)
    rounds = torch.is_autocast_enabled(model.device.type) or model.dtype not in (torch.float32, torch.float64)
    rounds = rounds or (model.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest")
    tolerance = ROUNDING_TOLERANCE if rounds else _TOLERANCE
    return None if error <= tolerance else f"hidden states differ by {error:.1e} (allowed: {tolerance})"


def may_pack(
    model: RewardModel,
    packing: Packing,
    trial: Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]],
    *,
    log_level: int = logging.WARNING,
) -> bool:
    """Return whether to pack the batches of a model.

    Args:
        model: A reward model, with or without PEFT's wrapper.
        packing: The setting; "auto" packs if the model supports it.
        trial: Returns a padded batch and the same rows packed, for the check.
        log_level: Level of the message that explains why "auto" does not pack.

    Returns:
        Whether to pack.

    Raises:
        ValueError: If packing is True and not possible.
    """
    packing = auto_or_bool("packing", packing)
    if packing is False:
        return False
    problem = packing_problem(unwrap_model(model), *trial())
    if problem is not None and packing is True:
        raise ValueError(f"`packing=True` is not possible with this model: {problem}. Use 'auto' or False.")
    if problem is not None:
        logger.log(log_level, "Batches are padded, not packed: %s.", problem)
    return problem is None
