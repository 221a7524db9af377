"""NVIDIA's Nemotron reward models for transformers: language models whose logit of token 0 is the reward."""

import re
from typing import Any

from hf_reward.publishing.importers.foreign_checkpoint import (
    LANGUAGE_MODEL_HEADS,
    Checkpoint,
    ForeignWeights,
    LinearHead,
)

_NAME = re.compile(r"nemotron.*reward", re.IGNORECASE)
_LOGIT_SETTINGS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")


def matches(checkpoint: Checkpoint) -> bool:
    """Whether a language model is named as one of them: its weights look like those of any other."""
    folder = checkpoint.folder.resolve()
    names = [folder.name, str(checkpoint.settings.get("_name_or_path", ""))]
    if folder.parent.name == "snapshots":  # the Hub's cache: models--<owner>--<name>/snapshots/<commit>
        names.append(folder.parent.parent.name)
    return is_language_model(checkpoint) and any(_NAME.search(name) for name in names)


def is_language_model(checkpoint: Checkpoint) -> bool:
    """Whether the folder holds a language model without any reward head."""
    named = any(arch.endswith(("ForCausalLM", "LMHeadModel")) for arch in checkpoint.architectures)
    return named and not checkpoint.is_adapter and checkpoint.head_files is None and len(checkpoint.weights) > 0


def convert(checkpoint: Checkpoint) -> ForeignWeights:
    """The backbone, and the row of token 0 of the layer that gives the logits.

    Args:
        checkpoint: The folder.

    Returns:
        The weights under stock names.

    Raises:
        ValueError: If there is no such layer, or the model changes logits before it gives them.
    """
    config = checkpoint.config.get_text_config()
    changed = [name for name in _LOGIT_SETTINGS if getattr(config, name, None) not in (None, 1, 1.0)]
    if changed:
        raise ValueError(f"The logits of {checkpoint.folder} are no linear function: config.json sets {changed[0]}.")
    backbone = checkpoint.backbone(f"{checkpoint.target.base_model_prefix}.", beside=())
    key = next((f"{name}weight" for name in LANGUAGE_MODEL_HEADS if f"{name}weight" in checkpoint.weights), None)
    if key is not None:
        rows = checkpoint.weights[key]
    elif config.tie_word_embeddings:
        rows = backbone[_embedding_key(checkpoint)]
    else:
        raise ValueError(f"{checkpoint.folder} holds no `lm_head.weight`, whose first row gives the reward.")
    bias = checkpoint.weights.get("lm_head.bias")
    head = LinearHead(weight=rows[:1].clone(), bias=0.0 if bias is None else float(bias[0]))
    note = (
        "Nemotron formats conversations by the chat template without generation prompt, up to 4096 tokens, and reads "
        "the logit of token 0 at the last token."
    )
    return ForeignWeights(backbone=backbone, head=head, notes=[note])


def _embedding_key(checkpoint: Checkpoint) -> str:
    embedding: Any = checkpoint.target.get_input_embeddings()
    return next(name for name, parameter in checkpoint.target.named_parameters() if parameter is embedding.weight)
