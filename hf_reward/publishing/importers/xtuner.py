"""xtuner's `RewardModel`: the backbone under its usual prefix or, in training checkpoints, `llm.`, and a `v_head`."""

from hf_reward.publishing.importers.foreign_checkpoint import Checkpoint, ForeignWeights

HEAD = "v_head"
_OTHER_LAYOUTS = ("transformer.", "rwtransformer.")


def matches(checkpoint: Checkpoint) -> bool:
    """Whether there is a `v_head` without `summary`, and no other layout's backbone."""
    is_other = any(key.startswith(_OTHER_LAYOUTS) for key in checkpoint.weights)
    return f"{HEAD}.weight" in checkpoint.weights and not is_other and "value_head_prefix" not in checkpoint.settings


def convert(checkpoint: Checkpoint) -> ForeignWeights:
    """The backbone and the head, under stock names."""
    head = checkpoint.linear_head(HEAD)
    in_training = any(key.startswith("llm.") for key in checkpoint.weights)
    prefix = "llm." if in_training else f"{checkpoint.target.base_model_prefix}."
    backbone = checkpoint.backbone(prefix, beside=(f"{HEAD}.",))
    facts = {key: checkpoint.settings[key] for key in ("reward_token_id",) if key in checkpoint.settings}
    note = (
        "xtuner puts its reward token (`reward_token_id` in its settings) behind every text and reads there. Add that "
        "token to the end of the chat template."
    )
    return ForeignWeights(backbone=backbone, head=head, notes=[note], facts=facts)
