"""Trust shared-prefix packing, but check it: the same rows both ways, before a run relies on it."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from accelerate.utils import send_to_device
from transformers import PreTrainedModel

from hf_reward.data.interface import auto_or_bool
from hf_reward.modeling.packed_attention import packed_attention
from hf_reward.modeling.packing import packed_model, why_not_packed
from hf_reward.modeling.reward_head import RewardModel, unwrap_model
from hf_reward.modeling.rewards import compute_features
from hf_reward.preprocessing.packed_layout import GroupSegments, PackedLayout

logger = logging.getLogger(__name__)

Packing = bool | Literal["auto"]
"""Compute shared prefixes once and no padding; "auto" does so where the model allows it."""

_TOLERANCE = 1e-4
# In half precision, and in float32 with TF32, both paths round. The faults planted in tests/modeling/test_packing.py
# are larger.
ROUNDING_TOLERANCE = 0.1


@torch.no_grad()
def packing_error(model: PreTrainedModel, padded: Mapping[str, Any], packed: Mapping[str, Any]) -> float:
    """Largest relative difference of the hidden states at the read positions between the two paths.

    Hidden states and not rewards: a zero head would hide every fault. Computed in evaluation mode; mode and random
    state are as before afterwards.

    Args:
        model: The bare reward model, inside `packed_model`.
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
    """Largest relative difference between the two back ends of packed attention, of outputs and of gradients.

    For models that are not on their device yet, or are spread over several, when a run begins.

    Args:
        device: Where training will run.
        dtype: Its half precision.
        heads: Heads of the queries.
        key_heads: Heads of keys and values.
        head_size: Size of a head.

    Returns:
        The largest of |difference| / |value|, in the Euclidean norm.
    """
    layout = PackedLayout(
        (GroupSegments((0, 20), ((20, 33), (33, 40))), GroupSegments((40, 40), ((40, 49), (49, 70))))
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, count, 70, head_size, generator=generator) for count in (heads, key_heads, key_heads)]
    results = []
    for kind, window in ((torch.float32, 8), (dtype, 8), (torch.float32, None), (dtype, None)):
        query, key, value = (tensor.to(device, kind).requires_grad_() for tensor in drawn)
        output = packed_attention(query, key, value, layout, sliding_window=window)
        gradients = torch.autograd.grad(output.float().square().sum(), (query, key, value))
        results.append([output.float(), *(gradient.float() for gradient in gradients)])
    pairs = [pair for one, other in (results[:2], results[2:]) for pair in zip(one, other, strict=True)]
    errors = [((one - other).norm() / one.norm()).detach() for one, other in pairs]
    return float(torch.stack(errors).max())  # unlike Python's `max`, this passes a NaN on


def packing_problem(model: PreTrainedModel, padded: Mapping[str, Any], packed: Mapping[str, Any]) -> str | None:
    """Why packed batches must not be used with a model, or None: found by running the same rows both ways.

    Args:
        model: The bare reward model, without PEFT's wrapper.
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
    return None if error <= tolerance else f"they differ from padded ones by {error:.1e}, at most {tolerance} expected"


def may_pack(
    model: RewardModel,
    packing: Packing,
    trial: Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]],
    *,
    log_level: int = logging.WARNING,
) -> bool:
    """Whether a model's batches are packed.

    Args:
        model: A reward model, perhaps wrapped by PEFT.
        packing: What was asked for; "auto" packs where the model allows it.
        trial: Makes a padded batch and the same rows packed, to compare the two.
        log_level: Of the line that says why "auto" does not pack.

    Returns:
        The choice.

    Raises:
        ValueError: If packing is asked for and not possible.
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
