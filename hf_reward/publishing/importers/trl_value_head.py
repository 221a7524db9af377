"""TRL's `AutoModelForCausalLMWithValueHead`: a language model, or an adapter of one, with a value head."""

from hf_reward.publishing.importers.foreign_checkpoint import Checkpoint, ForeignWeights

HEAD = "v_head.summary"


def matches(checkpoint: Checkpoint) -> bool:
    """Whether the value head lies among the model's weights, and was not written by GRM, which names its kind."""
    return f"{HEAD}.weight" in checkpoint.weights and "vhead_layer_type" not in checkpoint.settings


def convert(checkpoint: Checkpoint) -> ForeignWeights:
    """The backbone and the value head.

    With an adapter, TRL saves the adapter as PEFT does and the value head alone as pytorch_model.bin.

    Args:
        checkpoint: The folder.

    Returns:
        The weights under stock names.
    """
    head = checkpoint.linear_head(HEAD)
    stem = f"{checkpoint.target.base_model_prefix}."
    if checkpoint.is_adapter:
        backbone = checkpoint.merged_backbone()
    elif any(key.startswith("pretrained_model.") for key in checkpoint.weights):  # as gathered by ZeRO-3
        beside = ("v_head.", "pretrained_model.lm_head.", "pretrained_model.embed_out.")
        backbone = checkpoint.backbone(f"pretrained_model.{stem}", beside=beside)
    else:
        backbone = checkpoint.backbone(stem, beside=("v_head.",))
    note = "TRL's value head gives a value for every token; the last one's is taken as the reward."
    return ForeignWeights(backbone=backbone, head=head, notes=[note])
