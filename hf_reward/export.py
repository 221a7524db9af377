"""Trained model -> folder that stock transformers loads with the same rewards."""

import copy
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from hf_reward.checkpoint_record import CheckpointRecord
from hf_reward.modeling import AutoModelForRewardScoring, merge_adapter
from hf_reward.reward_head import RewardModel

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

    The adapter goes to `adapter/` before the merge, which happens in float32 and changes the model passed in. An
    adapter on a quantised base (QLoRA) is merged into the base as it was before, loaded again: quantised weights
    cannot hold the merge. The rewards of the result differ from those seen in training by what quantisation changed.

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
        model.save_pretrained(str(folder / ADAPTER_FOLDER))
        (folder / ADAPTER_FOLDER / "README.md").unlink(missing_ok=True)  # PEFT's blank card says nothing
        tokenizer.save_pretrained(folder / ADAPTER_FOLDER)  # the base below takes its pad token from it
        folders.append(folder / ADAPTER_FOLDER)
        if getattr(model.get_base_model(), "is_quantized", False):
            model = AutoModelForRewardScoring.from_pretrained(folder / ADAPTER_FOLDER, is_trainable=False)
        assert isinstance(model, PeftModel)
        model = merge_adapter(model)
    elif model.dtype != dtype:
        model = copy.deepcopy(model)  # a cast would change the caller's model
    model.to(dtype).save_pretrained(folder)  # type: ignore[arg-type]
    tokenizer.save_pretrained(folder)
    for place in folders:
        if record is not None:
            record.save(place)
    return folder
