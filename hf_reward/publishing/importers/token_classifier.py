"""Reward models saved as token classifiers with one label, as LLaMA-Factory v1 does: `score` with a bias."""

from hf_reward.publishing.importers.foreign_checkpoint import Checkpoint, ForeignWeights

HEAD = "score"


def matches(checkpoint: Checkpoint) -> bool:
    """Whether config.json says token classifier and the weights hold its `score` with one output."""
    is_named = any(arch.endswith("ForTokenClassification") for arch in checkpoint.architectures)
    return is_named and f"{HEAD}.weight" in checkpoint.weights and checkpoint.weights.shape(f"{HEAD}.weight")[0] == 1


def convert(checkpoint: Checkpoint) -> ForeignWeights:
    """The backbone and the head.

    Args:
        checkpoint: The folder.

    Returns:
        The weights under stock names.
    """
    head = checkpoint.linear_head(HEAD)
    backbone = checkpoint.backbone(f"{checkpoint.target.base_model_prefix}.", beside=(f"{HEAD}.",))
    note = "A token classifier gives a number for every token; the last one's is taken as the reward."
    return ForeignWeights(backbone=backbone, head=head, notes=[note])
