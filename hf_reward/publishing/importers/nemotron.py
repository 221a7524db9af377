"""NVIDIA's Nemotron reward models for transformers: language models with the logit of token 0 as reward."""

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
    """Return whether the name of a language model matches. Its weights do not differ from other language models."""
    folder = checkpoint.folder.resolve()
    names = [folder.name, str(checkpoint.settings.get("_name_or_path", ""))]
    if folder.parent.name == "snapshots":  # the Hub's cache: models--<owner>--<name>/snapshots/<commit>
        names.append(folder.parent.parent.name)
    return is_language_model(checkpoint) and any(_NAME.search(name) for name in names)


def is_language_model(checkpoint: Checkpoint) -> bool:
    """Return whether the folder contains a language model without a reward head."""
    named = any(arch.endswith(("ForCausalLM", "LMHeadModel")) for arch in checkpoint.architectures)
    return named and not checkpoint.is_adapter and checkpoint.head_files is None and len(checkpoint.weights) > 0


def convert(checkpoint: Checkpoint) -> ForeignWeights:
    """Return the backbone, and the row of token 0 of the output layer.

    Args:
        checkpoint: The checkpoint.

    Returns:
        The weights under stock names.

    Raises:
        ValueError: If there is no output layer, or the logits are not a linear function.
    """
    config = checkpoint.config.get_text_config()
    changed = [name for name in _LOGIT_SETTINGS if getattr(config, name, None) not in (None, 1, 1.0)]
    if changed:
        raise ValueError(
            f"A model in the nemotron format requires linear logits, but {checkpoint.folder}/config.json sets "
            f"{changed[0]}."
        )
    backbone = checkpoint.backbone(f"{checkpoint.target.base_model_prefix}.", other=())
    key = next((f"{name}weight" for name in LANGUAGE_MODEL_HEADS if f"{name}weight" in checkpoint.weights), None)
    if key is not None:
        rows = checkpoint.weights[key]
    elif config.tie_word_embeddings:
        rows = backbone[_embedding_key(checkpoint)]
    else:
        raise ValueError(f"A model in the nemotron format requires `lm_head.weight`, but {checkpoint.folder} has none.")
    bias = checkpoint.weights.get("lm_head.bias")
    head = LinearHead(weight=rows[:1].clone(), bias=0.0 if bias is None else float(bias[0]))
    note = (
        "Nemotron formats conversations with the chat template without generation prompt, up to 4096 tokens. The "
        "reward is the logit of token 0 at the last token."
    )
    return ForeignWeights(backbone=backbone, head=head, notes=[note])


def _embedding_key(checkpoint: Checkpoint) -> str:
    embedding: Any = checkpoint.target.get_input_embeddings()
    return next(name for name, parameter in checkpoint.target.named_parameters() if parameter is embedding.weight)
