"""TRL's `AutoModelForCausalLMWithValueHead`: a language model or an adapter with a value head."""

from hf_reward.publishing.importers.foreign_checkpoint import Checkpoint, ForeignWeights

HEAD = "v_head.summary"


def matches(checkpoint: Checkpoint) -> bool:
    """Return whether the weights include a value head that was not written by GRM, which records its type."""
    return f"{HEAD}.weight" in checkpoint.weights and "vhead_layer_type" not in checkpoint.settings


def convert(checkpoint: Checkpoint) -> ForeignWeights:
    """Return the backbone and the value head.

    With an adapter, TRL saves the adapter as PEFT does and the value head alone as pytorch_model.bin.

    Args:
        checkpoint: The checkpoint.

    Returns:
        The weights under stock names.
    """
    head = checkpoint.linear_head(HEAD)
    stem = f"{checkpoint.target.base_model_prefix}."
    if checkpoint.is_adapter:
        backbone = checkpoint.merged_backbone()
    elif any(key.startswith("pretrained_model.") for key in checkpoint.weights):  # as gathered by ZeRO-3
        other = ("v_head.", "pretrained_model.lm_head.", "pretrained_model.embed_out.")
        backbone = checkpoint.backbone(f"pretrained_model.{stem}", other=other)
    else:
        backbone = checkpoint.backbone(stem, other=("v_head.",))
    note = "TRL's value head gives one value per token; the value of the last token is the reward."
    return ForeignWeights(backbone=backbone, head=head, notes=[note])
