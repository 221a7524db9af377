"""Checks before a run: the model supports all rows, and the reward of a row does not depend on its batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_reward.modeling.end_tokens import largest_batchable_group, missing_end, require_end_tokens, reward_end_token
from hf_reward.modeling.packing_check import ROUNDING_TOLERANCE
from hf_reward.modeling.position_limits import position_limit
from hf_reward.modeling.probes import evaluating, format_probes, weight_dtype, without_tf32
from hf_reward.modeling.reward_head import RewardModel, output_layers, unwrap_model
from hf_reward.modeling.rewards import compute_sequence_rewards
from hf_reward.preprocessing.model_inputs import pad
from hf_reward.preprocessing.samplers import longest_sequences

TokenSequence = tuple[list[int], list[int] | None]
"""Token ids, and token types if the tokenizer creates them."""

_TOLERANCE = 1e-3
"""Relative, in float32. Rounding is far below it; XLNet's differences exceed 1."""


def require_readable(
    model: PreTrainedModel, data: Any, tokenizer: PreTrainedTokenizerBase, *, sharded: bool = False
) -> None:
    """Refuse prepared rows or a chat template that a model does not support, before the first step.

    Args:
        model: The reward model without wrappers.
        data: Prepared rows.
        tokenizer: The prepared tokenizer.
        sharded: Whether the model is sharded.

    Raises:
        ValueError: If a row is too long, or a row or the chat template lacks the required EOS token.
    """
    require_positions(model, data)
    require_end_tokens(model, data, sharded=sharded)
    end = reward_end_token(model)
    if end is None or tokenizer.chat_template is None:
        return
    if any(end not in probe.input_ids for probe in format_probes(tokenizer)):
        raise ValueError(f"A conversation in the chat template of the tokenizer: {missing_end(model)}")


def require_positions(model: PreTrainedModel, data: Any) -> None:
    """Refuse prepared rows that exceed the position limit of a model.

    Args:
        model: The reward model without wrappers.
        data: Prepared rows; streams are not checked.

    Raises:
        ValueError: If rows are too long; the message states how many, and the first one.
    """
    limit = position_limit(model)
    if limit is None or not isinstance(data, Dataset) or not len(data):
        return
    lengths = longest_sequences(data)
    places = np.flatnonzero(lengths > limit)
    if not len(places):
        return
    first = int(places[0])
    raise ValueError(
        f"{type(model).__name__} supports at most {limit} tokens, but {len(places)} of {len(lengths)} rows are longer. "
        f"The first is row {data[first]['row']} with {lengths[first]} tokens. Prepare the data with "
        f"`max_length={limit}` or less."
    )


def batch_problem(model: RewardModel, sequences: Sequence[TokenSequence]) -> str | None:
    """Return why the rewards of a model depend on the batch, or None.

    The shortest sequence is scored alone and in a batch with the longest one. Inputs of the head are compared instead
    of rewards, because a zero head would hide every error.

    Args:
        model: A reward model that is not sharded; its mode and the random state are restored.
        sequences: Formatted sequences.

    Returns:
        The reason and the remedy.
    """
    ordered = sorted(largest_batchable_group(model, sequences), key=lambda each: len(each[0]))
    if len(ordered) < 2:
        return None
    alone, batched = _head_inputs(model, ordered[:1]), _head_inputs(model, [ordered[0], ordered[-1]])[:1]
    error = float((alone - batched).norm() / alone.norm().clamp(min=1e-12))
    bare: Any = unwrap_model(model)
    rounds = weight_dtype(bare) != torch.float32 or getattr(bare, "is_quantized", False)
    rounds = rounds or "_original_forward" in vars(bare)  # wrapped in the autocast of accelerate
    if error <= (ROUNDING_TOLERANCE if rounds else _TOLERANCE):
        return None
    return (
        f"A reward must not depend on the batch, but {type(bare).__name__} scores a row of {len(ordered[0][0])} tokens "
        f"differently in a batch with a row of {len(ordered[-1][0])} tokens (relative difference {error:.1e} of the "
        "head's input). It uses a fixed position or ignores the attention mask (as XLNet and FNet do). Use another "
        "architecture."
    )


@torch.no_grad()
def _head_inputs(model: RewardModel, sequences: Sequence[TokenSequence]) -> Tensor:
    """Compute the inputs of the last layer for each sequence of a padded batch, shape `(N, H)`, float32."""
    bare: Any = unwrap_model(model)
    types = [types for _, types in sequences if types is not None]
    pad_token_id = bare.config.get_text_config().pad_token_id or 0
    inputs = pad([ids for ids, _ in sequences], types or None, pad_token_id=pad_token_id)
    seen: list[Tensor] = []
    # PEFT keeps an unused copy of the head, so only one of the layers is called.
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for _, layer in output_layers(bare)
    ]
    try:
        with evaluating(model), without_tf32(), torch.random.fork_rng(_cuda_devices(bare)):
            compute_sequence_rewards(model, send_to_device(inputs, bare.device))
    finally:
        for hook in hooks:
            hook.remove()
    return seen[0].float().reshape(len(sequences), -1)


def _cuda_devices(model: PreTrainedModel) -> list[torch.device]:
    return [model.device] if model.device.type == "cuda" else []
