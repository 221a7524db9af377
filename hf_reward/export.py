"""Trained model -> folder that stock transformers loads with the same rewards."""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from hf_reward.checkpoint_record import CheckpointRecord
from hf_reward.modeling import RewardModel, merge_adapter

ADAPTER_FOLDER = "adapter"


def save_merged(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    record: CheckpointRecord | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Save a model as a plain sequence classifier; of an adapter model, the merged one and the adapter beside it.

    The adapter goes to `adapter/` before the merge, which happens in float32 and changes the model passed in.

    Args:
        model: A reward model, perhaps with an adapter.
        tokenizer: Its prepared tokenizer.
        folder: Where to.
        record: What to write into `reward_config.json`.
        dtype: Precision of the saved weights.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folders = [folder]
    if isinstance(model, PeftModel):
        model.save_pretrained(folder / ADAPTER_FOLDER)
        folders.append(folder / ADAPTER_FOLDER)
        model = merge_adapter(model)
    model.to(dtype).save_pretrained(folder)
    for place in folders:
        tokenizer.save_pretrained(place)
        if record is not None:
            record.save(place)
    return folder
