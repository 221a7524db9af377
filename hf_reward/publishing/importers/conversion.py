"""Load the weights found by an importer into a stock classifier with one label. All weights are checked."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_reward.modeling.model_tokenizer import match_pad_token
from hf_reward.modeling.reward_head import as_reward_model
from hf_reward.modeling.weight_safety import refuse_non_finite
from hf_reward.publishing.importers.foreign_checkpoint import Checkpoint, ForeignWeights

# Buffers that earlier releases of transformers saved and later ones compute.
_OLD_BUFFERS = re.compile(r"\.(inv_freq|masked_bias|position_ids)$|\.(attn|attention)\.bias$")


@dataclass(kw_only=True)
class ForeignModel:
    """An imported reward model. The original reward of a text is the reward of this model plus `offset`."""

    model: PreTrainedModel
    """The stock classifier, float32."""
    tokenizer: PreTrainedTokenizerBase
    """Its prepared tokenizer."""
    format: str
    """Name of the original layout."""
    reads: str
    """Position at which the original code computes the reward."""
    offset: float = 0.0
    """Bias of the head, which stock decoders do not support."""
    notes: list[str] = field(default_factory=list)
    """Notes on reproducing the original rewards."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Settings of the original layout to record, such as `mean` and `std`."""


def build_model(checkpoint: Checkpoint, found: ForeignWeights, format: str) -> ForeignModel:
    """Load the weights that an importer found into the stock classifier.

    Args:
        checkpoint: The checkpoint.
        found: Its weights under stock names.
        format: Name of the layout.

    Returns:
        The model with its tokenizer.

    Raises:
        ValueError: If weights are missing, have another shape, or are not part of the stock class.
    """
    tokenizer = checkpoint.tokenizer  # the cheaper check first
    weights = {key: tensor for key, tensor in found.backbone.items() if not _is_old_buffer(key, checkpoint.target)}
    weights["score.weight"] = found.head.weight
    _require_size(checkpoint, weights)
    loaded: Any = type(checkpoint.target).from_pretrained(
        None,
        config=checkpoint.config,
        state_dict=weights,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # `_check_fit` reports and refuses them
    )
    model, report = loaded
    _check_fit(checkpoint.folder, model, report)
    refuse_non_finite(checkpoint.folder, model.named_parameters())
    model.name_or_path = model.config._name_or_path = str(checkpoint.folder)
    model = match_pad_token(as_reward_model(model), tokenizer).eval()
    notes = list(found.notes)
    if found.head.bias:
        notes.append(
            f"The bias of the head ({found.head.bias:.6g}) is left out, because stock decoders have none. The original "
            "reward is the reward of this model plus the bias. Reward differences are unchanged."
        )
    return ForeignModel(
        model=model,
        tokenizer=tokenizer,
        format=format,
        reads=found.reads,
        offset=found.head.bias,
        notes=notes,
        facts=dict(found.facts),
    )


def _require_size(checkpoint: Checkpoint, weights: Mapping[str, Tensor]) -> None:
    """Refuse a configuration that is much larger than the weights, before memory is allocated."""
    wanted = sum(each.numel() for each in checkpoint.target.parameters())
    held = sum(each.numel() for each in weights.values())
    if wanted > 2 * held:
        raise ValueError(
            f"The weights in {checkpoint.folder} have {held:,} parameters, but config.json describes a model with "
            f"{wanted:,}. Copy the model again from its source."
        )


def _check_fit(folder: Path, model: PreTrainedModel, report: dict[str, Any]) -> None:
    problems = {
        "missing": sorted(report["missing_keys"]),
        "of another shape": sorted(str(key[0]) for key in report["mismatched_keys"]),
        "unexpected": sorted(report["unexpected_keys"]),
    }
    if any(problems.values()):
        found = "; ".join(
            f"{len(keys)} weights are {kind} (such as {', '.join(keys[:3])})" for kind, keys in problems.items() if keys
        )
        raise ValueError(
            f"The weights in {folder} do not fit {type(model).__name__}: {found}. Check that the folder contains the "
            "complete model and that config.json belongs to it."
        )


def _is_old_buffer(key: str, target: PreTrainedModel) -> bool:
    if not _OLD_BUFFERS.search(key):
        return False
    try:
        target.get_parameter(key)
    except AttributeError:
        return True
    return False
