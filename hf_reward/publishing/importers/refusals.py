"""Checks and messages for folders that cannot be imported, or do not need an import."""

import re

from hf_reward.publishing.importers.foreign_checkpoint import LANGUAGE_MODEL_HEADS, USE_INSTEAD, Checkpoint
from hf_reward.publishing.importers.nemotron import is_language_model

# Prefixes of the backbone in the supported layouts.
_BACKBONES = ("model.", "transformer.", "rwtransformer.", "llm.", "gpt_neox.", "pretrained_model.", "base_model.")
_LAYER_OF_SEVERAL = re.compile(r"(^|\.)\d+\.weight$")
_SEVERAL_OBJECTIVES = ("gating", "quantile", "regression_layer", "reward_transform_matrix")


def head_keys(checkpoint: Checkpoint) -> list[str]:
    """Return keys that belong neither to the backbone nor to the head of a language model."""
    separate = [] if checkpoint.head_files is None else list(checkpoint.head_files)
    own = [key for key in checkpoint.weights if not key.startswith((*_BACKBONES, *LANGUAGE_MODEL_HEADS))]
    return sorted([*own, *separate])


def refuse_other_heads(checkpoint: Checkpoint) -> None:
    """Refuse heads that a stock classifier with one label does not support.

    Args:
        checkpoint: The checkpoint.

    Raises:
        ValueError: If the head is not one linear layer, combines several objectives, or an adapter is not merged.
    """
    keys = head_keys(checkpoint)
    layers = [key for key in keys if _LAYER_OF_SEVERAL.search(key)]
    several = [key for key in keys if any(name in key for name in _SEVERAL_OBJECTIVES)]
    adapter = [key for key in checkpoint.weights if ".lora_" in key]
    if several:
        raise ValueError(
            f"An import requires a head with one linear layer, but {checkpoint.folder} combines several objectives "
            f"with a gate or a regression ({several[0]}). {USE_INSTEAD}"
        )
    if layers:
        raise ValueError(
            f"An import requires a head with one linear layer, but the head of {checkpoint.folder} has several "
            f"({', '.join(layers[:3])}). {USE_INSTEAD}"
        )
    if adapter:
        raise ValueError(
            f"The weights in {checkpoint.folder} include unmerged LoRA weights ({adapter[0]}). Merge them with the "
            "library that trained them, then import the result."
        )


def explain_no_match(checkpoint: Checkpoint, formats: list[str]) -> str:
    """Explain why no format matches a folder.

    Args:
        checkpoint: The checkpoint.
        formats: Names of the formats.

    Returns:
        The message.
    """
    folder = checkpoint.folder
    if checkpoint.is_adapter:
        return (
            f"{folder} is an adapter without a value head of its own. Load it with "
            "`AutoModelForRewardScoring.from_pretrained`; it does not need an import."
        )
    for name in ("score.weight", "classifier.weight", "classifier.out_proj.weight"):
        if name in checkpoint.weights:
            return _explain_classifier(checkpoint, checkpoint.weights.shape(name)[0])
    if is_language_model(checkpoint) and not head_keys(checkpoint):
        return (
            f"{folder} is a language model ({', '.join(checkpoint.architectures)}) without a reward head. If its "
            "reward is the logit of token 0, as in Nemotron reward models, use `format='nemotron'` "
            "(`--format nemotron`). Otherwise train a reward model from it."
        )
    files = sorted(path.name for path in folder.iterdir())
    return (
        f"{folder} has no supported layout. Files: {', '.join(files[:12]) or 'none'}. Architectures in config.json: "
        f"{', '.join(checkpoint.architectures) or 'none'}. Possible keys of a head: "
        f"{', '.join(head_keys(checkpoint)[:8]) or 'none'}. Supported formats: {', '.join(formats)}."
    )


def _explain_classifier(checkpoint: Checkpoint, labels: int) -> str:
    if labels == 1:
        return (
            f"{checkpoint.folder} is already a stock classifier with one label and needs no import. Load it with "
            "`AutoModelForRewardScoring.from_pretrained`."
        )
    return (
        f"A reward model has one label, but {checkpoint.folder} is a classifier with {labels} labels. Train a reward "
        "model from its base model."
    )
