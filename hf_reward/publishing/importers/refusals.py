"""Why a folder cannot be imported, or need not be."""

import re

from hf_reward.publishing.importers.foreign_checkpoint import LANGUAGE_MODEL_HEADS, USE_INSTEAD, Checkpoint
from hf_reward.publishing.importers.nemotron import is_language_model

# Ways in which the keys of a backbone start, in the layouts known here.
_BACKBONES = ("model.", "transformer.", "rwtransformer.", "llm.", "gpt_neox.", "pretrained_model.", "base_model.")
_LAYER_OF_SEVERAL = re.compile(r"(^|\.)\d+\.weight$")
_SEVERAL_OBJECTIVES = ("gating", "quantile", "regression_layer", "reward_transform_matrix")


def head_keys(checkpoint: Checkpoint) -> list[str]:
    """Keys that belong neither to the backbone nor to a language model's head."""
    beside = [] if checkpoint.head_files is None else list(checkpoint.head_files)
    own = [key for key in checkpoint.weights if not key.startswith((*_BACKBONES, *LANGUAGE_MODEL_HEADS))]
    return sorted([*own, *beside])


def refuse_other_heads(checkpoint: Checkpoint) -> None:
    """Refuse what no stock classifier with one label can hold.

    Args:
        checkpoint: The folder.

    Raises:
        ValueError: If the head is no linear layer, combines several objectives, or an adapter is not merged.
    """
    keys = head_keys(checkpoint)
    layers = [key for key in keys if _LAYER_OF_SEVERAL.search(key)]
    several = [key for key in keys if any(name in key for name in _SEVERAL_OBJECTIVES)]
    adapter = [key for key in checkpoint.weights if ".lora_" in key]
    if several:
        raise ValueError(
            f"{checkpoint.folder} combines several objectives by a gate or a regression ({several[0]}), and stock "
            f"classifiers have one linear layer. {USE_INSTEAD}"
        )
    if layers:
        raise ValueError(
            f"The head of {checkpoint.folder} has several layers ({', '.join(layers[:3])}), and stock classifiers have "
            f"one linear layer. {USE_INSTEAD}"
        )
    if adapter:
        raise ValueError(
            f"{checkpoint.folder} holds LoRA weights among the model's ({adapter[0]}). Merge them with the code that "
            "trained them, then import the result."
        )


def explain_no_match(checkpoint: Checkpoint, formats: list[str]) -> str:
    """Say why no format fits a folder.

    Args:
        checkpoint: The folder.
        formats: Names of the formats.

    Returns:
        The message.
    """
    folder = checkpoint.folder
    if checkpoint.is_adapter:
        return (
            f"{folder} is an adapter without a value head of its own. Load it with "
            "`AutoModelForRewardScoring.from_pretrained`: it needs no import."
        )
    for name in ("score.weight", "classifier.weight", "classifier.out_proj.weight"):
        if name in checkpoint.weights:
            return _explain_classifier(checkpoint, checkpoint.weights.shape(name)[0])
    if is_language_model(checkpoint) and not head_keys(checkpoint):
        return (
            f"{folder} is a language model ({', '.join(checkpoint.architectures)}) without a reward head. If its "
            "reward is the logit of token 0, as that of Nemotron reward models, give `format='nemotron'`; else train a "
            "reward model from it."
        )
    files = sorted(path.name for path in folder.iterdir())
    return (
        f"{folder} is in no layout known here. Files: {', '.join(files[:12]) or 'none'}. Architectures in config.json: "
        f"{', '.join(checkpoint.architectures) or 'none'}. Keys that could be a head: "
        f"{', '.join(head_keys(checkpoint)[:8]) or 'none'}. Formats known: {', '.join(formats)}."
    )


def _explain_classifier(checkpoint: Checkpoint, labels: int) -> str:
    if labels == 1:
        return (
            f"{checkpoint.folder} is already a stock classifier with one label and needs no import. Load it with "
            "`AutoModelForRewardScoring.from_pretrained`."
        )
    return (
        f"{checkpoint.folder} is a classifier with {labels} labels and no reward model. Start from the model it was "
        "made from."
    )
