"""Model and batch -> rewards (G, K), for all losses and metrics.

There are three forms of batches: padded, packed, and cached features, which skip the backbone.
"""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from hf_reward.losses.functions import PADDING_RANK
from hf_reward.modeling.end_tokens import logits_of
from hf_reward.modeling.packing import require_packed_model
from hf_reward.modeling.reward_head import reads_positions, unwrap_model

_PADDED_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_PACKED_INPUTS = ("input_ids", "position_ids", "packed_layout")
_IMAGE_INPUTS = ("position_ids", "image_inputs", "image_index")  # see `ImageBatch`


def compute_rewards(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Compute the reward of every response in a batch.

    Decoders compute the reward at the last attended token, for any padding side. Encoders use their own pooling.

    Args:
        model: A reward model, with any wrapper of PEFT, torch.compile or distributed training.
        batch: A batch of a collator: padded, packed (requires `packed_model`), features (of a decoder), or
            micro-batches of these. Rewards of micro-batches are returned in the order of the complete batch.

    Returns:
        Rewards with the layout of `batch["ranks"]`, 0 at padded positions, shape `(G, K)`, float32.

    Raises:
        ValueError: If the batch is packed and the model is not inside `packed_model`.
    """
    return compute_head_rewards(model, batch)[0]


def compute_head_rewards(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Compute the reward of every response in a batch for each head. M is 1, except for an ensemble in `every_head`.

    Args:
        model: As for `compute_rewards`.
        batch: As for `compute_rewards`.

    Returns:
        Rewards with the layout of `batch["ranks"]`, 0 at padded positions, shape `(M, G, K)`, float32.

    Raises:
        ValueError: If the batch is packed and the model is not inside `packed_model`.
    """
    if "micro_batches" in batch:
        return _rewards_in_parts(model, batch)
    by_head = compute_sequence_rewards(model, batch)
    present = batch["ranks"] != PADDING_RANK
    return by_head.new_zeros(len(by_head), *present.shape).masked_scatter(present, by_head)


def compute_sequence_rewards(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Compute the reward of every sequence for each head, for inputs without labels.

    Args:
        model: As for `compute_rewards`.
        inputs: Result of `pad` or `pack`, or `features` `(N, H)`; other entries of a batch are ignored.

    Returns:
        Rewards in the order of the sequences, shape `(M, N)`, float32.

    Raises:
        ValueError: If the inputs are packed and the model is not inside `packed_model`.
    """
    bare = extract_model_from_parallel(model, keep_torch_compile=False)
    if "features" in inputs:
        read = {"reward_features": inputs["features"]}
    else:
        read = _backbone_inputs(bare, inputs)
        if reads_positions(bare):
            read["reward_positions"] = _read_positions(inputs)
    logits = logits_of(model, read).float()
    return logits.reshape(-1, logits.shape[-1]).T.contiguous()


def _rewards_in_parts(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    rewards = torch.zeros(1, *batch["ranks"].shape, device=batch["ranks"].device)
    for part, rows in zip(batch["micro_batches"], batch["micro_rows"], strict=True):
        found = compute_head_rewards(model, part)
        if len(found) > len(rewards):
            rewards = rewards.repeat(len(found), 1, 1)
        if len(rows):  # an empty part only keeps the process in step with others
            rewards[:, rows, : found.shape[2]] = found
    return rewards


def computed_tokens(inputs: Mapping[str, Any]) -> int:
    """Return the number of tokens, padding included, that the backbone processes for a batch; 0 for features."""
    return 0 if "features" in inputs else inputs["input_ids"].numel()


def compute_features(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Compute the hidden states of a decoder at the reward positions, which are the inputs of its head.

    Args:
        model: A decoder reward model, not wrapped for distributed training.
        batch: A padded or packed batch, on the model's device.

    Returns:
        One row per response, group by group, shape `(N, H)`.

    Raises:
        ValueError: If the batch is packed and the model is not inside `packed_model`.
    """
    bare: Any = unwrap_model(model)
    hidden = bare.backbone_outputs(**_backbone_inputs(bare, batch)).last_hidden_state
    positions = _read_positions(batch)
    return hidden[0 if "packed_layout" in batch else torch.arange(len(positions)), positions]


def last_attended(attention_mask: Tensor) -> Tensor:
    """Return the position of the last attended token of each sequence, shape `(N, L)` -> `(N,)`."""
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (places * attention_mask).argmax(-1)


def _backbone_inputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    if "packed_layout" in batch:
        require_packed_model(unwrap_model(model))
        # transformers does not expand a mask with four dimensions to T x T. Packed attention ignores it.
        unused = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch["input_ids"].device)
        names = (*_PACKED_INPUTS, *(name for name in _IMAGE_INPUTS if name in batch))
        return {**{name: batch[name] for name in names}, "attention_mask": unused, "use_cache": False}
    inputs = {name: batch[name] for name in (*_PADDED_INPUTS, *_IMAGE_INPUTS) if name in batch}
    return {**inputs, "use_cache": False} if reads_positions(model) else inputs


def _read_positions(batch: Mapping[str, Any]) -> Tensor:
    return batch["reward_positions"] if "packed_layout" in batch else last_attended(batch["attention_mask"])
