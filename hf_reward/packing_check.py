"""Trust shared-prefix packing, but check it: the same rows both ways, before a run relies on it."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_reward.packing import packed_model, why_not_packed
from hf_reward.rewards import compute_features, on_device

_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4}
# In half precision both paths round: tiny models of ten architectures differ by up to 2% (tests/test_packing.py).
_HALF_TOLERANCE = 0.05


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
        The largest difference divided by the largest hidden value.
    """
    training, device = model.training, model.device
    model.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            plain, shared = (compute_features(model, on_device(batch, device)).float() for batch in (padded, packed))
    finally:
        model.train(training)
    return float((plain - shared).abs().max() / plain.abs().max().clamp(min=1e-12))


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
    half = torch.is_autocast_enabled(model.device.type) or model.dtype not in _TOLERANCES
    tolerance = _HALF_TOLERANCE if half else _TOLERANCES[model.dtype]
    return None if error <= tolerance else f"they differ from padded ones by {error:.1e}, at most {tolerance} expected"
