"""Load checkpoints of architectures whose weights have other names in files than in the model.

transformers saves a model with the names of its original checkpoint: Mixtral and Qwen3-MoE with one tensor for each
expert, Qwen2-VL without `language_model`. `from_pretrained` converts them, but `Trainer` (5.23) only warns of names
that differ and skips them, so a resumed run would continue with the weights of the base model.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from hf_reward.modeling.architectures import classifier_class


def _has_other_names(model: PreTrainedModel, folder: Path) -> bool:
    saved: set[str] = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, "pt") as file:
            saved.update(file.keys())
    return not saved <= set(model.state_dict())


def load_if_renamed(model: Any, folder: Path) -> bool:
    """Load a checkpoint in place with the conversion of `from_pretrained`, if its weights have other names.

    Args:
        model: A model without wrappers.
        folder: The checkpoint.

    Returns:
        Whether it was loaded; False for adapters, checkpoints in other formats and equal names.

    Raises:
        ValueError: If the checkpoint lacks a weight of the model.
    """
    if not isinstance(model, PreTrainedModel) or not _has_other_names(model, folder):
        return False
    classifier: Any = classifier_class(model.config)
    loaded, info = classifier.from_pretrained(
        folder, num_labels=1, dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )  # in float32, because another type would round the head
    lost = sorted({*info["missing_keys"], *info["unexpected_keys"]})
    if lost:
        raise ValueError(
            f"The weights of {folder} do not fit the model, for example {', '.join(lost[:3])}. Resume with the "
            "versions of hf_reward and transformers with which the run was started, or start a new run."
        )
    model.load_state_dict(loaded.state_dict(), strict=False)
    return True
