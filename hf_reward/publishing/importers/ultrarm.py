"""UltraRM and Eurus-RM: the backbone under `model.` and a `regression_head`."""

from hf_reward.publishing.importers.foreign_checkpoint import Checkpoint, ForeignWeights

HEAD = "regression_head"


def matches(checkpoint: Checkpoint) -> bool:
    """Whether there is a regression head."""
    return f"{HEAD}.weight" in checkpoint.weights


def convert(checkpoint: Checkpoint) -> ForeignWeights:
    """The backbone and the head.

    Args:
        checkpoint: The folder.

    Returns:
        The weights under stock names.
    """
    head = checkpoint.linear_head(HEAD)
    backbone = checkpoint.backbone("model.", beside=(f"{HEAD}.",))
    note = (
        "Texts of UltraRM are 'Human: {prompt}\\n\\nAssistant: {response}' (the examples in its card have one newline)"
        ", those of Eurus-RM '[INST] {prompt} [\\INST] {response}', both with BOS and without EOS."
    )
    return ForeignWeights(backbone=backbone, head=head, notes=[note])
