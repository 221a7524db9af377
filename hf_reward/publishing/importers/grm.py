"""GRM (generalizable reward models) with a linear value head; its usual MLP head fits no stock class."""

from hf_reward.publishing.importers.foreign_checkpoint import Checkpoint, ForeignWeights

HEAD = "v_head.summary"


def matches(checkpoint: Checkpoint) -> bool:
    """Whether the configuration says of which kind the value head is, as only GRM does."""
    return f"{HEAD}.weight" in checkpoint.weights and "vhead_layer_type" in checkpoint.settings


def convert(checkpoint: Checkpoint) -> ForeignWeights:
    """The backbone and the value head.

    Args:
        checkpoint: The folder.

    Returns:
        The weights under stock names.
    """
    head = checkpoint.linear_head(HEAD)
    backbone = checkpoint.backbone(f"{checkpoint.target.base_model_prefix}.", beside=("v_head.",))
    return ForeignWeights(backbone=backbone, head=head, notes=["GRM formats texts by the tokenizer's chat template."])
