"""xtuner's `RewardModel`: a `v_head`, and the backbone with its usual prefix or (training checkpoints) `llm.`."""

from hf_reward.publishing.importers.foreign_checkpoint import Checkpoint, ForeignWeights

HEAD = "v_head"
_OTHER_LAYOUTS = ("transformer.", "rwtransformer.")


def matches(checkpoint: Checkpoint) -> bool:
    """Return whether there is a `v_head` without `summary`, and no backbone of another layout."""
    is_other = any(key.startswith(_OTHER_LAYOUTS) for key in checkpoint.weights)
    return f"{HEAD}.weight" in checkpoint.weights and not is_other and "value_head_prefix" not in checkpoint.settings


def convert(checkpoint: Checkpoint) -> ForeignWeights:
    """Return the backbone and the head under stock names."""
    head = checkpoint.linear_head(HEAD)
    in_training = any(key.startswith("llm.") for key in checkpoint.weights)
    prefix = "llm." if in_training else f"{checkpoint.target.base_model_prefix}."
    backbone = checkpoint.backbone(prefix, other=(f"{HEAD}.",))
    facts = {key: checkpoint.settings[key] for key in ("reward_token_id",) if key in checkpoint.settings}
    note = (
        "xtuner appends a reward token (`reward_token_id` in its settings) to each text and computes the reward there. "
        "Add this token to the end of the chat template."
    )
    return ForeignWeights(backbone=backbone, head=head, notes=[note], facts=facts)
