"""Starling's `GPTRewardModel`, which came from trlX: the backbone under `transformer.` and a `v_head` without bias."""

from hf_reward.publishing.importers.foreign_checkpoint import BEFORE_FIRST_PAD, Checkpoint, ForeignWeights

HEAD = "v_head"
BACKBONE = "transformer."


def matches(checkpoint: Checkpoint) -> bool:
    """Whether the backbone lies under `transformer.`, beside a `v_head`."""
    return f"{HEAD}.weight" in checkpoint.weights and any(key.startswith(BACKBONE) for key in checkpoint.weights)


def convert(checkpoint: Checkpoint) -> ForeignWeights:
    """The backbone and the head.

    Args:
        checkpoint: The folder.

    Returns:
        The weights under stock names.
    """
    head = checkpoint.linear_head(HEAD)
    # The class also keeps the whole language model as `model`, whose backbone is the same tensors once more.
    backbone = checkpoint.backbone(BACKBONE, beside=(f"{HEAD}.", "model."))
    note = (
        "Texts of Starling-RM-7B are in the format of Llama-2-Chat, those of Starling-RM-34B in that of Yi-34B-Chat. "
        "It reads before the first pad token, which is the unknown token for the 7B and id 0 for the 34B."
    )
    return ForeignWeights(backbone=backbone, head=head, reads=BEFORE_FIRST_PAD, notes=[note])
