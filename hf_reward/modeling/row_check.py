"""Rows and a model -> can it read them, and is its reward for a row the same in every batch?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_reward.modeling.end_tokens import end_token_read, missing_end, of_one_count, require_end_tokens
from hf_reward.modeling.packing_check import ROUNDING_TOLERANCE
from hf_reward.modeling.position_limits import position_limit
from hf_reward.modeling.probes import evaluating, format_probes, true_float32, weight_dtype
from hf_reward.modeling.reward_head import RewardModel, output_layers, unwrap_model
from hf_reward.modeling.rewards import compute_sequence_rewards
from hf_reward.preprocessing.model_inputs import pad
from hf_reward.preprocessing.samplers import longest_sequences

TokenSequence = tuple[list[int], list[int] | None]
"""Token ids, and token types where the tokenizer makes them."""

_TOLERANCE = 1e-3
"""Relative, in float32: rounding stays far below it, and XLNet's rewards differ by more than their own size."""


def require_readable(
    model: PreTrainedModel, data: Any, tokenizer: PreTrainedTokenizerBase, *, sharded: bool = False
) -> None:
    """Refuse, before the first step, prepared rows or a chat template that a model cannot read.

    Args:
        model: The bare reward model.
        data: Prepared rows.
        tokenizer: The prepared tokenizer.
        sharded: Whether processes hold parts of the model.

    Raises:
        ValueError: If a row is too long, or a row or the chat template lacks the end token at which the model reads.
    """
    require_positions(model, data)
    require_end_tokens(model, data, sharded=sharded)
    end = end_token_read(model)
    if end is None or tokenizer.chat_template is None:
        return
    if any(end not in probe.input_ids for probe in format_probes(tokenizer)):
        raise ValueError(f"A conversation formatted with the tokenizer's chat template: {missing_end(model)}")


def require_positions(model: PreTrainedModel, data: Any) -> None:
    """Refuse prepared rows that reach beyond a model's positions: those that were not cut to `max_length` here.

    Args:
        model: The bare reward model.
        data: Prepared rows; those of a stream are not known yet.

    Raises:
        ValueError: If a row is too long; the message says how many are, and which is the first.
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
        f"{len(places)} of {len(lengths)} rows are longer than the positions of {type(model).__name__} reach, which "
        f"is {limit} tokens: the first is row {data[first]['row']} with {lengths[first]}. Prepare the data with "
        f"`max_length={limit}` or less."
    )


def batch_problem(model: RewardModel, sequences: Sequence[TokenSequence]) -> str | None:
    """Why a model's rewards depend on the batch, or None: the shortest of some sequences alone, and beside the longest.

    The inputs of the head are compared and not rewards: a new head of zeros would hide every fault.

    Args:
        model: A reward model, whole in this process; mode and random state are as before afterwards.
        sequences: Formatted sequences.

    Returns:
        The reason, with what to do about it.
    """
    ordered = sorted(of_one_count(model, sequences), key=lambda each: len(each[0]))
    if len(ordered) < 2:
        return None
    alone, beside = _head_inputs(model, ordered[:1]), _head_inputs(model, [ordered[0], ordered[-1]])[:1]
    error = float((alone - beside).norm() / alone.norm().clamp(min=1e-12))
    bare: Any = unwrap_model(model)
    rounds = weight_dtype(bare) != torch.float32 or getattr(bare, "is_quantized", False)
    rounds = rounds or "_original_forward" in vars(bare)  # accelerate's autocast is around it
    if error <= (ROUNDING_TOLERANCE if rounds else _TOLERANCE):
        return None
    return (
        f"{type(bare).__name__} gives a row of {len(ordered[0][0])} tokens another reward beside a row of "
        f"{len(ordered[-1][0])} tokens than alone: what its head reads differs by {error:.1e} of its size. It reads a "
        "fixed position, or lets padding through (as XLNet and FNet do), so its rewards would depend on the batch. Use "
        "an architecture whose classifier keeps to the attention mask."
    )


@torch.no_grad()
def _head_inputs(model: RewardModel, sequences: Sequence[TokenSequence]) -> Tensor:
    """What the last layer of the head gets for each sequence of a padded batch, shape `(N, H)`, float32."""
    bare: Any = unwrap_model(model)
    types = [types for _, types in sequences if types is not None]
    pad_token_id = bare.config.get_text_config().pad_token_id or 0
    inputs = pad([ids for ids, _ in sequences], types or None, pad_token_id=pad_token_id)
    seen: list[Tensor] = []
    # PEFT keeps an unused copy of the head beside the trained one, so only one of the layers is called.
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for _, layer in output_layers(bare)
    ]
    try:
        with evaluating(model), true_float32(), torch.random.fork_rng(_cuda_devices(bare)):
            compute_sequence_rewards(model, send_to_device(inputs, bare.device))
    finally:
        for hook in hooks:
            hook.remove()
    return seen[0].float().reshape(len(sequences), -1)


def _cuda_devices(model: PreTrainedModel) -> list[torch.device]:
    return [model.device] if model.device.type == "cuda" else []
