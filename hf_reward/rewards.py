"""Model + batch -> rewards (G, K): the one meeting point of every batch form with every loss and metric."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from hf_reward.losses import PADDING_RANK
from hf_reward.packing import packed_batch, require_packed_model
from hf_reward.reward_head import bare_model, reads_positions

_PADDED_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_PACKED_INPUTS = ("input_ids", "position_ids", "reward_positions", "packed_layout")


def compute_rewards(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Reward of every response of a batch.

    Decoders are read at the last attended token, on whichever side the padding is; encoders through their own pooling.

    Args:
        model: A reward model, perhaps wrapped for distributed training, by PEFT or by torch.compile.
        batch: What `DataCollatorForPreference` or `DataCollatorForPackedPreference` returns; for the latter the model
            has to be inside `packed_model`.

    Returns:
        Rewards laid out like `batch["ranks"]`, 0 at padded places, shape `(G, K)`, float32.

    Raises:
        ValueError: If the batch is packed and the model is not inside `packed_model`.
    """
    if "packed_layout" in batch:
        require_packed_model(bare_model(extract_model_from_parallel(model, keep_torch_compile=False)))
        with packed_batch():
            outputs = model(**{name: batch[name] for name in _PACKED_INPUTS}, use_cache=False)
    else:
        inputs = {name: batch[name] for name in _PADDED_INPUTS if name in batch}
        if reads_positions(extract_model_from_parallel(model, keep_torch_compile=False)):
            inputs |= {"reward_positions": last_attended(batch["attention_mask"]), "use_cache": False}
        outputs = model(**inputs)
    present = batch["ranks"] != PADDING_RANK
    flat = outputs.logits.reshape(-1).float()  # (N,)
    rewards = flat.new_zeros(present.shape)
    return rewards.masked_scatter(present, flat)


def last_attended(attention_mask: Tensor) -> Tensor:
    """Position of the last attended token of each sequence, shape `(N, L)` -> `(N,)`."""
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (places * attention_mask).argmax(-1)
