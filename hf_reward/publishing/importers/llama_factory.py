"""LLaMA-Factory: a language model, or an adapter of one, with the value head in a file of its own."""

from hf_reward.publishing.importers.foreign_checkpoint import Checkpoint, ForeignWeights

HEAD = "v_head.summary"


def matches(checkpoint: Checkpoint) -> bool:
    """Whether a value head lies beside the model."""
    return checkpoint.head_files is not None


def convert(checkpoint: Checkpoint) -> ForeignWeights:
    """The backbone, an adapter merged into it, and the value head, under stock names; a missing part is refused."""
    if checkpoint.head_files is None:
        raise ValueError(f"{checkpoint.folder} holds no value_head.safetensors or value_head.bin.")
    head = checkpoint.linear_head(HEAD, checkpoint.head_files)
    if checkpoint.is_adapter:
        backbone = checkpoint.merged_backbone()
    else:
        backbone = checkpoint.backbone(f"{checkpoint.target.base_model_prefix}.", beside=())
    note = (
        "LLaMA-Factory formats texts by the `template` of its training settings. It writes that template into the "
        "tokenizer only if there was none, so compare the tokenizer's chat template with it."
    )
    return ForeignWeights(backbone=backbone, head=head, notes=[note])
