"""DeepSpeed-Chat's `RewardModel`: the backbone under `rwtransformer.` and a `v_head` without bias."""

from hf_reward.publishing.importers.foreign_checkpoint import BEFORE_FIRST_PAD, Checkpoint, ForeignWeights

HEAD = "v_head"
BACKBONE = "rwtransformer."


def matches(checkpoint: Checkpoint) -> bool:
    """Whether the backbone lies under `rwtransformer.`."""
    return f"{HEAD}.weight" in checkpoint.weights and any(key.startswith(BACKBONE) for key in checkpoint.weights)


def convert(checkpoint: Checkpoint) -> ForeignWeights:
    """The backbone and the head.

    Args:
        checkpoint: The folder.

    Returns:
        The weights under stock names.
    """
    head = checkpoint.linear_head(HEAD)
    backbone = checkpoint.backbone(BACKBONE, beside=(f"{HEAD}.",))
    note = (
        "Texts of DeepSpeed-Chat are ' Human: {prompt} Assistant: {response}' and '<|endoftext|>' after that. It reads "
        "before the first pad token, which is EOS for all but Llama tokenizers: where '<|endoftext|>' is EOS, its "
        "reward is that of the text without it."
    )
    return ForeignWeights(backbone=backbone, head=head, reads=BEFORE_FIRST_PAD, notes=[note])
